"""What agents may do with timers, and what they are told where they may not."""

from collections.abc import Callable
from typing import Any

import pytest

from flowkit import App, ConfigError, Record, Stream, Tick, Timer, minutes, seconds
from flowkit.record import END_OF_TIME
from flowkit.source import partition_of
from flowkit.testing import harness
from tests.matrix import matrix

SEEDS = matrix([None, *range(8)], quick=lambda seed: seed is None or seed < 3)


class Reading(Record):
    sensor: str
    at: int


class Note(Record):
    text: str


def app_of(do: Callable[[Any, Reading], object], *, clock: Any = "event", **options: Any) -> tuple[App, Any, Any, Any]:
    """An app whose agent does something with its timers at each reading, and notes the timers that come."""
    app = App("app")
    readings = app.topic("readings", Reading, key="sensor", time="at", **options)
    notes = app.sink("notes", Note)
    timers = app.timers("timers", str, clock=clock)

    @app.each(readings, timers, sinks=[notes])
    def agent(event: Reading | Timer[str]) -> Note | None:
        if isinstance(event, Timer):
            return Note(f"{event.key} {event.at}")
        done = do(timers, event)
        return None if done is None else Note(str(done))

    return app, readings, timers, notes


@pytest.mark.parametrize("seed", SEEDS)
async def test_silence_is_told_once_for_each_sensor_that_has_fallen_silent(seed: int | None) -> None:
    app, readings, timers, notes = app_of(lambda timers, r: timers.set(r.sensor, r.at + minutes(5)))
    async with harness(app, seed=seed) as h:
        for minute in range(8):
            await h.send(readings, Reading("a", minutes(minute)))
            if minute < 2:
                await h.send(readings, Reading("b", minutes(minute)))
        assert h.table(timers) == {"a": minutes(12)}
        assert h.sent(notes) == [Note(f"b {minutes(6)}")]
        await h.advance(minutes(10))
        assert h.sent(notes) == [Note(f"b {minutes(6)}"), Note(f"a {minutes(12)}")]
        assert h.table(timers) == {}


async def test_a_timer_is_replaced_cancelled_and_seen() -> None:
    def do(timers: Any, r: Reading) -> str:
        told = [timers.get(r.sensor)]
        timers.set(r.sensor, r.at + 10)
        timers.set(r.sensor, r.at + 20)
        told.append(timers.get(r.sensor))
        if r.sensor == "b":
            timers.cancel("b")
            timers.cancel("nobody")
        return f"{[*told, timers.get(r.sensor)]}"

    app, readings, timers, notes = app_of(do)
    async with harness(app) as h:
        await h.send(readings, Reading("a", 0), Reading("b", 5), Reading("a", 15))
        assert h.table(timers) == {"a": 35}
        await h.advance(100)
        assert [n.text for n in h.sent(notes)] == ["[None, 20, 20]", "[None, 25, None]", "[20, 35, 35]", "a 35"]


async def test_one_that_is_due_already_comes_once_the_step_of_its_event_is_done() -> None:
    def do(timers: Any, r: Reading) -> str:
        timers.set(r.sensor, r.at - 50)
        return "set"

    app, readings, _, notes = app_of(do)
    async with harness(app) as h:
        await h.send(readings, Reading("a", 100), Reading("b", 101))
        assert [n.text for n in h.sent(notes)] == ["set", "a 50", "set", "b 51"]


