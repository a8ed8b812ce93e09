"""Hypothesis strategies for event-time input: streams with disorder, ties and negative times; windows; settings.

Times are small numbers of ms, so that windows, lateness and disorder of some ms meet often. All of it shrinks towards
few events near time 0 in tumbling windows without any allowance.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypedDict

from hypothesis import strategies as st

from tests.model.flink import Event, WindowSpec

KEYS = ("a", "b", "aa", "B", "é")
"""Few, so that they meet; their order by bytes is none of length, case or locale."""

KINDS = ("tumbling", "sliding", "cumulative", "session", "count", "global")


class Settings(TypedDict):
    """The keyword arguments of `flink.run`."""

    window: WindowSpec
    out_of_order: int
    allowed_lateness: int
    early: int | None
    late: Literal["drop", "deliver"]
    bounded: bool


class Case(NamedTuple):
    """A whole input of the model: `flink.run(case.events, **case.settings)`."""

    events: list[Event]
    settings: Settings


def keys() -> st.SearchStrategy[str]:
    return st.sampled_from(KEYS)


def values() -> st.SearchStrategy[float]:
    """Integers, so that sums are exact in any order."""
    return st.integers(-1000, 1000)


@st.composite
def events(draw: st.DrawFn, *, max_size: int = 30, disorder: int = 30) -> list[Event]:
    """Events in order of arrival: a walk through time that steps back by up to `disorder` ms, or stands still.

    Some streams jump far ahead, some have events twice. Times begin anywhere in -200 … 200 ms.
    """
    time = draw(st.integers(-200, 200) | st.just(0))
    pace = st.one_of(st.just(0), st.integers(0, 10), st.integers(-disorder, 30), st.integers(100, 150))
    stream: list[Event] = []
    for delta, key, value, twice in draw(
        st.lists(st.tuples(pace, keys(), values(), st.integers(0, 9)), max_size=max_size)
    ):
        time += delta
        stream += [(key, time, value)] * (2 if twice == 9 else 1)
    return stream


def in_order_events(*, max_size: int = 30) -> st.SearchStrategy[list[Event]]:
    """Events whose times never go back."""
    return events(max_size=max_size, disorder=0)


def splits(*, max_splits: int = 3, max_size: int = 15) -> st.SearchStrategy[dict[str, list[Event]]]:
    """Inputs by name, some of them empty; the order of the names is the input order."""
    return st.lists(events(max_size=max_size), min_size=1, max_size=max_splits).map(
        lambda inputs: {f"split-{number}": stream for number, stream in enumerate(inputs)}
    )


@st.composite
def windows(draw: st.DrawFn, *kinds: str, max_ms: int = 40) -> WindowSpec:
    """A window specification of one of `kinds` (default: all), no length above `max_ms`.

    Lengths need not divide one another, sliding windows may leave gaps, and offsets may exceed the size.
    """
    length = st.integers(1, max_ms)
    offset = st.just(0) | st.integers(-max_ms, max_ms)
    match kind := draw(st.sampled_from(kinds or KINDS)):
        case "tumbling":
            return (kind, draw(length), draw(offset))
        case "sliding":
            return (kind, draw(length), draw(st.integers(3, max_ms)), draw(offset))
        case "cumulative":
            step = draw(st.integers(1, max(1, max_ms // 4)))
            return (kind, step, step * draw(st.integers(1, 4)), draw(offset))
        case "session":
            return (kind, draw(length))
        case "count":
            n = draw(st.integers(1, 5))
            return draw(st.just((kind, n)) | st.tuples(st.just(kind), st.just(n), st.integers(1, 5)))
        case "global":
            return (kind,)
        case _:
            raise ValueError(f"kind {kind!r}: expected one of {KINDS}")


def out_of_order() -> st.SearchStrategy[int]:
    """Allowance for disorder, in ms."""
    return st.just(0) | st.integers(0, 40)


def allowed_lateness() -> st.SearchStrategy[int]:
    """In ms."""
    return st.just(0) | st.integers(0, 60)


def earlies() -> st.SearchStrategy[int | None]:
    """Distance between early panes in ms, or None."""
    return st.none() | st.integers(1, 30)


@st.composite
def cases(draw: st.DrawFn, *kinds: str, max_size: int = 30) -> Case:
    """Events with all settings of a run, for windows of `kinds` (default: all)."""
    window = draw(windows(*kinds))
    return Case(
        draw(events(max_size=max_size)),
        Settings(
            window=window,
            out_of_order=draw(out_of_order()),
            allowed_lateness=draw(allowed_lateness()),
            early=None if window[0] == "count" else draw(earlies()),
            late=draw(st.sampled_from(("drop", "deliver"))),
            bounded=draw(st.sampled_from((True, True, False))),
        ),
    )
