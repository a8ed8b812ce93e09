"""The generated code: how fields are taken, what is shared, and that the batch loop counts like one event at a time."""

import dataclasses
import gc
import traceback
from collections.abc import Iterator
from operator import length_hint
from typing import Annotated, Any, Generic, NewType, NotRequired, TypedDict, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.errors import RecordError
from flowkit.record import END_OF_TIME, MIN_TIME, Closed, Record
from flowkit.table.aggregates import (
    Count,
    CountDistinct,
    Custom,
    First,
    Last,
    Max,
    Mean,
    Min,
    Sum,
    Variance,
    compile_aggregates,
)
from flowkit.table.fused import Compiled, batch_loop
from tests.depth import examples


class Tx(Record):
    card: str
    amount: float
    at: int = 0
    tip: float | None = None


@dataclasses.dataclass
class TxData:
    card: str
    amount: float


class TxDict(TypedDict):
    card: str
    amount: float
    tip: NotRequired[float]


class Plain:
    card: str
    amount: float

    def __init__(self, card: str, amount: float) -> None:
        self.card, self.amount = card, amount


# --- the text -------------------------------------------------------------------------------------------------------


def test_all_aggregates_become_one_function_that_takes_each_value_once_and_keeps_equal_parts_once() -> None:
    compiled = compile_aggregates(
        "spend",
        {"n": Count(), "total": Sum("amount"), "mean": Mean("amount"), "most": Max("amount"), "again": Sum("amount")},
        Tx,
        "card",
    )
    assert compiled.source == (
        "def new():\n"
        "    return State(0, 0.0, None)\n"
        "\n"
        "def update(s, e, t):\n"
        "    v1 = e.amount\n"
        "    s.s0 += 1\n"
        "    s.s1 += v1\n"
        "    _m = s.s2\n"
        "    if _m is None:\n"
        "        if v1 == v1:\n"
        "            s.s2 = v1\n"
        "    elif v1 > _m:\n"
        "        s.s2 = v1\n"
        "\n"
        "def merge(a, b):\n"
        "    return State(a.s0 + b.s0, a.s1 + b.s1, "
        "a.s2 if b.s2 is None or (a.s2 is not None and not b.s2 > a.s2) else b.s2)\n"
        "\n"
        "def result(s):\n"
        "    return Result(s.s0, s.s1, s.s1 / s.s0 if s.s0 else None, s.s2, s.s1)\n"
        "\n"
        "def key(e):\n"
        "    key = e.card\n"
        "    return key\n"
    )
    assert compiled.layout == ("count", "sum of amount: float", "max of amount: float")
    assert compiled.fields == frozenset({"card", "amount"})
    assert compiled.key_type is str


def test_none_is_looked_for_only_where_the_type_admits_it() -> None:
    def lines(field: str, event_type: Any) -> list[str]:
        return list(compile_aggregates("t", {"x": Sum(field)}, event_type).lines)

    assert lines("amount", Tx) == ["s.s0 += e.amount"]
    assert lines("tip", Tx) == ["v0 = e.tip", "if v0 is not None:", "    s.s0 += v0"]
    assert lines("amount", TxDict) == ["s.s0 += e['amount']"]
    assert lines("tip", TxDict) == ["v0 = e.get('tip')", "if v0 is not None:", "    s.s0 += v0"]
    assert lines("tip", dict) == ["v0 = e.get('tip')", "if v0 is not None:", "    s.s0 += v0"]


def test_a_mean_of_values_that_may_be_missing_counts_those_that_are_there() -> None:
    compiled = compile_aggregates("t", {"n": Count(), "mean": Mean("tip")}, Tx)
    s = compiled.new()
    for tip in (1.0, None, 2.0):
        compiled.update(s, Tx("a", 0.0, tip=tip), 0)
    assert compiled.result(s) == compiled.result_type(3, 1.5)


def test_the_update_can_be_put_into_a_larger_function() -> None:
    compiled = compile_aggregates("t", {"n": Count(), "total": Sum("tip")}, Tx)
    source = "def run(s, events, t):\n    for e in events:\n" + compiled.update_source(8)
    names = dict(compiled.names)
    exec(source, names)
    s = compiled.new()
    names["run"](s, [Tx("a", 0.0, tip=2.0), Tx("a", 0.0)], 0)
    assert compiled.result(s) == compiled.result_type(2, 2.0)


