"""The seam between flowkit and an outside system that records come from: what each system's file offers."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flowkit.aws import Right
from flowkit.options import Guarantee, OutOfRange, Start
from flowkit.store import Frame

Position = Any
"""Whatever a source needs to go on from: msgpack-able builtins, opaque to everyone else. None: from the start."""


class Batch(Protocol):
    """Consecutive records of one split, still in wire form."""

    values: Sequence[bytes | None]
    """The records' bytes; None is a tombstone."""

    keys: Sequence[bytes | None] | None
    """The transport's keys, or None where the transport has none."""

    times: Sequence[int] | None
    """The broker's timestamps (ms), or None where it has none."""

    def __len__(self) -> int: ...

    def position(self, count: int) -> Position:
        """Where to go on after the first `count` records of this batch."""

    def offset(self, index: int) -> int:
        """The number of record `index` in its split (an offset; a line number in a file)."""

    def where(self, index: int) -> str:
        """Where record `index` lies, for a person: `data.jsonl:12` or `payments[3] offset 99`."""


class Reader(Protocol):
    """Reads one split in order."""

    at_end: bool
    """True once a bounded split has been read to its end. Always False for an unbounded one."""

    async def fetch(self, max_records: int) -> Batch | None:
        """The next records, at most `max_records`; None when there are none for now (returns soon)."""

    async def close(self) -> None: ...


@runtime_checkable
class AtOffset(Protocol):
    """A reader of a broker's topic, which knows where it is."""

    offset: int
    """Of the next record that it gives."""


class Source(Protocol):
    """One bound topic."""

    codec: str | None
    """The codec that the outside dictates (a `.csv` file is CSV), or None: the topic's own."""

    async def splits(self) -> Sequence[int]:
        """The numbers of the splits (partitions) that exist now."""

    async def open(self, split: int, position: Position) -> Reader:
        """A reader of `split` from `position` (None: from the start)."""


@runtime_checkable
class Remembers(Protocol):
    """A source whose splits are found anew by each run, and must be those that an earlier one has begun with."""

    def remember(self, positions: Sequence[Position]) -> None:
        """All positions in it that an earlier run left (there may be none), before `splits`."""


class Output(Protocol):
    """One record on its way out."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def time(self) -> int: ...


class Claim(Protocol):
    """What a broker says when a task is claimed: the new epoch, and the last commit that counts.

    `state` is where the previous owner kept the task's state (a path on this machine), or ''.
    """

    @property
    def epoch(self) -> int: ...
    @property
    def number(self) -> int: ...
    @property
    def commit_id(self) -> bytes | None: ...
    @property
    def state(self) -> str: ...


class Broker(Protocol):
    """A system that holds topics, places tasks, and decides whether a commit counts."""

    async def topics(self) -> Mapping[str, int]:
        """The number of partitions by topic."""

    async def partitions(self, topic: str) -> int:
        """How many partitions the topic has; 0 if it does not exist."""

    async def end_offsets(self, topic: str) -> Sequence[int]:
        """By partition, the offset that the next record will have. Raises ConfigError if there is no such topic."""

    async def create(self, topic: str, partitions: int, *, internal: bool = False) -> None:
        """Make a topic. Raises ConfigError if it exists with another number of partitions.

        An `internal` one is trimmed by who reads it, and by nothing else.
        """

    async def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Forget the records before `offset`."""

    def source(
        self, topic: str, *, start: Start = "earliest", out_of_range: OutOfRange = "fail", shared: bool = False
    ) -> Source:
        """The topic as a worker reads it: from `start` without a position, and `out_of_range` if it is not there.

        `shared`: several tasks of the worker read the same partitions.
        """

    async def claim(self, task: str, state: str) -> Claim:
        """Become the task's owner: fences every earlier owner. `state` is where this owner keeps the task's state."""

    async def last_commit(self, task: str) -> tuple[int, bytes | None]:
        """Number and id of the last commit of `task` that counts (0, None: none yet)."""

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
        """Outputs, positions and identity in one transaction, if `epoch` is still the task's.

        A broker that keeps frames, so that a task can go on where its disk is not, puts `frame` there too.
        Raises Fenced if it is not; OutcomeUnknown if nobody knows what became of the transaction.
        """


