"""What flows: values of metrics in, their scores and the alerts out."""

from datetime import datetime

import flowkit


class Metric(flowkit.Record):
    """A value of the series `name` (any words: a host and what is measured there). Without a name all is one series."""

    timestamp: datetime
    value: float
    name: str = "metric"


class Score(flowkit.Record):
    """How anomalous a value is.

    `score` (0 … 1) is 0.5 where an alert is due, and half as much where the value belongs to an alert that was given.
    `surprise` is minus the decimal logarithm of the chance of it, whether or not there was an alert before.
    """

    timestamp: datetime
    name: str
    value: float
    score: float
    surprise: float


class Alert(flowkit.Record):
    """A series departs from its ways; one for each anomaly, unless what follows is much rarer still.

    `expected` is what the series usually shows at this time of day, `low` and `high` the range around it (three mean
    deviations). `test` names the test that is most surprised; `reason` is for people.
    """

    timestamp: datetime
    name: str
    value: float
    score: float
    surprise: float
    expected: float
    low: float
    high: float
    test: str
    reason: str
