"""`kinesis://REGION?leases=TABLE&frames=s3://BUCKET/PREFIX`: streams as topics, their shards as splits.

    topics      `kinesis_streams`, read by `kinesis_reader`; what is sent to them is no part of a commit but delivered
                after it, at least once
    placement   leases in a DynamoDB table, `dynamo_leases`; or, on one machine, in a directory: leases=file:///DIR
    commits     count by a conditional write to that table
    recovery    from the task's directory, while its disk lives; with `frames` also on another machine: `blob_frames`
    pushing     fan_out=yes: input streams are not polled but pushed to a consumer APP.GROUP, registered with each of
                them (fan_out=NAME: NAME.GROUP): `kinesis_fan_out`

Kinesis has no transactions: a task's position lies in its frame, and nowhere else, so that state and position never
part.
"""

import re
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import parse_qsl, urlencode

from flowkit.aws import AwsOptions, Right
from flowkit.clock import Clock
from flowkit.errors import BrokerError, ConfigError
from flowkit.options import OutOfRange, Start
from flowkit.source.blob_frames import BlobFrames, frame_rights
from flowkit.source.dynamo_leases import START, DynamoLeases
from flowkit.source.kinesis_batch import Arrivals
from flowkit.source.kinesis_fan_out import Consumer, consumer_name
from flowkit.source.kinesis_reader import KinesisSource
from flowkit.source.kinesis_streams import KinesisStreams, Shard, id_of, keys_in
from flowkit.source.placement import Placing, place_by_leases
from flowkit.source.rules import Claimed, KeyValueTime, Lease
from flowkit.source.seam import Output, TopicUse
from flowkit.source.storages import check_storage_url, open_storage
from flowkit.store import Frame

if TYPE_CHECKING:
    from flowkit.source.embedded import EmbeddedBroker

LEASES = "flowkit-leases"
OURS = ("leases", "frames", "fan_out")


class KinesisAddress(NamedTuple):
    """What a URL says: `leases` is a table's name, or a directory's URL; `frames` where frames are kept (None: not).

    `fan_out` begins the names of consumers: '' for the app's name; None: records are polled for.
    """

    url: str
    aws: AwsOptions
    leases: str = LEASES
    frames: str | None = None
    fan_out: str | None = None

    @classmethod
    def parse(cls, url: str) -> "KinesisAddress":
        """Read a URL. Raises ConfigError with all that is wrong."""
        region, _, query = url.removeprefix("kinesis://").partition("?")
        where = f"broker kinesis://{region}"
        if "@" in region or "/" in region:
            raise ConfigError(
                "broker kinesis://…: write kinesis://REGION?leases=TABLE: credentials come from environment, profile "
                "or role, and streams are the app's topics"
            )
        aws, ours = AwsOptions.take(dict(parse_qsl(query, keep_blank_values=True)), where)
        unknown = [name for name in ours if name not in OURS]
        if unknown:
            known = ", ".join((*OURS, *AwsOptions._fields))
            raise ConfigError(*(f"{where}: unknown option {name!r}; there are {known}" for name in unknown))
        if ours.get("frames"):
            check_storage_url(ours["frames"])
        if region:
            aws = aws._replace(region=region)
        fan_out = _fan_out(ours.get("fan_out", "no"), where)
        return cls(f"kinesis://{region}", aws, ours.get("leases") or LEASES, ours.get("frames") or None, fan_out)


def _fan_out(told: str, where: str) -> str | None:
    if told in ("yes", "no"):
        return "" if told == "yes" else None
    if not re.fullmatch("[a-zA-Z0-9_.-]{1,60}", told):
        raise ConfigError(
            f"{where}: fan_out={told}: write yes, no, or a name (letters, digits, _ . -, at most 60) that consumers "
            "begin with"
        )
    return told


def open_kinesis(url: str, clock: Clock) -> "KinesisBroker":
    """The broker of a URL. Raises ConfigError."""
    address = KinesisAddress.parse(url)
    return KinesisBroker(address, clock) if address.frames is None else FramingKinesisBroker(address, clock)


def _ledger_of(address: KinesisAddress, clock: Clock) -> "DynamoLeases | EmbeddedBroker":
    if "/" not in address.leases:
        return DynamoLeases(address.leases, address.aws, clock)
    from flowkit.source.embedded import EmbeddedBroker  # which loads SQLite

    return EmbeddedBroker(address.leases.removeprefix("file://"), clock)


