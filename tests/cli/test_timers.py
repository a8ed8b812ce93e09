"""Timers and periodic agents in the commands: explained, checked, run, looked at."""

import json

from tests.cli.place import Place

APP = """
import flowkit
from flowkit import Stream, Tick, Timer, minutes, seconds
app = flowkit.App("sensors")
class Reading(flowkit.Record):
    sensor: str
    at: int
class Note(flowkit.Record):
    text: str
readings = app.topic("readings", Reading, key="sensor", time="at")
notes = app.sink("notes", Note)
beats = app.sink("beats", Note)
silence = app.timers("silence", str)
reminders = app.timers("reminders", str, clock="wall")
last = app.table("last", str, int, ttl=minutes(60))

@app.each(readings, silence, reminders, tables=[last], sinks=[notes])
def watch(event: Reading | Timer[str]) -> Note | None:
    if isinstance(event, Reading):
        last[event.sensor] = event.at
        silence.set(event.sensor, event.at + seconds(60))
        reminders.set(event.sensor, event.at + minutes(5))
        return None
    return Note(f"{event.key} {event.at}")

@app.timer(seconds(30), clock="event", reads=[last], sinks=[notes])
async def look(tick: Tick) -> Note:
    return Note(f"look {tick.at}")

@app.crontab("*/5 * * * *", timezone="Europe/Berlin", sinks=[beats])
def beat(tick: Tick) -> Note:
    return Note(f"beat {tick.at}")
"""


def test_they_are_explained(place: Place) -> None:
    place.app(APP)
    shown = place.call("explain", "app.py").out
    for part in (
        "group last: one task for each partition of readings",
        "timers silence: keyed by str, one time a key, in event time\n    -> agent watch: keeps last, sets silence",
        "timers reminders: keyed by str, one time a key, by the clock (in a bounded run by event time)\n",
        "ticks look.ticks: every 30 s, in event time\n    -> agent look: reads last, sends to notes",
        "group beat: one task\n  ticks beat.ticks: at */5 * * * * Europe/Berlin, by the clock (in a bounded run by",
        "    -> agent beat: sends to beats",
    ):
        assert part in shown, (part, shown)
    diagram = place.call("explain", "app.py", "--mermaid").out
    assert "silence<br>timers" in diagram
    assert "look.ticks<br>every 30 s" in diagram


def test_there_is_nothing_to_warn_of_but_timers_that_nobody_takes(place: Place) -> None:
    place.app(APP)
    done = place.call("check", "app.py")
    assert (done.code, done.out) == (0, "sensors: nothing found\n")
    place.app(
        APP.replace(
            "@app.each(readings, silence, reminders, tables=[", "@app.each(readings, silence, tables=[reminders, "
        )
    )
    done = place.call("check", "app.py")
    assert done.out.splitlines()[0] == "warning: timers 'reminders': no agent has them among its sources"


def test_a_run_goes_by_event_time_and_leaves_what_never_came(place: Place) -> None:
    place.app(APP)
    rows = [{"sensor": "a", "at": 10_000}, {"sensor": "b", "at": 20_000}, {"sensor": "a", "at": 100_000}]
    (place.path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = place.call(
        "run",
        "app.py",
        "-i",
        "readings=in.jsonl",
        "-o",
        "notes=out.jsonl",
        "-o",
        "beats=beats.jsonl",
        "--state",
        "state",
    )
    assert done.code == 0, done
    told = [json.loads(line)["text"] for line in (place.path / "out.jsonl").read_text().splitlines()]
    assert told == ["look 30000", "look 60000", "b 80000", "look 90000", "a 160000"]
    assert (place.path / "beats.jsonl").read_text() == ""
    scanned = place.call("tables", "scan", "app.py", "reminders", "--state", "state", "--json").out.splitlines()
    assert [(json.loads(line)["key"], json.loads(line)["value"]) for line in scanned] == [
        ("a", 400_000),
        ("b", 320_000),
    ]
    listed = place.call("tables", "list", "app.py", "--state", "state").out
    assert "silence" in listed
    assert place.call("check", "app.py", "--state", "state").out == "sensors: nothing found\n"
