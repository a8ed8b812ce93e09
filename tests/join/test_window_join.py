"""Window joins: the product of both sides of a closed window."""

from itertools import product
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.errors import ConfigError
from flowkit.join import How, WindowJoin
from flowkit.record import Closed, Joined
from tests.depth import examples
from tests.join.driver import LEFT, RIGHT, Order, Payment

HOWS: tuple[How, ...] = ("inner", "left", "right", "outer")


@given(st.lists(st.sampled_from((LEFT, RIGHT)), max_size=12), st.sampled_from(HOWS))
@examples(200)
def test_sends_the_product_in_order_of_arrival(sides: list[int], how: How) -> None:
    join = WindowJoin(Order, Payment, how)
    value = join.new()
    for n, side in enumerate(sides):
        join.add(value, side, Order(n) if side == LEFT else Payment(n))
        value = msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=join.value_type)
    left: list[Order | None] = [Order(n) for n, side in enumerate(sides) if side == LEFT]
    right: list[Payment | None] = [Payment(n) for n, side in enumerate(sides) if side == RIGHT]
    if not right and how in ("left", "outer"):
        right = [None]
    if not left and how in ("right", "outer"):
        left = [None]
    expected = [Joined(a, b) for a, b in product(left, right) if a or b]
    assert list(join.product(Closed("a", value, 0, 60_000))) == expected
    assert list(join.rows(value)) == expected
    for joined in expected:
        assert msgspec.convert(msgspec.to_builtins(joined), join.type) == joined


def test_a_product_is_made_row_by_row() -> None:
    join = WindowJoin(Order, Payment)
    value = join.new()
    for n in range(100_000):
        join.add(value, n % 2, Order(n) if n % 2 == LEFT else Payment(n))
    assert next(join.rows(value)) == Joined(Order(0), Payment(1))


def test_an_unknown_how_is_told() -> None:
    how: Any = "cross"
    with pytest.raises(ConfigError, match="w: how='cross' is no kind of join: give 'inner', 'left', 'right' or"):
        WindowJoin(Order, Payment, how, name="w")
