"""`--emf WHERE`: a worker's metrics in CloudWatch's Embedded Metric Format, written again and again.

    stdout, stderr, a path      where lines go that someone carries to CloudWatch Logs (awslogs, FireLens, the agent)
    logs                        to where FLOWKIT_LOGS leads: flowkit sends them itself

    ?namespace=flowkit          whose metrics they are in CloudWatch
    ?every=60s                  how often
    ?level=task                 also for each task; default `app`: for all of the worker's tasks together

`flowkit.worker.emf` has the names. What cannot be written is told once, and tried again.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl

import anyio.to_thread
import structlog

from flowkit.cli.log_shipping import Shipper
from flowkit.errors import ConfigError
from flowkit.sink import UrlOptions

if TYPE_CHECKING:
    from flowkit.worker import Worker

log = structlog.get_logger("flowkit.emf")

ENDS_SECONDS = 1.0
"""How long the broker may take to say how long its topics are."""
LOOK_SECONDS = 1.0
"""So often it is looked whether the worker is up, however seldom that is told."""


class EmfPlan(NamedTuple):
    """What `--emf` says."""

    place: str
    namespace: str
    every: float
    level: str

    @classmethod
    def read(cls, word: str) -> "EmfPlan":
        """Raises ConfigError with all that is wrong.

        >>> EmfPlan.read("stdout?namespace=shop&every=10s")
        EmfPlan(place='stdout', namespace='shop', every=10.0, level='app')
        """
        place, _, query = word.partition("?")
        options = UrlOptions(dict(parse_qsl(query, keep_blank_values=True)), f"--emf {place}")
        namespace, level = options.text("namespace", "flowkit") or "", options.choice("level", ("app", "task"))
        every = options.duration("every") or 60_000
        if not place:
            options.problems.append("--emf: say where: stdout, stderr, logs or a path")
        if every < 1_000:
            options.problems.append(f"--emf {place}: every={every}ms: a second is the least")
        options.done()
        return cls(place, namespace, every / 1000, level)


def beside_emf(word: str, shipper: Shipper | None) -> "Callable[[Worker], AbstractAsyncContextManager[object]]":
    """What writes them as long as a worker runs, and once more at its end. Raises ConfigError."""
    plan = EmfPlan.read(word)
    write = _writer(plan.place, shipper)

    @asynccontextmanager
    async def beside(worker: "Worker") -> AsyncIterator[None]:
        from flowkit.worker import Emf, WorkerView

        view = WorkerView(worker)
        emf = Emf(view, plan.namespace, "task" if plan.level == "task" else "app")

        async def tell() -> None:
            ends: dict[str, int] = {}
            with suppress(TimeoutError):
                ends = await asyncio.wait_for(view.ends(), ENDS_SECONDS)
            # In a thread: a pipe that nobody reads must not hold up the worker.
            await anyio.to_thread.run_sync(write, emf.lines(ends), abandon_on_cancel=True)

        job = asyncio.create_task(_again_and_again(tell, emf.look, plan), name="embedded metrics")
        try:
            yield
        finally:
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)
            with suppress(OSError, TimeoutError):
                await asyncio.wait_for(tell(), 2 * ENDS_SECONDS)

    return beside


async def _again_and_again(tell: Callable[[], Awaitable[None]], look: Callable[[], None], plan: EmfPlan) -> None:
    failing = False
    while True:
        due = time.monotonic() + plan.every
        while (left := due - time.monotonic()) > 0:
            await asyncio.sleep(min(LOOK_SECONDS, left))
            look()
        try:
            await tell()
        except OSError as error:
            if not failing:
                log.warning("metrics cannot be written; trying again", to=plan.place, error=str(error))
            failing = True
        else:
            failing = False


def _writer(place: str, shipper: Shipper | None) -> Callable[[list[str]], None]:
    if place == "logs":
        if shipper is None:
            raise ConfigError("--emf logs: needs FLOWKIT_LOGS=logs://GROUP/STREAM: where log lines go")

        def to_logs(lines: list[str]) -> None:
            for line in lines:
                shipper.put(line)

        return to_logs
    if place in ("stdout", "stderr"):
        stream = sys.stdout if place == "stdout" else sys.stderr

        def to_stream(lines: list[str]) -> None:
            stream.write("".join(f"{line}\n" for line in lines))
            stream.flush()

        return to_stream
    path = Path(place)
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--emf {place}: there is no directory {path.absolute().parent}: make it")

    def to_file(lines: list[str]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))

    return to_file
