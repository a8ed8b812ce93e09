"""Of a matrix of cases a few are tried at each change, and the others with the integration tests."""

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import pytest


def matrix(*axes: Iterable[Any], quick: Callable[..., bool]) -> list[Any]:
    """Each combination, for `parametrize`: the `quick` ones at each change, the others with the integration tests."""
    cases = list(product(*axes))
    chosen = [quick(*case) for case in cases]
    assert any(chosen), "no case is quick"
    return [
        pytest.param(*case, marks=() if now else pytest.mark.integration)
        for case, now in zip(cases, chosen, strict=True)
    ]
