"""A process that runs the app of broken.py and kills itself, after a step of a commit, by SIGKILL.

    python -m tests.aws.killed < jobs > what became of them

It is forked by one that has loaded everything, since a chain of kills takes many. A job is a line of JSON, and so are
the two lines that answer it: {"pid": N}, and once that has ended {"code": N}.
"""

import asyncio
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from flowkit.options import WorkerOptions

ROOT = Path(__file__).parents[2]


class Job(NamedTuple):
    """Run from `source` to `url`; die when the step `stop` has been done `after` times and is done again."""

    source: str
    url: str
    state: str
    dead: str
    commit_every: int
    environ: dict[str, str]
    stop: str = ""
    after: int = 0


def die() -> None:
    """As when the machine's power goes, as far as this process can tell."""
    os.kill(os.getpid(), signal.SIGKILL)


async def go(job: Job) -> None:
    """Run it to its end, or not."""
    from flowkit.worker import run
    from tests.aws.broken import copying

    seen = 0

    def look(step: str) -> None:
        nonlocal seen
        seen += step == job.stop
        if seen > job.after:
            die()

    async def hook(step: str) -> None:
        look(step)

    if job.url.startswith("redshift:"):
        from tests.aws.redshift import stand_in

        stand_in(look)
    await run(
        copying(),
        [("readings", job.source)],
        [("out", job.url), ("dead-letters", job.dead)],
        state=job.state,
        options=WorkerOptions(commit_every=job.commit_every, commit_interval=600_000),
        hook=hook,
    )


def main() -> None:
    """Fork for each job."""
    for module in ("aiobotocore.session", "aiohttp", "flowkit.worker", "tests.aws.broken"):
        importlib.import_module(module)
    for line in sys.stdin:
        job = Job(*json.loads(line))
        pid = os.fork()
        if not pid:
            os.dup2(2, 1)  # where it logs
            os.environ.update(job.environ)
            asyncio.run(go(job))
            os._exit(0)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


class Mortals:
    """The process that forks them. Use it within `async with`; what they say is in `log`."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.pid = 0
        """Of the one that runs."""
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> Self:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.aws.killed"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                cwd=ROOT,
            )
        return self

    async def __aexit__(
        self, type_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._process.kill()
        await self._process.wait()
        if error is not None:
            print(self.log.read_text()[-6000:])

    def kill(self) -> None:
        """End the one that runs."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)

    async def run(self, job: Job) -> int:
        """Its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self.pid = (await self._answer())["pid"]
        code: int = (await self._answer())["code"]
        self.pid = 0
        return code

    async def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(await asyncio.wait_for(self._process.stdout.readline(), 60))


if __name__ == "__main__":
    main()
