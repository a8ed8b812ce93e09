"""Topics in an embedded broker's file: appending, reading, and deleting what is old.

Records lie in chunks, as Kafka's lie in record batches: a commit writes one row a partition instead of one a record,
and a reader decodes thousands of records in one call.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from zlib import crc32

import msgspec

from flowkit.errors import RecordError, StoreCorrupt
from flowkit.source.embedded_file import BrokerFile
from flowkit.source.local import Records
from flowkit.source.rules import (
    Columns,
    KeyValueTime,
    check_same_partitions,
    columns_of,
    place,
    unknown_partition,
    unknown_topic,
)

OFFSET_BITS = 40
"""Room for a million million records a partition, and for 2**23 partitions."""

CHUNK_RECORDS = 2_048
CHUNK_BYTES = 1 << 20
"""Chunks are cut in half until they are no bigger (or a single record): reading starts at a chunk's first record."""

READ_BYTES = 8 << 20
"""A read stops after so much, however few records that are: a fetch of big records must not fill the memory."""

MAX_BYTES = 900_000_000
"""SQLite takes a thousand million bytes a value."""

Chunk = tuple[int, int, bytes]
"""Number of records, CRC-32, encoded columns."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[list[bytes | None] | None, list[bytes | None], list[int]]).decode


def create(file: BrokerFile, url: str, topic: str, partitions: int) -> None:
    """Make a topic. Raises ConfigError if it exists with another number of partitions."""
    with file.transaction() as sql:
        found = topics(file).get(topic, 0)
        if found:
            check_same_partitions(topic, url, found, partitions)
            return
        rows = [(topic, partition) for partition in range(partitions)]
        sql.executemany("INSERT INTO logs (topic, partition) VALUES (?, ?)", rows)


def topics(file: BrokerFile) -> dict[str, int]:
    """The number of partitions by topic."""
    return dict(file.sql.execute("SELECT topic, count(*) FROM logs GROUP BY topic ORDER BY topic"))


def partitions(file: BrokerFile, topic: str) -> int:
    """The number of partitions; 0 if there is no such topic."""
    (count,) = file.sql.execute("SELECT count(*) FROM logs WHERE topic = ?", (topic,)).fetchone()
    return int(count)


def end_offsets(file: BrokerFile, url: str, topic: str) -> list[int]:
    """By partition, the offset that the next record will have. Raises ConfigError if there is no such topic."""
    rows = file.sql.execute("SELECT end_offset FROM logs WHERE topic = ? ORDER BY partition", (topic,)).fetchall()
    if not rows:
        raise unknown_topic(topic, url, topics(file))
    return [end for (end,) in rows]


def log_of(file: BrokerFile, url: str, topic: str, partition: int) -> tuple[int, int, int]:
    """Number of the log, its first offset, and the next one. Raises ConfigError if there is no such partition."""
    row: tuple[int, int, int] | None = file.sql.execute(
        "SELECT id, start_offset, end_offset FROM logs WHERE topic = ? AND partition = ?", (topic, partition)
    ).fetchone()
    if row is None:
        raise unknown_partition(topic, partition, url, topics(file))
    return row


# --- in ---------------------------------------------------------------------------------------------------------------


def put(file: BrokerFile, url: str, topic: str, records: Sequence[KeyValueTime], partition: int | None) -> None:
    """Append records from outside, all or none."""
    ends = end_offsets(file, url, topic)
    # The turn goes on from process to process, for what lies in the topic is all that they share.
    groups = place(records, len(ends), partition, turn=sum(ends))
    packed = {(topic, at): pack(columns_of(topic, group)) for at, group in groups.items()}
    with file.transaction(size_of(packed)) as sql:
        append(file, sql, url, packed)


def append(file: BrokerFile, sql: sqlite3.Connection, url: str, packed: dict[tuple[str, int], list[Chunk]]) -> None:
    """Append chunks to their logs, within a transaction."""
    for (topic, partition), chunks in packed.items():
        log, _, end = log_of(file, url, topic, partition)
        rows = []
        for count, crc, data in chunks:
            rows.append((log << OFFSET_BITS | end, count, crc, data))
            end += count
        sql.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?)", rows)
        sql.execute("UPDATE logs SET end_offset = ? WHERE id = ?", (end, log))


def pack(columns: Columns) -> list[Chunk]:
    """Columns as chunks. Raises RecordError if a single record is too big."""
    count = len(columns[1])
    return [
        chunk
        for start in range(0, count, CHUNK_RECORDS)
        for chunk in _cut(columns, start, min(start + CHUNK_RECORDS, count))
    ]


def _cut(columns: Columns, start: int, stop: int) -> Iterator[Chunk]:
    keys, values, times = (column[start:stop] for column in columns)
    data = _encode((keys if any(key is not None for key in keys) else None, values, times))
    count = stop - start
    if len(data) <= CHUNK_BYTES or (count == 1 and len(data) <= MAX_BYTES):
        yield count, crc32(data), data
    elif count == 1:
        raise RecordError(f"a record of {len(data)} bytes: an embedded topic takes at most {MAX_BYTES}")
    else:
        yield from _cut(columns, start, start + count // 2)
        yield from _cut(columns, start + count // 2, stop)


def size_of(packed: dict[tuple[str, int], list[Chunk]]) -> int:
    """Bytes of all chunks."""
    return sum(len(data) for chunks in packed.values() for _, _, data in chunks)


# --- out --------------------------------------------------------------------------------------------------------------


def read(file: BrokerFile, url: str, topic: str, partition: int, offset: int, limit: int) -> Records:
    """At most `limit` records from `offset` on (or from the oldest that is left, if that comes later).

    They may be fewer though there are more: a read takes about READ_BYTES. Raises StoreCorrupt if the bytes are not
    what was written.
    """
    file.sql.execute("BEGIN")  # bounds and chunks as of one moment
    try:
        log, start, end = log_of(file, url, topic, partition)
        first = max(offset, start)
        stop = min(end, first + max(limit, 0))
        keys, values, times = _read(file, log, first, stop) if first < stop else ([], [], [])
    except (ValueError, msgspec.MsgspecError) as error:
        raise StoreCorrupt(f"{file.path}: {topic}[{partition}] is damaged at {error}") from error
    finally:
        file.roll_back()
    return Records(topic, partition, first, keys, values, times)


def _read(file: BrokerFile, log: int, first: int, stop: int) -> Columns:
    """The records from offset `first` up to `stop`. Raises ValueError saying where a chunk is damaged."""
    base = log << OFFSET_BITS
    (holder,) = file.sql.execute("SELECT max(id) FROM chunks WHERE id BETWEEN ? AND ?", (base, base + first)).fetchone()
    at, size = first, 0
    keys: list[bytes | None] = []
    values: list[bytes | None] = []
    times: list[int] = []
    for id_, count, crc, data in file.sql.execute(
        "SELECT id, records, crc, data FROM chunks WHERE id >= ? AND id < ? ORDER BY id", (holder or base, base + stop)
    ):
        if id_ - base > at:
            raise ValueError(f"offset {at}: the next chunk is missing")
        at = id_ - base + count
        if crc32(data) != crc:
            raise ValueError(f"offset {id_ - base}: the checksum does not match")
        more = _decode(data)
        keys += more[0] or [None] * count
        values += more[1]
        times += more[2]
        size += len(data)
        if size >= READ_BYTES:
            break
    else:
        if at < stop:
            raise ValueError(f"offset {at}: the next chunk is missing")
    wanted = slice(first - (at - len(values)), stop - (at - len(values)))
    return keys[wanted], values[wanted], times[wanted]


def delete_before(file: BrokerFile, url: str, topic: str, partition: int, offset: int) -> None:
    """Forget the records before `offset`; their room is used again for new ones."""
    with file.transaction() as sql:
        log, start, end = log_of(file, url, topic, partition)
        offset = max(start, min(offset, end))
        base = log << OFFSET_BITS
        sql.execute(
            "DELETE FROM chunks WHERE id BETWEEN ? AND ? AND id + records <= ?", (base, base | offset, base | offset)
        )
        sql.execute("UPDATE logs SET start_offset = ? WHERE id = ?", (offset, log))
