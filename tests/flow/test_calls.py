"""What map_async, map_async_batches and enrich note down, and what they refuse."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from flowkit import App, ConfigError, Enriched, Record, Retry, Sum, Tumbling
from flowkit.cli.explain import text_of
from flowkit.flow import Called, paths_of, roots_of
from flowkit.lookup import Cache


class Event(Record):
    key: str
    at: int = 0


class Score(Record):
    key: str
    value: float


async def score(event: Event) -> Score:
    return Score(event.key, 1.0)


async def scores(events: list[Event]) -> list[Score]:
    return [Score(event.key, 1.0) for event in events]


async def find(key: str) -> Score | None:
    return None


async def any_score(event: object) -> Score:
    return Score("", 1.0)


class Model:
    async def __call__(self, event: Event) -> Score:
        return await score(event)


@pytest.fixture
def app() -> App:
    return App("app")


def test_the_type_of_results_is_what_the_function_is_annotated_to_give(app: App) -> None:
    events = app.topic("events", Event, key="key", time="at")
    assert events.map_async(score).type is Score
    assert events.map_async(Model()).type is Any
    assert events.map_async(Model(), type=Score).type is Score
    assert events.map_async_batches(scores).type is Score
    assert events.map_async(functools.partial(score)).type is Any
    assert events.enrich(find, key="key").type == Enriched[Event, Score | None]
    assert events.enrich(find, key="key", how="inner").type == Enriched[Event, Score]


def test_streams_get_names_and_names_are_taken_once(app: App) -> None:
    events = app.topic("events", Event, key="key", time="at")
    assert [events.map_async(score).name for _ in range(2)] == ["events.map_async", "events.map_async-2"]
    assert events.map_async_batches(scores).name == "events.map_async_batches"
    assert events.enrich(find, key="key").name == "events.enrich"
    inner = events.enrich(find, key="key", how="inner", name="found")
    assert (inner.name, inner.parents[0].name) == ("found", "found.all")  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="app 'app' has a topic named 'events' already"):
        events.map_async(score, name="events")


def plain(event: Any) -> Any:
    return event


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda s: s.map_async(plain), "'events'.map_async: plain is no async function: write `async def`, or use map"),
        (lambda s: s.map_async(5), "'events'.map_async: 5 is no function: give an async function of one argument"),
        (lambda s: s.map_async(score, concurrency=0), "'events'.map_async: concurrency=0: give a whole number"),
        (lambda s: s.map_async(score, timeout=0), "'events'.map_async: timeout=0: give a whole number, 1 or more ms"),
        (lambda s: s.map_async(score, timeout=0.5), "'events'.map_async: timeout=0.5: give a whole number"),
        (lambda s: s.map_async(score, retry=3), r"'events'.map_async: retry=3: give a flowkit.Retry\(…\)"),
        (lambda s: s.map_async_batches(scores, size=0), "'events'.map_async_batches: size=0: give a whole number"),
        (lambda s: s.map_async_batches(scores, within=0), "'events'.map_async_batches: within=0: give a whole number"),
        (lambda s: s.enrich(find, key="missing"), r"'events'.enrich\('missing'\): that is no field of Event"),
        (lambda s: s.enrich(plain, key="key"), "'events'.enrich: plain is no async function"),
        (lambda s: s.enrich(find, key="key", how="outer"), "'events'.enrich: how='outer': give 'left' or 'inner'"),
        (lambda s: s.enrich(find, key="key", cache=5), r"'events'.enrich: cache=5: give a flowkit.lookup.Cache\(…\)"),
    ],
)
def test_what_cannot_be_right_is_told_at_once(app: App, use: Callable[[Any], Any], message: str) -> None:
    events = app.topic("events", Event, key="key", time="at")
    with pytest.raises(ConfigError, match=message):
        use(events)


def test_all_that_is_wrong_with_a_call_is_told_together(app: App) -> None:
    events = app.topic("events", Event)
    with pytest.raises(ConfigError) as raised:
        events.map_async(plain, concurrency=0, timeout=-1)
    assert len(raised.value.problems) == 3


def test_results_are_a_source_of_their_own_behind_what_they_are_made_of(app: App) -> None:
    events = app.topic("events", Event, key="key", time="at")
    scored = events.filter(bool).map_async(score)
    mapped = scored.map(plain)
    (path,) = paths_of(mapped)
    assert path.root is scored
    assert isinstance(scored, Called)
    assert roots_of([mapped]) == [events, scored]


def test_calls_join_those_of_one_topic_and_a_circle_through_them_is_found(app: App) -> None:
    events = app.topic("events", Event, key="key", time="at")
    table = app.table("table", str, Score, window=Tumbling(10), default=Score("", 0.0))

    @app.each(events, tables=[table])
    def keep(event: Event) -> None: ...

    @app.each(table.closed.map_async(any_score))
    def take(result: Score) -> None: ...

    (group,) = app.plan().groups
    assert [agent.name for agent in group.agents] == ["keep", "take"]

    other = app.table("other", str, Score, default=Score("", 0.0))
    app.table("again", of=other.changes.map_async(any_score), by="key", n=Sum("value"))

    @app.each(table.closed.map_async(any_score), tables=[other])
    def second(result: Score) -> None: ...

    (group,) = app.plan().groups
    assert {t.name for t in group.tables} == {"table", "other", "again"}


def test_explain_tells_what_is_called(app: App) -> None:
    events = app.topic("events", Event, key="key", time="at")

    @app.each(events.map_async(score, concurrency=8, timeout=500, retry=Retry(attempts=3), name="scored"))
    def take(result: Score) -> None: ...

    @app.each(events.map_async_batches(scores, within=50, name="together"))
    def also(result: Score) -> None: ...

    text = list(text_of(app, app.plan().groups, {}))
    assert (
        "  calls scored: await score for each event of events, 8 at once, 500 ms for each try, tries 3 times, in order"
        ", the watermark waits for what is under way, and a commit saves it"
    ) in text
    assert "    -> agent take" in text
    assert any(
        line.startswith("  calls together: await scores for up to 64 events of events, which wait") for line in text
    )


def test_a_cache_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError) as raised:
        Cache(size=0, ttl=0, missing_ttl=-1)
    assert len(raised.value.problems) == 3
