"""The engine finds what the brute-force model finds, however events arrive and whenever cells are stored."""

import random
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from flowkit.pattern import (
    AfterMatch,
    Cell,
    NoSkip,
    Pattern,
    PatternProcess,
    SkipPastLast,
    SkipToFirst,
    SkipToLast,
    SkipToNext,
)
from flowkit.record import END_OF_TIME
from tests.depth import SCALE
from tests.pattern.model import ANY, BEGIN, FOLLOWED, NEXT, NOT_FOLLOWED, NOT_NEXT, NOTS, History, Item, Model, Sent

LETTERS = "abc"

AFTER: dict[str, Any] = {
    "no_skip": lambda name: NoSkip(),
    "to_next": lambda name: SkipToNext(),
    "past_last": lambda name: SkipPastLast(),
    "to_first": SkipToFirst,
    "to_last": SkipToLast,
}


class Event(msgspec.Struct):
    """`number` tells it from others of its letter; events carry it as they arrive."""

    letter: str
    number: int


# --- patterns -------------------------------------------------------------------------------------------------------


def condition(item: Item) -> Any:
    letters, most = item.letters, item.most
    if most is None:
        return lambda event: event.letter in letters
    return lambda event, matched: event.letter in letters and sum(map(len, matched.values())) <= most


def build(items: tuple[Item, ...], within: int) -> Pattern[Event]:
    pattern: Any = None
    for item in items:
        given = (build(item.body, 0),) if item.body else (item.name, condition(item))
        pattern = Pattern[Event].begin(*given) if pattern is None else getattr(pattern, item.how)(*given)
        if item.how in NOTS:
            continue
        if item.hi is None:
            pattern = pattern.times_or_more(item.lo)
        elif (item.lo, item.hi) != (1, 1):
            pattern = pattern.times(item.lo, item.hi)
        if item.inner != FOLLOWED:
            pattern = pattern.consecutive() if item.inner == NEXT else pattern.allow_combinations()
        if item.greedy:
            pattern = pattern.greedy()
        if item.until:
            until = item.until
            pattern = pattern.until(lambda event, until=until: event.letter in until)
        if item.optional:
            pattern = pattern.optional()
    if within:
        pattern = pattern.within(within)
    made: Pattern[Event] = pattern
    return made


letters_ = st.sets(st.sampled_from(LETTERS), min_size=1, max_size=2).map(lambda s: "".join(sorted(s)))


@st.composite
def element(draw: st.DrawFn, how: str, *, may_be_optional: bool) -> Item:
    lo, hi = draw(st.sampled_from([(1, 1), (1, 1), (1, None), (2, None), (2, 2), (1, 2), (2, 3)]))
    loop = hi != 1
    inner = draw(st.sampled_from([FOLLOWED, NEXT, ANY])) if loop else FOLLOWED
    return Item(
        how,
        draw(letters_),
        lo,
        hi,
        optional=may_be_optional and draw(st.integers(0, 3)) == 0,
        inner=inner,
        greedy=loop and inner != ANY and draw(st.booleans()),
        until=draw(letters_) if hi is None and draw(st.integers(0, 2)) == 0 else "",
        most=draw(st.integers(0, 4)) if draw(st.integers(0, 4)) == 0 else None,
    )


@st.composite
def patterns(draw: st.DrawFn) -> tuple[tuple[Item, ...], int]:
    within = draw(st.sampled_from([0, 1, 2, 4, 7, 12]))
    items: list[Item] = []
    for index in range(draw(st.integers(1, 4))):
        hows = [NEXT, FOLLOWED, FOLLOWED, ANY]
        if index and not items[-1].optional:
            hows += [NOT_NEXT, NOT_FOLLOWED]
        how = draw(st.sampled_from(hows)) if index else BEGIN
        if how in NOTS:
            item = Item(how, draw(letters_))
        else:
            item = draw(element(how, may_be_optional=not (items and items[-1].greedy)))
        items.append(item)
    if not within and any(item.how == NOT_FOLLOWED for item in items):
        last = max(i for i, item in enumerate(items) if item.how == NOT_FOLLOWED)
        if all(item.optional or item.how in NOTS for item in items[last:]):
            within = 5
    return named(items), within


@st.composite
def grouped(draw: st.DrawFn) -> tuple[tuple[Item, ...], int]:
    """Up to two elements around a group of one to three plain ones."""
    body = [Item(draw(st.sampled_from([NEXT, FOLLOWED, ANY])), draw(letters_)) for _ in range(draw(st.integers(1, 3)))]
    body = [Item(b.how, b.letters, optional=i > 0 and draw(st.integers(0, 3)) == 0) for i, b in enumerate(body)]
    lo, hi = draw(st.sampled_from([(1, 1), (1, None), (2, None), (2, 2), (1, 2)]))
    inner = draw(st.sampled_from([FOLLOWED, NEXT, ANY])) if hi != 1 else FOLLOWED
    how = draw(st.sampled_from([NEXT, FOLLOWED, ANY]))
    group = Item(how, "", lo, hi, draw(st.integers(0, 3)) == 0, inner, body=tuple(body))
    before = [draw(element(BEGIN, may_be_optional=False))] if draw(st.booleans()) else []
    if before and before[-1].greedy:
        before = [Item(BEGIN, before[-1].letters)]
    after = [draw(element(draw(st.sampled_from([NEXT, FOLLOWED, ANY])), may_be_optional=True))]
    return named([*before, group, *(after if draw(st.booleans()) else [])]), draw(st.sampled_from([0, 3, 8]))


