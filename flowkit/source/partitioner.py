"""Which partition a key belongs to: Kafka's murmur2, so that a topic moved to Kafka keeps its keys where they are.

Ported from `org.apache.kafka.common.utils.Utils.murmur2`; the tests hold the vectors of Kafka's own `UtilsTest`.
"""

from functools import lru_cache
from struct import unpack_from

SEED = 0x9747B28C
MIX = 0x5BD1E995
WORD = 0xFFFFFFFF


@lru_cache(maxsize=1 << 16)  # hashing takes some µs in Python, and keys come again
def partition_of(key: bytes, partitions: int) -> int:
    """The partition of `key` in a topic of `partitions`, as Kafka's default partitioner has it.

    >>> partition_of(b"foobar", 10)
    6
    """
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def murmur2(data: bytes) -> int:
    """Kafka's 32-bit hash of `data`, unsigned (Java shows the same bits as a signed int)."""
    words, rest = divmod(len(data), 4)
    h = SEED ^ len(data)
    for k in unpack_from(f"<{words}I", data):
        k = k * MIX & WORD
        k = (k ^ k >> 24) * MIX & WORD
        h = h * MIX & WORD ^ k
    if rest:
        h = (h ^ int.from_bytes(data[-rest:], "little")) * MIX & WORD
    h = (h ^ h >> 13) * MIX & WORD
    return h ^ h >> 15
