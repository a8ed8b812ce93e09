"""How much is tried at each change, how much in the integration tests, and how many examples in .ci/long.

A property is tried with a quarter of its examples at each change, with all of them under HYPOTHESIS_PROFILE=full, and
with twenty times as many under HYPOTHESIS_PROFILE=deep. Of a matrix a few cases are tried at each change, and the
others are integration tests.
"""

import os
from collections.abc import Callable, Iterable
from itertools import product
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings

F = TypeVar("F", bound=Callable[..., Any])

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "")
SCALE = {"": 0.25, "full": 1.0, "deep": 20.0}[PROFILE]


def examples(count: int = 100, *, quick: int | None = None) -> Callable[[F], F]:
    """Try `count` examples, or a quarter of them (or `quick`), or twenty times as many, as the profile has it."""
    tried = quick if quick is not None and not PROFILE else max(1, round(count * SCALE))
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=tried, deadline=None, suppress_health_check=slow)


def matrix(*axes: Iterable[Any], quick: Callable[..., bool]) -> list[Any]:
    """Each combination, for `parametrize`: the `quick` ones at each change, the others with the integration tests."""
    cases = list(product(*axes))
    chosen = [quick(*case) for case in cases]
    assert any(chosen), "no case is quick"
    return [
        pytest.param(*case, marks=() if now else pytest.mark.integration)
        for case, now in zip(cases, chosen, strict=True)
    ]
