"""What flows through the service, and what it remembers of a device or a site."""

from datetime import UTC, datetime
from typing import Literal

import msgspec

import flowkit


class Reading(flowkit.Record):
    """What a device's sensors say at one time. Whatever a device does not measure is left out.

    `temperature` in °C, `vibration` in mm/s (RMS), `current` in A; any units do, as long as they stay the same.
    """

    device: str
    at: datetime
    temperature: float | None = None
    vibration: float | None = None
    current: float | None = None


class Device(flowkit.Record):
    """The registry's entry of a device, valid from `at` on, until the next one.

    `state` is `running`, or anything else (`maintenance`, `retired`, …) while it is not expected to report. `every` is
    how often it reports (seconds). A limit that nobody has set is left out. `site` is where it stands: devices of one
    site share weather and network.
    """

    id: str
    at: datetime
    site: str = ""
    model: str = ""
    commissioned: datetime | None = None
    state: str = "running"
    every: float = 600.0
    max_temperature: float | None = None
    max_vibration: float | None = None
    max_current: float | None = None


Kind = Literal["degradation", "surges", "limit", "silence", "outage"]


class Alert(flowkit.Record):
    """Somebody should look at a device, or (`outage`) at a site's network.

    `since` is when the first sign of it was seen (of silence: the last reading). `reasons` are for people. `others` are
    the further devices that an outage concerns.
    """

    device: str
    at: datetime
    kind: Kind
    since: datetime
    site: str = ""
    reasons: list[str] = []
    others: list[str] = []


class Recovery(flowkit.Record):
    """A device's score was raised at `since`, and is as on most days again."""

    device: str
    since: datetime
    at: datetime


class Sample(flowkit.Record):
    """A reading of a running device, judged by the limits that were valid at its time.

    `surge` is 1 if the current was over its limit, else 0; `over` names the first of temperature and vibration that was
    over its own, `""` if none was.
    """

    device: str
    site: str
    every: float
    at: datetime
    temperature: float | None
    vibration: float | None
    current: float | None
    surge: int
    over: str


class Deviation(flowkit.Record):
    """How far a device's last hours lie from what its own past makes of its load.

    `heat` in °C, `shake` as the logarithm of a ratio; None: not measured, or its norm is not known yet. `since` (ms) is
    when the norm was begun: anew after each repair.
    """

    device: str
    site: str
    at: datetime
    heat: float | None
    shake: float | None
    surges: int
    since: int


class Weather(flowkit.Record):
    """What all devices of a site have in common: how many have a deviation of heat, and their median."""

    site: str
    devices: int
    median: float | None


class Trend(flowkit.Record):
    """A device's last hours in units of its own usual spread, the weather of its site taken out."""

    device: str
    site: str
    at: datetime
    heat: float = 0.0
    shake: float = 0.0
    surges: int = 0

    @property
    def score(self) -> float:
        """The larger of the two, heat counting in both directions."""
        return max(abs(self.heat), self.shake)


class Sign(flowkit.Record):
    """A pattern was found in a device's events, the first of them at `since`; or it was `stopped` for a repair."""

    device: str
    site: str
    at: datetime
    kind: Literal["degradation", "surges", "limit", "stopped"]
    since: datetime
    reason: str


class Line(flowkit.Record):
    """An online regression y = level + slope · x with forgetting: weighted sums."""

    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    spread: float = 0.0


class Norm(flowkit.Record):
    """What is usual for a device: its temperature and vibration by its load, in windows that began at `since` (ms) or
    later. `stopped`: it is being looked after, and what comes then is another matter.
    """

    since: int = 0
    windows: int = 0
    stopped: bool = False
    heat: Line = msgspec.field(default_factory=Line)
    shake: Line = msgspec.field(default_factory=Line)


class Usual(flowkit.Record):
    """Where a deviation usually is, and its mean distance from there, of `count` values."""

    count: int = 0
    level: float = 0.0
    spread: float = 0.0


class Spread(flowkit.Record):
    """How much a device's deviations usually vary, for the norm that was begun at `since` (ms)."""

    since: int = 0
    heat: Usual = msgspec.field(default_factory=Usual)
    shake: Usual = msgspec.field(default_factory=Usual)


class Silence(flowkit.Record):
    """A device that is expected to report was last heard at `since`."""

    device: str
    site: str
    at: datetime
    since: datetime


class Case(flowkit.Record):
    """Something that has been told. Signs until `last` (ms), or soon after, belong to it."""

    last: int = 0


class Presence(flowkit.Record):
    """Where a device stands, whether it is expected to report, and how long (ms) it may say nothing."""

    site: str = ""
    running: bool = False
    patience: int = 0


class Quiet(flowkit.Record):
    """Devices of a site that fell silent just now, each with the time (ms) of its last reading."""

    devices: dict[str, int] = {}


def at_of(ms: int) -> datetime:
    """The time of so many ms since the epoch."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def ms_of(at: datetime) -> int:
    """A time as ms since the epoch; without a zone it is UTC."""
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
