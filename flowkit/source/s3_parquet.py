"""A Parquet object, read by pyarrow (the extra `parquet`) in row groups: each row as the JSON that it would be."""

import io
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import anyio.to_thread
import msgspec

from flowkit.errors import InputError

ROWS = 10_000
"""So many are made at once."""


class RowBatch:
    """Consecutive rows of one object, of which `first` came before."""

    keys: Sequence[bytes | None] | None = None
    times: Sequence[int] | None = None

    def __init__(self, name: str, first: int, values: list[bytes]) -> None:
        self.values: Sequence[bytes | None] = values
        self._name, self._first = name, first

    def __len__(self) -> int:
        return len(self.values)

    def position(self, count: int) -> Any:
        """How many rows lie before that point."""
        return self._first + count

    def offset(self, index: int) -> int:
        """The number of row `index`."""
        return self._first + index

    def where(self, index: int) -> str:
        """`OBJECT row N`, from 1."""
        return f"{self._name} row {self._first + index + 1}"


class ParquetReader:
    """Reads one object, which lies in `file`, from row `start` on. The next rows are made in a thread meanwhile."""

    fields: tuple[str, ...] | None = None

    def __init__(self, name: str, file: io.FileIO, start: int) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self._name, self._at = name, 0
        try:
            self._file = parquet.ParquetFile(file)
        except pa.ArrowException as error:
            raise InputError(f"{name}: is no Parquet that can be read: {error}") from error
        self._error = pa.ArrowException
        groups = [self._file.metadata.row_group(n).num_rows for n in range(self._file.num_row_groups)]
        first = 0
        while first < len(groups) and self._at + groups[first] <= start:
            self._at += groups[first]
            first += 1
        self._left = sum(groups[first:])
        self._skip = start - self._at
        self._batches = (
            self._file.iter_batches(ROWS, row_groups=list(range(first, len(groups)))) if self._left else None
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"read {name}")
        self._next: Future[list[bytes]] | None = None
        self._rows: list[bytes] = []
        self.at_end = self._left <= self._skip

    async def fetch(self, max_records: int) -> RowBatch | None:
        """The next rows. Raises InputError."""
        while not self._rows and not self.at_end:
            future = self._next or self._thread.submit(self._make)
            self._rows = await anyio.to_thread.run_sync(future.result, abandon_on_cancel=True)
            self._left -= len(self._rows)
            self._next = self._thread.submit(self._make) if self._left else None
            self._at, self._rows, self._skip = self._at + self._skip, self._rows[self._skip :], 0
        if not self._rows:
            return None
        given, self._rows = self._rows[:max_records], self._rows[max_records:]
        batch = RowBatch(self._name, self._at, given)
        self._at += len(given)
        self.at_end = not self._rows and not self._left
        return batch

    def _make(self) -> list[bytes]:
        assert self._batches is not None
        try:
            return [msgspec.json.encode(row) for row in next(self._batches).to_pylist(maps_as_pydicts="strict")]
        except self._error as error:
            raise InputError(f"{self._name}: cannot be read after row {self._at}: {error}") from error

    async def close(self) -> None:
        """Let go of the object."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        await anyio.to_thread.run_sync(self._file.close, True)
