"""Aggregates as code: the statements of all of a table's aggregates, fused into one function without a call inside.

The state of one key has one or more slots for each part:

    n=Count(), total=Sum("amount"), mean=Mean("amount")        def update(s, e, t):
                                                                   v0 = e.amount
    slot   0       1                                               s.s0 += 1
           count   sum of amount                                   s.s1 += v0

It is a struct that the cycle collector does not know, encoded as an array: with 1e6 keys 0.3 µs an event less than a
list, whose items lie apart from it and cost one more cache miss at each touch; with 1e3 keys the same. Where a part's
functions take the state as a whole (`add(s, 0, v)`), it is a list, and slots are `s[0]`: the bytes are the same.

Parts that are equal are kept once: the mean above is made of the other two. Every function here is generated as text
from parts and compiled by Python; the text is `Compiled.source`, and tracebacks show its lines.
"""

from __future__ import annotations

import linecache
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from flowkit.errors import RecordError
from flowkit.flow import Step, nested
from flowkit.record import Record
from flowkit.table.fields import Value, is_builtin, may_be_wide, value_of
from flowkit.table.parts import Part, Plan, State, slots_apart


@dataclass(frozen=True)
class Compiled:
    """A table's aggregates, ready to run on states (see `State`).

    - `update(s, e, t)` counts the event `e` of time `t` (ms). If it raises, `s` is half changed: drop it.
    - `merge(a, b)` is a new state of two, `a` the one that began earlier; neither is changed, nor shared.
    - `result(s)` is a `result_type`; it is not changed by later updates.
    - `encode` and `decode` turn a state into msgpack and back; the same updates then give the same results.
    - `key(e)` is the key by which an event is counted, and `key_type` its type; None and Any if there is no `by`.
      Raises RecordError if the key is None.
    - `fields` are the names of all fields that are looked at, or None if a function looks at the event.
    - `layout` says what the slots hold: stored states of another layout cannot be read.
    """

    table: str
    new: Callable[[], State]
    update: Callable[[State, Any, int], None]
    merge: Callable[[State, State], State]
    result: Callable[[State], Any]
    result_type: type[Record]
    encode: Callable[[State], bytes]
    decode: Callable[[bytes], State]
    key: Callable[[Any], Any] | None
    key_type: Any
    fields: frozenset[str] | None
    layout: tuple[str, ...]
    source: str
    names: Mapping[str, Any] = field(repr=False)
    """What the generated text refers to."""
    lines: tuple[str, ...] = field(repr=False)
    event_type: Any = field(repr=False)
    key_lines: tuple[str, ...] = field(repr=False)
    new_source: str = field(repr=False)
    """The expression for a new state."""

    def update_source(self, indent: int) -> str:
        """The statements of `update`, for a larger generated function that has `s`, `e`, `t` and these `names`."""
        return _indented(self.lines, indent)


