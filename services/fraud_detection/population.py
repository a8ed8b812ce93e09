"""The honest part of the simulated world: places, shops, and cardholders with habits, trips and odd days.

Cardholders are made to be awkward for a detector on purpose. They fly abroad, lend the card to a partner in
another city, go on shopping sprees, tap through turnstiles five times in ten minutes, buy furniture at forty times
their usual amount, and some of them buy game credits at three in the morning.
"""

import math
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

HOUR = 3600.0
DAY = 24 * HOUR


class City(NamedTuple):
    """A place where people live: position in degrees, size in relative numbers of cardholders."""

    name: str
    country: str
    lat: float
    lon: float
    size: float


class Shop(NamedTuple):
    """A merchant. One without a city sells online, from its country."""

    name: str
    category: str
    country: str
    city: City | None


class Purchase(NamedTuple):
    """One card payment; `at` in seconds since the epoch. `scenario` is None for an honest one."""

    at: float
    card: str
    amount: float
    shop: Shop
    entry: str
    lat: float | None
    lon: float | None
    device: str = ""
    scenario: str | None = None


CITIES = (
    City("London", "GB", 51.51, -0.13, 9), City("Manchester", "GB", 53.48, -2.24, 4),
    City("Leeds", "GB", 53.80, -1.55, 2), City("Bristol", "GB", 51.45, -2.59, 2),
    City("Edinburgh", "GB", 55.95, -3.19, 2), City("Paris", "FR", 48.86, 2.35, 7),
    City("Lyon", "FR", 45.76, 4.84, 3), City("Lille", "FR", 50.63, 3.07, 2),
    City("Berlin", "DE", 52.52, 13.41, 5), City("Hamburg", "DE", 53.55, 9.99, 3),
    City("Munich", "DE", 48.14, 11.58, 3), City("Cologne", "DE", 50.94, 6.96, 2),
    City("Madrid", "ES", 40.42, -3.70, 5), City("Barcelona", "ES", 41.39, 2.17, 3),
    City("Rome", "IT", 41.90, 12.50, 4), City("Milan", "IT", 45.46, 9.19, 3),
    City("Amsterdam", "NL", 52.37, 4.90, 3), City("Brussels", "BE", 50.85, 4.35, 2),
    City("Vienna", "AT", 48.21, 16.37, 2), City("Zurich", "CH", 47.38, 8.54, 1),
    City("Warsaw", "PL", 52.23, 21.01, 3), City("Lisbon", "PT", 38.72, -9.14, 2),
    City("Athens", "GR", 37.98, 23.73, 1), City("Istanbul", "TR", 41.01, 28.98, 0.4),
    City("New York", "US", 40.71, -74.01, 0.8), City("Miami", "US", 25.76, -80.19, 0.3),
    City("Los Angeles", "US", 34.05, -118.24, 0.5), City("Toronto", "CA", 43.65, -79.38, 0.3),
    City("Dubai", "AE", 25.20, 55.27, 0.3), City("Bangkok", "TH", 13.76, 100.50, 0.2),
    City("Singapore", "SG", 1.35, 103.82, 0.2), City("Tokyo", "JP", 35.68, 139.69, 0.3),
    City("Sao Paulo", "BR", -23.55, -46.63, 0.2), City("Mexico City", "MX", 19.43, -99.13, 0.2),
    City("Lagos", "NG", 6.52, 3.38, 0.1), City("Johannesburg", "ZA", -26.20, 28.05, 0.2),
)  # fmt: skip


class Habit(NamedTuple):
    """How a category is bought: relative frequency, usual amount, its spread (of the logarithm), usual hours."""

    category: str
    weight: float
    usual: float
    spread: float
    opens: float
    closes: float
    online: float


HABITS = (
    Habit("groceries", 26, 32, 0.60, 8, 21, 0.06),
    Habit("cafe", 16, 5.5, 0.40, 7, 17, 0.0),
    Habit("restaurant", 11, 27, 0.55, 12, 23, 0.08),
    Habit("fuel", 6, 48, 0.35, 6, 22, 0.0),
    Habit("transit", 8, 3.0, 0.35, 6, 23, 0.10),
    Habit("clothing", 5, 52, 0.65, 10, 20, 0.40),
    Habit("pharmacy", 4, 15, 0.60, 8, 20, 0.08),
    Habit("household", 4, 35, 0.65, 9, 20, 0.35),
    Habit("electronics", 2.2, 80, 0.75, 9, 22, 0.60),
    Habit("entertainment", 4, 21, 0.60, 13, 24, 0.45),
    Habit("subscription", 4, 11, 0.35, 0, 24, 1.0),
    Habit("marketplace", 7, 27, 0.70, 7, 25, 1.0),
    Habit("digital_goods", 2.2, 13, 0.80, 10, 26, 1.0),
    Habit("gift_cards", 0.9, 40, 0.60, 9, 24, 0.70),
    Habit("travel", 1.0, 120, 0.65, 8, 24, 0.90),
    Habit("charity", 0.8, 15, 0.80, 8, 23, 0.80),
    Habit("crypto", 0.35, 80, 0.70, 8, 27, 1.0),
    Habit("jewellery", 0.35, 110, 0.65, 10, 19, 0.35),
)
_BY_NAME = {habit.category: habit for habit in HABITS}


