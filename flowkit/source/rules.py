"""The rules that both brokers without a server follow, without any I/O: names, partitions, ownership, commits.

They stand here once, so that what a test shows on `memory://` holds on `embedded://`.
"""

import re
import shlex
from collections.abc import Iterable, Sequence

import msgspec

from flowkit.errors import CommitError, ConfigError, Fenced
from flowkit.source.partitioner import partition_of
from flowkit.source.seam import Output

DEFAULT_TTL_MS = 10_000
"""How long a lease lasts whose owner has not joined as a worker."""

Columns = tuple[list[bytes | None], list[bytes | None], list[int]]
"""Records of one partition on their way in: keys, values, times (ms)."""

KeyValueTime = tuple[bytes | None, bytes | None, int]
"""A record from outside; time in ms."""

LISTED = 20
"""Topics that an error names, of those that are there."""

BYTES: set[type] = {bytes, type(None)}


class Lease(msgspec.Struct):
    """A task's row: who owns it under which epoch, until when (ms), and what it committed last.

    `owner` is '' once the task has been released; `state` is where the owner keeps the task's state.
    """

    task: str
    owner: str
    epoch: int
    expires_ms: int
    state: str
    number: int = 0
    commit_id: bytes | None = None


class Claimed(msgspec.Struct):
    """The answer to a claim: the claimer's epoch, the last commit that counts, and the previous owner's state."""

    epoch: int
    number: int
    commit_id: bytes | None
    state: str


# --- topics -----------------------------------------------------------------------------------------------------------


def check_topic(topic: str, partitions: int) -> None:
    """Raises ConfigError unless a topic of this name may exist: Kafka's rule, so that every topic can move there."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", topic) or topic in (".", ".."):
        raise ConfigError(f"topic name {topic[:300]!r}: use 1 to 249 letters, digits, dots, dashes and underscores")
    if partitions < 1:
        raise ConfigError(f"topic {topic!r}: partitions={partitions}, but it takes at least one")


def check_same_partitions(topic: str, url: str, found: int, wanted: int) -> None:
    """Raises ConfigError if an existing topic has another number of partitions than wanted."""
    if found != wanted:
        raise ConfigError(
            f"topic {topic!r} at {url} exists with {found} partitions, not {wanted}: keys would change their place; "
            "use another name, or the number that it has"
        )


def unknown_topic(topic: str, url: str, topics: Iterable[str]) -> ConfigError:
    """The error that names the topics which exist and the cure."""
    cure = f"flowkit topics create {topic} --broker {shlex.quote(url)}"
    return ConfigError(f"no topic {topic!r} at {url} (topics: {listed(topics)}): {cure}")


def listed(topics: Iterable[str]) -> str:
    """Names of topics, as an error tells them: clusters may have thousands.

    >>> listed(["b", "a"]), listed(f"t{n:04}" for n in range(1000))[-25:]
    ('a, b', 't0018, t0019 and 980 more')
    """
    names = sorted(topics)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return (", ".join(names[:LISTED]) or "none yet") + more


def unknown_partition(topic: str, partition: int, url: str, topics: dict[str, int]) -> ConfigError:
    """The error for a partition that does not exist, whether or not the topic does."""
    if topic not in topics:
        return unknown_topic(topic, url, topics)
    return ConfigError(f"topic {topic!r} at {url} has the partitions 0 to {topics[topic] - 1}, but no {partition}")


# --- records in -------------------------------------------------------------------------------------------------------


def place(
    records: Sequence[KeyValueTime], partitions: int, partition: int | None, turn: int
) -> dict[int, list[KeyValueTime]]:
    """Records by partition: the given one, else the key's; records without a key go round robin, starting at `turn`."""
    if partition is not None:
        return {partition: list(records)} if records else {}
    groups: dict[int, list[KeyValueTime]] = {}
    for record in records:
        if record[0] is None:
            at, turn = turn % partitions, turn + 1
        else:
            at = partition_of(record[0], partitions)
        groups.setdefault(at, []).append(record)
    return groups


def columns_of(topic: str, records: Sequence[KeyValueTime]) -> Columns:
    """Records as columns. Raises TypeError if a key or value is no bytes."""
    keys, values, times = zip(*records, strict=True)
    return checked(topic, (list(keys), list(values), list(times)))


def group_outputs(outputs: Sequence[Output]) -> dict[tuple[str, int], Columns]:
    """A commit's outputs by topic and partition, in their order."""
    groups: dict[tuple[str, int], Columns] = {}
    for output in outputs:
        at = (output.topic, output.partition)
        group = groups.get(at)
        if group is None:
            group = groups[at] = ([], [], [])
        group[0].append(output.key)
        group[1].append(output.value)
        group[2].append(output.time)
    for (topic, _), group in groups.items():
        checked(topic, group)
    return groups


def checked(topic: str, columns: Columns) -> Columns:
    """`columns`, if they are what a reader will be able to read. Raises TypeError otherwise."""
    keys, values, times = columns
    for what, column, allowed in (("key", keys, BYTES), ("value", values, BYTES), ("time", times, {int})):
        strangers = set(map(type, column)) - allowed
        if strangers:
            raise TypeError(f"a record for topic {topic!r} has a {what} of type {strangers.pop().__name__}")
    return columns


# --- tasks ------------------------------------------------------------------------------------------------------------


def claimed(lease: Lease | None, task: str, owner: str, state: str, expires_ms: int, seen: int | None) -> Lease:
    """The task's row once `owner` has claimed it. Raises Fenced if `seen` (an epoch) is over."""
    epoch = lease.epoch if lease is not None else 0
    if seen is not None and seen != epoch:
        raise Fenced(f"task {task}: claimed meanwhile ({_holder(lease)}): it was free under epoch {seen}")
    if lease is None:
        return Lease(task, owner, 1, expires_ms, state)
    return msgspec.structs.replace(lease, owner=owner, epoch=epoch + 1, expires_ms=expires_ms, state=state)


def must_apply(lease: Lease | None, task: str, epoch: int, number: int, commit_id: bytes) -> bool:
    """Whether a commit is to be applied; False if it has been already.

    Raises Fenced if `epoch` is not the task's any more, CommitError if another commit has taken the number.
    """
    if lease is None or lease.epoch != epoch or not lease.owner:
        raise Fenced(f"task {task}: a commit under epoch {epoch} does not count ({_holder(lease)})")
    if number > lease.number:
        return True
    if number == lease.number and commit_id == lease.commit_id:
        return False
    raise CommitError(f"task {task}: commit {number} came after commit {lease.number} had been made by another frame")


def _holder(lease: Lease | None) -> str:
    if lease is None:
        return "nobody has claimed it"
    if not lease.owner:
        return f"released under epoch {lease.epoch}"
    return f"{lease.owner} owns it under epoch {lease.epoch}"
