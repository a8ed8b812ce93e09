"""Operators beside hand-written loops of the same work, and a chain of them beside one function. Ratios of CPU time."""

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowkit import App, Count, Stream, Sum, Tumbling, minutes, seconds
from flowkit.flow import Events
from tests.benchmarks.workload import EVENTS, Event, best, flow, show, write_events


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_events(tmp_path_factory.mktemp("bench") / "events.jsonl", EVENTS, 10_000)


def app_of(name: str, made: Callable[[Events[Event]], Events[Any]]) -> App:
    """An app whose agent does nothing with what the operators make."""
    app = App(f"bench-{name}")
    topic = app.topic("events", Event, key="key", time="ts", out_of_order=seconds(1))

    @app.agent(made(topic))
    async def nothing(stream: Stream[Any]) -> None:
        async for _ in stream:
            pass

    return app


def loop(path: Path, work: Callable[[Callable[[bytes], Event], Any], None]) -> float:
    """A loop by hand over the lines of a file. CPU seconds."""
    gc.collect()
    started = time.process_time()
    with path.open("rb") as file:
        work(msgspec.json.Decoder(Event).decode, file)
    return time.process_time() - started


def large(event: Event) -> bool:
    return event.amount > 50


def halved(event: Event) -> Event:
    return Event(event.key, event.amount / 2, event.ts, event.country, event.merchant)


def twice(event: Event) -> list[Event]:
    return [event, event]


def by_hand_filter(decode: Any, lines: Any) -> None:
    for line in lines:
        event = decode(line)
        if large(event):
            pass


def by_hand_map(decode: Any, lines: Any) -> None:
    for line in lines:
        halved(decode(line))


def by_hand_flat_map(decode: Any, lines: Any) -> None:
    for line in lines:
        for _ in twice(decode(line)):
            pass


OPERATORS: dict[str, tuple[Callable[[Events[Event]], Events[Any]], Callable[[Any, Any], None]]] = {
    "filter": (lambda stream: stream.filter(large), by_hand_filter),
    "map": (lambda stream: stream.map(halved), by_hand_map),
    "flat_map": (lambda stream: stream.flat_map(twice), by_hand_flat_map),
    "merge of two filters": (
        lambda stream: stream.filter(large).merge(stream.filter(lambda event: not large(event))),
        by_hand_filter,
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_stateless_operator_beside_a_loop(name: str, events: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, work = OPERATORS[name]
    empty = app_of("empty", lambda stream: stream)
    bare, ours, without = best(
        lambda: loop(events, work),
        lambda: flow(app_of("operator", made), events),
        lambda: flow(empty, events),
        rounds=3,
    )
    per = 1e6 / EVENTS
    show(
        capsys,
        f"{name:21} {ours * per:.2f} µs an event, a loop by hand {bare * per:.2f}: {ours / bare:.2f}x; "
        f"without the operator {without * per:.2f}",
    )


def five(stream: Events[Event]) -> Events[Event]:
    return (
        stream.filter(lambda event: event.amount > 10)
        .map(halved)
        .filter(lambda event: event.country == "DE")
        .map(lambda event: event, type=Event)
        .filter(lambda event: event.amount < 45)
    )


def five_at_once(event: Event) -> list[Event]:
    if event.amount <= 10:
        return []
    made = Event(event.key, event.amount / 2, event.ts, event.country, event.merchant)
    if made.country != "DE" or made.amount >= 45:
        return []
    return [made]


def one_function_app() -> App:
    """The five steps as one function that the agent calls."""
    app = App("bench-one")
    topic = app.topic("events", Event, key="key", time="ts", out_of_order=seconds(1))

    @app.agent(topic)
    async def nothing(stream: Stream[Event]) -> None:
        async for event in stream:
            for _ in five_at_once(event):
                pass

    return app


def test_a_chain_of_five_beside_one_function(events: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain, one = best(lambda: flow(app_of("five", five), events), lambda: flow(one_function_app(), events), rounds=4)
    per = 1e6 / EVENTS
    show(
        capsys,
        f"chain of five {chain * per:.2f} µs an event, one function {one * per:.2f}: {chain / one:.2f}x (at most 1.3x)",
    )


def counted_app() -> App:
    app = App("bench-counted")
    topic = app.topic("events", Event, key="key", time="ts", out_of_order=seconds(1))
    topic.filter(large).map(halved).group_by("key").window(Tumbling(minutes(1))).aggregate(n=Count(), sum=Sum("amount"))
    return app


def by_hand_counted(decode: Any, lines: Any) -> None:
    windows: dict[tuple[str, int], list[float]] = {}
    for line in lines:
        event = decode(line)
        if not large(event):
            continue
        event = halved(event)
        key = (event.key, event.ts // 60_000)
        found = windows.get(key)
        if found is None:
            windows[key] = [1, event.amount]
        else:
            found[0] += 1
            found[1] += event.amount


def test_windows_behind_operators(events: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare, ours = best(lambda: loop(events, by_hand_counted), lambda: flow(counted_app(), events), rounds=3)
    per = 1e6 / EVENTS
    show(
        capsys,
        f"filter, map, windows of a key {ours * per:.2f} µs an event, by hand {bare * per:.2f}: {ours / bare:.2f}x "
        "(at most 2x)",
    )
