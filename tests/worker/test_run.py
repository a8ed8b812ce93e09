"""Bounded runs in this process: broken off at any step of any commit, they end as if they had not been."""

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from flowkit import App, Closed, Count, Record, Stream, Tumbling
from flowkit.options import WorkerOptions
from flowkit.worker import Summary, run
from tests.matrix import matrix


class Event(Record):
    key: str
    at: int
    value: int | None = None


class Notice(Record):
    at: int


class Window(Record):
    key: str
    end: int
    note: str | None


class Batch(Record):
    values: list[int | None]


def app_by_the_clock() -> App:
    """What goes by the clock in a live run goes by event time here: batches that wait, and a topic that falls idle."""
    app = App("clock")
    events = app.topic("events", Event, key="key", time="at")
    notices = app.topic("notices", Notice, time="at", idle_after=60)
    windows = app.topic("windows", Window, key="key", time="end")
    batches, seen, late = app.sink("batches", Batch), app.sink("seen", Window), app.sink("late", Event)
    counts = app.table("counts", str, int, window=Tumbling(20))

    @app.each(events, notices, tables=[counts])
    def count(event: Event | Notice) -> None:
        counts[event.key if isinstance(event, Event) else "notices"] += 1

    @app.each(counts.closed, sinks=[windows])
    def closed(w: Closed[str, int]) -> Window:
        return Window(w.key, w.end, None if w.value % 2 else "")

    @app.each(counts.late, sinks=[late])
    def too_late(event: Event) -> Event:
        return event

    @app.each(windows, sinks=[seen])
    def look(window: Window) -> Window:
        return window

    @app.agent(events, sinks=[batches])
    async def gather(stream: Stream[Event]) -> AsyncIterator[Batch]:
        async for batch in stream.batches(6, within=9):
            if any(event.value == 24 for event in batch):
                raise OSError("no")
            yield Batch([event.value for event in batch])

    return app


class Crash(BaseException):
    """The plug was pulled."""