async def test_a_timer_at_the_end_of_time_never_comes() -> None:
    app, readings, _, notes = app_of(lambda timers, r: timers.set(r.sensor, END_OF_TIME + r.at))
    async with harness(app) as h:
        await h.send(readings, Reading("a", 0), Reading("b", 100))
        await h.finish()
        assert h.sent(notes) == []


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_timer_that_sets_itself_again_ends_with_the_input(seed: int | None) -> None:
    """The one that is set when the input ends comes, though it is later; what it sets then is beyond the last event."""
    app = App("app")
    readings = app.topic("readings", Reading, key="sensor", time="at")
    notes = app.sink("notes", Note)
    timers = app.timers("timers", str)

    @app.each(readings, timers, sinks=[notes])
    def agent(event: Reading | Timer[str]) -> Note | None:
        if isinstance(event, Timer):
            timers.set(event.key, event.at + 30)
            return Note(f"{event.key} {event.at}")
        if timers.get(event.sensor) is None:
            timers.set(event.sensor, event.at + 30)
        return None

    async with harness(app, seed=seed) as h:
        await h.send(readings, Reading("a", 0), Reading("a", 100))
        await h.finish()
        assert [n.text for n in h.sent(notes)] == ["a 30", "a 60", "a 90", "a 120"]


async def test_a_timer_that_would_come_again_at_once_for_ever_is_an_error_of_its_event() -> None:
    app = App("app")
    readings = app.topic("readings", Reading, key="sensor", time="at")
    timers = app.timers("timers", str)

    @app.each(readings, timers)
    def agent(event: Reading | Timer[str]) -> None:
        timers.set("a", 50)

    async with harness(app) as h:
        await h.send(readings, Reading("a", 100))
        (letter,) = h.sent(app.dead_letters)
        assert letter.topic == "timers"
        assert "it would come again at once, for ever" in letter.reason
        assert h.table(timers) == {}


@pytest.mark.parametrize("seed", SEEDS)
async def test_an_event_that_fails_leaves_no_timer_set_or_cancelled(seed: int | None) -> None:
    def do(timers: Any, r: Reading) -> None:
        if r.at == 1:
            timers.set(r.sensor, 1000)
        elif r.sensor == "a":
            timers.set("a", 20)
            timers.set("c", 20)
            timers.cancel("b")
            raise OSError("broken")

    app, readings, timers, notes = app_of(do)
    async with harness(app, seed=seed) as h:
        await h.send(readings, Reading("a", 1), Reading("b", 1), Reading("a", 2), Reading("d", 50))
        assert h.table(timers) == {"a": 1000, "b": 1000}
        await h.advance(2000)
        assert [n.text for n in h.sent(notes)] == ["a 1000", "b 1000"]
        assert len(h.sent(app.dead_letters)) == 1


async def test_a_key_of_another_partition_is_refused() -> None:
    mine = next(key for key in map(str, range(20)) if partition_of(key.encode(), 2) == 0)
    other = next(key for key in map(str, range(20)) if partition_of(key.encode(), 2) == 1)
    for use in ("set", "cancel", "get"):
        app, readings, timers, _ = app_of(lambda t, r, use=use: getattr(t, use)(other, *[5] * (use == "set")))  # type: ignore[misc]
        async with harness(app, partitions=2) as h:
            await h.send(readings, Reading(mine, 0))
            (letter,) = h.sent(app.dead_letters)
            assert letter.error == "WrongPartition"
            assert h.table(timers) == {}


@pytest.mark.parametrize(
    "key, at, told",
    [
        (5, 10, "TypeError"),
        ("a", 1.5, "give whole ms"),
        ("a", None, "give whole ms"),
        ("a", True, "give whole ms"),
        ("a", -(2**63), "give whole ms"),
    ],
)
async def test_what_is_no_key_or_no_time_is_an_error_of_the_event(key: Any, at: Any, told: str) -> None:
    app, readings, timers, _ = app_of(lambda timers, _: timers.set(key, at))
    async with harness(app) as h:
        await h.send(readings, Reading("a", 0))
        (letter,) = h.sent(app.dead_letters)
        assert told in f"{letter.error}: {letter.reason}"
        assert h.table(timers) == {}


