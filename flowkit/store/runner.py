"""Where jobs run: in a process of their own, so that neither the event loop nor the GIL feels them, or at once, in
tests.

    parent → child   frame := size:u32 msgpack [id, Job]
    child → parent   frame := size:u32 msgpack [id, Done | nil, error | nil]

The child reads and writes files only. It ends when its standard input does, or its parent is gone. One child serves all
stores of a worker; an urgent job (a flush, for which commits may have to wait) goes before one that is under way.
"""

import asyncio
import contextlib
import struct
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec

from flowkit.errors import StoreError
from flowkit.store.events import tell
from flowkit.store.files import Disk, Files
from flowkit.store.jobs import Done, Job, finished, work
from flowkit.store.progress import OnProgress, Step

SIZE = struct.Struct("<I")
TRIES = 5
_BOOT = (
    # The package without its front door: a helper that merges files needs no agents, and starts in a third of the time.
    "import sys, types; m = types.ModuleType('flowkit'); m.__path__ = [sys.argv[1]]; sys.modules['flowkit'] = m; "
    "from flowkit.store.helper import main; main()"
)


class Runner(Protocol):
    """Does jobs."""

    async def run(self, job: Job) -> Done:
        """Do one; its outputs are durable then. Raises StoreError."""


class Inline:
    """Does jobs at once, in the caller's thread."""

    def __init__(self, files: Files | None = None, progress: OnProgress | None = None) -> None:
        self.files, self.progress = files or Disk(), progress

    async def run(self, job: Job) -> Done:
        """Do one."""
        names = job.logs or [name for run in job.runs for name in run]
        handled = 0

        def tell_progress(more: int) -> None:
            nonlocal handled
            handled += more
            if self.progress is not None:
                self.progress(Step("flush" if job.logs else "compaction", min(handled, total), total))

        try:
            total = sum((Path(job.directory) / name).stat().st_size for name in names) if self.progress else 0
            return finished(work(job, self.files), tell_progress)
        except OSError as error:
            raise job_failed(job, error) from error


def job_failed(job: Job, error: OSError) -> StoreError:
    """A job's OSError in words."""
    what = "flush" if job.logs else "compaction"
    return StoreError(
        f"{job.directory}: {what} failed: {error.strerror or error} ({error.filename or 'while writing'})"
    )


class Helper:
    """Does jobs in a child process, which is started with the first one."""

    def __init__(self, bytes_per_second: int | None = None) -> None:
        self.bytes_per_second = bytes_per_second
        self._process: asyncio.subprocess.Process | None = None
        self._readings: set[asyncio.Task[None]] = set()
        self._waiting: dict[int, asyncio.Future[Done]] = {}
        self._starting = asyncio.Lock()
        self._next = 0

    async def run(self, job: Job) -> Done:
        """Do one. If the child dies, which may be another job's doing, it is tried again by another, `TRIES` times."""
        for tries_left in reversed(range(TRIES)):
            try:
                return await self._ask(job)
            except ConnectionError as error:
                if not tries_left:
                    what = f"the compaction process ended {TRIES} times ({error})"
                    raise StoreError(f"{job.directory}: {what}: is there enough memory?") from error
            except OSError as error:
                raise StoreError(f"{job.directory}: no compaction process can be started: {error.strerror}") from error
            tell("warning", "the compaction process ended by itself; starting another", directory=job.directory)
        raise AssertionError

    async def _ask(self, job: Job) -> Done:
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                await self._start()
        assert self._process is not None
        process, waiting = self._process, self._waiting
        assert process.stdin is not None
        number, self._next = self._next, self._next + 1
        answer: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        waiting[number] = answer
        data = msgspec.msgpack.encode([number, job])
        try:
            process.stdin.write(SIZE.pack(len(data)) + data)
            await process.stdin.drain()
            return await answer
        except ConnectionError:
            if self._process is process:  # dead, though it may not have been reaped yet: the next try needs another
                self._process = None
            raise
        finally:
            waiting.pop(number, None)

    async def _start(self) -> None:
        package = str(Path(__file__).parents[1])
        limit = str(self.bytes_per_second or 0)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _BOOT, package, limit,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        # Its own: that an earlier one has died is no answer to what this one is asked.
        self._waiting = {}
        reading = asyncio.create_task(self._read(self._process, self._waiting), name="store helper")
        self._readings.add(reading)
        reading.add_done_callback(self._readings.discard)

    async def _read(self, process: Any, waiting: "dict[int, asyncio.Future[Done]]") -> None:
        try:
            while True:
                (size,) = SIZE.unpack(await process.stdout.readexactly(SIZE.size))
                number, done, error = msgspec.msgpack.decode(await process.stdout.readexactly(size))
                answer = waiting.get(number)
                if answer is None or answer.done():
                    continue
                if error is not None:
                    answer.set_exception(StoreError(error))
                else:
                    answer.set_result(msgspec.convert(done, Done))
        except (asyncio.IncompleteReadError, ConnectionError):
            await process.wait()
            for answer in waiting.values():
                if not answer.done():
                    answer.set_exception(ConnectionError(f"exit status {process.returncode}"))

    async def close(self) -> None:
        """End the child; what it was doing is left undone."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(ConnectionError):
                await process.wait()
        if self._readings:
            await asyncio.wait(self._readings)


@asynccontextmanager
async def helper(bytes_per_second: int | None = None) -> AsyncIterator[Helper]:
    """A helper as long as this context lasts. `bytes_per_second` limits what compaction writes."""
    made = Helper(bytes_per_second)
    try:
        yield made
    finally:
        await made.close()


def pace(handled: int, since: float, bytes_per_second: int) -> float:
    """For how many seconds to wait, having handled so many bytes since then (monotonic seconds)."""
    return max(0.0, handled / bytes_per_second - (time.monotonic() - since)) if bytes_per_second else 0.0
