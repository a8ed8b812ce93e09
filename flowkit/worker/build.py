"""Puts a task together: engines, outlets and inlets for the groups of an app."""

import gc
import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from flowkit.agent import Group, Outlet, Topic
from flowkit.app import App
from flowkit.clock import Clock
from flowkit.errors import ConfigError
from flowkit.sink import Sink
from flowkit.store import Store
from flowkit.worker.drivers import AggregateDriver
from flowkit.worker.engine import Counters, Engine
from flowkit.worker.floors import Owns
from flowkit.worker.inlet import Inlet
from flowkit.worker.outlets import BoundOutlet


def make_outlets(app: App, groups: Iterable[Group], sinks: dict[str, Sink]) -> dict[str, BoundOutlet]:
    """An outlet for everything that the groups emit to, and for the dead letters."""
    wanted: dict[str, Outlet[Any]] = {app.dead_letters.name: app.dead_letters}
    for group in groups:
        wanted |= {outlet.name: outlet for outlet in group.outlets}
    outlets: dict[str, BoundOutlet] = {}
    problems: list[str] = []
    for name, outlet in wanted.items():
        try:
            outlets[name] = BoundOutlet(outlet, _suited(sinks[name].codec if name in sinks else None, outlet))
        except ConfigError as error:
            problems += [f"output {name!r}: {why}; give its file another ending" for why in error.problems]
    if problems:
        raise ConfigError(*problems)
    return outlets


def make_engine(
    app: App,
    group: Group,
    store: Store,
    outlets: dict[str, BoundOutlet],
    clock: Clock,
    counters: Counters,
    *,
    owns: Callable[[bytes], bool] | None = None,
    bounded: bool = False,
    clean_limit: int = 1_000_000,
    keys_in: Callable[[str], Owns] | None = None,
) -> Engine:
    """The engine of one group in one task, not yet opened."""
    return Engine(
        app,
        group,
        store,
        outlets,
        clock,
        owns=owns,
        bounded=bounded,
        counters=counters,
        clean_limit=clean_limit,
        keys_in=keys_in,
    )


def make_inlet(engine: Engine, topic: Topic[Any], number: int, codec: str | None = None, fields: Any = None) -> Inlet:
    """The decoder of one split of a topic, which decodes only what is used."""
    try:
        inlet = Inlet(topic, _suited(codec, topic), fields, only=fields_used(engine, topic))
    except ConfigError as error:
        told = (f"input {topic.name!r}: {problem}; give its file another ending" for problem in error.problems)
        raise ConfigError(*told) from None
    engine.inlets[(topic.name, number)] = inlet
    return inlet


def _suited(codec: str | None, outlet: Outlet[Any]) -> str | None:
    """The codec of a file as a topic or sink takes it: lines of text are lines of bytes to one of bytes."""
    element: Any = outlet.element
    return "bytes" if codec == "text" and element is bytes else codec


def fields_used(engine: Engine, topic: Topic[Any]) -> frozenset[str] | None:
    """The fields of a topic's records that anything looks at, or None: all, since an agent may look at any."""
    used: set[str] = set()
    for driver in engine.routes.get(topic.name, []):
        if not isinstance(driver, AggregateDriver) or driver.compiled.fields is None:
            return None
        if f"{driver.name}.late" in engine.routes:
            return None
        used |= driver.compiled.fields
        by = driver.table.by
        if not isinstance(by, str):
            return None
        used.add(by)
    return frozenset(used) if used else None


@contextmanager
def tuned_collector() -> Iterator[None]:
    """Python's cycle collector, tuned for many records that hold no cycles: 700 new objects are less than a batch.

    Measured on the 1M-event workload: decoding 0.42 -> 0.24 µs an event, everything together 2.6 -> 2.0 µs.
    """
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    gc.freeze()  # modules and classes are there to stay: no collection need look at them again
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def random_ids(seed: int | None = None) -> Callable[[], bytes]:
    """A maker of commit ids; seeded only in tests."""
    if seed is None:
        return lambda: os.urandom(16)
    generator = random.Random(seed)
    return lambda: generator.randbytes(16)