async def test_who_may_not_set_them_is_told_how_to() -> None:
    app = App("app")
    readings = app.topic("readings", Reading, key="sensor", time="at")
    timers = app.timers("timers", str)
    hidden = {"timers": timers}

    @app.each(readings, tables=[timers])
    def may(reading: Reading) -> None:
        timers.set("a", 100)

    @app.each(readings)
    def may_not(reading: Reading) -> None:
        hidden["timers"].set("a", 5)

    @app.each(readings, reads=[timers])
    def may_look(reading: Reading) -> None:
        assert timers.get("a") == 100
        timers.cancel("a")

    for name, error in (("may_not", "UndeclaredTable"), ("may_look", "ReadOnly")):
        other = "may_look" if name == "may_not" else "may_not"
        agents, app.agents = app.agents, {n: spec for n, spec in app.agents.items() if n != other}
        async with harness(app) as h:
            await h.send(readings, Reading("a", 0))
            (letter,) = h.sent(app.dead_letters)
            assert letter.error == error
            assert "tables=" in letter.reason
        app.agents = agents


def test_outside_an_event_there_are_none() -> None:
    timers = App("app").timers("timers", str)
    with pytest.raises(flowkit_error("NoEvent"), match="outside an event"):
        timers.set("a", 5)


def flowkit_error(name: str) -> Any:
    import flowkit

    return getattr(flowkit, name)


def test_an_agent_that_names_timers_in_its_code_must_declare_them() -> None:
    app = App("app")
    readings = app.topic("readings", Reading, key="sensor", time="at")
    timers = app.timers("timers", str)

    @app.each(readings)
    def agent(reading: Reading) -> None:
        timers.set("a", 5)

    with pytest.raises(ConfigError, match="uses table 'timers' without declaring it"):
        app.plan()


@pytest.mark.parametrize("seed", SEEDS)
async def test_timers_by_the_clock_come_when_it_has_come_there_whatever_the_watermark(seed: int | None) -> None:
    app, readings, timers, notes = app_of(lambda timers, r: timers.set(r.sensor, 1_000 + r.at), clock="wall")
    async with harness(app, seed=seed) as h:
        await h.send(readings, Reading("a", 100), Reading("b", 0), Reading("far", 999_999_000))
        assert h.sent(notes) == []
        await h.advance(1_050, event_time=False)
        assert [n.text for n in h.sent(notes)] == ["b 1000"]
        await h.advance(50, event_time=False)
        assert [n.text for n in h.sent(notes)] == ["b 1000", "a 1100"]
        await h.send(readings, Reading("late", -500))
        assert [n.text for n in h.sent(notes)] == ["b 1000", "a 1100", "late 500"]
        assert h.table(timers) == {"far": 1_000_000_000}


@pytest.mark.parametrize("seed", SEEDS)
async def test_periodic_agents_are_called_at_each_of_their_times(seed: int | None) -> None:
    app = App("app")
    readings = app.topic("readings", Reading, key="sensor", time="at")
    notes, ticks = app.sink("notes", Note), app.sink("ticks", Note)
    last = app.table("last", str, int)

    @app.each(readings, tables=[last])
    def keep(reading: Reading) -> None:
        last[reading.sensor] = reading.at

    @app.timer(seconds(30), reads=[last], sinks=[notes])
    async def look(tick: Tick) -> Note:
        return Note(f"{tick.at} {dict(last.scan())}")

    @app.crontab("*/2 * * * *", timezone="Europe/Berlin", sinks=[ticks])
    def alone(tick: Tick) -> Note | None:
        return Note(str(tick.at)) if tick.at != minutes(4) else None

    async with harness(app, seed=seed) as h:
        await h.send(readings, Reading("a", 5))
        await h.advance(seconds(65))
        await h.send(readings, Reading("b", 6))
        await h.advance(minutes(6))
        seen, later = {"a": 5}, {"a": 5, "b": 6}
        wanted = [f"{seconds(30)} {seen}", f"{seconds(60)} {seen}"]
        wanted += [f"{at} {later}" for at in range(seconds(90), seconds(425) + 1, seconds(30))]
        assert [n.text for n in h.sent(notes)] == wanted
        assert [n.text for n in h.sent(ticks)] == [str(minutes(2)), str(minutes(6))]


