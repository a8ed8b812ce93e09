"""What the state of several tasks comes to as that of the one which takes over their keys: all but the keys themselves.

time      how far the nearest of them was: what the others were slower with is not late for it
floors    how far the others were, for their keys: `floors`
tables    what they note of themselves, of all as of one
sinks     go on after what all of them have sent
the rest  begins anew: marks to others, counts
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flowkit.agent import Group
from flowkit.record import MIN_TIME
from flowkit.sink import Heir, Sink
from flowkit.source import BEGIN
from flowkit.worker.floors import Owns

Meta = Mapping[str, Any]


class Parent(NamedTuple):
    """What one of them has left: the span of its keys (None: nobody knows any more), and its last commit's meta."""

    span: str | None
    meta: Meta


def heritage(
    group: Group, splits: Sequence[str], parents: Sequence[Parent], owns: Owns | None, sinks: Mapping[str, Sink]
) -> dict[str, Any]:
    """The meta with which the task of `splits` begins, whose keys are those that it `owns` (None: all)."""
    metas = [parent.meta for parent in parents]
    of_group = [meta.get("groups", {}).get(group.name, {}) for meta in metas]
    # One that has seen nothing says nothing: to wait for it would be to wait for ever, where nothing comes.
    timed = [(p, g) for p, g in zip(parents, of_group, strict=True) if g and g["splits"]["floor"] > MIN_TIME]
    floor = min((g["splits"]["floor"] for _, g in timed), default=MIN_TIME)
    rows = [g["splits"]["splits"] for _, g in timed]
    times = [g["time"] for g in of_group if g.get("time")]
    tables = [g.get("tables", {}) for _, g in timed] or [g.get("tables", {}) for g in of_group]
    state: dict[str, Any] = {
        "splits": {
            "floor": floor,
            "by_clock": False,
            "splits": {split: [_high(split, rows), False, False] for split in splits},
        },
        "tables": {
            table.name: _table([each[table.name] for each in tables if table.name in each], owns)
            for table in group.tables
        },
        "time": list(map(max, zip(*times, strict=True))) or None,
        "floors": [
            [span, at]
            for parent, g in timed
            for span, at in [(parent.span, g["splits"]["floor"]), *g.get("floors", ())]
            if span is not None and at > floor
        ],
        "batches": {},
        "since": {},
    }
    schemas: dict[str, Any] = {}
    for meta in metas:
        schemas |= meta.get("schemas", {})
    return {
        "app": metas[0]["app"],
        "groups": {group.name: state},
        "sinks": _sinks(metas, sinks),
        "schemas": schemas,
        "counts": {},
        "positions": dict.fromkeys(splits, BEGIN),
        "heard": {},
    }


def _high(split: str, parents: Sequence[Mapping[str, Sequence[Any]]]) -> int:
    """The highest time (ms) in a stream, of the parent that was the least far with it."""
    stream = split.rpartition("[")[0]
    highs = [row[0] for rows in parents for name, row in rows.items() if name.rpartition("[")[0] == stream]
    return min((high for high in highs if high > MIN_TIME), default=MIN_TIME)


def _table(metas: Sequence[Meta], owns: Owns | None) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for meta in metas:
        for name, value in meta.items():
            merged[name] = value if name not in merged else _merged(name, merged[name], value)
    if isinstance(merged.get("open"), list):
        merged["open"] = [list(pair) for pair in dict(map(tuple, merged["open"])).items()]
    if merged.get("early"):
        merged["early"] = _early(merged["early"], owns or (lambda _: True))
    return merged


def _merged(name: str, ours: Any, theirs: Any) -> Any:
    if isinstance(ours, list):
        return [*ours, *theirs]
    if name in ("watermark", "settled"):  # windows of the nearer one have not fired yet
        return min(ours, theirs)
    if name == "next":  # of ticks: the first that is to come
        return min((each for each in (ours, theirs) if each is not None), default=None)
    return max(ours, theirs) if isinstance(ours, int) and isinstance(theirs, int) else ours


def _early(early: Sequence[Any], owns: Owns) -> list[Any]:
    if isinstance(early[0], bytes):
        return sorted({key for key in early if owns(key)})
    by_end: dict[int, set[bytes]] = {}
    for end, keys in early:
        by_end.setdefault(end, set()).update(key for key in keys if owns(key))
    return [[end, sorted(keys)] for end, keys in by_end.items()]


def _sinks(metas: Sequence[Meta], sinks: Mapping[str, Sink]) -> dict[str, Any]:
    found = {}
    for name, sink in sinks.items():
        states = [meta["sinks"][name][0] for meta in metas if name in meta.get("sinks", {})]
        if states and isinstance(sink, Heir):
            found[name] = [sink.inherited(states), None]
    return found
