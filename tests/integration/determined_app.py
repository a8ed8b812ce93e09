"""An app whose results hang on time: windows, late events, timers, a pattern and a join. NAME comes by the environment.

Each topic has an echo, by which a test sees what has been worked on and committed.
"""

import os

import flowkit
from flowkit import Closed, Joined, Stream, Timer, Tumbling
from flowkit.pattern import Match, Pattern, TimedOut

NAME = os.environ["DETERMINED_APP"]

app = flowkit.App(NAME)


class Reading(flowkit.Record):
    key: str
    at: int
    n: int


class Rate(flowkit.Record):
    key: str
    at: int
    rate: int


class Line(flowkit.Record):
    key: str
    what: str
    numbers: list[int]


class Seen(flowkit.Record):
    numbers: list[int] = []


readings = app.topic(f"{NAME}-readings", Reading, key="key", time="at", out_of_order=30)
rates = app.topic(f"{NAME}-rates", Rate, key="key", time="at", out_of_order=30)
told = app.topic(f"{NAME}-told", Line, key="key")
echo = app.topic(f"{NAME}-echo", Line, key="key")

windows = app.table("windows", str, Seen, window=Tumbling(100))
running = app.table("running", str, int)
silence = app.timers("silence", str)
rising = Pattern[Reading].begin("low", lambda r: r.n % 5 == 0).followed_by("high", lambda r: r.n % 5 == 3).within(80)
pairs = readings.join(rates, on="key", within=(-60, 60), how="left")
found = readings.match(rising)


@app.agent(readings, tables=[windows, running, silence], sinks=[told, echo])
async def look(stream: Stream[Reading]) -> None:
    async for reading in stream:
        echo.emit(Line(reading.key, "reading", [reading.n]))
        running[reading.key] += reading.n
        silence.set(reading.key, reading.at + 70)
        windows[reading.key].numbers.append(reading.n)
        told.emit(Line(reading.key, "running", [reading.n, running[reading.key]]))


@app.each(rates, sinks=[echo])
def heard(rate: Rate) -> Line:
    return Line(rate.key, "rate", [rate.rate])


@app.each(windows.closed, sinks=[told])
def closed(w: Closed[str, Seen]) -> Line:
    return Line(w.key, "window", [w.start, *w.value.numbers])


@app.each(windows.late, sinks=[told, echo])
def late(reading: Reading) -> Line:
    return Line(reading.key, "late", [reading.n, reading.at])


@app.each(silence, sinks=[told])
def silent(timer: Timer[str]) -> Line:
    return Line(timer.key, "silent", [timer.at])


@app.each(pairs, sinks=[told])
def joined(pair: Joined[Reading, Rate | None]) -> Line:
    return Line(pair.left.key, "pair", [pair.left.n, -1 if pair.right is None else pair.right.rate])


@app.each(found, sinks=[told])
def matched(match: Match[str, Reading]) -> Line:
    return Line(match.key, "match", [r.n for each in match.events.values() for r in each])


@app.each(found.timed_out, sinks=[told])
def timed_out(partial: TimedOut[str, Reading]) -> Line:
    return Line(partial.key, "timed out", [partial.start, partial.at])