def test_what_cannot_be_is_told_where_it_is_declared() -> None:
    app = App("app")
    app.topic("readings", Reading)
    for declare, told in (
        (lambda: app.timers("t", list), "no key type"),
        (lambda: app.timers("t", str, clock="cpu"), "use 'event'"),  # type: ignore[arg-type]
        (lambda: app.timers("readings", str), "already"),
        (lambda: app.timer(0), "1 or more"),
        (lambda: app.timer("30s"), "whole ms"),  # type: ignore[arg-type]
        (lambda: app.timer(5, clock="cpu"), "use 'event'"),  # type: ignore[arg-type]
        (lambda: app.crontab("* * * *"), "five fields"),
        (lambda: app.crontab("61 * * * *"), "Bad minute.*MINUTE HOUR DAY"),
        (lambda: app.crontab("0 0 30 2 *"), "Bad day-of-month"),
        (lambda: app.crontab("* * * * *", timezone="Europe/Atlantis"), "no time zone"),
    ):
        with pytest.raises(ConfigError, match=told):
            declare()


def test_event_time_where_there_is_none_is_told_before_the_start() -> None:
    app = App("app")

    @app.timer(5, clock="event")
    def tick(tick: Tick) -> None: ...

    with pytest.raises(ConfigError, match="its group reads no topic"):
        app.plan()


async def test_one_that_was_put_off_can_be_brought_forward_again() -> None:
    """The first hint has been passed by then, and the next stands at the later time."""
    app = App("app")
    readings = app.topic("readings", Reading, key="sensor", time="at")
    notes = app.sink("notes", Note)
    timers = app.timers("timers", str)
    due = {0: 10, 1: 100, 31: 50}

    @app.each(readings, timers, sinks=[notes])
    def agent(event: Reading | Timer[str]) -> Note | None:
        if isinstance(event, Timer):
            return Note(str(event.at))
        if event.at in due:
            timers.set("a", due[event.at])
        return None

    async with harness(app) as h:
        for at in (0, 1, 30, 31, 60):
            await h.send(readings, Reading("a", at))
        assert [n.text for n in h.sent(notes)] == ["50"]


async def test_a_batch_that_has_waited_may_set_one_that_is_due_already() -> None:
    app = App("app")
    readings = app.topic("readings", Reading, key="sensor", time="at")
    notes = app.sink("notes", Note)
    timers = app.timers("timers", str)

    @app.agent(readings, tables=[timers])
    async def agent(stream: Stream[Reading]) -> None:
        async for batch in stream.batches(10, within=50):
            for reading in batch:
                timers.set(reading.sensor, reading.at - 5)

    @app.each(timers, reads=[timers], sinks=[notes])
    def tell(timer: Timer[str]) -> Note:
        return Note(f"{timer.key} {timer.at}")

    async with harness(app) as h:
        await h.send(readings, Reading("a", 100), Reading("b", 200))
        assert h.sent(notes) == []
        await h.advance(60, event_time=False)
        assert [n.text for n in h.sent(notes)] == ["a 95", "b 195"]


async def test_timers_of_another_group_are_not_found_by_chance() -> None:
    app = App("app")
    readings, others = app.topic("readings", Reading, time="at"), app.topic("others", Reading, time="at")
    timers = app.timers("timers", str)
    hidden = {"timers": timers}

    @app.each(readings, timers)
    def agent(event: Reading | Timer[str]) -> None: ...

    @app.each(others)
    def stranger(event: Reading) -> None:
        hidden["timers"].set("a", 5)

    async with harness(app) as h:
        await h.send(readings, Reading("a", 0))
        await h.send(others, Reading("a", 0))
        (letter,) = h.sent(app.dead_letters)
        assert letter.error == "UndeclaredTable"
