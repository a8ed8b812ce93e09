"""Lookups in a database: one query with the key as its parameter, its first row as the answer."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from flowkit.errors import ConfigError

U = TypeVar("U")

Fetch = Callable[[str, Any], Awaitable[Mapping[str, Any] | None]]


def sql(connect: str | Path | Callable[..., Any], query: str, type_: type[U]) -> "SqlLookup[U]":
    """Ask a database: `query` with one parameter, the key. The columns of the first row are the fields of `type_`.

    `connect` is the path of an SQLite file (opened to read only), a function that makes a DB-API connection, or an
    `async def fetch(query, key)` that gives the row as a mapping, or None. What blocks runs in a thread, one query at a
    time; a connection that fails is made anew for the next.

    >>> sql("devices.db", "SELECT id, model FROM devices WHERE id = ?", dict)
    sql('SELECT id, model FROM devices WHERE id = ?')
    """
    return SqlLookup(connect, query, type_)


class SqlLookup(Generic[U]):
    """Made by `sql`."""

    def __init__(self, connect: str | Path | Callable[..., Any], query: str, type_: type[U]) -> None:
        if not isinstance(connect, str | Path) and not callable(connect):
            raise ConfigError(f"lookup.sql({connect!r}, …): give a path, or a function that connects")
        if not query.strip():
            raise ConfigError(f"lookup.sql(…, {query!r}): give a query with one parameter")
        self.connect, self.query, self.type = connect, query, type_
        self._fetches = not isinstance(connect, str | Path) and inspect.iscoroutinefunction(connect)
        self._connection: Any = None
        self._lock: Any = None

    def __repr__(self) -> str:
        return f"sql({self.query!r})"

    def begin(self) -> "SqlLookup[U]":
        return SqlLookup(self.connect, self.query, self.type)

    async def __call__(self, key: Any, /) -> U | None:
        if self._fetches:
            assert callable(self.connect)
            row = await self.connect(self.query, key)
        else:
            import anyio
            import anyio.to_thread

            if self._lock is None:
                self._lock = anyio.Lock()
            async with self._lock:
                row = await anyio.to_thread.run_sync(self._ask, key)
        return None if row is None else msgspec.convert(dict(row), self.type, strict=False)

    def _ask(self, key: Any) -> dict[str, Any] | None:
        try:
            if self._connection is None:
                self._connection = self._connect()
            cursor = self._connection.cursor()
            cursor.execute(self.query, (key,))
            row = cursor.fetchone()
            names = [column[0] for column in cursor.description]
            cursor.close()
        except Exception:
            self._close()
            raise
        return None if row is None else dict(zip(names, row, strict=True))

    def _connect(self) -> Any:
        if callable(self.connect):
            return self.connect()
        import sqlite3

        uri = f"{Path(self.connect).absolute().as_uri()}?mode=ro"
        return sqlite3.connect(uri, uri=True, check_same_thread=False)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def aclose(self) -> None:
        self._close()