@runtime_checkable
class KeepsFrames(Protocol):
    """A broker that has the frames of tasks beside their outputs, for machines whose disks vanish."""

    def frames(self, task: str, after: int) -> AsyncGenerator[Frame, None]:
        """The task's frames that follow number `after` and count, in order. Raises StoreCorrupt if one is missing."""

    async def trim(self, task: str, number: int) -> None:
        """Forget the task's frames before `number`, which checkpoints hold; the last one stays in any case."""


BEGIN, END = ["", 0], ["SHARD_END", 0]
"""Positions in a split that may end: before its first record, and once it has been read to its end."""


def is_end(position: Position) -> bool:
    """True if nothing is left to be read there.

    >>> is_end(END), is_end(BEGIN), is_end(None), is_end(17)
    (True, False, False, False)
    """
    return isinstance(position, list | tuple) and list(position[:2]) == END


class Part(Protocol):
    """One split of a topic that is split by ranges of its keys' hashes. `parents` are those that it came from."""

    @property
    def number(self) -> int: ...
    @property
    def parents(self) -> Sequence[int]: ...
    @property
    def closed(self) -> bool: ...
    @property
    def is_all(self) -> bool: ...
    @property
    def span(self) -> str:
        """The range of its keys, for `Sharded.keys_in`."""

    def owns(self, key: bytes) -> bool: ...


@runtime_checkable
class Sharded(Protocol):
    """A broker whose topics are split by ranges of their keys' hashes, which may change, and that has no transactions.

    What tasks send to its topics is delivered after the commit, as to a sink.
    """

    async def shards(self, topic: str) -> Sequence[Part]:
        """All splits of a topic that hold records still, by number; none if there is no such topic."""

    def keys_in(self, span: str) -> Callable[[bytes], bool]:
        """True for the keys of a split whose `span` this is, also if that is gone by now."""

    def output(self, topic: str, *, internal: bool = False) -> str:
        """The URL of a topic as a destination; an `internal` one, which only this app's tasks read."""


@runtime_checkable
class Pushes(Protocol):
    """A broker that can push a topic's records to those who read it under a name of their own."""

    def subscribed(self, source: Any, app: str, group: str) -> Source:
        """A source of this broker, whose records come by push to `group` of `app` if the broker was told so."""


class TopicUse(NamedTuple):
    """What an app does with a broker's topics, by their names; `internal` ones it makes, reads and writes.

    `patterns` are regular expressions for others that it reads, `groups` what its tasks are called after, and `readers`
    who reads what is `read`: (group, topic). `trims` tells that there are checkpoints, so that it lets the broker
    forget frames.
    """

    app: str
    read: Sequence[str]
    written: Sequence[str]
    internal: Sequence[str]
    patterns: Sequence[str] = ()
    groups: Sequence[str] = ()
    readers: Sequence[tuple[str, str]] = ()
    trims: bool = False


@runtime_checkable
class NeedsRights(Protocol):
    """A broker at which a role has to be allowed what the worker does."""

    def rights(self, use: TopicUse) -> Sequence[Right]:
        """What has to be allowed for all that is called, but for what is put into topics: `output` leads there."""


@runtime_checkable
class EndsForOthers(Protocol):
    """A broker that ends what an earlier owner had begun, for which it has to know where that may be."""

    writes: Mapping[str, int]
    """The topics that the app's tasks write to, with their partitions."""


class Home(Protocol):
    """The disk of a worker, as far as placement is concerned."""

    def instance(self) -> str:
        """Whose it is: the same for all workers that use it one after the other; no other disk has it."""

    def other_instance(self) -> None:
        """Be another one's from now on: this disk is a copy, and a worker on the other one is alive."""

    def newest(self) -> Mapping[str, int]:
        """By task whose state is there: the number of its last commit, about."""


@runtime_checkable
class PlacesByGroup(Protocol):
    """A broker whose group knows a worker again by its disk, and shares tasks out where their state is."""

    home: Home | None

    async def shared_out(self) -> None:
        """Return once the tasks have been shared out anew since the last `place`."""

    async def left(self, app: str, groups: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """By topic, where those keep their state who were the last to read it for `app`, and are none of `groups`."""

    async def ran(self, tasks: str) -> int:
        """How many tasks there have been whose names begin with `tasks` (`APP/GROUP/`); 0: none yet."""


@runtime_checkable
class SendsEarly(Protocol):
    """A broker that can be content with at least once: then outputs need not wait for their commit."""

    guarantee: Guarantee

    async def send(self, task: str, epoch: int, outputs: Sequence[Output]) -> None:
        """Send outputs now; the task's next commit waits until they are there, and fails if they are not."""