def test_a_traceback_shows_the_generated_line() -> None:
    compiled = compile_aggregates("spend", {"total": Sum("amount")}, dict)
    with pytest.raises(TypeError) as raised:
        compiled.update(compiled.new(), {"amount": "12"}, 0)
    shown = "".join(traceback.format_exception(raised.value))
    assert '"<flowkit aggregates of table spend>"' in shown
    assert "s.s0 += v0" in shown


# --- fields of all kinds of events ----------------------------------------------------------------------------------

T = TypeVar("T")
Cents = NewType("Cents", int)


class Box(Record, Generic[T]):
    content: T


class Renamed(Record, rename="camel"):
    card_total: float


class Unset(Record):
    amount: float | msgspec.UnsetType = msgspec.UNSET


@pytest.mark.parametrize(
    ("event_type", "field", "events", "total"),
    [
        (Tx, "amount", [Tx("a", 1.5), Tx("b", 2.0)], 3.5),
        (Tx, "tip", [Tx("a", 1.5), Tx("b", 2.0, tip=4.0)], 4.0),
        (TxData, "amount", [TxData("a", 1.5)], 1.5),
        (TxDict, "amount", [{"card": "a", "amount": 1.5}], 1.5),
        (TxDict, "tip", [{"card": "a", "amount": 1.5}, {"card": "a", "amount": 1.5, "tip": 0.5}], 0.5),
        (dict, "amount", [{"amount": 1}, {"amount": None}, {}], 1),
        (dict[str, float], "it's {odd}", [{"it's {odd}": 1.5}], 1.5),
        (Any, "amount", [{"amount": 1}, Tx("a", 1.5), {}, None], 2.5),
        (Plain, "amount", [Plain("a", 1.5)], 1.5),
        (Tx | TxData, "amount", [Tx("a", 1.0), TxData("a", 1.5)], 2.5),
        (Tx | TxDict, "amount", [Tx("a", 1.0), {"card": "a", "amount": 1.5}], 2.5),
        (Tx | None, "amount", [Tx("a", 1.0), None], 1.0),
        (Closed[str, float], "value", [Closed("a", 1.5, 0, 1)], 1.5),
        (Box[int], "content", [Box(3)], 3),
        (Box[Cents], "content", [Box(Cents(3))], 3),
        (Box[Annotated[int, msgspec.Meta(ge=0)] | None], "content", [Box(3), Box(None)], 3),
        (Renamed, "card_total", [Renamed(2.5)], 2.5),
        (Unset, "amount", [Unset(), Unset(2.5)], 2.5),
        (Tx, lambda e: e.amount * 2, [Tx("a", 1.5)], 3.0),
        (Any, lambda e: e or None, [1, 0, 2], 3),
        (float, float, [1.5, 2.5], 4.0),
    ],
)
def test_fields_are_taken_from_events_of_every_kind(event_type: Any, field: Any, events: list[Any], total: Any) -> None:
    compiled = compile_aggregates("t", {"total": Sum(field)}, event_type)
    s = compiled.new()
    for event in events:
        compiled.update(s, event, 0)
    assert compiled.result(s).total == total


def test_what_a_function_is_annotated_to_return_is_checked_and_trusted() -> None:
    def cents(tx: Tx) -> int:
        return round(tx.amount * 100)

    compiled = compile_aggregates("t", {"total": Sum(cents)}, Tx)
    assert compiled.result_type.__annotations__["total"] is int
    assert not any("None" in line for line in compiled.lines)
    assert compiled.fields is None  # it may look at any field


@pytest.mark.parametrize(
    ("event_type", "by", "event", "key", "key_type"),
    [
        (Tx, "card", Tx("a", 0.0), "a", str),
        (dict, "card", {"card": "a"}, "a", Any),
        (dict[str, int], "card", {"card": 7}, 7, int),
        (Tx, lambda e: e.card.upper(), Tx("a", 0.0), "A", Any),
        (Tx, "tip", Tx("a", 0.0, tip=2.0), 2.0, float),
    ],
)
def test_the_key_is_a_field_or_what_a_function_makes_of_the_event(
    event_type: Any, by: Any, event: Any, key: Any, key_type: Any
) -> None:
    compiled = compile_aggregates("t", {"n": Count()}, event_type, by)
    assert compiled.key is not None
    assert compiled.key(event) == key
    assert compiled.key_type == key_type


def test_a_dict_without_the_key_is_an_error_of_that_event() -> None:
    compiled = compile_aggregates("t", {"n": Count()}, dict, "card")
    assert compiled.key is not None
    with pytest.raises(KeyError, match="card"):
        compiled.key({"crad": "a"})


