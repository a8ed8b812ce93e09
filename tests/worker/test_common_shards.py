"""Streams that are read together: which of their shards are the same, and what becomes of those that are not."""

import pytest

from flowkit.errors import ConfigError
from flowkit.source.kinesis_streams import ALL, Shard, id_of
from flowkit.worker.common_shards import common_shards

HALF = ALL // 2


def shard(number: int, first: int, last: int, *parents: int, closed: bool = False) -> Shard:
    return Shard(number, id_of(number), parents, first, last, closed)


LOWER, UPPER = shard(0, 0, HALF), shard(1, HALF + 1, ALL)
QUARTERS = [shard(2, 0, HALF // 2, 0), shard(3, HALF // 2 + 1, HALF, 0)]
SPLIT = [LOWER._replace(closed=True), UPPER, *QUARTERS]


def test_shard_n_of_each() -> None:
    common = common_shards("g", {"a": [LOWER, UPPER], "b": [LOWER, UPPER]})
    assert common.parts == [LOWER, UPPER]
    assert not common.closed | common.waiting.keys()


def test_new_shards_wait_until_the_other_stream_has_them_and_what_is_open_there_is_not_over() -> None:
    common = common_shards("g", {"a": SPLIT, "b": [LOWER, UPPER]})
    assert [part.number for part in common.parts] == [0, 1]
    assert common.closed == frozenset()
    assert common.waiting == {2: ["a"], 3: ["a"]}
    common = common_shards("g", {"a": SPLIT, "b": SPLIT})
    assert [part.number for part in common.parts] == [0, 1, 2, 3]
    assert (common.closed, common.waiting) == (frozenset({0}), {})


def test_a_shard_that_came_of_one_that_waits_waits_too() -> None:
    further = [*SPLIT[:2], QUARTERS[0]._replace(closed=True), QUARTERS[1], shard(4, 0, 5, 2), shard(5, 6, HALF // 2, 2)]
    assert set(common_shards("g", {"a": further, "b": [LOWER, UPPER]}).waiting) == {2, 3, 4, 5}


def test_what_has_expired_in_one_of_them_is_told() -> None:
    common = common_shards("g", {"a": SPLIT, "b": SPLIT[1:]})
    assert [part.number for part in common.parts] == [1, 2, 3]
    assert common.expired == frozenset({0})


@pytest.mark.parametrize(
    "other",
    [
        [shard(0, 0, ALL)],
        [LOWER, shard(1, HALF + 1, ALL - 1), shard(2, ALL, ALL)],
        [LOWER, UPPER._replace(closed=True), shard(2, HALF + 1, ALL - 9, 1), shard(3, ALL - 8, ALL, 1)],
    ],
    ids=["fewer", "more", "split otherwise"],
)
def test_other_shards_are_an_error_that_shows_them(other: list[Shard]) -> None:
    with pytest.raises(ConfigError, match=r"group g: reads the streams a, b together.*reshard them in the same way"):
        common_shards("g", {"a": SPLIT, "b": other})
