"""The simulated world: the same for a seed, in order, with every kind of fraud, and complaints that come later."""

from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import pytest

from services.fraud_detection.scenarios import SCENARIOS
from services.fraud_detection.simulator import Arrival, simulate, write


@pytest.fixture(scope="module")
def arrivals() -> list[Arrival]:
    return list(simulate(41, 20_000))


def test_a_seed_is_a_world_to_the_byte(tmp_path: Path) -> None:
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        files = write(tmp_path / name, 7, 3000)
        written.append([path.read_bytes() for path in (files.transactions, files.chargebacks, files.labels)])
    assert written[0] == written[1]
    assert all(written[0])


def test_another_seed_is_another_world() -> None:
    a, b = (list(simulate(seed, 200)) for seed in (1, 2))
    assert not {arrival.id for arrival in a} & {arrival.id for arrival in b}
    assert [arrival.at for arrival in a] != [arrival.at for arrival in b]


def test_there_are_exactly_as_many_payments_as_asked_for(arrivals: list[Arrival]) -> None:
    assert sum(arrival.purchase is not None for arrival in arrivals) == 20_000
    assert arrivals[-1].purchase is not None
    assert len(list(simulate(1, 1))) == 1


@pytest.mark.parametrize("count", [0, -5])
def test_a_world_without_payments_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        next(simulate(1, count))


def test_it_streams() -> None:
    assert len(list(islice(simulate(1, 2_000_000), 1))) == 1


def test_what_arrives_is_in_order_of_arrival_and_a_little_out_of_order_in_time(arrivals: list[Arrival]) -> None:
    assert all(a.arrives <= b.arrives for a, b in pairwise(arrivals))
    assert all(arrival.at <= arrival.arrives for arrival in arrivals)
    times = [arrival.at for arrival in arrivals if arrival.purchase]
    behind = [a - b for a, b in pairwise(times) if b < a]
    assert 20 < len(behind) < len(times) / 4
    assert max(behind) < 50


def test_all_scenarios_occur_at_about_one_payment_in_fifty(arrivals: list[Arrival]) -> None:
    kinds = Counter(arrival.scenario for arrival in arrivals if arrival.purchase)
    assert kinds.keys() - {None} == SCENARIOS.keys()
    assert 0.01 < 1 - kinds[None] / 20_000 < 0.03


def test_complaints_come_later_and_about_payments_that_were_made(arrivals: list[Arrival]) -> None:
    paid: dict[str, Arrival] = {}
    delays = []
    about_fraud = Counter[bool]()
    for arrival in arrivals:
        if arrival.purchase:
            paid[arrival.id] = arrival
            continue
        payment = paid[arrival.id]
        assert payment.card == arrival.card
        delays.append((arrival.at - payment.at) / 3600)
        about_fraud[arrival.scenario is not None] += 1
    assert min(delays) > 0.1
    assert sum(delays) / len(delays) > 12
    assert about_fraud[True] > 20 * about_fraud[False] > 0  # a few honest payments are disputed


def test_a_fraud_ends_when_it_is_noticed(arrivals: list[Arrival]) -> None:
    noticed = {arrival.id: arrival.at for arrival in arrivals if not arrival.purchase and arrival.scenario}
    late = [a for a in arrivals if a.purchase and a.scenario and a.at > noticed.get(a.id, float("inf"))]
    assert not late


def test_nobody_honest_is_in_two_cities_at_once_but_for_cards_that_are_shared(arrivals: list[Arrival]) -> None:
    last: dict[str, Arrival] = {}
    jumps: Counter[str] = Counter()
    for arrival in sorted((a for a in arrivals if a.purchase and not a.scenario), key=lambda a: a.at):
        assert arrival.purchase is not None
        if arrival.purchase.lat is None or arrival.purchase.lon is None:
            continue
        before = last.get(arrival.card)
        last[arrival.card] = arrival
        if before is None or before.purchase is None or before.purchase.lat is None or before.purchase.lon is None:
            continue
        degrees = max(
            abs(arrival.purchase.lat - before.purchase.lat), abs(arrival.purchase.lon - before.purchase.lon) / 2
        )
        if degrees * 111 > 950 * max((arrival.at - before.at) / 3600, 0.1) + 60:
            jumps[arrival.card] += 1
    assert len(jumps) <= 0.08 * len(last)