def fuse(table: str, plans: Mapping[str, Plan], event_type: Any, by: Value | None) -> Compiled:
    """Compiles the aggregates of one table; `by` is the key's value, where events have one."""
    parts: list[Part] = []
    for plan in plans.values():
        parts += [part for part in plan.parts if part not in parts]
    first: list[int] = []
    size = 0
    for part in parts:
        first.append(size)
        size += len(part.new)
    title = "".join(filter(str.isalnum, table.title()))
    title = title if title.isidentifier() else "Result"
    apart = _all_apart(parts, plans.values())
    # No part can make a cycle through it: nothing that a state holds knows the state.
    make: Any = list
    if apart:
        slots = [(f"s{n}", Any) for n in range(size)]
        make = msgspec.defstruct(f"{title}State", slots, module=__name__, array_like=True, gc=False)
    text = _Text(parts, first, apart=apart)
    new = ", ".join(text.of(part, item) for part in parts for item in part.new)
    merged = ", ".join(text.of(part, part.merge) for part in parts)
    results = ", ".join(text.result(plan) for plan in plans.values())
    lines = text.updates()
    key_lines: tuple[str, ...] = ()
    if by is not None:
        key_lines = (f"key = {text.source(by)}",)
        if by.nullable:
            key_lines += ("if key is None:", "    raise no_key()")
    result_type: Any = msgspec.defstruct(
        title,
        [(name, plan.type) for name, plan in plans.items()],
        bases=(Record,),
        module=__name__,
    )
    names = {**text.names, "Result": result_type, "State": make, "no_key": _no_key(table, by)}
    made_of = "State({})" if apart else "[{}]"
    source = f"def new():\n    return {made_of.format(new)}\n\n"
    source += "def update(s, e, t):\n" + _indented(lines, 4) + "\n"
    source += f"def merge(a, b):\n    return {made_of.format(merged)}\n\n"
    source += f"def result(s):\n    return Result({results})\n"
    if by is not None:
        source += "\ndef key(e):\n" + _indented(key_lines, 4) + "    return key\n"
    made = run_source(f"<flowkit aggregates of table {table}>", source, names)
    types = {at + i: kind for part, at in zip(parts, first, strict=True) for i, kind in part.types.items()}
    encode, decode = _codec(types, make)
    return Compiled(
        table=table,
        new=made["new"],
        update=made["update"],
        merge=made["merge"],
        result=made["result"],
        result_type=result_type,
        encode=encode,
        decode=decode,
        key=made.get("key"),
        key_type=Any if by is None else by.type,
        fields=_fields(parts, by),
        layout=tuple(part.layout for part in parts),
        source=source,
        names=names,
        lines=tuple(lines),
        event_type=event_type,
        key_lines=key_lines,
        new_source=made_of.format(new),
    )


def _all_apart(parts: Iterable[Part], plans: Iterable[Plan]) -> bool:
    """True if no part or result uses a state as a whole."""
    texts = [text for part in parts for text in (*part.new, part.update, part.merge)]
    texts += [plan.result for plan in plans]
    return all(slots_apart(text) is not None for text in texts)


def _indented(lines: Iterable[str], indent: int) -> str:
    return "".join(f"{' ' * indent}{line}\n" for line in lines)


def _no_key(table: str, by: Value | None) -> Callable[[], RecordError]:
    return lambda: RecordError(f"table {table!r}: the key ({by.label if by else ''}) is None")


def run_source(name: str, source: str, names: Mapping[str, Any]) -> dict[str, Any]:
    """What `source` defines. Tracebacks show its lines under `name`."""
    made = dict(names)
    exec(compile(source, name, "exec"), made)  # noqa: S102 - our own text; the fields in it were looked up
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    return made


class _Text:
    """Fills in the texts of parts: slots, values, and names for objects."""

    def __init__(self, parts: Sequence[Part], first: Sequence[int], *, apart: bool) -> None:
        self.parts, self.first, self.apart = parts, first, apart
        self.names: dict[str, Any] = {}

    def bind(self, objects: Mapping[str, Any]) -> dict[str, str]:
        """A name of its own in the generated module for each object."""
        bound = {}
        for name, thing in objects.items():
            known = (unique for unique, other in self.names.items() if other is thing)
            bound[name] = next(known, f"{name}_{len(self.names)}")
            self.names[bound[name]] = thing
        return bound

    def slots(self, part: Part) -> range:
        start = self.first[self.parts.index(part)]
        return range(start, start + len(part.new))

    def of(self, part: Part, text: str, value: str = "") -> str:
        return self._slotted(text).format(*self.slots(part), v=value, **self.bind(part.objects))

    def _slotted(self, text: str) -> str:
        return (slots_apart(text) if self.apart else None) or text

    def result(self, plan: Plan) -> str:
        slots = [slot for part in plan.parts for slot in self.slots(part)]
        return self._slotted(plan.result).format(*slots, **self.bind(plan.objects))

    def source(self, value: Value) -> str:
        # The text may hold the repr of any field name: no format() on it.
        source = value.source
        for name, unique in self.bind(value.objects).items():
            source = source.replace("{" + name + "}", unique)
        return source

    def updates(self) -> list[str]:
        """All updates. Values that can be missing, or are used twice, are taken once, before anything changes."""
        taken: list[str] = []
        lines: list[str] = []
        values: list[Value | None] = []
        for part in self.parts:
            if part.value not in values:
                values.append(part.value)
        for number, value in enumerate(values):
            members = [part for part in self.parts if part.value == value]
            source, indent = "", ""
            if value is not None:
                source = self.source(value)
                if value.nullable or value.objects or sum(part.update.count("{v}") for part in members) > 1:
                    taken.append(f"v{number} = {source}")
                    source = f"v{number}"
                if value.nullable:
                    lines.append(f"if {source} is not None:")
                    indent = "    "
            for part in members:
                lines += [indent + line for line in self.of(part, part.update, source).splitlines()]
        return taken + lines