class KinesisBroker:
    """Kinesis Data Streams. Use it within `async with`. Every method may raise BrokerError or StoreError."""

    def __init__(self, address: KinesisAddress, clock: Clock) -> None:
        self.address, self.url = address, address.url
        self._clock = clock
        self._streams = KinesisStreams(address.aws, clock, address.url)
        self._arrivals = Arrivals()
        self._consumers: dict[tuple[str, str], Consumer] = {}
        self._stack = AsyncExitStack()
        self._ledger = _ledger_of(address, clock)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect."""
        try:
            await self._streams.open()
            self._stack.push_async_callback(self._streams.close)
            await self._stack.enter_async_context(self._ledger)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Disconnect. Leases stay until they are dead or released."""
        await self._stack.aclose()

    # --- topics ---

    async def topics(self) -> dict[str, int]:
        """How many open shards each stream has."""
        return await self._streams.topics()

    async def partitions(self, topic: str) -> int:
        """How many open shards the stream has; 0 if it does not exist."""
        return await self._streams.partitions(topic)

    async def shards(self, topic: str) -> list[Shard]:
        """All shards of a stream that hold records still."""
        return await self._streams.shards(topic)

    def outdated(self, topic: str) -> None:
        """The stream may have other shards by now."""
        self._streams.outdated(topic)

    def keys_in(self, span: str) -> Callable[[bytes], bool]:
        """True for the keys of a shard of this span."""
        return keys_in(span)

    async def create(self, topic: str, partitions: int, *, internal: bool = False) -> None:
        """Make a stream of so many shards. Raises ConfigError if it exists with another number."""
        await self._streams.create(topic, partitions)

    async def put(self, topic: str, records: Sequence[KeyValueTime], partition: int | None = None) -> None:
        """Put (key, value, time in ms) from outside; their times do not travel."""
        await self._streams.put(topic, records, partition)

    async def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Nothing: a stream forgets by the age of its records."""

    async def end_offsets(self, topic: str) -> list[int]:
        """Raises BrokerError: the records of a stream are not counted."""
        raise self._uncounted(topic)

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Raises BrokerError: the records of a stream are not counted."""
        raise self._uncounted(topic)

    async def read(self, topic: str, partition: int, offset: int, limit: int) -> Any:
        """Raises BrokerError: the records of a stream are not counted."""
        raise self._uncounted(topic)

    async def ran(self, tasks: str) -> int:
        """Raises BrokerError: tasks come and go with shards."""
        raise self._uncounted(tasks)

    def _uncounted(self, topic: str) -> BrokerError:
        return BrokerError(f"{self.url}: {topic!r} is a stream, whose records have no offsets to be asked for")

    def source(
        self, topic: str, *, start: Start = "earliest", out_of_range: OutOfRange = "fail", shared: bool = False
    ) -> KinesisSource:
        """The stream as the worker reads it."""
        return KinesisSource(self._streams, self._arrivals, topic, start=start, out_of_range=out_of_range)

    def subscribed(self, source: KinesisSource, app: str, group: str) -> KinesisSource:
        """As the protocol says."""
        if self.address.fan_out is not None:
            source.consumer = self._consumer(source.stream, app, group)
        return source

    def _consumer(self, stream: str, app: str, group: str) -> Consumer:
        name = consumer_name(self.address.fan_out or app, group)
        return self._consumers.setdefault((stream, name), Consumer(self._streams, stream, name))

    async def wait(self, timeout_ms: float, seen: int | None = None) -> int:
        """Return once any shard has records, or after `timeout_ms`; the answer is a mark for `seen`."""
        return await self._arrivals.wait(timeout_ms, seen)

    def output(self, topic: str, *, internal: bool = False) -> str:
        """The URL of a stream as a destination."""
        scheme = "kinesis-internal" if internal else "kinesis"
        aws = self.address.aws
        options = {name: value for name, value in aws._asdict().items() if value not in (None, AwsOptions().timeout)}
        return f"{scheme}://{topic}" + (f"?{urlencode(options)}" if options else "")

    def rights(self, use: TopicUse) -> Sequence[Right]:
        """As the protocol says."""
        read = [right for topic in use.read for right in self.source(topic).rights()]
        rights = _said(read, "streams that the app reads")
        if self.address.fan_out is not None:
            pushed = (self._consumer(topic, use.app, group) for group, topic in use.readers)
            rights += _said(
                [right for each in pushed for right in each.rights()], "consumers that records are pushed to"
            )
        for topic in use.internal:
            own = (*self.source(topic).rights(), self._streams.making(topic))
            rights += _said(own, "streams between agents, made by the first worker")
        rights += _said([self._streams.looking(topic) for topic in use.written], "streams that the app writes")
        if isinstance(self._ledger, DynamoLeases):
            rights += _said(self._ledger.rights(), "leases: who runs which task; the first worker makes the table")
        if self.address.frames is not None:
            frames = frame_rights(self.address.frames, use.app, trims=use.trims)
            rights += _said(frames, "frames: what was committed since the last checkpoint")
        return rights

    # --- placement ---

    async def join(self, worker: str, ttl_ms: int, tasks: Sequence[str] = ()) -> None:
        """Become a member until `ttl_ms` after the last heartbeat."""
        await self._ledger.join(worker, ttl_ms, tasks)

    async def heartbeat(self, worker: str) -> None:
        """A sign of life. Raises Fenced if the worker is unknown."""
        await self._ledger.heartbeat(worker)

    async def leave(self, worker: str) -> None:
        """Be no member any more, and give all tasks up."""
        await self._ledger.leave(worker)

    async def place(self, worker: str, tasks: Sequence[str], held: set[str]) -> Placing:
        """What `worker`, which runs the tasks `held`, has to claim and to release, so that all `tasks` are shared."""
        return await place_by_leases(self._ledger, worker, tasks, held, self._clock.now_ms())

    async def leases(self, prefix: str = "") -> list[Lease]:
        """The tasks whose name begins with `prefix` and that were ever claimed, by name."""
        return await self._ledger.leases(prefix)

    async def renew(self, worker: str, tasks: Sequence[str]) -> list[str]:
        """Prolong the worker's leases. The answer: which of the tasks it does not own any more."""
        return await self._ledger.renew(worker, tasks)

    # --- tasks ---

    async def claim(self, task: str, state: str, *, worker: str | None = None, seen: int | None = None) -> Claimed:
        """Become the task's owner: fences every earlier one."""
        return await self._ledger.claim(task, state, worker=worker, seen=seen)

    async def came_from(self, task: str, shards: Sequence[int]) -> None:
        """Note the shards that a task's shard came from, for other tools that read the lease table."""
        if isinstance(self._ledger, DynamoLeases):
            await self._ledger.describe(task, [id_of(number) for number in shards])

    async def release(self, task: str, epoch: int) -> None:
        """Give the task up; does nothing if another has claimed it."""
        await self._ledger.release(task, epoch)

    async def last_commit(self, task: str) -> tuple[int, bytes | None]:
        """Number and id of the last commit of `task` that counts (0, None: none yet)."""
        return await self._ledger.last_commit(task)

    async def positions(self, task: str) -> Any:
        """The positions in the last commit that counts; None if there is none yet."""
        return await self._ledger.positions(task)

    async def commit(
        self,
        task: str,
        epoch: int,
        number: int,
        commit_id: bytes,
        positions: Any,
        outputs: Sequence[Output],
        frame: Frame | None = None,
    ) -> None:
        """Make the commit count, if `epoch` is still the task's. `outputs` are none: they are delivered after it."""
        assert not outputs, "what goes to streams is delivered after the commit"
        if isinstance(self._ledger, DynamoLeases):
            await self._ledger.commit(task, epoch, number, commit_id, positions, _checkpoint(positions))
        else:
            await self._ledger.commit(task, epoch, number, commit_id, positions, ())


