"""The cache is bounded by bytes and counts what it does."""

import torch

from pipelines.condition_cache import ConditionCache

KIB = 1024


def tensor(kib: int) -> torch.Tensor:
    return torch.zeros(kib * KIB, dtype=torch.uint8)


def test_the_least_recently_used_entry_leaves_first() -> None:
    """An entry asked for again has proved its worth."""
    cache = ConditionCache(4 * KIB, ("a", "b"))
    cache.put("a", 1, tensor(2))
    cache.put("b", 2, tensor(2))
    assert cache.get("a", 1) is not None
    cache.put("b", 3, tensor(2))
    assert cache.get("b", 2) is None
    assert cache.get("a", 1) is not None


def test_bytes_never_exceed_the_bound() -> None:
    """It is device memory that a batch may need."""
    cache = ConditionCache(10 * KIB, ("a",))
    for key in range(100):
        cache.put("a", key, tensor(key % 7))
        assert cache.counts["a"]["bytes"] <= 10 * KIB
    assert cache.counts["a"]["entries"] > 1


def test_an_entry_larger_than_the_cache_empties_nothing() -> None:
    """One huge request must not cost everyone else their entries."""
    cache = ConditionCache(4 * KIB, ("a",))
    cache.put("a", "small", tensor(1))
    cache.put("a", "huge", tensor(5))
    assert cache.get("a", "small") is not None
    assert cache.get("a", "huge") is None


def test_hits_and_misses_are_counted_by_kind() -> None:
    """Operators size the cache by them."""
    cache = ConditionCache(4 * KIB, ("a", "b"))
    cache.get("a", 1)
    cache.put("a", 1, tensor(1))
    cache.get("a", 1)
    cache.get("b", 1)
    assert cache.counts == {
        "a": {"hits": 1, "misses": 1, "entries": 1, "bytes": KIB},
        "b": {"hits": 0, "misses": 1, "entries": 0, "bytes": 0},
    }


def test_a_cache_of_nothing_is_off() -> None:
    """CONDITION_CACHE_MB=0 promises it."""
    cache = ConditionCache(0, ("a",))
    cache.put("a", 1, tensor(1))
    assert cache.get("a", 1) is None
