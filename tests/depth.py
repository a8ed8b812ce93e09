"""How many examples a property is tried with: few at each change, many in .ci/long (HYPOTHESIS_PROFILE=deep)."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings

F = TypeVar("F", bound=Callable[..., Any])

SCALE = {"": 0.25, "full": 1.0, "deep": 20.0}[os.environ.get("HYPOTHESIS_PROFILE", "")]


def examples(count: int = 100) -> Callable[[F], F]:
    """Try `count` examples, or a quarter of them, or twenty times as many, as the profile has it."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=max(1, round(count * SCALE)), deadline=None, suppress_health_check=slow)
