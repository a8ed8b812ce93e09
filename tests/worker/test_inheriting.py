"""A shard's task takes over the state of others, as if each key had been in one task for ever."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flowkit import App, Closed, Count, Session, Sliding, Stream, Timer, Tumbling
from flowkit import Record as FlowRecord
from flowkit.pattern import Pattern
from flowkit.worker import inheriting
from tests.depth import examples
from tests.worker.heirs import OUT, TOPIC, Record, Shard, Tree

LAST = 1_000


class Event(FlowRecord):
    key: str
    at: int
    n: int


class Told(FlowRecord):
    kind: str
    key: str
    end: int
    n: int
    pane: str = ""


def app_of(lateness: int) -> App:
    """State of many kinds, with all that comes of it told."""
    app = App("heirs")
    events = app.topic(TOPIC, Event, key="key", time="at", out_of_order=3)
    out = app.topic(OUT, Told, key="key")
    tumbling = app.table("tumbling", str, int, window=Tumbling(10), allowed_lateness=lateness)
    totals = app.table("totals", str, int)
    windows: dict[str, Any] = {"sliding": Sliding(20, 10), "sessions": Session(5)}
    tables: dict[str, Any] = {
        name: app.table(name, of=events, by="key", window=window, allowed_lateness=lateness, n=Count())
        for name, window in windows.items()
    }
    silence = app.timers("silence", str)

    @app.agent(events, silence, tables=[tumbling, totals, silence], sinks=[out])
    async def keep(stream: Stream[Event | Timer[str]]) -> AsyncIterator[Told]:
        async for event in stream:
            if isinstance(event, Timer):
                yield Told("silence", event.key, event.at, 0)
                continue
            tumbling[event.key] += 1
            totals[event.key] += 1
            silence.set(event.key, max(silence.get(event.key) or 0, event.at + 50))
            yield Told("total", event.key, event.at, totals[event.key])

    @app.each(tumbling.closed, sinks=[out])
    def tumbled(w: Closed[str, int]) -> Told:
        return Told("tumbling", w.key, w.end, w.value, w.pane)

    def tell(name: str, table: Any) -> None:
        @app.each(table.closed, sinks=[out], name=f"{name}-closed")
        def closed(w: Closed[str, Any]) -> Told:
            return Told(name, w.key, w.end, w.value.n, w.pane)

    for name, table in tables.items():
        tell(name, table)

    def tell_late(name: str, table: Any) -> None:
        @app.each(table.late, sinks=[out], name=f"{name}-late")
        def late(event: Event) -> Told:
            return Told(f"{name} late", event.key, event.at, event.n)

    for name, table in {"tumbling": tumbling, **tables}.items():
        tell_late(name, table)
    probe = Pattern[Event].begin("one", lambda e: e.n == 1).followed_by("two", lambda e: e.n == 2)

    @app.each(events.match(probe.within(12)), sinks=[out])
    def found(match: Any) -> Told:
        return Told("match", match.key, match.end, 0)

    return app


def records(events: Sequence[tuple[str, int, int]]) -> list[Record]:
    return [(key.encode(), json.dumps({"key": key, "at": at, "n": n}).encode()) for key, at, n in events]


def of(letters: str, base: int, least: int = 0) -> st.SearchStrategy[list[tuple[str, int, int]]]:
    """Events of keys with these first letters, about a time."""
    keys = st.sampled_from([letter + digit for letter in letters for digit in "01"])
    return st.lists(st.tuples(keys, st.integers(base, base + 40), st.integers(0, 2)), min_size=least, max_size=12)


histories = st.tuples(
    *(of(letter, 20, 1) for letter in "abc"),  # of one that has seen nothing nobody knows how far it is
    of("ab", 40),
    of("abc", 60),
    of("a", 70),
    of("bc", 70),
)


def ends(letters: str) -> list[tuple[str, int, int]]:
    return [(f"{letter}{digit}", LAST, 0) for letter in letters for digit in "01"]


@pytest.mark.parametrize("lateness", [0, 7])
@given(history=histories)
@example(
    history=(
        [("a0", 54, 0)],
        [("b0", 48, 0), ("b0", 55, 0), ("b0", 58, 0)],  # the last one makes nothing due, and is how far it came
        [("c0", 27, 0)],
        [("b0", 54, 1), ("b0", 56, 2)],
        [],
        [],
        [],
    )
)
@examples(150)
async def test_each_key_fares_as_if_nothing_had_been_merged_or_split(lateness: int, history: Any) -> None:
    """The oracle of a span of keys: one task that is never ended, which reads all that its shards have had."""
    a, b, c, ab, abc, a_again, bc = history
    shards = [
        Shard(0, "a", (), records(a)),
        Shard(1, "b", (), records(b)),
        Shard(2, "c", (), records(c)),
        Shard(3, "ab", (0, 1), records(ab)),
        Shard(4, "abc", (3, 2), records(abc)),
        Shard(5, "a", (4,), records([*a_again, *ends("a")])),
        Shard(6, "bc", (4,), records([*bc, *ends("bc")])),
    ]
    tree = Tree(app_of(lateness))
    for shard in shards:
        await tree.run(shard)
    assert tree.dead() == 0
    found = Counter(tuple(row.values()) for row in tree.told())
    wanted: Counter[Any] = Counter()
    for span in "abc":
        seen = [shard for shard in shards if span in shard.span]
        plain = Tree(app_of(lateness))
        await plain.run(Shard(0, "abc", (), [record for shard in seen for record in shard.records]))
        wanted.update(tuple(row.values()) for row in plain.told() if row["key"][0] == span)
    assert found == wanted


def counting() -> App:
    app = App("heirs")
    events = app.topic(TOPIC, Event, key="key", time="at")
    out = app.topic(OUT, Told, key="key")
    totals = app.table("totals", str, int)
    windows = app.table("windows", str, int, window=Tumbling(10))

    @app.each(events, tables=[totals, windows], sinks=[out])
    def count(event: Event) -> Told:
        totals[event.key] += 1
        windows[event.key] += 1
        return Told("total", event.key, event.at, totals[event.key])

    @app.each(windows.closed, sinks=[out])
    def closed(w: Closed[str, int]) -> Told:
        return Told("window", w.key, w.end, w.value)

    return app


MANY = 60
FIRST = [
    Shard(0, "a", (), records([(f"a{n}", 10 + n // 20, 0) for n in range(MANY)])),
    Shard(1, "b", (), records([(f"b{n}", 20 + n // 20, 0) for n in range(MANY)])),
]
CHILD = Shard(2, "ab", (0, 1), records([(f"{letter}{n}", 60, 0) for letter in "ab" for n in range(MANY)]))


async def after_both() -> Tree:
    tree = Tree(counting(), commit_every=100)
    for shard in FIRST:
        await tree.run(shard)
    tree.broker.frames.clear()
    return tree


async def test_however_much_is_taken_over_no_frame_has_more_than_a_portion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inheriting, "PORTION_BYTES", 1_000)
    tree = await after_both()
    live = await tree.open(CHILD)
    await live.close()
    sizes = [sum(len(key) + len(value) for c in f.changes for key, value in zip(c.keys, c.values, strict=True))
             for _, f in tree.broker.frames]  # fmt: skip
    assert len(sizes) > 10
    assert max(sizes) <= 1_000
    async with tree.state_of(tree.name(2)) as store:
        assert len(list(store.scan(("totals", None)))) == 2 * MANY
        assert "inheriting" not in store.meta


@pytest.mark.parametrize("parents", [(0, 1), (1, 0)])
async def test_a_worker_that_dies_while_it_takes_over_is_followed_where_it_was(
    monkeypatch: pytest.MonkeyPatch, parents: tuple[int, int]
) -> None:
    monkeypatch.setattr(inheriting, "PORTION_BYTES", 1_000)
    child = CHILD._replace(parents=parents)
    whole = await after_both()
    await whole.run(child)
    commits = next(n for n, (_, f) in enumerate(whole.broker.frames) if "inheriting" not in f.meta) + 1
    assert commits > 10
    for step in range(1, commits):
        tree = await after_both()
        tree.broker.dies_after = step
        with pytest.raises(ConnectionError):
            await tree.open(child)
        tree.broker.dies_after = 10**9
        await tree.run(child)
        assert len(tree.broker.frames) == len(whole.broker.frames)
        assert tree.told() == whole.told()
    assert Counter(row["n"] for row in whole.told() if row["kind"] == "total") == {1: 2 * MANY, 2: 2 * MANY}
    assert len([row for row in whole.told() if row["kind"] == "window"]) == 2 * MANY


async def test_a_split_takes_over_the_keys_of_its_range_alone() -> None:
    tree = Tree(counting(), commit_every=100)
    await tree.run(Shard(0, "ab", (), records([(f"{letter}0", 10, 0) for letter in "ab"])))
    for number, letter in ((1, "a"), (2, "b")):
        await tree.run(Shard(number, letter, (0,), records([(f"{letter}0", 50, 0)])))
        async with tree.state_of(tree.name(number)) as store:
            assert [key for key, _ in store.scan(("totals", None))] == [f"{letter}0".encode()]
