"""Which shards several streams have in common that are read together: shard n of each is read by task n.

both 0 1                        tasks 0 and 1
a split: 0 1 2 3, b: 0 1        2 and 3 wait, until b is split in the same way; task 0 goes on with b's shard
b of other shards               an error: keys would not stay together
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flowkit.errors import ConfigError
from flowkit.source import Part


class Common(NamedTuple):
    """What all of them have: `parts`, of which those in `closed` are closed in each.

    `waiting` are numbers of shards that came of common ones, with the streams that have them; `expired` those whose
    records are no longer in each.
    """

    parts: Sequence[Part]
    closed: frozenset[int]
    waiting: Mapping[int, Sequence[str]]
    expired: frozenset[int]


def common_shards(group: str, streams: Mapping[str, Sequence[Part]]) -> Common:
    """Look at the shards of a group's streams, by name. Raises ConfigError if they are not the same."""
    parts: dict[int, Part] = {}
    closed: set[int] = set()
    some: dict[int, list[str]] = {}
    for number in sorted({part.number for found in streams.values() for part in found}):
        having = {name: part for name, found in streams.items() for part in found if part.number == number}
        part = parts[number] = next(iter(having.values()))
        if any((other.span, other.parents) != (part.span, part.parents) for other in having.values()):
            raise _unlike(group, streams)
        if all(other.closed for other in having.values()):
            closed.add(number)
        if len(having) < len(streams):
            some[number] = list(having)
    parents = {parent for number, part in parts.items() if number not in some for parent in part.parents}
    expired = {number for number in some if number in parents}
    waiting = {number: names for number, names in some.items() if number not in expired}
    if any(not parts.keys() & set(parts[number].parents) for number in waiting):
        raise _unlike(group, streams)
    common = [part for number, part in parts.items() if number not in some]
    return Common(common, frozenset(closed), waiting, frozenset(expired))


def _unlike(group: str, streams: Mapping[str, Sequence[Part]]) -> ConfigError:
    told = "; ".join(
        f"{name} has {', '.join(f'{p.number} ({p.span})' for p in found if not p.closed)}"
        for name, found in streams.items()
    )
    return ConfigError(
        f"group {group}: reads the streams {', '.join(streams)} together, whose open shards are not the same, so that "
        f"keys would not stay together: {told}. Make them with as many shards and reshard them in the same way and "
        "order, or send one on by group_by, from an agent that shares no table with the others"
    )
