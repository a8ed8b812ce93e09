"""Rarity by counting: a surprise is minus the decimal logarithm of the share of what came before."""

import doctest
import math
import random
from types import ModuleType

import pytest

from services.anomaly_detection import mapping, rarity
from services.anomaly_detection.rarity import FARTHEST, MOST_STEPS, PLACES, Density, Rarity, Tail


@pytest.mark.parametrize("module", [mapping, rarity])
def test_the_examples_in_docstrings_hold(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


def test_a_surprise_is_the_share_of_sizes_that_reached_as_far() -> None:
    rng = random.Random(1)
    tail = Tail()
    sizes = [rng.expovariate(1) for _ in range(5000)]
    for seen, size in enumerate(sizes):
        tail.surprise(size, seen)
    for size in (0.5, 2.0, 5.0):
        share = sum(other >= size for other in sizes) / len(sizes)
        assert tail.surprise(size, 5000) == pytest.approx(-math.log10(share), abs=0.15)


def test_only_a_clear_record_is_a_record() -> None:
    tail = Tail()
    for seen in range(1000):
        tail.surprise(1.0, seen)
    nearly, clear, far = (Tail(list(tail.counts), tail.top, tail.peak).surprise(size, 1000) for size in (1.1, 1.3, 1e6))
    assert nearly < 0.4
    assert clear > 3.2
    assert far == pytest.approx(clear + 0.15 * math.log2(1e6 / 1.3))


def test_the_unit_makes_no_difference() -> None:
    sizes = [random.Random(2).lognormvariate(0, 1) for _ in range(300)]
    small, large = Tail(), Tail()
    for seen, size in enumerate(sizes):
        assert small.surprise(size, seen) == large.surprise(size * 1024.0, seen)


@pytest.mark.parametrize("sizes", [[1e-90, 1e90, 1e-90, 1.0], [1e90, 1e-90, 1.0], [5e-324, 1e100]])
def test_sizes_of_all_orders_keep_the_counts_bounded(sizes: list[float]) -> None:
    tail = Tail()
    for seen, size in enumerate(sizes * 5):
        assert math.isfinite(tail.surprise(size, seen))
        assert len(tail.counts) <= MOST_STEPS


def test_the_sides_are_apart_and_zero_is_never_rare() -> None:
    rarity = Rarity()
    for seen in range(1000):
        rarity.surprise(5.0, seen)
    assert rarity.surprise(5.0, 1000) < 0.5
    assert rarity.surprise(-0.1, 1000) > 3
    assert rarity.surprise(0.0, 1000) == 0.0


def test_halving_forgets_what_came_once() -> None:
    tail = Tail()
    for seen in range(1000):
        tail.surprise(1.0, seen)
    tail.surprise(100.0, 1000)
    assert tail.surprise(99.0, 1000) < 3.2
    tail.forget()
    tail.forget()
    assert tail.counts == [250]
    assert tail.surprise(100.0, 500) > 3
    empty = Tail()
    empty.forget()
    assert empty.surprise(1.0, 0) > 0


def test_a_place_between_two_crowds_is_rare() -> None:
    rng = random.Random(3)
    density = Density()
    for seen in range(2000):
        density.scarcity(rng.gauss(rng.choice([0, 100]), 3), seen)
    assert density.scarcity(50.0, 2000) > 1000
    assert density.scarcity(1.0, 2001) < 20


def test_places_wait_for_a_range_and_are_bounded_outside_of_it() -> None:
    density = Density()
    for seen in range(500):
        assert density.scarcity(7.0, seen) == 1.0
    assert len(density.first) < 60
    for seen in range(500, 600):
        density.scarcity(seen % 5, seen)
    assert density.width > 0
    assert density.first == []
    for power in range(-100, 101):
        density.scarcity(math.copysign(10.0 ** abs(power), power), 600)
    assert max(density.counts) <= PLACES * (2 + FARTHEST)
    assert min(density.counts) >= -PLACES * (1 + FARTHEST)
    density.forget()
    assert all(density.counts.values())
