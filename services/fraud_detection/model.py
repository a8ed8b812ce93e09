"""The score: a logistic regression by river that learns from what banks report, one payment at a time.

It starts from a scorecard, as a bank's analyst would write it, and from there on follows the evidence. river is an
optional extra (`pip install flowkit[ml]`); it is loaded when the first score is asked for.
"""

from importlib.util import find_spec
from typing import Any, Self

from services.fraud_detection.features import Observation
from services.fraud_detection.reputation import Reputation, kind_of

RATE = 0.05
CAUTION = 0.1
"""AdaGrad's rate, and the squared gradient that each weight is born with: without it the first example of a rare signal
would move its weight by the full rate, however small the error."""

BASE = -8.5
SCORECARD: dict[str, float] = {
    # the rules
    "rule=velocity": 8, "rule=travel": 6, "rule=amount": 4,
    # bursts of small payments
    "small burst=1": 1, "small burst=2": 2, "small rush=3": 2, "small rush=4": 4, "small rush=5": 6, "device,rush": 2,
    # like what was held before
    "like=2": 4, "like=1": 2, "held=2": 1, "held=3": 1,
    # who pays: device, merchant, time of day
    "device=2": 4, "device=1": 3, "device=3": 1, "device=4": 1, "device=5": 2, "device,merchant": 3,
    "weak device,merchant": 1, "hidden=1": 2, "hidden=2": 3, "hidden=3": 4,
    "merchant=1": 1, "merchant=2": 1, "country=1": 1, "country=2": 1, "odd hour": 1,
    # where, and how the card is read
    "place=2,4": 3, "place=2,3": 3, "place=2,2": 1, "place=1,0": 1, "place=4,4": 1, "place=4,3": 1,
    "place,entry": 4, "entry=2": 1, "speed=2": 1, "speed=3": 1, "speed=4": 1,
    # how much
    "deviation=4": 1, "deviation=5": 2, "deviation=6": 2,
    "deviation=4,stranger": 1, "deviation=5,stranger": 1, "deviation=6,stranger": 1,
    # what reports say of the merchant, the device, …
    "merchant risk": 1, "device risk": 1, "category risk": 1, "hour risk": 1, "amount risk": 1, "entry risk": 1,
    "place risk": 1, "crowd risk": 1,
}  # fmt: skip
"""Starting weights in whole numbers: what each signal adds to the logarithm of the odds, which begins with `BASE`."""

WORDS = {
    "device": "a device new to the card",
    "weak device": "a device new to the card",
    "device=5": "the device is not told, which the card's payments usually do",
    "hidden": "the device is not told, and was not before",
    "merchant": "a merchant new to the card",
    "category": "a category new to the card",
    "country": "a country new to the card",
    "entry": "read in a way unusual for the card",
    "place": "far from the card's places",
    "weak place": "far from the card's places",
    "speed": "far from its last place",
    "burst": "payments in quick succession",
    "small burst": "small payments in quick succession",
    "rush": "payments in quick succession",
    "small rush": "small payments in quick succession",
    "deviation": "more than the card usually pays",
    "odd hour": "an unusual hour for the card",
    "held": "an alert on the card in the last days",
    "like": "resembles an alerted payment",
    "merchant risk": "reports about the merchant",
    "device risk": "reports about the device",
    "category risk": "reports about this category",
    "hour risk": "reports about this time of day",
    "amount risk": "reports about such amounts",
    "entry risk": "reports about cards read so",
    "place risk": "reports about cards read so, far from home",
    "crowd risk": "a merchant that sees many strangers",
}


def available() -> bool:
    """Whether river is installed."""
    return find_spec("river") is not None


class Scorer:
    """The risk of payments. Its state is plain data (`to_state`, `from_state`), so that it lives in a table."""

    def __init__(self) -> None:
        self._model = _regression(SCORECARD, BASE)
        self.reputation = Reputation()

    def weigh(self, seen: Observation) -> None:
        """Add to the signals what reports say of the payment's tokens, then count the payment there."""
        for token in seen.tokens:
            seen.signals[f"{kind_of(token)} risk"] = self.reputation.lift(token)
        for token in seen.tokens:
            self.reputation.count(token, marked=seen.stranger and kind_of(token) == "crowd")

    def score(self, signals: dict[str, float]) -> float:
        """The risk, 0 … 1: a frightened chance of fraud, since a missed one costs more than a false alarm."""
        risk: float = self._model.predict_proba_one(signals)[True]
        return risk

    def learn(self, signals: dict[str, float], *, fraud: bool, weight: float = 1.0) -> None:
        """Take in the outcome of a payment."""
        self._model.learn_one(signals, fraud, weight)

    def why(self, signals: dict[str, float], most: int = 3) -> list[str]:
        """The weightiest signals in words; rules speak for themselves and are left out."""
        weights = self._model.weights
        shares: dict[str, float] = {}
        for name, value in signals.items():
            words = WORDS.get(name) or WORDS.get(name.removeprefix("young,").partition("=")[0].partition(",")[0])
            if words is not None:
                shares[words] = shares.get(words, 0.0) + weights.get(name, 0.0) * value
        found = sorted(((share, words) for words, share in shares.items() if share >= 1.0), reverse=True)
        return [words for _, words in found[:most]]

    def to_state(self) -> Any:
        """Plain lists and numbers: everything that a prediction or a step of learning depends on."""
        optimizer = self._model.optimizer
        return {
            "intercept": self._model.intercept,
            "steps": optimizer.n_iterations,
            "weights": [[name, weight] for name, weight in self._model.weights.items()],
            "gradients": [[name, square] for name, square in optimizer.g2.items()],
            "reputation": self.reputation.to_state(),
        }

    @classmethod
    def from_state(cls, state: Any) -> Self:
        """The inverse of `to_state`: the same predictions and the same learning, bit for bit."""
        self = cls.__new__(cls)
        self._model = _regression(dict(state["weights"]), state["intercept"])
        self._model.optimizer.n_iterations = state["steps"]
        self._model.optimizer.g2.update(state["gradients"])
        self.reputation = Reputation.from_state(state["reputation"])
        return self


def _regression(weights: dict[str, float], intercept: float) -> Any:
    from river import linear_model, optim, utils

    model: Any = linear_model.LogisticRegression(
        optimizer=optim.AdaGrad(RATE, eps=CAUTION),
        intercept_init=intercept,
        intercept_lr=0.0,  # an ordinary payment teaches nothing: see features
    )
    # river has no public way to set weights. Sums follow their order, so the order is part of the state.
    model._weights = utils.VectorDict({name: float(weight) for name, weight in weights.items()})  # noqa: SLF001
    return model
