"""One series' detector: what it remembers, and how surprising the next value is. One pass, no look ahead.

Each test looks at the value from one side and makes a signal of it; how rare that signal is tells its own history, not
a table of the normal distribution (see rarity). The surprise of a value is a mean of the three most surprised tests,
the first of them weighing most: one test alone is easily surprised, three seldom are for nothing.
"""

import math
from typing import NamedTuple

import msgspec

import flowkit
from services.anomaly_detection.rarity import Density, Rarity

THRESHOLD = 2.9
"""The surprise from which on there is an alert."""

HOLD = 150
"""Values after an alert in which only a clearly greater surprise is another alert: most anomalies last a while."""

ESCALATION = 0.5
"""How much greater it has to be."""

WEIGHTS = (1.0, 0.5, 0.25)
MEMORY = 20_000
"""Values after which counts are halved: a series may change its ways."""

SHORT, LONG, SLOW = 1 / 6, 1 / 24, 1 / 300
UNREST = 1 / 12
DAY_SECONDS, SLOT_SECONDS = 86_400, 900
DAILY = 0.1

TESTS = ("step", "time of day", "time of day, lasting", "level", "level, lasting", "drift", "rare", "unrest", "stuck")
WORDS = {
    "step": "a step as large as hardly any before",
    "time of day": "far from what is usual at this time of day",
    "time of day, lasting": "off what is usual at this time of day for a while",
    "level": "far from the usual level",
    "level, lasting": "off the usual level for a while",
    "drift": "off the usual level for long",
    "rare": "a value that hardly ever came before",
    "unrest": "changes more than it does usually",
    "stuck": "the same value for longer than ever",
}


class Judgement(NamedTuple):
    """What the detector says of a value.

    `score` (0 … 1) is 0.5 at the threshold, and less where an alert of the same anomaly has just been; `surprise` is
    the bare number. `expected` is the value that would have been usual, `low` and `high` the range around it.
    """

    score: float
    surprise: float
    alert: bool
    test: str
    expected: float
    low: float
    high: float


class Detector(flowkit.Record):
    """A series' memory. The fields are means of what its name says; `slots` are means by quarter of an hour."""

    seen: int = 0
    last: float = 0.0
    same: int = 0
    short: float = 0.0
    long: float = 0.0
    slow: float = 0.0
    spread: float = 0.0
    off: float = 0.0
    moves: float = 0.0
    slots: dict[int, list[float]] = {}
    density: Density = msgspec.field(default_factory=Density)
    rarities: list[Rarity] = msgspec.field(default_factory=lambda: [Rarity() for _ in TESTS])
    alerted: int = -HOLD
    alerted_surprise: float = 0.0

    def observe(self, at: float, value: float) -> Judgement:
        """Judge a value (time in seconds since the epoch), then learn it."""
        seen = self.seen
        if not seen:
            self.last = self.short = self.long = self.slow = value
        slot = self.slots.setdefault(int(at % DAY_SECONDS // SLOT_SECONDS), [self.slow, 0])
        expected = slot[0]
        reach = 3.0 * self.spread
        surprises = self._surprises(value, value - expected, seen)
        slot[1] += 1
        slot[0] += max(1 / slot[1], DAILY) * (value - slot[0])
        self.seen = seen + 1
        if self.seen % MEMORY == 0:
            self._forget()
        order = sorted(surprises, reverse=True)
        surprise = sum(weight * part for weight, part in zip(WEIGHTS, order, strict=False)) / sum(WEIGHTS)
        alert = surprise >= THRESHOLD and (
            seen - self.alerted >= HOLD or surprise >= self.alerted_surprise + ESCALATION
        )
        score = 1.0 - 0.5 ** (surprise / THRESHOLD)
        if alert:
            self.alerted, self.alerted_surprise = seen, surprise
        elif seen - self.alerted < HOLD:
            score *= 0.5
        test = TESTS[surprises.index(order[0])]
        return Judgement(score, surprise, alert, test, expected, expected - reach, expected + reach)

    def _surprises(self, value: float, off: float, seen: int) -> list[float]:
        """What each of TESTS makes of the value; then learn it."""
        step = value - self.last
        fresh = 1 / (seen + 1)
        self.same = 0 if step else self.same + 1
        self.off += SHORT * (off - self.off)
        level = value - self.slow
        self.short += SHORT * (value - self.short)
        short = self.short - self.slow
        self.long += max(LONG, fresh) * (value - self.long)
        drift = self.long - self.slow
        self.slow += max(SLOW, fresh) * level
        self.moves += max(UNREST, fresh) * (abs(step) - self.moves)
        self.spread += max(SLOW, fresh) * (abs(off) - self.spread)
        self.last = value
        scarcity = self.density.scarcity(value, seen)
        signals = (step, off, self.off, level, short, drift, scarcity, self.moves, float(self.same))
        return [rarity.surprise(signal, seen) for rarity, signal in zip(self.rarities, signals, strict=True)]

    def _forget(self) -> None:
        self.density.forget()
        for rarity in self.rarities:
            rarity.forget()
