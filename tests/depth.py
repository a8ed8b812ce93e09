"""How many examples a property is tried with: few at each change, many in .ci/long (HYPOTHESIS_PROFILE=deep)."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings

F = TypeVar("F", bound=Callable[..., Any])

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "")
SCALE = {"": 0.15, "full": 1.0, "deep": 20.0}[PROFILE]


def examples(count: int = 100, *, quick: int | None = None) -> Callable[[F], F]:
    """Try `count` examples, or 15 in a hundred of them (or `quick`), or twenty times as many, as the profile has it."""
    tried = quick if quick is not None and not PROFILE else max(1, round(count * SCALE))
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=tried, deadline=None, suppress_health_check=slow)
