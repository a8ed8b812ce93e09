"""The score: a logistic regression by river that learns from what banks report, one payment at a time."""

from math import log
from importlib.util import find_spec
from typing import Any


RATE = 0.03
EPS = 0.01
ILR = 0.0
L2 = 0.0
SCALE = 0.1
START = -6.0
TRUST = {
    "rule=velocity": 8, "rule=travel": 7, "rule=amount": 4,
    "device=2": 4, "device=1": 3, "device=3": 1, "device=4": 1, "device,merchant": 3, "weak device,merchant": 1,
    "merchant=1": 1, "merchant=2": 1, "country=1": 1, "country=2": 1, "odd hour": 1,
    "place,entry": 4, "entry=2": 1, "place=2,4": 3, "place=2,3": 3, "place=2,2": 1, "place=1,0": 1, "place=4,4": 1, "place=4,3": 1,
    "deviation=4": 1, "deviation=5": 2, "deviation=6": 2, "deviation=4,stranger": 1, "deviation=5,stranger": 1, "deviation=6,stranger": 1,
    "small burst=1": 1, "small burst=2": 2, "small rush=3": 2, "small rush=4": 4, "small rush=5": 6,
    "like=2": 4, "like=1": 2, "held=2": 1, "held=3": 1, "speed=2": 1, "speed=3": 1, "speed=4": 1,
    "merchant risk": 1, "device risk": 1, "category risk": 1, "hour risk": 1, "amount risk": 1, "entry risk": 1, "crowd": 1,
}
"""Before anything is learned, the score says what the rules say."""
LOW = -0.5


def available() -> bool:
    """Whether river is installed."""
    return find_spec("river") is not None


A0 = 0.5
PRIOR = {"merchant risk": 0.8, "device risk": 0.8, "category risk": 0.6, "hour risk": 0.4, "amount risk": 0.4, "crowd": 0.6, "entry risk": 0.3}


class Scorer:
    def __init__(self) -> None:
        from river import linear_model, optim

        self._model: Any = linear_model.LogisticRegression(
            optimizer=optim.AdaGrad(RATE, eps=EPS), intercept_init=0.0, intercept_lr=ILR, l2=L2
        )
        self._model._weights.update({"scorecard": 1.0 / SCALE})
        self.counts = {}
        self.all = {}

    def enrich(self, signals, tokens, stranger):
        c = self.counts
        for k, t in tokens.items():
            n, bad = c.get(t, (0, 0))
            N, B = self.all.get(k, (0, 0))
            p = (B + 0.5) / (N + 25)
            llr = log((bad + A0) / (n * p + A0))
            signals[k + " risk" if k != "crowd" else k] = min(max(llr, LOW), 3.0)
        s = START
        for k, v in signals.items():
            s += TRUST.get(k, 0.0) * v
        signals["scorecard"] = s * SCALE
        for k, t in tokens.items():
            v = c.setdefault(t, [0, 0]); v[0] += 1
            w = self.all.setdefault(k, [0, 0]); w[0] += 1
            if k == "crowd" and stranger:
                v[1] += 1; w[1] += 1

    def bad(self, tokens):
        for k, t in tokens.items():
            if k == "crowd": continue
            self.counts[t][1] += 1
            self.all[k][1] += 1

    def score(self, signals) -> float:
        """The estimated chance of fraud, 0 … 1."""
        chance: float = self._model.predict_proba_one(signals)[True]
        return chance

    def learn(self, signals, *, fraud: bool, weight: float = 1.0) -> None:
        """Takes in the outcome of a payment."""
        self._model.learn_one(signals, fraud, weight)
