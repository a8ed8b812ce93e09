"""Objects in S3 as an input of a bounded run: `s3://BUCKET/PREFIX?format=jsonl&since=2026-03-01&until=2026-04-01`.

    format      jsonl, json (values one after another, with or without lines between them: as Firehose writes them),
                csv, text, parquet. If nothing is said, by the objects' names, and json for names without an ending
    since until only objects whose key tells a time of that range, at least in part; those that tell none in any case
    order       time (the default): by the time in the key; key: by name alone
    lanes       how many objects are read at once and merged by their records' times. If nothing is said: as many as
                there are of one time in the keys, at most 16
    kms_key     what they are encrypted under: for `flowkit iam`, S3 itself need not be told
    owner, addressing, and what all services of Amazon have (region, endpoint, profile, …)

How an object is compressed (gzip, Zstandard) its first bytes tell. `s3_listing` says what comes after what. A position
is an object, and a point in it; also which objects there were: a run that goes on takes no new ones, and ends with an
error if an old one has changed. Memory: two ranges an object that is open; zst and Parquet lie in a file meanwhile.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import parse_qsl

import anyio.to_thread

from flowkit.aws import (
    AwsOptions,
    Condition,
    Right,
    S3Place,
    bucket_arn,
    literal,
    need_pyarrow,
    open_client,
    patiently,
)
from flowkit.errors import ConfigError, InputError
from flowkit.source.file import open_reader
from flowkit.source.s3_bytes import S3Object
from flowkit.source.s3_listing import Entry, Listing, arranged, check_same
from flowkit.source.s3_parquet import ParquetReader
from flowkit.source.seam import Batch, Reader

CODECS = {"jsonl": "json", "json": "json", "csv": "csv", "text": "text", "parquet": "json"}
SUFFIXES = {
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    ".json": "json",
    ".csv": "csv",
    ".txt": "text",
    ".parquet": "parquet",
}
OPTIONS = ("format", "since", "until", "order", "lanes", "kms_key", "owner", "addressing")
MOST_LANES = 256
AHEAD = 8
"""So many objects are open beside those that are read, all lanes together: small ones are there at their turn."""
RANGE_BYTES, SMALL_RANGE_BYTES = 4 << 20, 1 << 20
START_SECONDS = 60.0


class S3Topic:
    """The objects under a prefix. Each lane is a split. Raises ConfigError for what is no such URL."""

    def __init__(self, url: str) -> None:
        rest, _, query = url.removeprefix("s3://").partition("?")
        if "@" in rest.partition("/")[0]:
            raise ConfigError("s3://…@…: credentials do not belong into a URL: they come from environment or role")
        self.where = f"s3://{rest}"
        self._aws, own = AwsOptions.take(dict(parse_qsl(query, keep_blank_values=True)), self.where)
        self.place, problems = S3Place.read(rest, own, self.where)
        if self.place.prefix and rest.endswith("/"):  # orders/ is not what begins with orders, as orders-old/ does
            self.place = self.place._replace(prefix=self.place.start)
        known = ", ".join((*AwsOptions._fields, *OPTIONS))
        problems += [f"{self.where}: unknown option {n!r}; there are {known}" for n in own if n not in OPTIONS]
        self._format = own.get("format")
        if self._format is not None and self._format not in CODECS:
            problems.append(f"{self.where}: format={self._format}: there are {', '.join(CODECS)}")
        order, lanes = own.get("order", "time"), own.get("lanes")
        if order not in ("time", "key"):
            problems.append(f"{self.where}: order={order}: there are time, key")
        if lanes is not None and not (lanes.isdecimal() and 1 <= int(lanes) <= MOST_LANES):
            problems.append(f"{self.where}: lanes={lanes}: needs a number from 1 to {MOST_LANES}")
        since, until = (_time(own, name, self.where, problems) for name in ("since", "until"))
        if problems:
            raise ConfigError(*problems)
        if self._format == "parquet":
            need_pyarrow(self.where)
        self._how: dict[str, Any] = {
            "by_time": order == "time",
            "lanes": None if lanes is None else int(lanes),
            "since": since,
            "until": until,
        }
        self.codec: str | None = None
        """Known from `splits` on."""
        self.values = False
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._listing: Listing | None = None
        self._saved: list[Any] = []

    def rights(self) -> Sequence[Right]:
        """What a role has to be allowed to read it."""
        place = self.place._replace(region=self._aws.region)
        start = literal(place.prefix)
        under = (Condition("StringLike", "s3:prefix", (start,)),) if place.prefix else ()
        return [
            Right("s3", ("GetObject",), bucket_arn(place.bucket, f"{start}*")),
            Right("s3", ("ListBucket",), bucket_arn(place.bucket), under),
            *place.key_rights("Decrypt"),
        ]

    def remember(self, positions: Sequence[Any]) -> None:
        """What an earlier run knew, before `splits`: it has begun with what was there then."""
        self._saved = [position for position in positions if position is not None]

    async def splits(self) -> Sequence[int]:
        """The lanes. Raises ConfigError or InputError if there is nothing to read, or not what there was."""
        if self._listing is None:
            if self._client is None:
                connecting = open_client("s3", self._aws, self.where, connections=64, **self.place.config)
                self._client = await self._stack.enter_async_context(connecting)
            entries = await patiently(self.where, self._list, InputError, seconds=START_SECONDS)
            if self._saved:
                stamp = self._saved[0][0]
                entries = [entry for entry in entries if entry.modified <= stamp[0]]
                listing = arranged(entries, **self._how)
                check_same(listing, stamp, self.where, [(saved[1], saved[2]) for saved in self._saved])
            else:
                listing = arranged(entries, **self._how)
            if not listing.total:
                raise InputError(f"{self.where}: no object to read is there. Check the prefix, since= and until=")
            self._find_format([entry.key for lane in listing.lanes for entry in lane])
            self._listing = listing
        return range(len(self._listing.lanes))

    async def open(self, split: int, position: Any) -> "LaneReader":
        """A reader of a lane from `position` (None: from its start), its first object open."""
        assert self._listing is not None
        reader = LaneReader(self, self._listing.lanes[split], self._listing.stamp, len(self._listing.lanes))
        try:
            await reader.begin(position)
        except BaseException:
            await reader.close()
            raise
        return reader

    async def close(self) -> None:
        """Let go of S3."""
        await self._stack.aclose()

    def object(self, entry: Entry, lanes: int) -> S3Object:
        """One object, to be read."""
        return S3Object(self._client, self.place, entry, RANGE_BYTES if lanes <= 4 else SMALL_RANGE_BYTES)

    async def _list(self) -> list[Entry]:
        found = []
        pages = self._client.get_paginator("list_objects_v2")
        async for page in pages.paginate(**self.place.target, Prefix=self.place.prefix):
            for each in page.get("Contents", ()):
                modified = round(each["LastModified"].timestamp() * 1000)
                found.append(Entry(each["Key"], each["Size"], each["ETag"], modified))
        return found

    def _find_format(self, keys: Sequence[str]) -> None:
        formats: dict[str, str] = {}
        for key in keys:
            name = key.rpartition("/")[2].lower().removesuffix(".gz").removesuffix(".zst")
            found = next((form for suffix, form in SUFFIXES.items() if name.endswith(suffix)), "json")
            formats.setdefault(self._format or found, key)
        if len({CODECS[form] for form in formats}) > 1:
            told = ", ".join(f"{key} is {form}" for form, key in formats.items())
            raise ConfigError(f"{self.where}: one topic has one format: {told}. Name one by format=, or another prefix")
        if "parquet" in formats:
            need_pyarrow(self.where)
        self.codec = CODECS[next(iter(formats))]
        self.values = "json" in formats


class Inner(Reader, Protocol):
    """A reader of one object."""

    fields: tuple[str, ...] | None


class LaneBatch:
    """A batch of one object, whose positions name it."""

    def __init__(self, inner: Batch, before: list[Any]) -> None:
        self._inner, self._before = inner, before
        self.values, self.keys, self.times = inner.values, inner.keys, inner.times
        self.oversize: frozenset[int] = getattr(inner, "oversize", frozenset())

    def __len__(self) -> int:
        return len(self.values)

    def position(self, count: int) -> Any:
        """[which objects there were, key, ETag, the point in it]."""
        return [*self._before, self._inner.position(count)]

    def offset(self, index: int) -> int:
        """The number of the line or row in its object."""
        return self._inner.offset(index)

    def where(self, index: int) -> str:
        """As the object's reader says."""
        return self._inner.where(index)


