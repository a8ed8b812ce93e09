"""What flows through the service, and what it remembers of a card."""

from datetime import datetime

import flowkit


class Transaction(flowkit.Record):
    """One card payment. Whatever a source does not tell is left empty: the rules and the score then do without.

    `amount` is in one currency. `lat` and `lon` (degrees) are the terminal's. `entry` is how the card was read (`chip`,
    `swipe`, `online`, … any words), `device` the browser or telephone of an online payment.
    """

    id: str
    card: str
    at: datetime
    amount: float
    merchant: str = ""
    category: str = ""
    country: str = ""
    entry: str = ""
    lat: float | None = None
    lon: float | None = None
    device: str = ""


class Chargeback(flowkit.Record):
    """The owner of `card` says that payment `id` was not theirs; `at` is when the bank hears it."""

    id: str
    card: str
    at: datetime


class Alert(flowkit.Record):
    """A payment to stop or to look at.

    `score` is the risk, 0 … 1, or None where the rules decide alone. `reasons` are for people, the weightiest first.
    """

    id: str
    card: str
    at: datetime
    amount: float
    score: float | None
    reasons: list[str]


class Burst(flowkit.Record):
    """Payments of one card that follow each other closely (one session window).

    `strange` counts those at merchants that are new to the card, `total` is the sum of all amounts.
    """

    count: int = 0
    strange: int = 0
    total: float = 0.0


class Place(flowkit.Record):
    """A neighbourhood where the card was present: a position (degrees), since when, and when last (ms)."""

    lat: float
    lon: float
    since: int
    last_at: int


class Case(flowkit.Record):
    """A payment whose outcome may still become known, and what the score saw of it.

    A payment in doubt keeps its `tx`: it becomes part of the card's history only when nobody complains in time.
    `alerted`: it is not merely in doubt. `learned`: the score has taken it for honest.
    """

    id: str
    at: int
    signals: dict[str, float]
    tokens: list[str]
    tx: Transaction | None = None
    alerted: bool = False
    learned: bool = False


class Profile(flowkit.Record):
    """One card's own history. Times in ms; `mean` and `spread` are of the natural logarithm of its amounts.

    `merchants`, `categories`, `countries` and `devices` say since when the card is seen there, the latest used last;
    `entries` counts how it was read, `hours` when it was used, `told` the payments that name a device, `tells` the same
    for each way of reading it; `hidden` has the times of the last that named none where they usually do.
    """

    seen: int = 0
    since: int = 0
    mean: float = 0.0
    spread: float = 0.0
    told: int = 0
    places: list[Place] = []
    merchants: dict[str, int] = {}
    categories: dict[str, int] = {}
    countries: dict[str, int] = {}
    devices: dict[str, int] = {}
    tells: dict[str, int] = {}
    hidden: list[int] = []
    entries: dict[str, int] = {}
    hours: list[int] = []
    cases: list[Case] = []
