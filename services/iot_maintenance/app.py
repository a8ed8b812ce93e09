"""The service: readings and a registry of devices come in, maintenance alerts go out.

    flowkit run services.iot_maintenance.app --input readings=FILE --input registry=FILE --output alerts=FILE

    readings ─┬─ as of ── samples ─┬─ windows ── deviate ══ by site ─┬─ windows ─┬─ join ══ measure ══ patterns ══ tell
    registry ─┘                    │                                 └───────────┘                                  ║
                                   └─ over a limit ── pattern ══════════════════════════════════════════════════════╝
    readings, registry ── listen ── timers ══ gather (by site) ── timers ── alerts

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
    Mean,
    Quantile,
    Sliding,
    Stream,
    Sum,
    Timer,
    Tumbling,
    days,
    hours,
    minutes,
)
from flowkit.pattern import Match, Matched, Pattern, SkipPastLast
from services.iot_maintenance import detector
from services.iot_maintenance.records import (
    Alert,
    Case,
    Deviation,
    Device,
    Norm,
    Presence,
    Quiet,
    Reading,
    Recovery,
    Sample,
    Sign,
    Silence,
    Spread,
    Trend,
    Weather,
    at_of,
    ms_of,
)

WINDOW = hours(4)

app = flowkit.App("iot-maintenance")

readings = app.topic("readings", Reading, key="device", time="at", timezone="UTC", out_of_order=minutes(1))
registry = app.topic("registry", Device, key="id", time="at", timezone="UTC", idle_after=minutes(1))
deviations = app.topic("deviations", Deviation, key="device", time="at", out_of_order=minutes(1), idle_after=hours(2))
# What comes back from several sites has no common order: a device's own comes in order, but not with that of others.
corrected = app.topic("corrected", Deviation, key="device", time="at", out_of_order=hours(1))
trends = app.topic("trends", Trend, key="device", time="at", out_of_order=hours(1))
# Mostly nobody is silent: then the clock moves the watermark on, for whom the timers of `gather` wait.
silences = app.topic("silences", Silence, key="site", time="at", out_of_order=minutes(2), close_after_idle=minutes(1))
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
        device.every,
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

# Not by group_by: it would send samples through a topic, though their key is still that of the readings.
stats = app.table(
    "stats",
    of=samples,
    by="device",
    window=Sliding(WINDOW, every=hours(1)),
    n=Count(),
    temperature=Mean("temperature"),
    vibration=Mean("vibration"),
    current=Mean("current"),
    surges=Sum("surge"),
    site=Last("site"),
    every=Last("every"),
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
        if norm.stopped or event.start < norm.since or value.n * value.every < detector.COVERED * WINDOW / 1000:
            continue
        heat, shake = detector.deviation(norm, value.temperature, value.vibration, value.current or 0.0)
        yield Deviation(event.key, value.site, at_of(event.end - 1), heat, shake, value.surges, norm.since)


def has_heat(deviation: Deviation) -> int:
    """1 if it counts for the weather."""
    return int(deviation.heat is not None)


by_site = deviations.group_by("site", name="by-site")
weather = by_site.window(Tumbling(hours(1)), name="weather").aggregate(
    devices=Sum(has_heat), median=Quantile("heat", 0.5)
)


def weather_of(window: Closed[str, Any]) -> Weather:
    """What all devices of a site have in common."""
    return Weather(window.key, window.value.devices, window.value.median)


beside_others = by_site.join(
    weather.closed.map(weather_of, name="site-weather"), on="site", within=(0, 0), name="beside-others"
)


@app.each(beside_others, sinks=[corrected])
def less_weather(pair: Joined[Deviation, Weather]) -> Deviation:
    """The deviation without what the whole site shares, on its way back to its device."""
    deviation, site = pair.left, pair.right
    deviation.heat = detector.without_weather(deviation.heat, site.devices, site.median)
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


def calm(trend: Trend) -> bool:
    """A score as on most days."""
    return trend.score < detector.CALM


def lasting(trend: Trend, matched: Matched[Trend]) -> bool:
    """A score that has grown for hours, and is far from anything usual."""
    onset = matched["onset"][0]
    lasts = ms_of(trend.at) - ms_of(onset.at) >= detector.LASTING
    return lasts and trend.score >= max(detector.HIGH, onset.score)


def some_surges(trend: Trend) -> bool:
    """More surges than one inrush."""
    return trend.surges >= detector.FEW


def more_surges(trend: Trend, matched: Matched[Trend]) -> bool:
    """And more again, in hours that have hardly any reading in common."""
    return trend.surges >= matched["some"][0].surges + detector.MORE


degrading_pattern = (
    Pattern[Trend].begin("onset", raised).not_followed_by("calm", calm).followed_by("high", lasting).within(hours(24))
)
calming_pattern = Pattern[Trend].begin("onset", raised).followed_by("calm", calm).within(hours(24))
surging_pattern = Pattern[Trend].begin("some", some_surges).followed_by("more", more_surges).within(hours(12))
degrading = trends.match(degrading_pattern, after=SkipPastLast(), name="degrading")
calming = trends.match(calming_pattern, after=SkipPastLast(), name="calming")
surging = trends.match(surging_pattern, after=SkipPastLast(), name="surging")
over_limits = samples.filter(is_over, name="over").match(
    Pattern[Sample].begin("over").times(3).within(hours(2)), by="device", after=SkipPastLast(), name="over-limits"
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
    return Sign(
        match.key, last.site, last.at, "limit", first.at, f"{last.over} over its limit three times in two hours"
    )


@app.each(registry, sinks=[signs])
def looked_after(device: Device) -> Sign | None:
    """Whoever stops a device closes its case."""
    return None if device.state == "running" else Sign(device.id, device.site, device.at, "stopped", device.at, "")


@app.agent(signs, tables=[cases], sinks=[alerts])
async def tell(stream: Stream[Sign]) -> AsyncIterator[Alert]:
    """One alert a case: later signs are of the same, until the device is looked after or has long been well."""
    async for sign in stream:
        at, case = ms_of(sign.at), cases[sign.device]
        if sign.kind == "stopped":
            del cases[sign.device]
            continue
        if not case.last or at - case.last > detector.SAME_CASE:
            yield Alert(sign.device, sign.at, sign.kind, sign.since, sign.site, [sign.reason])
        case.last = max(case.last, at)


@app.each(calming, sinks=[recoveries])
def recovered(match: Match[str, Trend]) -> Recovery:
    """Signs that went by within a day."""
    return Recovery(match.key, match.events["onset"][0].at, match.events["calm"][0].at)


# --- silence --------------------------------------------------------------------------------------------------------

silence = app.timers("silence", str, clock="event")
verdict = app.timers("verdict", str, clock="event")
presence = app.table("presence", str, Presence, ttl=days(3 * 365))
heard = app.table("heard", str, int, local=True)
quiet = app.table("quiet", str, Quiet, ttl=days(1))


@app.agent(readings, registry, silence, tables=[presence, heard], sinks=[silences])
async def listen(stream: Stream[Reading | Device | Timer[str]]) -> AsyncIterator[Silence]:
    """A device that should report and has not for several of its reports is silent."""
    async for event in stream:
        if isinstance(event, Reading):
            at = ms_of(event.at)
            heard["last"] = max(heard["last"], at)
            if (here := presence.get(event.device)) is not None and here.running:
                # Never sooner than it is set for: a clock that is put back is no silence.
                silence.set(event.device, max(at + here.patience, silence.get(event.device) or 0))
        elif isinstance(event, Device):
            device = presence[event.id]
            device.site, device.running = event.site, event.state == "running"
            device.patience = round(detector.MISSED_REPORTS * event.every * 1000)
            if device.running:
                silence.set(event.id, ms_of(event.at) + max(device.patience, detector.START))
            else:
                silence.cancel(event.id)
        # At the end of a file all timers come, and nobody has been heard since: that is no silence.
        elif (device := presence[event.key]).running and event.at <= heard["last"]:
            yield Silence(event.key, device.site, at_of(event.at), at_of(event.at - device.patience))


@app.agent(silences, verdict, tables=[quiet], sinks=[alerts])
async def gather(stream: Stream[Silence | Timer[str]]) -> AsyncIterator[Alert]:
    """Many devices of a site that fall silent together are one outage of its network."""
    async for event in stream:
        if isinstance(event, Timer):
            for alert in verdict_on(event.key, quiet[event.key], event.at):
                yield alert
            del quiet[event.key]
            continue
        site, at, due = event.site, ms_of(event.at), verdict.get(event.site)
        if due is not None and at > due:
            # The timer's time has come, but only this silence has moved the watermark so far: it comes right after.
            for alert in verdict_on(site, quiet[site], due):
                yield alert
            del quiet[site]
            due = None
        if due is None:
            verdict.set(site, at + detector.TOGETHER)
        quiet[site].devices[event.device] = ms_of(event.since)


def verdict_on(site: str, quiet: Quiet, at: int) -> list[Alert]:
    """What devices are told to be that fell silent within some minutes."""
    devices, time = quiet.devices, at_of(at)
    if len(devices) >= detector.OUTAGE:
        first, *others = sorted(devices)
        reason = f"{len(devices)} devices of the site fell silent together"
        return [Alert(first, time, "outage", at_of(min(devices.values())), site, [reason], others)]
    return [
        Alert(device, time, "silence", since, site, [f"nothing heard since {since:%d %b %H:%M}"])
        for device in sorted(devices)
        for since in [at_of(devices[device])]
    ]