class LaneReader:
    """Reads objects one after another; the next ones are opened meanwhile."""

    def __init__(self, topic: S3Topic, entries: Sequence[Entry], stamp: list[Any], lanes: int) -> None:
        self.at_end = False
        self.fields: tuple[str, ...] | None = None
        self._topic, self._entries, self._stamp, self._lanes = topic, entries, stamp, lanes
        self._ahead: list[asyncio.Task[Inner]] = []
        self._next = 0
        """The first object that is not being opened yet."""
        self._entry: Entry
        self._reader: Inner | None = None
        self._objects: dict[str, S3Object] = {}
        self._closed = False

    async def begin(self, position: Any) -> None:
        """Open the first object. Raises InputError."""
        place = None
        if position is not None:
            _, key, etag, place = position
            keys = [entry.key for entry in self._entries]
            if key not in keys or self._entries[keys.index(key)].etag != etag:
                raise InputError(f"{self._topic.where}: {key}: is not where it was when the run began")
            self._next = keys.index(key)
        self._ahead.append(asyncio.create_task(self._open(self._entries[self._next], place)))
        self._next += 1
        await self._turn()

    async def fetch(self, max_records: int) -> LaneBatch | None:
        """The next records, of one object; None at the end."""
        while self._reader is not None:
            batch = await self._reader.fetch(max_records)
            more = not self._reader.at_end or self._ahead or self._next < len(self._entries)
            if batch is not None and len(batch):
                self.at_end = not more
                return LaneBatch(batch, [self._stamp, self._entry.key, self._entry.etag])
            if self._reader.at_end:
                await self._turn()
        return None

    async def _turn(self) -> None:
        """On to the next object; there may be none."""
        if self._reader is not None:
            await self._reader.close()
            self._reader = None
            self._objects.pop(self._entry.key, None)
        while self._next < len(self._entries) and len(self._ahead) < 1 + max(1, AHEAD // self._lanes):
            self._ahead.append(asyncio.create_task(self._open(self._entries[self._next], None)))
            self._next += 1
        if not self._ahead:
            self.at_end = True
            return
        self._entry = self._entries[self._next - len(self._ahead)]
        reader = await self._ahead[0]
        del self._ahead[0]
        if self.fields is not None and reader.fields != self.fields:
            await reader.close()
            raise InputError(
                f"s3://{self._topic.place.bucket}/{self._entry.key}: its columns are {reader.fields}, those of the "
                f"objects before {self.fields}: objects of one topic have the same header"
            )
        self.fields, self._reader = reader.fields, reader
        if reader.at_end and not self._ahead and self._next == len(self._entries):
            self.at_end = True

    async def _open(self, entry: Entry, place: Any) -> Inner:
        topic, loop = self._topic, asyncio.get_running_loop()
        if self._closed:
            raise InputError(f"{topic.where}: reading was broken off")
        found = self._objects[entry.key] = topic.object(entry, self._lanes)
        await found.look()
        if found.is_parquet:
            need_pyarrow(topic.where)
            file = await anyio.to_thread.run_sync(found.spooled, loop)
            return await anyio.to_thread.run_sync(ParquetReader, found.name, file, place or 0)
        at = None if place is None else (int(place[0]), int(place[1]))
        codec = topic.codec or "json"
        return await open_reader(found.name, codec, lambda at: found.open(loop, at, values=topic.values), at)

    async def close(self) -> None:
        """Let go of all objects; what is under way is broken off."""
        self._closed = True
        # Not the tasks themselves: what a thread of theirs opens at this moment has to be closed.
        for found in list(self._objects.values()):
            await found.cancel()
        for opened in await asyncio.gather(*self._ahead, return_exceptions=True):
            if not isinstance(opened, BaseException):
                await opened.close()
        self._ahead.clear()
        if self._reader is not None:
            await self._reader.close()
            self._reader = None


def _time(options: Mapping[str, str], name: str, where: str, problems: list[str]) -> int | None:
    if name not in options:
        return None
    try:
        at = datetime.fromisoformat(options[name])
    except ValueError:
        problems.append(f"{where}: {name}={options[name]}: write a day or a time, as 2026-03-01 or 2026-03-01T05:00")
        return None
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
