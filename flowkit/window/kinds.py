"""The kinds of windows: half-open `[start, end)` in ms, aligned to the epoch plus an offset, as in Flink.

    time        0         10        20        30
    Tumbling    |---------|---------|---------|          size 10
    Sliding     |-------------------|                    size 20, every 10
                          |-------------------|
    Cumulative  |----|                                   step 5, size 10
                |---------|
                          |----|
    Session       x--x---gap---|        x----gap---|     closes `gap` after its last event

Each aligned kind answers a few questions, and nothing else: which windows contain `t`; before which time every
window has its end at or before `x`; the ends around `x`. With `x = watermark + 1` an end at or before `x` is a window
that has fired; with `x = watermark + 1 - allowed_lateness` it is one that is closed (Flink's `isWindowLate`).
"""

from dataclasses import dataclass
from math import gcd
from typing import Protocol

from flowkit.errors import ConfigError
from flowkit.record import END_OF_TIME, MIN_TIME


class Aligned(Protocol):
    """A kind whose windows depend on the event's time alone."""

    def windows(self, t: int) -> list[tuple[int, int]]:
        """The windows `(start, end)` that contain `t`, by ascending end."""

    def late_before(self, x: int) -> int:
        """Every event before this time has all its windows' ends at or before `x`; no event from it on has."""

    def last_end(self, x: int) -> int:
        """The greatest end of a window at or before `x`."""

    def next_end(self, x: int) -> int:
        """The smallest value above `x` at which `late_before` or `last_end` may answer something else."""


def floor_to(t: int, size: int, offset: int) -> int:
    """The greatest point of the grid `offset + n*size` at or before `t` (also before 1970).

    >>> floor_to(-1, 10, 0), floor_to(25, 10, 3)
    (-10, 23)
    """
    return t - (t - offset) % size


@dataclass(frozen=True)
class Tumbling:
    """Windows of `size` ms that follow each other without a gap; an event falls in exactly one."""

    size: int
    offset: int = 0

    def windows(self, t: int) -> list[tuple[int, int]]:
        start = floor_to(t, self.size, self.offset)
        return [(start, start + self.size)]

    def late_before(self, x: int) -> int:
        return floor_to(x, self.size, self.offset)

    def last_end(self, x: int) -> int:
        return floor_to(x, self.size, self.offset)

    def next_end(self, x: int) -> int:
        return floor_to(x, self.size, self.offset) + self.size


@dataclass(frozen=True)
class Sliding:
    """Windows of `size` ms, one starting `every` ms (SQL's HOP). With `every > size` some events fall in none."""

    size: int
    every: int
    offset: int = 0

    def windows(self, t: int) -> list[tuple[int, int]]:
        first = floor_to(t - self.size, self.every, self.offset) + self.every
        last = floor_to(t, self.every, self.offset)
        return [(start, start + self.size) for start in range(first, last + 1, self.every)]

    def late_before(self, x: int) -> int:
        if self.every <= self.size:
            return floor_to(x - self.size, self.every, self.offset) + self.every
        start = floor_to(x, self.every, self.offset)
        # Between two windows an event is late by its own time, as Flink's isElementLate has it.
        return start if x < start + self.size else x

    def last_end(self, x: int) -> int:
        return floor_to(x, self.every, self.offset + self.size)

    def next_end(self, x: int) -> int:
        # Between two windows lateness goes by the event's own time, so the answer changes with every ms.
        return self.last_end(x) + self.every if self.windows(x) else x + 1

    @property
    def pane(self) -> int:
        """The longest stretch that every window is made of (ms)."""
        return gcd(self.size, self.every)


@dataclass(frozen=True)
class Cumulative:
    """Windows that share a start and grow by `step` ms up to `size` ms (SQL's CUMULATE)."""

    step: int
    size: int
    offset: int = 0

    def windows(self, t: int) -> list[tuple[int, int]]:
        start = floor_to(t, self.size, self.offset)
        first = start + ((t - start) // self.step + 1) * self.step
        return [(start, end) for end in range(first, start + self.size + 1, self.step)]

    def late_before(self, x: int) -> int:
        return floor_to(x, self.size, self.offset)

    def last_end(self, x: int) -> int:
        return floor_to(x, self.step, self.offset)

    def next_end(self, x: int) -> int:
        return floor_to(x, self.step, self.offset) + self.step

    @property
    def pane(self) -> int:
        """The stretch that every window is made of (ms)."""
        return self.step


@dataclass(frozen=True)
class Session:
    """Windows by activity: an event at `t` opens `[t, t+gap)`; windows of a key that overlap or touch merge."""

    gap: int


@dataclass(frozen=True)
class Count:
    """As a window, `n` events of a key (with `every`: the last `n`, each `every` events).

    As an aggregate, `Count()` counts events.

    Windows of `Count(n, every)` overlap if `every < n`: their table has no `[]`. A type checker does not know, since
    which number is the lesser is no matter of types. A type could at best say that `every` was given, and would so
    refuse `[]` where it is right (`every >= n`), at the price of a type parameter in each annotation of `Count`.
    """

    n: int | None = None
    every: int | None = None


@dataclass(frozen=True)
class Global:
    """One window for all time; it closes at the end of a bounded run."""

    start = MIN_TIME
    end = END_OF_TIME


Window = Tumbling | Sliding | Cumulative | Session | Count | Global


def check_window(window: Window, where: str) -> None:
    """Raise ConfigError if the window's numbers make no sense; `where` names the table."""
    sizes = {
        name: value
        for name in ("size", "every", "step", "gap", "n")
        if (value := getattr(window, name, None)) is not None
    }
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ConfigError(f"{where}: {window} needs {name} > 0 (whole ms; use seconds(…), minutes(…))")
    offset = getattr(window, "offset", 0)
    if isinstance(offset, bool) or not isinstance(offset, int):
        raise ConfigError(f"{where}: {window} needs a whole offset (ms; use seconds(…), minutes(…))")
    if isinstance(window, Count) and window.n is None:
        raise ConfigError(f"{where}: Count() without a number is an aggregate; as a window it is Count(n)")
    if isinstance(window, Cumulative) and window.size % window.step:
        raise ConfigError(f"{where}: {window}: size must be a multiple of step")
