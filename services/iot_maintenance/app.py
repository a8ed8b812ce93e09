"""The service: readings and a registry of devices come in, maintenance alerts go out.

    flowkit run services.iot_maintenance.app --input readings=FILE --input registry=FILE --output alerts=FILE

    readings ─┬─ as of ─ samples ─┬─ windows ─ deviate ═ deviations (by site) ─┬─ as they are ─┬─ spread ═ trends
    registry ─┘                   │                                            └─ windows ─────┘           │
                                  ├─ over a limit, three times ────────────────── pattern ──┐           patterns
                                  └─ listen ── timers ═ silences (by site) ─ timers ── alerts ══════════ raise

What is judged is judged by the registry as it was at the reading's time. All that is remembered is in tables, so that a
crash changes no alert.
"""

from collections.abc import AsyncIterator
from typing import Any

import flowkit
from flowkit import (
    Closed,
    Count,
    Joined,
    Last,
    Max,
    Mean,
    Sliding,
    Stream,
    Sum,
    Tumbling,
    Variance,
    days,
    hours,
    minutes,
)
from flowkit.pattern import Match, Matched, Pattern, SkipPastLast, TimedOut
from services.iot_maintenance import detector
from services.iot_maintenance.records import (
    Alert,
    Case,
    Deviation,
    Device,
    Norm,
    Reading,
    Recovery,
    Sample,
    Sign,
    Spread,
    Trend,
    Weather,
    at_of,
    ms_of,
)

app = flowkit.App("iot-maintenance")

readings = app.topic("readings", Reading, key="device", time="at", timezone="UTC", out_of_order=minutes(1))
registry = app.topic("registry", Device, key="id", time="at", timezone="UTC", idle_after=minutes(1))
deviations = app.topic("deviations", Deviation, key="site", time="at", out_of_order=minutes(2))
corrected = app.topic("corrected", Deviation, key="device", time="at", out_of_order=minutes(2))
trends = app.topic("trends", Trend, key="device", time="at", out_of_order=minutes(2))
signs = app.topic("signs", Sign, key="device", time="at", out_of_order=minutes(2))
alerts = app.topic("alerts", Alert, key="device", time="at")
recoveries = app.sink("recoveries", Recovery)


# --- readings, as the registry knew their device then ---------------------------------------------------------------


def is_running(pair: Joined[Reading, Device]) -> bool:
    """Whether the device was meant to run."""
    return pair.right.state == "running"


def sample_of(pair: Joined[Reading, Device]) -> Sample:
    """The reading beside the limits of its time."""
    reading, device = pair.left, pair.right
    hot = detector.over_limit(reading.temperature, device.max_temperature)
    shaking = detector.over_limit(reading.vibration, device.max_vibration)
    return Sample(
        reading.device,
        device.site,
        reading.at,
        reading.temperature,
        reading.vibration,
        reading.current,
        int(detector.over_limit(reading.current, device.max_current)),
        "temperature" if hot else "vibration" if shaking else "",
    )


def is_over(sample: Sample) -> bool:
    """Whether a limit was exceeded, other than by a surge."""
    return bool(sample.over)


known = readings.join_as_of(registry, on=("device", "id"), keep_for=days(3 * 365), name="known")
samples = known.filter(is_running).map(sample_of, name="samples")

stats = (
    samples.group_by("device")
    .window(Sliding(hours(4), every=hours(1)), name="stats")
    .aggregate(
        n=Count(),
        temperature=Mean("temperature"),
        hottest=Max("temperature"),
        vibration=Mean("vibration"),
        current=Mean("current"),
        unrest=Variance("current"),
        surges=Sum("surge"),
        site=Last("site"),
    )
)

# --- each device against its own past, and its site's weather -------------------------------------------------------

norms = app.table("norms", str, Norm, ttl=days(90))
spreads = app.table("spreads", str, Spread, ttl=days(90))
cases = app.table("cases", str, Case, ttl=days(90))


@app.agent(stats.closed, registry, tables=[norms], sinks=[deviations])
async def deviate(stream: Stream[Closed[str, Any] | Device]) -> AsyncIterator[Deviation]:
    """How far the last hours lie from the device's norm. What comes back from a repair begins a norm of its own."""
    async for event in stream:
        if isinstance(event, Device):
            norm = norms[event.id]
            if event.state == "running" and norm.stopped:
                norms[event.id] = Norm(since=ms_of(event.at))
            elif event.state != "running":
                norm.stopped = True
            continue
        norm, value = norms[event.key], event.value
        if norm.stopped or event.start < norm.since or value.n < detector.FEWEST:
            continue
        heat, shake = detector.deviation(norm, value.temperature, value.vibration, value.current or 0.0)
        yield Deviation(event.key, value.site, at_of(event.end - 1), heat, shake, value.surges, norm.since)


