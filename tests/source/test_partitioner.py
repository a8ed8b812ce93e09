"""Keys lie where Kafka's own producer would put them."""

import pytest
from aiokafka.partitioner import murmur2 as murmur2_of_aiokafka
from hypothesis import given
from hypothesis import strategies as st

from flowkit.source.partitioner import murmur2, partition_of

# From org.apache.kafka.common.utils.UtilsTest; the empty key as kafka-python took it from the Java client.
JAVA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
    b"": 275646681,
}


@pytest.mark.parametrize(("key", "signed"), JAVA.items())
def test_the_hash_is_that_of_java(key: bytes, signed: int) -> None:
    assert murmur2(key) == signed & 0xFFFFFFFF


@pytest.mark.parametrize(("key", "signed"), JAVA.items())
def test_the_partition_is_taken_of_the_hash_without_its_sign(key: bytes, signed: int) -> None:
    assert [partition_of(key, n) for n in (1, 2, 3, 12, 97)] == [(signed & 0x7FFFFFFF) % n for n in (1, 2, 3, 12, 97)]


@given(st.binary(max_size=70))
def test_every_key_hashes_as_in_another_port(key: bytes) -> None:
    assert murmur2(key) == murmur2_of_aiokafka(key)


def test_one_key_has_a_partition_in_each_number_of_partitions() -> None:
    assert {n: partition_of(b"card-7", n) for n in (1, 4)} == {1: 0, 4: partition_of(b"card-7", 4)}
    assert {partition_of(b"card-%d" % n, 4) for n in range(100)} == {0, 1, 2, 3}