def test_a_key_that_is_none_is_an_error_of_that_event() -> None:
    compiled = compile_aggregates("tips", {"n": Count()}, Tx, "tip")
    assert compiled.key is not None
    with pytest.raises(RecordError, match=r"table 'tips': the key \(tip\) is None"):
        compiled.key(Tx("a", 0.0))
    with pytest.raises(RecordError):
        Windows(compiled).in_loop(batch_loop(compiled), iter([(Tx("a", 0.0), 1)]))


# --- the store ------------------------------------------------------------------------------------------------------


def test_states_of_plain_builtins_are_encoded_by_msgspec_itself() -> None:
    compiled = compile_aggregates("t", {"n": Count(), "total": Sum("amount"), "v": Variance("amount")}, Tx)
    assert compiled.encode is msgspec.msgpack.encode
    assert type(compiled.decode).__name__ == "builtin_function_or_method"


def test_states_are_structs_without_the_cycle_collector_or_lists_and_their_bytes_are_the_same() -> None:
    flat = compile_aggregates("t", {"n": Count(), "total": Sum("amount")}, Tx)
    whole = compile_aggregates("t", {"n": Count(), "total": Sum("amount"), "cards": CountDistinct("card")}, Tx)
    states = flat.new(), whole.new()
    for compiled, s in zip((flat, whole), states, strict=True):
        compiled.update(s, Tx("a", 2.5), 0)
    assert not gc.is_tracked(states[0])
    assert states[1] == [1, 2.5, {"a": None}]
    assert msgspec.msgpack.decode(flat.encode(states[0])) == [1, 2.5]
    assert flat.decode(flat.encode(states[0])) == states[0]


@pytest.mark.parametrize("big", [2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**40, -(2**63), -(2**63) - 1, -(10**40)])
def test_integers_beyond_64_bits_survive_the_store(big: int) -> None:
    specs: dict[str, Any] = {"sum": Sum("f"), "least": Min("f"), "first": First("f"), "any": Last(lambda e: e.f)}
    compiled = compile_aggregates("t", specs, msgspec.defstruct("Event", [("f", int)]))
    s = compiled.new()
    compiled.update(s, compiled.event_type(big), 0)
    assert compiled.decode(compiled.encode(s)) == s
    assert compiled.result(s).sum == big


# --- the batch loop -------------------------------------------------------------------------------------------------

SIZE = 10
OUT_OF_ORDER = 4
SPECS: dict[str, Any] = {"n": Count(), "total": Sum("amount"), "first": First("tip"), "last": Last("tip")}