def named(items: list[Item]) -> tuple[Item, ...]:
    def name(item: Item, own: str) -> Item:
        body = tuple(name(inner, f"{own}{i}") for i, inner in enumerate(item.body))
        return Item(**{**vars(item), "name": own, "body": body})

    return tuple(name(item, f"e{i}") for i, item in enumerate(items))


# --- runs -----------------------------------------------------------------------------------------------------------


@st.composite
def arrivals(draw: st.DrawFn, longest: int = 9) -> list[tuple[str, int]]:
    """(letter, time) in order of arrival."""
    word = draw(st.text(LETTERS, min_size=1, max_size=longest))
    times, t = [], 0
    for _ in word:
        t += draw(st.sampled_from([0, 1, 1, 1, 2, 4]))
        times.append(t)
    events = list(zip(word, times, strict=True))
    return draw(st.permutations(events)) if draw(st.booleans()) else events


def history(events: list[tuple[str, int]]) -> History:
    """Events in the order that counts: by time, those of one time as they arrived."""
    ordered = sorted(events, key=lambda event: event[1])
    return History("".join(letter for letter, _ in ordered), [t for _, t in ordered])


def numbered(events: list[tuple[str, int]]) -> list[tuple[Event, int]]:
    order = sorted(range(len(events)), key=lambda i: events[i][1])
    place = {arrival: number for number, arrival in enumerate(order)}
    return [(Event(letter, place[i]), t) for i, (letter, t) in enumerate(events)]


def seen(sent: tuple[str, Any, int]) -> Sent:
    output, value, t = sent
    assert value.key == "key"
    events = tuple((name, tuple(event.number for event in of)) for name, of in value.events.items())
    return output, events, value.start, value.at if output else value.end, t


def run(process: PatternProcess[str, Event], events: list[tuple[str, int]], seed: int) -> list[Sent]:
    """The process's output, with watermarks and stored cells where `seed` puts them."""
    chance = random.Random(seed)
    process._engine.spare = chance.choice([0, 16])  # such short histories would hardly ever be swept
    cell: Cell[Event] = process.new()
    sent: list[Sent] = []

    def advance(watermark: int) -> None:
        nonlocal cell
        while (due := process.due(cell)) <= watermark:
            sent.extend(seen(s) for s in process.wake("key", cell, due))
            cell = stored(cell)
            if process.over(cell):
                assert cell == process.new()

    def stored(cell: Cell[Event]) -> Cell[Event]:
        if chance.random() < 0.5:
            decoded: Cell[Event] = msgspec.msgpack.decode(msgspec.msgpack.encode(cell), type=process.cell_type)
            assert decoded == cell
            return decoded
        return cell

    remaining = numbered(events)
    while remaining:
        event, t = remaining.pop(0)
        assert process.event("key", cell, 0, event, t) == ()
        cell = stored(cell)
        if chance.random() < 0.5:
            advance(min((other for _, other in remaining), default=t + 1) - 1 - chance.randrange(2))
    advance(END_OF_TIME)
    return sent


def agree(
    items: tuple[Item, ...], within: int, events: list[tuple[str, int]], after: tuple[str, str], seed: int
) -> None:
    strategy: AfterMatch = AFTER[after[0]](after[1])
    process: PatternProcess[str, Event] = PatternProcess(build(items, within), Event, after=strategy)
    assert run(process, events, seed) == Model(items, within, history(events), after).run()


@settings(max_examples=round(600 * SCALE), deadline=None)
@given(patterns(), arrivals(), st.integers(0, 1000))
def test_every_match_and_time_out_of_the_model_is_found(
    pattern: tuple[tuple[Item, ...], int], events: list[tuple[str, int]], seed: int
) -> None:
    agree(*pattern, events, ("no_skip", ""), seed)


@settings(max_examples=round(400 * SCALE), deadline=None)
@given(patterns(), arrivals(), st.sampled_from([how for how in AFTER if how != "no_skip"]), st.data())
def test_after_match_strategies_skip_what_the_model_skips(
    pattern: tuple[tuple[Item, ...], int], events: list[tuple[str, int]], how: str, data: st.DataObject
) -> None:
    names = [item.name for item in pattern[0] if item.how not in NOTS]
    agree(*pattern, events, (how, data.draw(st.sampled_from(names))), data.draw(st.integers(0, 1000)))


@settings(max_examples=round(300 * SCALE), deadline=None)
@given(grouped(), arrivals(7), st.integers(0, 1000))
def test_groups_mean_what_they_mean_written_out(
    pattern: tuple[tuple[Item, ...], int], events: list[tuple[str, int]], seed: int
) -> None:
    agree(*pattern, events, ("no_skip", ""), seed)


@settings(max_examples=round(100 * SCALE), deadline=None)
@given(patterns(), arrivals())
def test_one_wake_at_the_end_finds_what_many_do(
    pattern: tuple[tuple[Item, ...], int], events: list[tuple[str, int]]
) -> None:
    process: PatternProcess[str, Event] = PatternProcess(build(*pattern), Event)
    cell: Cell[Event] = process.new()
    for event, t in numbered(events):
        process.event("key", cell, 0, event, t)
    assert [seen(s) for s in process.wake("key", cell, END_OF_TIME)] == run(process, events, 1)
