"""The dishonest part of the simulated world: rings of fraudsters and what they do with a stolen card.

| scenario     | what happens                                                            | who could see it          |
|--------------|-------------------------------------------------------------------------|---------------------------|
| card_testing | a bot tries the card with many tiny payments, then cashes out           | velocity, after a few     |
| takeover     | someone shops online in the owner's name, at many times the usual spend | amount, mostly            |
| clone        | a copied magnetic stripe is swiped in a far city, the owner is at home  | travel, if the owner pays |
| drip         | ordinary amounts, once or twice a day, at odd merchants, at odd hours   | no rule                   |
| stolen       | the card itself, near its owner's home, tapped fast before it is missed | hardly anything           |
"""

from collections.abc import Callable, Iterator
from random import Random

from services.fraud_detection.population import CITIES, DAY, HOUR, Cardholder, City, Market, Purchase, Shop, distance_km

SCENARIOS: dict[str, tuple[float, float]] = {
    # share of the fraudulent payments, payments an episode (about)
    "card_testing": (0.31, 17.0),
    "takeover": (0.25, 3.7),
    "clone": (0.20, 5.2),
    "drip": (0.21, 4.7),
    "stolen": (0.01, 3.4),
}

Discovery = tuple[float, float]
"""When the owner notices, counted from the first payment: median in seconds and spread of its logarithm."""

DISCOVERY: dict[str, Discovery] = {
    "card_testing": (14 * HOUR, 0.7),
    "takeover": (12 * HOUR, 0.8),
    "clone": (20 * HOUR, 0.8),
    "drip": (66 * HOUR, 0.6),
    "stolen": (10 * HOUR, 0.7),
}


class Ring:
    """One group of fraudsters: their shops, their city, their working hours. Rings come and go."""

    def __init__(self, rng: Random, number: int, market: Market) -> None:
        goods = ("gift_cards", "digital_goods", "crypto", "electronics", "marketplace")
        taste = rng.sample(goods, 3)
        self.cash_out = [rng.choice(market.online[category][-5:]) for category in taste[:2]]
        seat = rng.choice(CITIES).country
        self.cash_out += [
            Shop(f"{rng.choice(('best', 'quick', 'mega', 'prime'))} {category} {number}-{n}", category, seat, None)
            for n, category in enumerate(taste[1:])
        ]
        self.testing = [
            rng.choice(market.online[rng.choice(("charity", "digital_goods", "subscription"))][2:]) for _ in range(2)
        ]
        self.base: City = rng.choice(CITIES[20:])
        self.wakes = rng.uniform(0, 24)
        self._devices = [f"d-{rng.getrandbits(40):010x}" for _ in range(4)]

    def device(self, rng: Random) -> str:
        """A fresh one for this card as a rule, one of the ring's few machines else; some shops ask for none."""
        draw = rng.random()
        if draw < 0.015:
            return ""
        return rng.choice(self._devices) if draw < 0.40 else f"d-{rng.getrandbits(40):010x}"

    def awake(self, rng: Random, day: float) -> float:
        """A time of that day within the ring's ten working hours."""
        return day + (self.wakes + 10 * rng.random()) % 24 * HOUR


class Underworld:
    """All rings of one world, and the episodes that they start."""

    def __init__(self, rng: Random, market: Market) -> None:
        self._market = market
        self._count = 0
        self.rings: list[Ring] = []
        for _ in range(5):
            self._recruit(rng)

    def _recruit(self, rng: Random) -> None:
        self.rings.append(Ring(rng, self._count, self._market))
        self._count += 1

    def new_day(self, rng: Random) -> None:
        """Now and then a ring is caught and another one takes its place."""
        if rng.random() < 0.12:
            self.rings.pop(0)
            self._recruit(rng)

    def episode(
        self, rng: Random, scenario: str, victim: Cardholder, day: float
    ) -> list[tuple[Purchase, float | None]]:
        """One card's misfortune: each payment with the time at which the bank hears of it (None: never).

        The owner's discovery ends the episode, because the bank then blocks the card.
        """
        ring = rng.choice(self.rings)
        purchases = list(_PLANS[scenario](rng, ring, victim, day, self._market))
        median, spread = DISCOVERY[scenario]
        discovered = purchases[0].at + median * rng.lognormvariate(0.0, spread)
        noticed = rng.random() > 0.03
        return [
            (p._replace(scenario=scenario), discovered + rng.uniform(0.2, 6) * HOUR if noticed else None)
            for p in purchases
            if not noticed or p.at < discovered
        ]