class Windows:
    """Tumbling windows of one table, as small as can be: an event of a fired window is late; they fire in order."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled
        self.states: dict[int, dict[str, Any]] = {}
        self.touched: dict[int, dict[str, Any]] = {}
        self.high = MIN_TIME
        self.loads = 0
        self.log: list[Any] = []

    def due(self) -> int:
        if self.high == MIN_TIME:
            return MIN_TIME  # the first event decides who is late
        fired = self.high - OUT_OF_ORDER
        return fired - fired % SIZE + SIZE + OUT_OF_ORDER

    def switch(self, event: Any, t: int) -> Any:
        start = t - t % SIZE
        if start + SIZE <= self.high - OUT_OF_ORDER:
            self.log.append(("late", t))
            return None
        states = self.states.setdefault(start, {})
        touched = self.touched.setdefault(start, {})

        def load(key: str) -> Any:
            self.loads += 1
            states[key] = s = self.compiled.new()
            return s

        return states, touched, load, start, start + SIZE, self.due()

    def fire(self) -> None:
        for start in sorted(self.states):
            if start + SIZE <= self.high - OUT_OF_ORDER:
                states = self.states.pop(start)
                self.touched.pop(start, None)
                self.log += [(start, key, self.compiled.result(states[key])) for key in sorted(states)]

    def commit(self) -> None:
        self.touched = {}

    def one_by_one(self, pairs: list[tuple[Tx, int]]) -> None:
        for event, t in pairs:
            found = self.switch(event, t)
            if found is not None:
                states, _, load, *_ = found
                s = states.get(event.card) or load(event.card)
                self.compiled.update(s, event, t)
            if t > self.high:
                self.high = t
                self.fire()

    def in_loop(self, run: Any, events: Iterator[Any]) -> None:
        while True:
            due = self.due()
            self.high = run(events, self.high, self.switch)
            if self.high < due or self.high == MIN_TIME:
                return
            self.fire()


timed = st.lists(
    st.tuples(
        st.builds(
            Tx,
            card=st.sampled_from("abc"),
            amount=st.integers(-100, 100).map(float),
            tip=st.none() | st.integers(0, 9).map(float),
        ),
        st.integers(-40, 40),
    ),
    max_size=60,
)


@pytest.mark.parametrize("form", ["pairs", "field", "keys"])
@given(pairs=timed, size=st.integers(1, 60))
@examples()
def test_the_loop_counts_fires_and_judges_as_one_event_at_a_time_does(form: str, pairs: Any, size: int) -> None:
    pairs = [(msgspec.structs.replace(event, at=t), t) for event, t in pairs]
    compiled = compile_aggregates("t", SPECS, Tx, None if form == "keys" else "card")
    run = batch_loop(compiled, time="at" if form == "field" else None)
    expected, windows = Windows(compiled), Windows(compiled)
    expected.one_by_one(pairs)
    for i in range(0, len(pairs), size):
        batch = pairs[i : i + size]
        if form == "field":
            windows.in_loop(run, iter([event for event, _ in batch]))
        elif form == "keys":
            windows.in_loop(run, iter([(event, event.card, t) for event, t in batch]))
        else:
            windows.in_loop(run, iter(batch))
        windows.commit()
    assert (windows.log, windows.states, windows.high) == (expected.log, expected.states, expected.high)


def test_what_a_batch_changed_is_touched_and_states_that_are_known_are_not_loaded() -> None:
    compiled = compile_aggregates("t", {"n": Count()}, Tx, "card")
    run = batch_loop(compiled)
    windows = Windows(compiled)
    windows.in_loop(run, iter([(Tx("a", 0.0), 1), (Tx("b", 0.0), 2)]))
    windows.commit()
    windows.in_loop(run, iter([(Tx("a", 0.0), 3)]))
    assert {key: compiled.result(s).n for key, s in windows.touched[0].items()} == {"a": 2}
    assert {key: compiled.result(s).n for key, s in windows.states[0].items()} == {"a": 2, "b": 1}
    assert windows.loads == 2


def test_the_iterators_tell_how_far_a_loop_has_come() -> None:
    compiled = compile_aggregates("t", {"total": Sum("amount")}, Any, "card")
    batch = [{"card": "a", "amount": 1}, {"card": "a", "amount": 2}, {"card": "a", "amount": "3"}, {"card": "a"}]
    records = iter(batch)
    windows = Windows(compiled)
    with pytest.raises(TypeError):
        windows.in_loop(batch_loop(compiled), zip(records, [1, 2, 3, 4], strict=True))
    assert len(batch) - length_hint(records) == 3  # the third is the one that failed


def test_a_table_without_windows_runs_in_the_same_loop() -> None:
    compiled = compile_aggregates("t", {"n": Count(), "least": Min("amount")}, Tx, "card")
    states: dict[str, Any] = {}

    def load(key: str) -> Any:
        states[key] = s = compiled.new()
        return s

    events = [(Tx("a", 2.0), -5), (Tx("a", 1.0), 10**14), (Tx("b", 0.0), 0)]
    high = batch_loop(compiled)(
        iter(events), MIN_TIME, lambda e, t: (states, {}, load, MIN_TIME, END_OF_TIME, END_OF_TIME)
    )
    assert high == 10**14
    assert {key: compiled.result(s) for key, s in states.items()} == {
        "a": compiled.result_type(2, 1.0),
        "b": compiled.result_type(1, 0.0),
    }


def test_where_everything_is_in_memory_a_new_key_is_made_in_the_loop() -> None:
    compiled = compile_aggregates("t", {"n": Count(), "least": Min("amount")}, Tx, "card")
    states: dict[str, Any] = {}
    touched: dict[str, Any] = {}
    events = [(Tx("a", 2.0), 0), (Tx("a", 1.0), 1), (Tx("b", 0.0), 2)]
    batch_loop(compiled)(
        iter(events), MIN_TIME, lambda e, t: (states, touched, None, MIN_TIME, END_OF_TIME, END_OF_TIME)
    )
    assert [compiled.result(states[key]).n for key in ("a", "b")] == [2, 1]
    assert touched["a"] is states["a"]
    assert touched["b"] is states["b"]


def test_a_function_of_the_whole_event_needs_all_its_fields() -> None:
    # With "key" alone, what it was given had lost the field that it looks at.
    def step(state: int, event: Any) -> int:
        return state + int(event.amount)

    aggregate = Custom(int, step, int.__add__, int)
    assert compile_aggregates("t", {"x": aggregate}, Tx, by="card").fields is None
