"""One series' detector: what it remembers, and how surprising the next value is. One pass, no look ahead.

Each test looks at the value from one side and makes a signal of it; how rare that signal is tells its own history, not
a table of the normal distribution (see rarity). The surprise of a value is a weighted mean of the views that are most
surprised: one view alone is easily surprised, several seldom are for nothing.
"""

from typing import NamedTuple

import msgspec

import flowkit
from services.anomaly_detection.rarity import Density, Rarity

THRESHOLD = 2.8
"""The surprise from which on there is an alert."""

WEIGHTS = (1.0, 0.4, 0.3, 0.2)
"""Of the views, the most surprised first."""

HOLD, LONGEST_HOLD, HOLD_SHARE = 150, 300, 0.03
"""Values after an alert that belong to it, for most anomalies last: a share of those seen, within bounds."""

ESCALATION = 0.7
"""How much more surprising a value within these has to be to be another alert: five times as rare."""

MEMORY = 10_000
"""Values after which counts are halved: a series may change its ways."""

SHORT, LONG, SLOW, UNREST = 1 / 8, 1 / 48, 1 / 300, 1 / 12
"""Weights of the newest value in moving means."""

DAY_SECONDS, SLOT_SECONDS, DAILY = 86_400, 900, 0.1
"""A slot is a time of day; `DAILY` is the newest value's weight in its mean."""

LARGEST = 1e100
"""Values beyond have squares and ratios that are no numbers any more."""

TINY = 1e-200

TESTS = {
    "step": "a step larger than nearly all before",
    "time of day": "far from what is usual at this time of day",
    "time of day, lasting": "off what is usual at this time of day for a while",
    "level": "far from the usual level",
    "level, lasting": "off the usual level for a while",
    "drift": "off the usual level for long",
    "rare": "a value that hardly ever came before",
    "unrest": "changes more than it usually does",
    "stuck": "the same value for longer than hardly ever",
    "calm": "changes less than it usually does",
}
"""The tests in the order of their signals, with what they find in words."""

NAMES = tuple(TESTS)


class Judgement(NamedTuple):
    """What the detector says of a value.

    `surprise` is minus the decimal logarithm of a chance. `score` (0 … 1) is made of it: 0.5 at the threshold, and
    half as much where the value belongs to an alert that has been given. `test` names the most surprised test.
    `expected` is the usual value at this time of day, `low` and `high` the range around it (three mean deviations).
    """

    score: float
    surprise: float
    alert: bool
    test: str
    expected: float
    low: float
    high: float


class Detector(flowkit.Record):
    """A series' memory: some moving means, the mean of each time of day, and counts of how large its signals were.

    `seen` is the number of all its values, `counted` of those that the counts are of.
    """

    seen: int = 0
    counted: int = 0
    last: float = 0.0
    same: int = 0
    short: float = 0.0
    long: float = 0.0
    slow: float = 0.0
    off: float = 0.0
    spread: float = 0.0
    moves: float = 0.0
    slots: dict[int, tuple[float, int]] = {}
    density: Density = msgspec.field(default_factory=Density)
    rarities: list[Rarity] = msgspec.field(default_factory=lambda: [Rarity() for _ in NAMES])
    held_until: int = 0
    alerted: float = 0.0

    def observe(self, at: float, value: float, threshold: float = THRESHOLD) -> Judgement:
        """Judge a value (time in seconds since the epoch), then learn it.

        Values come in the order of the stream; the time only says what time of day it is. Raises ValueError for what is
        no number, and learns nothing then.
        """
        if not -LARGEST < value < LARGEST:  # false for NaN, too
            raise ValueError(f"value {value} is no finite number between -{LARGEST:g} and {LARGEST:g}")
        if not self.seen:
            self.last = self.short = self.long = self.slow = value
        slot = int(at % DAY_SECONDS // SLOT_SECONDS)
        expected, times = self.slots.get(slot, (self.slow, 0))
        reach = 3.0 * self.spread
        surprises = self._surprises(value, value - expected)
        self.slots[slot] = expected + max(1 / (times + 1), DAILY) * (value - expected), times + 1
        surprise = _agreement(surprises)
        score = 1.0 - 0.5 ** (surprise / threshold)
        held = self.seen < self.held_until
        alert = surprise >= threshold and not (held and surprise < self.alerted + ESCALATION)
        if alert:
            self.alerted = surprise
            self.held_until = self.seen + round(min(max(HOLD, HOLD_SHARE * self.seen), LONGEST_HOLD))
        elif held:
            score *= 0.5
        self.seen += 1
        self.counted += 1
        if self.counted >= MEMORY:
            self._forget()
        test = NAMES[surprises.index(max(surprises))]
        return Judgement(score, surprise, alert, test, expected, expected - reach, expected + reach)

    def _surprises(self, value: float, off: float) -> list[float]:
        """How surprised each test is by the value, which lies `off` what was expected; then learn it."""
        fresh = 1 / (self.seen + 1)  # moving means are plain ones at first
        step = value - self.last
        self.last = value
        self.same = 0 if step else self.same + 1
        self.off += SHORT * (off - self.off)
        self.spread += max(SLOW, fresh) * (abs(off) - self.spread)
        level = value - self.slow
        self.short += SHORT * (value - self.short)
        lasting = self.short - self.slow
        self.long += max(LONG, fresh) * (value - self.long)
        drift = self.long - self.slow
        self.slow += max(SLOW, fresh) * level
        self.moves += max(UNREST, fresh) * (abs(step) - self.moves)
        calm = 1.0 / self.moves if self.moves > TINY else 0.0
        counted = self.counted
        scarcity = self.density.scarcity(value, counted)
        signals = (step, off, self.off, level, lasting, drift, scarcity, self.moves, float(self.same), calm)
        return [rarity.surprise(signal, counted) for rarity, signal in zip(self.rarities, signals, strict=True)]

    def _forget(self) -> None:
        self.counted //= 2
        self.density.forget()
        for rarity in self.rarities:
            rarity.forget()


def _agreement(surprises: list[float]) -> float:
    """The weighted mean of the most surprised views; tests that see nearly the same are one view."""
    step, day, day_lasting, level, level_lasting, drift, rare, unrest, stuck, calm = surprises
    views = [step, max(day, level), max(day_lasting, level_lasting), drift, rare, max(unrest, stuck), calm]
    views.sort(reverse=True)
    a, b, c, d = WEIGHTS
    return (a * views[0] + b * views[1] + c * views[2] + d * views[3]) / (a + b + c + d)
