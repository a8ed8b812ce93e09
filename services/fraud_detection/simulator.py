"""A simulated world of card payments with known fraud, as a stream in the order of arrival.

The same seed gives the same world, to the byte. It imports nothing of the detector and the detector imports nothing
of it: what the detector knows, it has learned from the payments and from what banks report afterwards.
"""

import heapq
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import NamedTuple

from services.fraud_detection.population import DAY, Cardholder, Market, Purchase
from services.fraud_detection.scenarios import SCENARIOS, Underworld

EPOCH = datetime(2025, 3, 3, tzinfo=UTC).timestamp()
DAYS = 120
"""A run of any size simulates about this many days: more payments mean more cards."""

PER_CARD_A_DAY = 1.8
FRAUD_SHARE = 0.0215


class Arrival(NamedTuple):
    """What reaches the bank: a payment, or (with `purchase` None) the owner's complaint about one.

    `at` (seconds since the epoch) is the time that the record carries; `scenario` the truth, which no one is told.
    """

    arrives: float
    number: int
    at: float
    id: str
    card: str
    purchase: Purchase | None
    scenario: str | None


class Files(NamedTuple):
    """Where a run was written, and how many lines each file has. `labels` lists the fraudulent payments alone."""

    transactions: Path
    chargebacks: Path
    labels: Path
    payments: int
    frauds: int
    complaints: int
    first: datetime
    last: datetime


def simulate(seed: int, transactions: int) -> Iterator[Arrival]:
    """Payments and complaints in the order of arrival, ending with payment number `transactions`.

    Payments arrive up to some seconds late, so their times are slightly out of order. About one in fifty is
    fraudulent; each complaint comes hours or days after the payment that it is about. Raises ValueError.
    """
    if transactions < 1:
        raise ValueError(f"{transactions} transactions: at least 1 is needed")
    rng = Random(f"cards {seed}")
    cards = max(40, round(transactions / (DAYS * PER_CARD_A_DAY)))
    market = Market(rng)
    holders = [Cardholder(rng, f"c{seed % 1000:03}{n:06}", market) for n in range(cards)]
    underworld = Underworld(rng, market)
    waiting: list[Arrival] = []
    due = {scenario: rng.random() for scenario in SCENARIOS}
    sent = 0
    number = 0
    day = EPOCH
    while sent < transactions:
        for purchase, reported in _one_day(rng, holders, underworld, due, day):
            number += 1
            id_ = f"t{rng.getrandbits(48):012x}"
            arrives = purchase.at + rng.expovariate(0.5) + (rng.uniform(0, 25) if rng.random() < 0.01 else 0.0)
            waiting.append(Arrival(arrives, number, purchase.at, id_, purchase.card, purchase, purchase.scenario))
            if reported is not None:
                waiting.append(Arrival(reported, number, reported, id_, purchase.card, None, purchase.scenario))
        day += DAY
        # What a later day can still precede has to wait: local days begin up to half a day before the UTC one.
        heapq.heapify(waiting)
        while waiting and waiting[0].arrives < day - 16 * 3600 and sent < transactions:
            arrival = heapq.heappop(waiting)
            sent += arrival.purchase is not None
            yield arrival


def _one_day(
    rng: Random, holders: list[Cardholder], underworld: Underworld, due: dict[str, float], day: float
) -> Iterator[tuple[Purchase, float | None]]:
    for holder in holders:
        for purchase in holder.day(rng, day):
            # A few honest payments are disputed too: a forgotten subscription, a child with a telephone.
            disputed = rng.random() < 0.0003
            yield purchase, purchase.at + rng.uniform(1, 12) * DAY if disputed else None
    underworld.new_day(rng)
    per_day = len(holders) * PER_CARD_A_DAY * FRAUD_SHARE
    for scenario, (share, size) in SCENARIOS.items():
        due[scenario] += per_day * share / size * rng.uniform(0.4, 1.6)
        while due[scenario] >= 1:
            due[scenario] -= 1
            # Data leaks where a card is used, and is used days or weeks later: nobody has it on the first day.
            if day - EPOCH >= rng.lognormvariate(math.log(8 * DAY), 0.6):
                yield from underworld.episode(rng, scenario, rng.choice(holders), day)


def write(directory: Path, seed: int, transactions: int) -> Files:
    """Write `transactions.jsonl`, `chargebacks.jsonl` and `labels.jsonl` into the directory, line by line.

    Raises ValueError for a number of transactions below 1, OSError if the directory cannot be written.
    """
    paths = [directory / f"{name}.jsonl" for name in ("transactions", "chargebacks", "labels")]
    counts = [0, 0, 0]
    times: list[float] = []
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("w", encoding="utf-8")) for path in paths]

        def put(which: int, record: dict[str, object]) -> None:
            counts[which] += 1
            files[which].write(_line_of(record) + "\n")

        for arrival in simulate(seed, transactions):
            at = _iso(arrival.at)
            if arrival.purchase is None:
                put(1, {"id": arrival.id, "card": arrival.card, "at": at})
                continue
            times = [min(arrival.at, *times), max(arrival.at, *times)] if times else [arrival.at, arrival.at]
            put(0, payment(arrival.id, arrival.purchase))
            if arrival.scenario is not None:
                put(2, {"id": arrival.id, "at": at, "scenario": arrival.scenario})
    first, last = (datetime.fromtimestamp(at, UTC) for at in times)
    return Files(paths[0], paths[1], paths[2], counts[0], counts[2], counts[1], first, last)


def payment(id_: str, purchase: Purchase) -> dict[str, object]:
    """The record that the bank sees of a purchase."""
    return {
        "id": id_,
        "card": purchase.card,
        "at": _iso(purchase.at),
        "amount": purchase.amount,
        "merchant": purchase.shop.name,
        "category": purchase.shop.category,
        "country": purchase.shop.country,
        "entry": purchase.entry,
        "lat": purchase.lat,
        "lon": purchase.lon,
        "device": purchase.device,
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(round(seconds, 3), UTC).isoformat(timespec="milliseconds")


_line_of = json.JSONEncoder(separators=(",", ":")).encode