class FramingKinesisBroker(KinesisBroker):
    """One that keeps the frames of commits, for machines whose disks vanish."""

    _frames: BlobFrames

    async def open(self) -> None:
        """Connect."""
        await super().open()
        try:
            assert self.address.frames is not None
            storage = await self._stack.enter_async_context(open_storage(self.address.frames))
            await storage.check()
        except BaseException:
            await self.close()
            raise
        self._frames = BlobFrames(storage)

    async def commit(
        self,
        task: str,
        epoch: int,
        number: int,
        commit_id: bytes,
        positions: Any,
        outputs: Sequence[Output],
        frame: Frame | None = None,
    ) -> None:
        """The frame first: once the ledger counts it, it has to be there."""
        if frame is not None:
            await self._frames.put(task, frame)
        await super().commit(task, epoch, number, commit_id, positions, outputs, frame)

    async def frames(self, task: str, after: int) -> AsyncGenerator[Frame, None]:
        """The task's frames that follow number `after` and count, in order. Raises StoreCorrupt if one is missing."""
        async for frame in self._frames.after(task, after, await self.last_commit(task)):
            yield frame

    async def trim(self, task: str, number: int) -> None:
        """Forget the task's frames before `number`, which checkpoints hold; the last one stays in any case."""
        await self._frames.trim(task, number, (await self.last_commit(task))[0])


def _checkpoint(positions: Mapping[str, Any]) -> str:
    """What the lease table shows of positions, for other tools: a sequence number, if there is one."""
    found = [position[0] for position in positions.values() if isinstance(position, list | tuple) and position]
    return str(found[0]) if found and found[0] else START


def _said(rights: Iterable[Right], why: str) -> list[Right]:
    return [right._replace(why=why) for right in rights]