weather = deviations.window(Tumbling(hours(1)), name="weather").aggregate(
    n=Sum(lambda deviation: int(deviation.heat is not None)), total=Sum(lambda deviation: detector.clipped(deviation.heat))
)


def weather_of(window: Closed[str, Any]) -> Weather:
    """What all devices of a site have in common."""
    return Weather(window.key, window.value.n, window.value.total)


beside_others = deviations.join(
    weather.closed.map(weather_of, name="site-weather"), on="site", within=(0, 0), name="beside-others"
)


@app.each(beside_others, sinks=[corrected])
def less_weather(pair: Joined[Deviation, Weather]) -> Deviation:
    """The deviation without what the whole site shares, on its way back to its device."""
    deviation, site = pair.left, pair.right
    deviation.heat = detector.without_weather(deviation.heat, site.devices, site.total)
    return deviation


@app.agent(corrected, tables=[spreads], sinks=[trends])
async def measure(stream: Stream[Deviation]) -> AsyncIterator[Trend]:
    """The deviation in units of the device's own spread."""
    async for deviation in stream:
        yield detector.trend_of(spreads[deviation.device], deviation)


# --- patterns -------------------------------------------------------------------------------------------------------


def raised(trend: Trend) -> bool:
    """A score that is not usual."""
    return trend.score >= detector.RAISED


def rising(trend: Trend, matched: Matched[Trend]) -> bool:
    """A score that has grown since the last sign."""
    before = (matched["rising"] or matched["onset"])[-1]
    return trend.score >= before.score + detector.STEP


def high(trend: Trend, matched: Matched[Trend]) -> bool:
    """A score that has grown on, and is far from anything usual."""
    return trend.score >= detector.HIGH and trend.score >= matched["rising"][-1].score


def some_surges(trend: Trend) -> bool:
    """More surges than one inrush."""
    return trend.surges >= detector.FEW


def more_surges(trend: Trend, matched: Matched[Trend]) -> bool:
    """And more again, in hours that have hardly any reading in common."""
    return trend.surges >= matched["some"][0].surges + detector.MORE


degrading = trends.match(
    Pattern[Trend].begin("onset", raised).followed_by("rising", rising).followed_by("high", high).within(hours(24)),
    after=SkipPastLast(),
    name="degrading",
)
surging = trends.match(
    Pattern[Trend].begin("some", some_surges).followed_by("more", more_surges).within(hours(12)),
    after=SkipPastLast(),
    name="surging",
)
over_limits = samples.filter(is_over, name="over").match(
    Pattern[Sample].begin("over").times(3).within(hours(1)), by="device", after=SkipPastLast(), name="over-limits"
)


@app.each(degrading, sinks=[signs])
def degradation(match: Match[str, Trend]) -> Sign:
    """What a rising score says."""
    first, last = match.events["onset"][0], match.events["high"][0]
    what = "temperature" if abs(last.heat) >= last.shake else "vibration"
    reason = f"{what} {last.score:.1f} spreads from its own norm, {first.score:.1f} at {first.at:%d %b %H:%M}"
    return Sign(match.key, last.site, last.at, "degradation", first.at, reason)


@app.each(surging, sinks=[signs])
def surges(match: Match[str, Trend]) -> Sign:
    """What more and more surges say."""
    first, last = match.events["some"][0], match.events["more"][0]
    reason = f"{last.surges} current surges in four hours, after {first.surges}"
    return Sign(match.key, last.site, last.at, "surges", first.at, reason)


@app.each(over_limits, sinks=[signs])
def limit(match: Match[str, Sample]) -> Sign:
    """What readings over a limit say."""
    first, last = match.events["over"][0], match.events["over"][-1]
    return Sign(match.key, last.site, last.at, "limit", first.at, f"{last.over} over its limit three times in an hour")


@app.agent(signs, registry, tables=[cases], sinks=[alerts])
async def tell(stream: Stream[Sign | Device]) -> AsyncIterator[Alert]:
    """One alert a case: later signs are of the same, until the device is looked after or has long been well."""
    async for event in stream:
        if isinstance(event, Device):
            if event.state != "running" and event.id in cases:
                del cases[event.id]
            continue
        at, case = ms_of(event.at), cases[event.device]
        if not case.last or at - case.last > detector.SAME_CASE:
            yield Alert(event.device, event.at, event.kind, event.since, event.site, [event.reason])
        case.last = max(case.last, at)


@app.each(degrading.timed_out, sinks=[recoveries])
def recovered(partial: TimedOut[str, Trend]) -> Recovery:
    """Signs that came to nothing within a day."""
    seen = [trend for taken in partial.events.values() for trend in taken]
    return Recovery(partial.key, seen[0].at, at_of(partial.at), max(trend.score for trend in seen))