def _online(at: float, victim: Cardholder, amount: float, shop: Shop, device: str) -> Purchase:
    return Purchase(at, victim.card, round(max(amount, 0.5), 2), shop, "online", None, None, device)


def _card_testing(rng: Random, ring: Ring, victim: Cardholder, day: float, _market: Market) -> Iterator[Purchase]:
    at = ring.awake(rng, day)
    shops = rng.sample(ring.testing, rng.randint(1, 2))
    device = ring.device(rng)
    for _ in range(rng.randint(8, 24)):
        yield _online(at, victim, rng.uniform(0.5, 4.5), rng.choice(shops), device)
        at += 2 + rng.expovariate(1 / 40)
    if rng.random() < 0.6:
        for _ in range(rng.randint(1, 3)):
            at += rng.uniform(1, 40) * 60
            yield _online(at, victim, rng.uniform(90, 700), rng.choice(ring.cash_out), device)


def _takeover(rng: Random, ring: Ring, victim: Cardholder, day: float, market: Market) -> Iterator[Purchase]:
    at = ring.awake(rng, day)
    device = victim.devices[0] if rng.random() < 0.04 else ring.device(rng)
    for _ in range(rng.randint(2, 6)):
        if rng.random() < 0.6:
            shop = rng.choice(ring.cash_out)
        else:
            category = rng.choice(("electronics", "travel", "jewellery", "clothing"))
            shop = market.pick(rng, category, victim.home, online=True)
        yield _online(at, victim, victim.usual_amount() * rng.lognormvariate(3.1, 0.4), shop, device)
        at += rng.expovariate(1 / (50 * 60))


def _clone(rng: Random, ring: Ring, victim: Cardholder, day: float, market: Market) -> Iterator[Purchase]:
    city = ring.base
    if distance_km(city, victim.home) < 400:
        city = rng.choice([far for far in CITIES if distance_km(far, victim.home) > 1000])
    at = day + (rng.uniform(9, 17) - city.lon / 15) * HOUR
    for _ in range(rng.randint(3, 8)):
        category = rng.choice(("electronics", "clothing", "fuel", "jewellery", "groceries", "household", "gift_cards"))
        shop = market.pick(rng, category, city, online=False)
        amount = victim.usual_amount() * rng.lognormvariate(0.9, 0.6)
        lat, lon = city.lat + rng.gauss(0.0, 0.05), city.lon + rng.gauss(0.0, 0.05)
        entry = "swipe" if rng.random() < 0.96 else "chip"
        yield Purchase(at, victim.card, round(amount, 2), shop, entry, round(lat, 3), round(lon, 3))
        at += rng.expovariate(1 / (70 * 60))


def _drip(rng: Random, ring: Ring, victim: Cardholder, day: float, _market: Market) -> Iterator[Purchase]:
    shops = rng.sample(ring.cash_out, 2)
    device = ring.device(rng)
    for n in range(rng.randint(3, 7)):
        for _ in range(1 if rng.random() < 0.6 else 2):
            amount = victim.usual_amount() * rng.lognormvariate(0.2, 0.5)
            yield _online(ring.awake(rng, day + n * DAY), victim, amount, rng.choice(shops), device)


def _stolen(rng: Random, _ring: Ring, victim: Cardholder, day: float, market: Market) -> Iterator[Purchase]:
    at = day + rng.uniform(9, 21) * HOUR - victim.zone
    for _ in range(rng.randint(2, 5)):
        category = rng.choice(("electronics", "gift_cards", "groceries", "clothing", "fuel"))
        shop = market.pick(rng, category, victim.home, online=False)
        lat, lon = victim.home.lat + rng.gauss(0.0, 0.05), victim.home.lon + rng.gauss(0.0, 0.05)
        amount = rng.uniform(22, 49)
        yield Purchase(at, victim.card, round(amount, 2), shop, "contactless", round(lat, 3), round(lon, 3))
        at += rng.expovariate(1 / (12 * 60))


_Plan = Callable[[Random, Ring, Cardholder, float, Market], Iterator[Purchase]]
_PLANS: dict[str, _Plan] = {
    "card_testing": _card_testing,
    "takeover": _takeover,
    "clone": _clone,
    "drip": _drip,
    "stolen": _stolen,
}
