"""A key's place among the partitions of its topic: the same as with Kafka's default partitioner."""

from __future__ import annotations

from typing import Final

_MULTIPLIER: Final = 0x5BD1E995
_SEED: Final = 0x9747B28C  # org.apache.kafka.common.utils.Utils.murmur2
_WORD: Final = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """The 32-bit hash, unsigned."""
    h = (_SEED ^ len(data)) & _WORD
    whole = len(data) & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * _MULTIPLIER & _WORD
        k = (k ^ (k >> 24)) * _MULTIPLIER & _WORD
        h = (h * _MULTIPLIER & _WORD) ^ k
    if whole < len(data):
        h = (h ^ int.from_bytes(data[whole:], "little")) * _MULTIPLIER & _WORD
    h = (h ^ (h >> 13)) * _MULTIPLIER & _WORD
    return h ^ (h >> 15)


def partition(key: bytes, partitions: int) -> int:
    if partitions == 1:
        return 0
    return (murmur2(key) & 0x7FFFFFFF) % partitions  # Utils.toPositive, then the remainder
