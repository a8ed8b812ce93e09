"""What flows: records, closed windows, changes, dead letters; and durations."""

import copy
from typing import Any

import msgspec
import pytest

from flowkit.errors import FlowkitError
from flowkit.record import (
    EARLIEST,
    END_OF_TIME,
    LATEST,
    MIN_TIME,
    Change,
    Closed,
    DeadLetter,
    Record,
    days,
    hours,
    milliseconds,
    minutes,
    seconds,
)


class Spend(Record):
    count: int = 0
    cards: list[str] = []


class Key(Record, frozen=True):
    card: str


DURATIONS: list[tuple[int, int]] = [
    (milliseconds(5), 5),
    (milliseconds(0.4), 0),
    (seconds(0), 0),
    (seconds(1), 1_000),
    (seconds(1.5), 1_500),
    (seconds(0.001), 1),
    (seconds(4.35), 4_350),  # 4.35 * 1000 is 4349.999999999999
    (seconds(-1), -1_000),
    (minutes(1), 60_000),
    (minutes(0.5), 30_000),
    (hours(1), 3_600_000),
    (hours(24), days(1)),
    (days(1), 86_400_000),
    (days(365), 31_536_000_000),
    (days(1 / 3), 28_800_000),
]


@pytest.mark.parametrize(("found", "ms"), DURATIONS)
def test_durations_are_whole_ms(found: int, ms: int) -> None:
    assert found == ms
    assert type(found) is int


@pytest.mark.parametrize("n", [float("nan"), float("inf")])
def test_there_is_no_endless_duration(n: float) -> None:
    with pytest.raises((ValueError, OverflowError)):
        seconds(n)


def test_records_are_mutable_compare_by_value_and_do_not_share_defaults() -> None:
    a, b = Spend(), Spend()
    a.count += 1
    a.cards.append("x")
    assert a == Spend(1, ["x"])
    assert b == Spend()
    assert copy.deepcopy(a) == a != b


def test_a_record_is_hashable_if_frozen() -> None:
    assert {Key("a"): 1}[Key("a")] == 1
    with pytest.raises(TypeError):
        hash(Spend())


def test_records_take_the_options_of_a_struct() -> None:
    class Named(Record, rename="camel", tag=True):
        my_name: str

    assert msgspec.json.encode(Named("a")) == b'{"type":"Named","myName":"a"}'
    part: Any = msgspec.defstruct("Part", [("card", str)], bases=(Record,))
    assert isinstance(part("a"), Record)


def test_a_closed_window_says_when_it_was_and_how_it_was_sent() -> None:
    closed = Closed("a", Spend(1), 0, 60_000)
    assert closed.pane == "on_time"
    assert closed == Closed(key="a", value=Spend(1), start=0, end=60_000, pane="on_time")
    match closed:
        case Closed(key=key, end=end):
            assert (key, end) == ("a", 60_000)


def test_a_change_of_a_table_without_windows_is_of_all_time() -> None:
    change: Change[str, int] = Change("a", None, 5, 1_000)
    assert (change.start, change.end) == (MIN_TIME, END_OF_TIME)


def test_a_dead_letter_needs_no_traceback() -> None:
    letter = DeadLetter("t", 0, 5, "in.jsonl:5", None, b"{", None, "DecodeError", "truncated")
    assert (letter.traceback, letter.agent, letter.attempts) == ("", "", 0)
    data = msgspec.json.encode(letter)
    assert msgspec.json.decode(data, type=DeadLetter) == letter


def test_the_years_1_to_9999_lie_within_all_time() -> None:
    assert MIN_TIME < EARLIEST < 0 < LATEST < END_OF_TIME
    assert EARLIEST % 86_400_000 == 0
    assert (LATEST + 1) % 86_400_000 == 0


def test_every_error_is_in_the_drawn_tree() -> None:
    """The module's docstring draws all errors, each below its base."""
    import flowkit.errors

    drawn: dict[str, str] = {}
    path: list[str] = []
    assert flowkit.errors.__doc__ is not None
    for line in flowkit.errors.__doc__.splitlines()[2:]:
        name = line.strip("│├└─ ").split(" ")[0]
        depth = 0 if line[:1].isalpha() else line.index("──") // 4 + 1
        path = [*path[:depth], name]
        drawn[name] = path[depth - 1] if depth else "Exception"
    found = {
        name: error.__bases__[0].__name__
        for name, error in vars(flowkit.errors).items()
        if isinstance(error, type) and issubclass(error, FlowkitError)
    }
    assert drawn == found
