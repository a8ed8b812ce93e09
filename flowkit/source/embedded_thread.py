"""The broker's file in a thread of its own: the event loop never waits for a disk or a lock."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar

from flowkit.errors import StoreError
from flowkit.source.embedded_file import BrokerFile, told

P = ParamSpec("P")
R = TypeVar("R")


class FileThread:
    """One BrokerFile and the one thread that touches it; what it is asked for is done in order."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._file: BrokerFile | None = None

    async def open(self, make: Callable[[], BrokerFile]) -> None:
        """Call `make` in the new thread, which the file then belongs to."""
        self._thread = ThreadPoolExecutor(1, "flowkit-broker")
        try:
            self._file = await asyncio.get_running_loop().run_in_executor(self._thread, make)
        except BaseException:
            self._thread.shutdown(wait=False)
            self._thread = None
            raise

    async def run(self, work: Callable[Concatenate[BrokerFile, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """`work(file, …)` in the thread, after what it already has to do. SQLite's errors become flowkit's."""
        thread, file = self._thread, self._file
        if thread is None or file is None:
            raise StoreError("the broker is not open: use it within 'async with'")

        def call() -> R:
            try:
                return work(file, *args, **kwargs)
            except sqlite3.Error as error:
                raise told(error, file.path) from error

        result = await asyncio.get_running_loop().run_in_executor(thread, call)
        if file.checkpoint_due and file is self._file:  # after the answer: the disk has time until the next commit
            thread.submit(file.checkpoint)
        return result

    async def close(self) -> None:
        """Finish what has been asked for, and end the thread."""
        thread, file, self._thread, self._file = self._thread, self._file, None, None
        if thread is not None and file is not None:
            try:
                await asyncio.get_running_loop().run_in_executor(thread, file.close)
            finally:
                thread.shutdown(wait=False)
