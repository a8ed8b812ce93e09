"""What is kept in memory of what was read."""

from flowkit.store.cache import BLOCK_OVERHEAD, LIKELY_BLOCK, BlockCache


def test_a_block_is_kept_from_its_second_miss_on() -> None:
    cache = BlockCache(100 * LIKELY_BLOCK)
    assert cache.get(7) is None
    cache.offer(7, b"block")
    assert cache.get(7) is None
    cache.offer(7, b"block")
    assert cache.get(7) == b"block"
    assert (cache.hits, cache.misses) == (1, 2)


def test_blocks_that_are_read_once_drive_nothing_out_and_are_forgotten_after_a_while() -> None:
    cache = BlockCache(100 * LIKELY_BLOCK)
    cache.put(7, b"block")
    cache.offer(8, b"other")
    for place in range(1000, 1101):  # more than what is remembered of
        cache.offer(place, bytes(LIKELY_BLOCK))
    assert cache.get(7) == b"block"
    assert len(cache) == 1
    cache.offer(8, b"other")
    assert cache.get(8) is None


def test_the_cache_keeps_to_its_size() -> None:
    size = 100 * LIKELY_BLOCK
    cache = BlockCache(size)
    for place in range(1000):
        for _ in range(2):
            cache.offer(place, bytes(LIKELY_BLOCK))
    assert 0 < len(cache) * (LIKELY_BLOCK + BLOCK_OVERHEAD) <= size + LIKELY_BLOCK + BLOCK_OVERHEAD
    assert cache.get(999) is not None
    assert cache.get(0) is None
