"""What reports say of merchants, devices, categories …: a lift for each, learned from counts alone.

This is the half of the score that learns from a single report: a merchant with two reports in ten payments is known
at once, where a weight of its own would need dozens of examples. The model then learns how much each kind matters.
"""

from math import log
from typing import Any, Self

DOUBT = 0.5
"""How many reports a token is given on credit: few expected and none found proves nothing."""

HIGHEST = 3.0
LOWEST = -1.0
LOWEST_OF = {"device": 0.0}
"""A device without reports is no better than an unknown one: whoever brings it uses it until the first report."""

FADE_AT = 4_000
"""A token with so many payments has its counts halved: what it was a year ago matters less."""


class Reputation:
    """Counts of payments and of reports for each token (`kind#…`) and for each kind of token."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._kinds: dict[str, list[int]] = {}

    def lift(self, token: str) -> float:
        """The logarithm of (reports found / reports expected), from none too low to none too high."""
        payments, reports = self._counts.get(token, (0, 0))
        all_payments, all_reports = self._kinds.get(kind_of(token), (0, 0))
        share = (all_reports + 0.5) / (all_payments + 25)
        lift = log((reports + DOUBT) / (payments * share + DOUBT))
        return min(max(lift, LOWEST_OF.get(kind_of(token), LOWEST)), HIGHEST)

    def count(self, token: str, *, marked: bool = False) -> None:
        """Count a payment; `marked` counts it among the reported ones at once."""
        for counts, name in ((self._counts, token), (self._kinds, kind_of(token))):
            pair = counts.setdefault(name, [0, 0])
            pair[0] += 1
            pair[1] += marked
            if pair[0] >= FADE_AT and counts is self._counts:
                pair[0] //= 2
                pair[1] //= 2

    def report(self, token: str) -> None:
        """Mark a payment that was counted before."""
        self._counts.setdefault(token, [1, 0])[1] += 1
        self._kinds.setdefault(kind_of(token), [1, 0])[1] += 1

    def to_state(self) -> Any:
        """Plain lists, in the order in which things were first seen."""
        return [[[name, *pair] for name, pair in counts.items()] for counts in (self._counts, self._kinds)]

    @classmethod
    def from_state(cls, state: Any) -> Self:
        """The inverse of `to_state`."""
        self = cls()
        self._counts, self._kinds = ({name: [seen, bad] for name, seen, bad in counts} for counts in state)
        return self


def kind_of(token: str) -> str:
    """What a token is about: `merchant` of `merchant#17`."""
    return token.partition("#")[0]