def distance_km(a: City, b: City) -> float:
    """Great-circle distance in kilometres."""
    la, lb = math.radians(a.lat), math.radians(b.lat)
    h = math.sin((lb - la) / 2) ** 2
    h += math.cos(la) * math.cos(lb) * math.sin(math.radians(b.lon - a.lon) / 2) ** 2
    return 2 * 6371 * math.asin(math.sqrt(h))


def poisson(rng: Random, mean: float) -> int:
    """A Poisson count (Knuth's product of uniforms: the means here are small)."""
    limit, product, n = math.exp(-mean), rng.random(), 0
    while product > limit:
        product *= rng.random()
        n += 1
    return n


class Market:
    """All shops of one simulated world."""

    def __init__(self, rng: Random) -> None:
        self.local: dict[tuple[str, str], list[Shop]] = {}
        self.online: dict[str, list[Shop]] = {}
        sellers = [city.country for city in CITIES[:23]]
        for habit in HABITS:
            if habit.online < 1:
                for city in CITIES:
                    count = 3 + int(rng.expovariate(0.25))
                    self.local[city.name, habit.category] = [
                        Shop(f"{habit.category} {city.name} {n}", habit.category, city.country, city)
                        for n in range(count)
                    ]
            if habit.online > 0:
                self.online[habit.category] = [
                    Shop(f"{habit.category} online {n}", habit.category, rng.choice(sellers), None)
                    for n in range(6 + int(rng.expovariate(0.12)))
                ]

    def pick(self, rng: Random, category: str, city: City, *, online: bool) -> Shop:
        """Some shop of the category, popular ones more often."""
        shops = self.online[category] if online else self.local[city.name, category]
        return shops[int(len(shops) * rng.random() ** 2)]


class Trip(NamedTuple):
    """Away from home: `leave` and `back` are times of departure, seconds; each way takes `flight` seconds."""

    leave: float
    back: float
    flight: float
    city: City


