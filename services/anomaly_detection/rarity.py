"""How rare is a number in its own series? Two answers from counts alone, with no assumption about its distribution.

`Tail` counts sizes in steps of a quarter octave: the share of earlier sizes that reached as far is the chance that
this one does so by itself. `Density` counts places on a line: a place where hardly any earlier number lay is rare even
amid the others. Both answer with a surprise: minus the decimal logarithm of a chance, so 3 is one in a thousand.
"""

import math

import msgspec

import flowkit

STEPS = 4
"""Steps of size an octave: a size within a fifth of the largest one so far is no record."""

MOST_STEPS = 128
"""Steps kept below the largest size: 32 octaves. Smaller sizes count as the smallest of them."""

BEYOND = 0.15
"""What each octave beyond the largest size so far adds to the surprise."""

PLACES = 12
"""Into how many places the range of the first numbers is cut."""

FIRST = 50
FARTHEST = 16
"""Octaves of that range, beyond which all places are one."""


class Tail(flowkit.Record):
    """Counts of sizes, the largest first: `counts[j]` is of the step `top − j`. `peak` is the largest size's place."""

    counts: list[int] = []
    top: int = 0
    peak: float = 0.0

    def surprise(self, size: float, seen: int) -> float:
        """How rare it is among `seen` numbers that one has this size (above 0) or a larger one; then count it.

        >>> tail = Tail()
        >>> for n in range(1, 1000):
        ...     usual = tail.surprise(1.0 + n % 10 / 10, n)
        >>> round(usual, 1), round(tail.surprise(1000.0, 1000), 1)
        (0.8, 4.7)
        """
        place = STEPS * math.log2(size)
        step = math.floor(place)
        counts = self.counts
        below = self.top - step
        if not counts or below <= -MOST_STEPS:
            beyond = place - self.peak if counts else 0.0
            self.counts, self.top, self.peak = [1], step, place
            return math.log10(2 * (seen + 1)) + BEYOND * beyond / STEPS
        if below < 0:
            found = math.log10(2 * (seen + 1)) + BEYOND * (place - self.peak) / STEPS
            counts[:0] = [1, *([0] * (-below - 1))]
            del counts[MOST_STEPS:]
            self.top, self.peak = step, place
            return found
        if below >= len(counts):
            below = min(below, MOST_STEPS - 1)
            counts.extend([0] * (below + 1 - len(counts)))
        reached = sum(counts[:below]) + 0.5 * counts[below] + 0.5
        counts[below] += 1
        found = math.log10((seen + 1) / reached)
        if place > self.peak:
            found += BEYOND * (place - self.peak) / STEPS
            self.peak = place
        return found

    def forget(self) -> None:
        """Halve what was counted; sizes that came once are gone."""
        counts = [count >> 1 for count in self.counts]
        gone = next((j for j, count in enumerate(counts) if count), len(counts))
        self.counts, self.top = counts[gone:], self.top - gone
        if gone:
            self.peak = float(self.top + 1)


class Rarity(flowkit.Record):
    """The tails of a signal, above zero and below it. 0 is never rare."""

    up: Tail = msgspec.field(default_factory=Tail)
    down: Tail = msgspec.field(default_factory=Tail)

    def surprise(self, signal: float, seen: int) -> float:
        """How rare a signal so far on this side is among `seen`; then count it."""
        if signal > 0.0:
            return self.up.surprise(signal, seen)
        return self.down.surprise(-signal, seen) if signal < 0.0 else 0.0

    def forget(self) -> None:
        """Halve what was counted."""
        self.up.forget()
        self.down.forget()


class Density(flowkit.Record):
    """Counts of places. The first numbers, kept in `first`, say how wide a place is."""

    first: list[float] = []
    low: float = 0.0
    width: float = 0.0
    counts: dict[int, int] = {}

    def scarcity(self, number: float, seen: int) -> float:
        """How many numbers come for each one at this place, of `seen`; then count it. 1 while that is unknown."""
        if not self.width:
            self._measure(number)
            return 1.0
        place = math.floor(self._place(number))
        counts = self.counts
        here = counts.get(place, 0)
        near = here + 0.5 * (counts.get(place - 1, 0) + counts.get(place + 1, 0))
        counts[place] = here + 1
        return max(1.0, (seen + 1) / (near + 0.5))

    def forget(self) -> None:
        """Halve what was counted; places where one number lay are gone."""
        self.counts = {place: count >> 1 for place, count in self.counts.items() if count > 1}

    def _measure(self, number: float) -> None:
        self.first.append(number)
        if len(self.first) < FIRST:
            return
        self.low = min(self.first)
        self.width = (max(self.first) - self.low) / PLACES
        del self.first[: None if self.width else -5]  # the same number all the time: go on until it changes

    def _place(self, number: float) -> float:
        """In places from the lowest of the first numbers; by its logarithm where it lies far outside."""
        place = (number - self.low) / self.width
        if place < -PLACES:
            return -PLACES * (1.0 + min(FARTHEST, math.log2(-place / PLACES)))
        if place > 2 * PLACES:
            return PLACES * (2.0 + min(FARTHEST, math.log2(place / PLACES / 2)))
        return place