def crash_at(number: int) -> Callable[[str], Awaitable[None]]:
    """A hook that raises at the n-th step of commits."""
    left = [number]

    async def hook(step: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Crash(step)

    return hook


async def no_crash(_step: str) -> None:
    return None


class Place:
    """A directory with inputs, in which an app runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with (directory / "events.jsonl").open("w") as file:
            for n in range(80):
                # Every fifth is late once the notices, which hold the watermark back, are found to be idle.
                at = n * 3 + (40 if n > 40 else 0) - (25 if n % 5 == 4 else 0)
                file.write(json.dumps({"key": f"k{n % 3}", "at": at, "value": n}) + "\n")
        with (directory / "notices.jsonl").open("w") as file:
            file.writelines(json.dumps({"at": at}) + "\n" for at in (0, 10, 20, 190, 200))

    async def run(self, app: App, name: str, hook: Callable[[str], Awaitable[None]] = no_crash) -> Summary:
        out = self.directory / name
        out.mkdir(exist_ok=True)
        return await run(
            app,
            [("events", str(self.directory / "events.jsonl")), ("notices", str(self.directory / "notices.jsonl"))],
            [(outlet, str(out / file)) for outlet, file in OUTPUTS.items()],
            state=self.directory / f"state-{name}",
            options=WorkerOptions(commit_every=7, commit_interval=3_600_000, batch_size=5),
            hook=hook,
        )

    def outputs(self, name: str) -> dict[str, bytes]:
        return {file: (self.directory / name / file).read_bytes() for file in OUTPUTS.values()}


OUTPUTS = {
    "windows": "windows.csv",
    "batches": "batches.jsonl",
    "seen": "seen.jsonl",
    "late": "late.jsonl",
    "dead-letters": "dead.jsonl",
}


@pytest.mark.parametrize("every", matrix([5, 19], quick=lambda every: every == 19))
async def test_a_run_broken_off_at_any_step_ends_like_an_unbroken_one(every: int, tmp_path: Path) -> None:
    place = Place(tmp_path)
    await place.run(app_by_the_clock(), "whole")
    expected = place.outputs("whole")
    assert len(expected["batches.jsonl"].splitlines()) > 80 / 6
    late = [json.loads(line)["value"] for line in expected["late.jsonl"].splitlines()]
    assert late == [n for n in range(80) if n % 5 == 4 and n not in (19, 24)]  # until the notices are idle, at 80 ms
    step = crashes = 0
    while True:
        name = f"broken-{step}"
        try:
            await place.run(app_by_the_clock(), name, crash_at(step))
            break
        except Crash:
            crashes += 1
        await place.run(app_by_the_clock(), name)
        assert place.outputs(name) == expected, step
        step += every  # one in so many of its steps; another prime would do as well
    assert crashes * every > 50


async def test_what_agents_read_does_not_depend_on_the_format_of_an_output(tmp_path: Path) -> None:
    place = Place(tmp_path)
    await place.run(app_by_the_clock(), "csv")
    assert {json.loads(line)["agent"] for line in place.outputs("csv")["dead.jsonl"].splitlines()} == {"gather"}
    seen = [json.loads(line) for line in place.outputs("csv")["seen.jsonl"].splitlines()]
    # Of CSV nobody could tell "" from null.
    assert {window["note"] for window in seen} == {"", None}
    assert len(place.outputs("csv")["windows.csv"].splitlines()) == len(seen) + 1


async def test_the_result_does_not_depend_on_sizes(tmp_path: Path) -> None:
    app = App("sizes")
    events = app.topic("events", Event, key="key", time="at")
    app.table("counts", of=events, by="key", window=Tumbling(50), n=Count())
    batches = app.sink("batches", Batch)

    @app.agent(events, sinks=[batches])
    async def gather(stream: Stream[Event]) -> AsyncIterator[Batch]:
        async for batch in stream.batches(6, within=9):
            yield Batch([event.value for event in batch])

    place = Place(tmp_path)
    found = set()
    for batch_size in (1, 3, 1_000):
        for commit_every in (1, 7, 1_000):
            options = WorkerOptions(batch_size=batch_size, commit_every=commit_every)
            inputs = [("events", str(place.directory / "events.jsonl"))]
            await run(app, inputs, [("batches", str(tmp_path / "out.jsonl"))], options=options)
            found.add((tmp_path / "out.jsonl").read_text())
    (text,) = found
    values = [json.loads(line)["values"] for line in text.splitlines()]
    assert sorted(n for batch in values for n in batch) == list(range(80))
    assert len(values) > 80 / 6


async def test_lines_of_text_go_in_and_out_of_topics_of_bytes(tmp_path: Path) -> None:
    """No file could be bound to such a topic."""
    app = App("bytes")
    raw, out = app.topic("raw", bytes, codec="bytes"), app.sink("out", bytes, codec="bytes")

    @app.each(raw, sinks=[out])
    def turn(value: bytes) -> bytes:
        return value[::-1]

    (tmp_path / "in.txt").write_bytes(b"ab\n\xff\x00\n")
    await run(app, [("raw", str(tmp_path / "in.txt"))], [("out", str(tmp_path / "out.txt"))])
    assert (tmp_path / "out.txt").read_bytes() == b"ba\n\x00\xff\n"


async def test_a_sink_may_take_anything(tmp_path: Path) -> None:
    app = App("anything")
    raw, out = app.topic("raw", dict[str, int]), app.sink("out", Any)

    @app.each(raw, sinks=[out])
    def turn(value: dict[str, int]) -> Any:
        return [value, "x"][value["n"]]

    (tmp_path / "in.jsonl").write_text('{"n": 0}\n{"n": 1}\n')
    await run(app, [("raw", str(tmp_path / "in.jsonl"))], [("out", str(tmp_path / "out.jsonl"))])
    assert (tmp_path / "out.jsonl").read_text() == '{"n":0}\n"x"\n'


def picky_app() -> App:
    app = App("picky")
    events = app.topic("events", Event, key="key", time="at")

    @app.each(events)
    def refuse(event: Event) -> None:
        if event.value is None or event.value % 3 == 0:
            raise ValueError(event.value)

    return app


def letters(path: Path) -> list[int]:
    return [json.loads(line)["offset"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("commit_every", [1, 7, 1_000])
@pytest.mark.parametrize("keep", [False, True])
async def test_dead_letters_of_every_commit_are_in_the_default_file(
    keep: bool, commit_every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the second commit once replaced those of the first: the file was opened as a new one in between."""
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path)
    inputs = [("events", str(place.directory / "events.jsonl"))]
    state, options = tmp_path / "state" if keep else None, WorkerOptions(commit_every=commit_every)
    summary = await run(picky_app(), inputs, state=state, options=options)
    found = letters(Path(summary.dead_letters))
    assert found == list(range(0, 80, 3))
    assert summary.counters.dead == len(found)


async def test_the_default_file_of_dead_letters_survives_a_crash_at_any_step(tmp_path: Path) -> None:
    place = Place(tmp_path)
    inputs = [("events", str(place.directory / "events.jsonl"))]
    options = WorkerOptions(commit_every=20, commit_interval=3_600_000)
    for step in range(16):
        state = tmp_path / f"state-{step}"
        with contextlib.suppress(Crash):
            await run(picky_app(), inputs, state=state, options=options, hook=crash_at(step))
        await run(picky_app(), inputs, state=state, options=options)
        assert letters(state / "dead-letters.jsonl") == list(range(0, 80, 3)), step
