"""What flows through the service and what it remembers of a card."""

from datetime import datetime

import flowkit


class Transaction(flowkit.Record):
    """One card payment. Whatever a source does not tell is left empty: the rules and the score then do without.

    `amount` is in one currency, `lat` and `lon` (degrees) are the terminal's, `entry` how the card was read (`chip`,
    `contactless`, `swipe`, `online`, … any words).
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
    """A payment to stop or to look at. `score` is the estimated chance of fraud, `reasons` is for people."""

    id: str
    card: str
    at: datetime
    amount: float
    score: float
    reasons: list[str]


class Burst(flowkit.Record):
    """Payments of one card that follow each other closely (one session window).

    `strange` counts those at merchants that are new to the card, `total` is the sum of all.
    """

    count: int = 0
    strange: int = 0
    total: float = 0.0


class Place(flowkit.Record):
    """A neighbourhood where the card was present: since when, and when last (ms)."""

    lat: float
    lon: float
    since: int
    last_at: int


class Case(flowkit.Record):
    """A payment whose outcome may still become known: what the score saw of it, and what made it special.

    `held` payments were alerted; they are no part of the card's history until they prove to be honest.
    """

    id: str
    at: int
    signals: dict[str, float]
    tokens: list[str]
    held: bool
    tx: Transaction
    learned: bool = False


class Profile(flowkit.Record):
    """One card's own history. Times in ms; amounts are kept as moments of their natural logarithm.

    `merchants`, `categories`, `countries`, `entries` and `devices` say since when the card is seen there; those used
    last stand last.
    """

    seen: int = 0
    since: int = 0
    mean: float = 0.0
    spread: float = 0.0
    disputed_at: int = 0
    places: list[Place] = []
    merchants: dict[str, int] = {}
    categories: dict[str, int] = {}
    countries: dict[str, int] = {}
    entries: dict[str, int] = {}
    devices: dict[str, int] = {}
    told: int = 0
    hours: list[float] = []
    cases: list[Case] = []
