"""The SQLite file of an embedded broker: making it, opening it, one writer at a time, and errors that name it.

    DIR/broker.sqlite3   everything, in WAL mode: readers never wait, a killed writer leaves no trace
    DIR/broker.lock      held (flock) by whoever writes; dies with its process

The lock file is there although SQLite has locks of its own. SQLite before 3.51.3 may corrupt a WAL file if one
connection commits while another checkpoints (https://sqlite.org/wal.html, "the WAL-reset bug"); under one lock for both
that cannot happen. Also, waiters get the lock within a millisecond, where SQLite's own waiting backs off to 100 ms.

WAL needs shared memory: DIR must not lie on a network file system.
"""

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from flowkit.errors import ConfigError, OutcomeUnknown, StoreCorrupt, StoreError, StoreLocked

FORMAT = 1
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
-- One row a partition; offsets below start_offset have been deleted, end_offset is the next one.
CREATE TABLE logs (
    id INTEGER PRIMARY KEY, topic TEXT NOT NULL, partition INTEGER NOT NULL,
    start_offset INTEGER NOT NULL DEFAULT 0, end_offset INTEGER NOT NULL DEFAULT 0, UNIQUE (topic, partition)
);
-- Consecutive records of one log. id is logs.id << 40 | offset of the first; data is [keys or nil, values, times] in
-- msgpack, crc its CRC-32: SQLite does not see a bit that flips inside a value.
CREATE TABLE chunks (id INTEGER PRIMARY KEY, records INTEGER NOT NULL, crc INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE tasks (
    task TEXT PRIMARY KEY, owner TEXT NOT NULL, epoch INTEGER NOT NULL, expires_ms INTEGER NOT NULL,
    state TEXT NOT NULL, number INTEGER NOT NULL DEFAULT 0, commit_id BLOB, positions BLOB
) WITHOUT ROWID;
CREATE TABLE workers (worker TEXT PRIMARY KEY, ttl_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL) WITHOUT ROWID;
"""
CHECKPOINT_BYTES = 8 << 20
"""Written by this process since its last checkpoint: then the WAL is copied into the file, so that it stays short."""

COMMIT_BYTES = 16 << 10
"""What a commit writes besides its payload: a few pages."""


class BrokerFile:
    """One connection, used by one thread.

    `sync` is "full" (a commit survives a power cut) or "normal" (it survives the process; a power cut may take the
    last ones). `wait_ms` is how long a writer waits for the others before StoreLocked.
    """

    def __init__(self, directory: Path, *, sync: str = "full", wait_ms: int = 30_000, writes: bool = True) -> None:
        """Open the file, or make it. Raises ConfigError, StoreCorrupt or StoreError, naming the path."""
        self.path = directory / "broker.sqlite3"
        self._wait_ms = wait_ms
        self._since_checkpoint = 0
        self._lock: int | None = None
        try:
            _make(directory, self.path)
            if writes:
                self._lock = os.open(directory / "broker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self.sql = sqlite3.connect(f"file:{quote(str(self.path))}?mode=rw", uri=True, isolation_level=None)
        except OSError as error:
            self._unlock_for_good()
            raise ConfigError(f"{directory}: cannot be used by a broker: {error.strerror}") from error
        except sqlite3.Error as error:
            self._unlock_for_good()
            raise told(error, self.path) from error
        try:
            self._start(sync)
        except BaseException:
            self.close()
            raise

    def _start(self, sync: str) -> None:
        sql = self.sql
        try:
            sql.execute(f"PRAGMA busy_timeout = {self._wait_ms}")
            tables = {name for (name,) in sql.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "meta" not in tables:
                raise ConfigError(f"{self.path}: is no broker of flowkit (it has no table 'meta')")
            (found,) = sql.execute("SELECT value FROM meta WHERE key = 'format'").fetchone() or (None,)
            if not isinstance(found, int):
                raise StoreCorrupt(f"{self.path}: damaged: its format version is {found!r}")
            if found > FORMAT:
                raise ConfigError(
                    f"{self.path}: written by a newer flowkit (format {found}; this one reads up to {FORMAT}): "
                    "upgrade flowkit"
                )
            sql.execute(f"PRAGMA synchronous = {sync}")
            sql.execute("PRAGMA journal_size_limit = 67108864")
            sql.execute("PRAGMA wal_autocheckpoint = 0")  # under our lock only, see above
            if self._lock is None:
                sql.execute("PRAGMA query_only = 1")
            else:
                with self.transaction():  # told now, not by the first commit, if the file cannot be written
                    pass
                self.checkpoint()
        except sqlite3.Error as error:
            problem = told(error, self.path)
            unusable = _code(error) in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
            raise (ConfigError(str(problem)) if unusable else problem) from error

    @contextmanager
    def transaction(self, payload_bytes: int = 0) -> Iterator[sqlite3.Connection]:
        """What is written in here counts as a whole or not at all.

        Raises StoreLocked or StoreError if it does not count for sure, and OutcomeUnknown if it may.
        """
        with self._locked():
            self.sql.execute("BEGIN IMMEDIATE")
            try:
                yield self.sql
            except BaseException:
                self.roll_back()
                raise
            try:
                self.sql.execute("COMMIT")
            except sqlite3.Error as error:
                self.roll_back()
                if _code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY):  # the commit mark was not written
                    raise
                # The mark may be on disk, though SQLite goes on as if it were not: the next writer overwrites it, but a
                # power cut before that would bring it to life.
                raise OutcomeUnknown(f"{self.path}: nobody knows whether the commit counts: {error}") from error
        self._since_checkpoint += payload_bytes + COMMIT_BYTES

    @property
    def checkpoint_due(self) -> bool:
        """Whether the WAL has grown long."""
        return self._since_checkpoint >= CHECKPOINT_BYTES

    def checkpoint(self) -> None:
        """Copy the WAL into the file, as far as no reader needs it. If it fails the next one does it."""
        with suppress(sqlite3.Error, StoreLocked), self._locked():
            self.sql.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        self._since_checkpoint = 0

    def close(self) -> None:
        """Close the connection; does not fail."""
        with suppress(sqlite3.Error):
            self.sql.close()
        self._unlock_for_good()

    def roll_back(self) -> None:
        """End a transaction without effect; does not fail."""
        if self.sql.in_transaction:  # SQLite may have done it by itself
            with suppress(sqlite3.Error):
                self.sql.execute("ROLLBACK")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        assert self._lock is not None
        until = time.monotonic() + self._wait_ms / 1000
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise StoreLocked(f"{self.path}: another process has been writing for {self._wait_ms} ms") from None
                time.sleep(0.001)  # this thread does nothing else
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _unlock_for_good(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def told(error: sqlite3.Error, path: Path) -> StoreError:
    """SQLite's error in our words, naming the file."""
    match _code(error):
        case sqlite3.SQLITE_FULL:
            return StoreError(f"{path}: the disk is full: make room, then start again; nothing that counted is lost")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_PROTOCOL:
            return StoreLocked(f"{path}: another process keeps it locked")
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return StoreCorrupt(f"{path}: damaged: {error}")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return StoreError(f"{path}: cannot be written: {error}")
        case _:
            return StoreError(f"{path}: {error}")


def _code(error: sqlite3.Error) -> int:
    """The primary result code; -1 if Python itself raised the error."""
    code: int = getattr(error, "sqlite_errorcode", -1)
    return code & 0xFF if code >= 0 else -1


def _make(directory: Path, path: Path) -> None:
    """Make directory and file if they are not there. Another process may be doing the same: one of the two wins.

    The file is made under another name and linked into place when it is complete, so that nobody ever sees half of it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{directory}: is a file; a broker needs a directory") from error
    if path.is_dir():
        raise ConfigError(f"{path}: is a directory; a broker keeps its file under this name")
    if path.exists():
        return
    draft = directory / f".broker-{os.getpid()}-{os.urandom(4).hex()}"
    os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644))  # OSErrors say more than SQLite's do
    try:
        with closing(sqlite3.connect(draft, isolation_level=None)) as sql:
            sql.execute("PRAGMA journal_mode = WAL").fetchall()
            sql.executescript("BEGIN;" + SCHEMA + "COMMIT;")
            sql.execute("INSERT INTO meta VALUES ('format', ?)", (FORMAT,))
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    for entry in (directory, directory.parent):
        fd = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
