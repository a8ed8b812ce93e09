"""Resources that are made anew while the worker runs: models that are swapped under load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from flowkit import App, ConfigError, Record, minutes
from flowkit.clock import VirtualClock
from flowkit.testing import harness
from flowkit.worker import resources


class Event(Record):
    n: int


class Model:
    def __init__(self, version: int) -> None:
        self.version, self.closed = version, False


class Shelf:
    """Makes models, and fails when told."""

    def __init__(self, app: App, **options: Any) -> None:
        self.made: list[Model] = []
        self.fails = False

        async def model() -> AsyncIterator[Model]:
            if self.fails:
                raise OSError("no such model")
            made = Model(len(self.made) + 1)
            self.made.append(made)
            yield made
            made.closed = True

        self.resource: Any = app.resource(**options)(model) if options else app.resource(model)

    def closed(self) -> list[bool]:
        return [model.closed for model in self.made]


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_reload_is_seen_by_later_calls_and_the_old_one_closed_once_no_call_can_use_it() -> None:
    app = App("app")
    shelf = Shelf(app)
    events, updates, sink = app.topic("events", Event), app.topic("updates", Event), app.sink("out", Event)
    gates = {n: asyncio.Event() for n in range(4)}

    async def score(event: Event) -> Event:
        await gates[event.n].wait()
        model = shelf.resource()
        assert not model.closed
        await asyncio.sleep(0)
        return Event(event.n * 10 + model.version)

    @app.each(events.map_async(score), sinks=[sink])
    def tell(event: Event) -> Event:
        return event

    @app.each(updates)
    async def update(event: Event) -> None:
        before = shelf.resource()
        await shelf.resource.reload()
        assert not before.closed  # not while this event could use it

    async with harness(app) as h:
        await h.send(events, Event(0), Event(1))
        gates[0].set()
        await h.settle()
        await h.send(updates, Event(0))
        await turns()
        assert (len(shelf.made), shelf.closed()) == (2, [False, False])  # call 1 could use the first one
        gates[2].set()
        await h.send(events, Event(2))
        gates[1].set()
        await h.drain()
        await turns()
        assert [event.n for event in h.sent(sink)] == [1, 12, 22]
        assert shelf.closed() == [True, False]
    assert shelf.closed() == [True, True]


async def test_a_reload_that_fails_raises_and_keeps_the_old_one() -> None:
    app = App("app")
    shelf = Shelf(app)
    async with resources(app, VirtualClock()):
        shelf.fails = True
        with pytest.raises(OSError, match="no such model"):
            await shelf.resource.reload()
        assert (shelf.resource().version, shelf.closed()) == (1, [False])
        shelf.fails = False
        await shelf.resource.reload()
        await turns()
        assert (shelf.resource().version, shelf.closed()) == (2, [True, False])


async def test_a_resource_is_made_anew_by_the_clock_and_one_that_fails_is_told_and_kept() -> None:
    app = App("app")
    shelf = Shelf(app, reload_every=minutes(5))
    clock = VirtualClock()
    async with resources(app, clock) as look:
        clock.advance(minutes(5) - 1)
        look()
        await turns()
        assert shelf.resource().version == 1
        clock.advance(1)
        look()
        await turns()
        assert (shelf.resource().version, shelf.closed()) == (2, [True, False])
        shelf.fails = True
        clock.advance(minutes(5))
        with capture_logs() as logs:
            look()
            await turns()
        assert [(told["event"], told["error"]) for told in logs] == [
            ("resource not reloaded: the old one stays", "no such model")
        ]
        assert shelf.resource().version == 2
    assert shelf.closed() == [True, True]


async def test_a_factory_that_fails_at_the_start_is_the_workers_failure() -> None:
    app = App("app")
    Shelf(app).fails = True
    with pytest.raises(OSError, match="no such model"):
        async with resources(app, VirtualClock()):
            pass


def test_reload_every_is_whole_ms() -> None:
    with pytest.raises(ConfigError, match="resource 'model': reload_every=0: give whole ms, 1 or more"):
        Shelf(App("app"), reload_every=0)
