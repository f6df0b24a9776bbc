from __future__ import annotations

import pytest

from ingest.log.partitioner import murmur2, partition


@pytest.mark.parametrize(
    ("key", "signed"),
    [  # org.apache.kafka.common.utils.UtilsTest, testMurmur2
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_the_hash_is_the_one_that_kafka_tests_itself_with(key: bytes, signed: int) -> None:
    assert murmur2(key) == signed & 0xFFFFFFFF


def test_a_negative_hash_loses_its_sign_bit_before_the_remainder() -> None:
    assert partition(b"21", 10) == (-973932308 & 0x7FFFFFFF) % 10


def test_keys_spread_over_all_partitions() -> None:
    assert {partition(b"agent-%d" % n, 8) for n in range(200)} == set(range(8))