def _fields(parts: Sequence[Part], by: Value | None) -> frozenset[str] | None:
    if any(re.search(r"\be\b", part.update) for part in parts):
        return None  # a Custom is given the event itself
    names = [value.field for value in (*(part.value for part in parts), by) if value is not None]
    fields = frozenset(name for name in names if isinstance(name, str))
    return None if any(callable(name) for name in names) else fields


# --- states in the store --------------------------------------------------------------------------------------------

# msgpack has no integers beyond 64 bits. They are stored as extensions:
WIDE = 1  # an integer, as decimal digits
WIDE_KEYS = 2  # a dict with such a key, as msgpack of a list of pairs

_pack, _unpack = msgspec.msgpack.encode, msgspec.msgpack.decode


def _codec(types: Mapping[int, Any], make: type) -> tuple[Callable[[State], bytes], Callable[[bytes], State]]:
    """Encoder and decoder of states with `types` in some slots: plain C functions where all are builtins.

    `make` is what states are: `list`, or a struct with the fields `s0`, `s1` ….
    """
    wide = [slot for slot, kind in types.items() if may_be_wide(kind)]
    typed = {slot: kind for slot, kind in types.items() if not is_builtin(kind)}
    unpack: Callable[[bytes], State] = msgspec.msgpack.Decoder(make).decode
    if not wide and not typed:
        return _pack, unpack
    get, put = (operator.getitem, operator.setitem) if make is list else (_get_slot, setattr)
    names: Any = range(max(types) + 1) if make is list else [f"s{slot}" for slot in range(max(types) + 1)]

    def decode(data: bytes) -> State:
        s: State = unpack(data)
        for slot in wide:
            value = get(s, names[slot])
            if type(value) is msgspec.msgpack.Ext:
                put(s, names[slot], _widen(value))
        for slot, kind in typed.items():
            put(s, names[slot], msgspec.convert(get(s, names[slot]), kind))
        return s

    return _encode_wide if wide else _pack, decode


def _get_slot(s: State, name: str) -> Any:
    return getattr(s, name)


def _encode_wide(s: State) -> bytes:
    try:
        return _pack(s)
    except OverflowError:
        return _pack([_narrow(slot) for slot in (s if type(s) is list else msgspec.structs.astuple(s))])


def _narrow(slot: Any) -> Any:
    if _is_wide(slot):
        return msgspec.msgpack.Ext(WIDE, b"%d" % slot)
    if type(slot) is dict and any(map(_is_wide, slot)):
        return msgspec.msgpack.Ext(WIDE_KEYS, _pack([(_narrow(key), value) for key, value in slot.items()]))
    return slot


def _is_wide(value: Any) -> bool:
    return type(value) is int and not -(2**63) <= value < 2**64


def _widen(stored: Any) -> Any:
    if type(stored) is not msgspec.msgpack.Ext:
        return stored
    if stored.code == WIDE:
        return int(stored.data)
    return {_widen(key): value for key, value in _unpack(stored.data)}


# --- the loop over a batch ------------------------------------------------------------------------------------------