class Cardholder:
    """One person with one card: where they live, what they buy and when."""

    def __init__(self, rng: Random, card: str, market: Market) -> None:
        self.card = card
        self.home = rng.choices(CITIES, [city.size for city in CITIES])[0]
        self.rate = 0.6 + rng.gammavariate(2.0, 0.55)
        self.means = rng.lognormvariate(0.0, 0.35)
        self.zone = self.home.lon / 15 * HOUR
        self.late_riser = rng.random() < 0.12
        self.gamer = rng.random() < 0.06
        self.swipes = 0.15 if rng.random() < 0.12 else 0.012
        self.partner = rng.choice(CITIES[:23]) if rng.random() < 0.025 else None
        self.trip: Trip | None = None
        self.devices = [f"d-{rng.getrandbits(40):010x}" for _ in range(rng.choice((1, 1, 1, 2, 2)))]
        weights = [habit.weight * rng.lognormvariate(0.0, 0.6) for habit in HABITS]
        if self.gamer:
            weights[[habit.category for habit in HABITS].index("digital_goods")] *= 9
        self._cumulated = [sum(weights[: n + 1]) for n in range(len(weights))]
        self._market = market
        self._usual: dict[tuple[str, bool], list[Shop]] = {}

    def usual_amount(self) -> float:
        """What this person pays on an ordinary day, roughly."""
        return 24.0 * self.means

    def day(self, rng: Random, start: float) -> Iterator[Purchase]:
        """The purchases of the local day that begins at `start`, in no particular order."""
        start -= self.zone
        self._plan_trip(rng, start)
        for _ in range(poisson(rng, self.rate)):
            yield from self._purchase(rng, start)
        odd = rng.random()
        if odd < 0.008:
            yield from self._spree(rng, start)
        elif odd < 0.013:
            yield from self._splurge(rng, start)
        elif odd < 0.025:
            yield from self._taps(rng, start)
        if self.gamer and rng.random() < 0.10:
            yield from self._game_night(rng, start)

    def _plan_trip(self, rng: Random, start: float) -> None:
        if self.trip is not None and start > self.trip.back + self.trip.flight:
            self.trip = None
        if self.trip is None and rng.random() < 0.011:
            far = rng.random() < 0.35
            city = rng.choice(CITIES if far else CITIES[:23])
            if city is not self.home:
                leave = start + (6 + 12 * rng.random()) * HOUR
                flight = distance_km(self.home, city) / 780 * HOUR + 2.5 * HOUR
                self.trip = Trip(leave, leave + rng.uniform(1.2, 9) * DAY, flight, city)

    def _place(self, at: float) -> City | None:
        """Where the person is, None while travelling."""
        trip = self.trip
        if trip is None or at < trip.leave or at > trip.back + trip.flight:
            return self.home
        return trip.city if trip.leave + trip.flight < at < trip.back else None

    def _purchase(self, rng: Random, start: float) -> Iterator[Purchase]:
        habit = rng.choices(HABITS, cum_weights=self._cumulated)[0]
        hour = habit.opens + (habit.closes - habit.opens) * rng.betavariate(1.8, 1.6)
        if self.late_riser:
            hour += 3.5
        at = start + hour * HOUR
        place = self._place(at)
        online = rng.random() < habit.online
        if place is None and not online:
            return
        if self.partner is not None and not online and rng.random() < 0.12:
            place = self.partner
        yield self._buy(rng, at, habit, place or self.home, online=online)

    def _buy(self, rng: Random, at: float, habit: Habit, place: City, *, online: bool, times: float = 1.0) -> Purchase:
        shop = self._shop(rng, habit.category, place, online=online)
        amount = max(0.5, habit.usual * self.means * times * rng.lognormvariate(0.0, habit.spread))
        if online:
            return Purchase(at, self.card, round(amount, 2), shop, "online", None, None, self._device(rng))
        draw = rng.random()
        entry = "swipe" if draw < self.swipes else "contactless" if amount < 50 and draw < 0.75 else "chip"
        lat, lon = place.lat + rng.gauss(0.0, 0.05), place.lon + rng.gauss(0.0, 0.05)
        return Purchase(at, self.card, round(amount, 2), shop, entry, round(lat, 3), round(lon, 3))

    def _device(self, rng: Random) -> str:
        """What the shop tells of the browser or the telephone: mostly an old friend, rarely a new one, or nothing."""
        draw = rng.random()
        if draw < 0.08:
            return ""
        if draw > 0.08 + 0.004:
            return self.devices[int(len(self.devices) * rng.random() ** 2)]
        device = f"d-{rng.getrandbits(40):010x}"
        if rng.random() < 0.8:
            self.devices[-1] = device
        return device

    def _shop(self, rng: Random, category: str, place: City, *, online: bool) -> Shop:
        if place is not self.home and not online:
            return self._market.pick(rng, category, place, online=False)
        usual = self._usual.setdefault((category, online), [])
        if usual and rng.random() < 0.85:
            return usual[int(len(usual) * rng.random() ** 1.5)]
        shop = self._market.pick(rng, category, place, online=online)
        if shop not in usual and len(usual) < 4:
            usual.append(shop)
        return shop

    def _spree(self, rng: Random, start: float) -> Iterator[Purchase]:
        """An afternoon in the shops: four to nine payments within an hour and a half."""
        at = start + rng.uniform(11, 18) * HOUR
        place = self._place(at)
        for _ in range(rng.randint(4, 9) if place else 0):
            habit = _BY_NAME[rng.choice(("clothing", "household", "cafe", "pharmacy", "electronics", "groceries"))]
            yield self._buy(rng, at, habit, place or self.home, online=False, times=1.3)
            at += rng.expovariate(1 / (9 * 60))

    def _splurge(self, rng: Random, start: float) -> Iterator[Purchase]:
        """A sofa, a laptop, a holiday: many times the usual amount."""
        at = start + rng.uniform(10, 22) * HOUR
        habit = _BY_NAME[rng.choice(("household", "electronics", "travel", "travel", "jewellery", "clothing"))]
        online = rng.random() < habit.online
        place = self._place(at)
        if place or online:
            yield self._buy(rng, at, habit, place or self.home, online=online, times=rng.uniform(2, 6))

    def _taps(self, rng: Random, start: float) -> Iterator[Purchase]:
        """A day on trams, or a row of vending machines: small contactless payments in quick succession."""
        at = start + rng.uniform(7, 20) * HOUR
        place = self._place(at)
        for _ in range(rng.randint(3, 7) if place else 0):
            yield self._buy(rng, at, _BY_NAME["transit"], place or self.home, online=False)
            at += rng.expovariate(1 / 240)

    def _game_night(self, rng: Random, start: float) -> Iterator[Purchase]:
        """Two to seven small purchases in a game, late."""
        at = start + rng.uniform(20, 27) * HOUR
        for _ in range(rng.randint(2, 7)):
            yield self._buy(rng, at, _BY_NAME["digital_goods"], self.home, online=True, times=0.6)
            at += rng.expovariate(1 / 300)
