"""The child process that flushes and compacts: what `runner.Helper` talks to."""

import gc
import os
import select
import sys
import time
from collections.abc import Generator
from typing import Any

import msgspec

from flowkit.errors import StoreError
from flowkit.store.files import Disk
from flowkit.store.jobs import Done, Job, finished, work
from flowkit.store.runner import SIZE, job_failed, pace


class _Desk:
    """Jobs come in on a pipe; answers go out on another. One job at a time, but an urgent one goes before."""

    def __init__(self, bytes_per_second: int) -> None:
        self.bytes_per_second = bytes_per_second
        self.parent = os.getppid()
        self.buffer = b""
        self.waiting: list[tuple[int, Job]] = []

    def serve(self) -> None:
        while True:
            self.look(wait=not self.waiting)
            if self.waiting:
                number, job = self.waiting.pop(0)
                self.do(number, job)

    def look(self, *, wait: bool) -> None:
        """Take in what has come. Ends the process when there is no one left to work for."""
        while wait or select.select([0], [], [], 0)[0]:
            data = os.read(0, 65536)
            if not data or os.getppid() != self.parent:
                raise SystemExit(0)
            self.buffer += data
            while len(self.buffer) >= SIZE.size:
                (size,) = SIZE.unpack_from(self.buffer)
                if len(self.buffer) < SIZE.size + size:
                    break
                number, raw = msgspec.msgpack.decode(self.buffer[SIZE.size : SIZE.size + size])
                self.buffer = self.buffer[SIZE.size + size :]
                self.waiting.append((number, msgspec.convert(raw, Job)))
                self.waiting.sort(key=lambda row: not row[1].urgent)
                wait = False

    def do(self, number: int, job: Job) -> None:
        started = time.monotonic()
        done, trouble = None, None
        try:
            done = self._steps(work(job, Disk()), job)
            done = msgspec.structs.replace(done, seconds=time.monotonic() - started)
        except StoreError as error:
            trouble = str(error)
        except OSError as error:
            trouble = str(job_failed(job, error))
        try:
            self.answer(number, done, trouble)
        except BrokenPipeError:
            raise SystemExit(0) from None  # there is no one left to work for

    def _steps(self, steps: Generator[int, None, Done], job: Job) -> Done:
        handled, since = 0, time.monotonic()

        def between(more: int) -> None:
            nonlocal handled
            handled += more
            if not job.urgent:
                self._look_around(handled, since)

        return finished(steps, between)

    def _look_around(self, handled: int, since: float) -> None:
        """Do what is more urgent, and wait if so many bytes since then are too many."""
        self.look(wait=False)
        while self.waiting and self.waiting[0][1].urgent:
            self.do(*self.waiting.pop(0))
        while wait := pace(handled, since, self.bytes_per_second):
            select.select([0], [], [], min(wait, 0.1))
            self.look(wait=False)
            if self.waiting and self.waiting[0][1].urgent:
                break

    def answer(self, number: int, done: Any, error: str | None) -> None:
        data = msgspec.msgpack.encode([number, done, error])
        view = memoryview(SIZE.pack(len(data)) + data)
        while view:
            view = view[os.write(1, view) :]


def main() -> None:
    """Serve until standard input ends."""
    os.nice(5)  # events before housekeeping
    gc.disable()  # columns hold no cycles; looking for them in millions of keys would cost a third of a merge
    _Desk(int(sys.argv[2])).serve()