Lookup = tuple[dict[Any, State], dict[Any, State], Callable[[Any], State] | None, int, int, int]
"""(states, touched, load, lo, hi, due), all times in ms: where the states of events of `lo <= time < hi` are.

A key is looked for in `states`; if it is not there, `load(key)` has to find or make its state and put it there, or, if
`load` is None, it is surely new and made in place. Its state is put into `touched` as well, which so holds what the
next commit has to save.

`due` is the least event time at which any window fires or closes, whether it has events or not.
"""


class BatchLoop(Protocol):
    """A table's step for many events."""

    def __call__(
        self, events: Iterable[Any], high: int, switch: Callable[[Any, int], Lookup | None], due: int = ..., /
    ) -> int: ...


def batch_loop(compiled: Compiled, *, time: str | None = None, steps: Sequence[Step] = ()) -> BatchLoop:
    """Generates `run(events, high, switch, due) -> high`: a table's step for many events, as one loop.

    With `steps`, what they make of the events is counted; but every event may move `high`.

    `events` is an iterator of (event, time in ms), or of events alone if `time` names a field of type int which is the
    time in ms. If the aggregates were compiled without `by`, the key comes second: (event, key, time).

    `switch(event, time)` says where an event's state is; it is called for the first event and for each outside of the
    last `[lo, hi)`. It returns None for an event that needs no more: it was late, or is done already.

    `high` is the greatest time so far (ms). The new one is returned at the end of `events`, or, with the event which
    made it so counted, as soon as it is `due` or more: move the watermark, fire, and call again with the same iterator.
    If it raises, the states in `touched` are of no use.

    How far it has come is known by the iterators: with `records = iter(batch)` and `zip(records, times)`, it has
    taken `len(batch) - operator.length_hint(records)`. `due` is that of events before the first which is counted.
    """
    target = ["e"]
    if compiled.key is None:
        target.append("key")
    at = ""
    if time is None:
        target.append("t")
    else:
        at = f"        t = {value_of(compiled.event_type, time, required=True).source}\n"
    way, indent = nested(steps, " " * 8)
    counted = _COUNTED.format(
        key=_indented(compiled.key_lines, 8), new=compiled.new_source, update=compiled.update_source(8)
    )
    lines = [*way, *(indent + line[8:] for line in counted.splitlines())]
    source = _LOOP.format(target=", ".join(target), at=at, counted="".join(f"{line}\n" for line in lines))
    functions = {f"f{n}": step.function for n, step in enumerate(steps)}
    names = {**compiled.names, **functions}
    run: BatchLoop = run_source(f"<flowkit batch loop of table {compiled.table}>", source, names)["run"]
    return run


# Measured with count and sum, 1M events of 10,000 keys, 1-minute windows, a commit each 5,000 events, on a machine with
# other work: 0.35 µs an event of (event, time), 0.025 of it for the list of times; 0.31 with the time in the event.
# The figures beside the choices are what they save.
_LOOP = """\
def run(events, high, switch, due=2**63):
    lo = hi = 0
    # An iterator that remembers its place, not an index into two lists: 0.01 µs. The time from the event: 0.035 µs.
    for {target} in events:
{at}{counted}\
        if t > high:
            high = t
            if t >= due:
                return high
    return high
"""
_COUNTED = """\
        # The window is asked for only when it changes: 0.03 µs.
        if not lo <= t < hi:
            found = switch(e, t)
            if found is None:
                lo = hi = 0
                continue
            states, touched, load, lo, hi, due = found
{key}\
        # get() against try and except KeyError: 0.01 µs where one key of six is new to its window.
        s = states.get(key)
        if s is None:
            # In place, against a call of `load` and one of `new` in it: 0.4 µs a new key.
            if load is None:
                s = states[key] = {new}
            else:
                s = load(key)
        # Marking always, against moving what a commit saved from one dict to another: 0.04 µs.
        touched[key] = s
        # The updates themselves, against a call of update(s, e, t): 0.02 µs.
{update}"""
