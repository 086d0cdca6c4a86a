"""Bounded memory: never above the bound, the longest unused goes first, whoever is dropped is told."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from vlsm_adapter.serve.caches import ByteCache


def test_the_longest_unused_goes_first() -> None:
    gone: list[str] = []
    cache: ByteCache[str, int] = ByteCache(30, on_drop=lambda key, _: gone.append(key))
    for key in "abc":
        assert cache.put(key, 1, 10)
    assert cache.get("a") == 1
    cache.put("d", 1, 10)
    assert gone == ["b"]
    assert cache.get("b") is None
    assert (cache.hits, cache.misses, cache.bytes, len(cache)) == (1, 1, 30, 3)


def test_what_is_too_large_is_not_kept_and_drops_nothing_else() -> None:
    cache: ByteCache[str, int] = ByteCache(30)
    cache.put("a", 1, 10)
    assert not cache.put("b", 1, 31)
    assert cache.holds("a")
    assert not cache.holds("b")


def test_replacing_tells_of_the_old_value() -> None:
    gone: list[int] = []
    cache: ByteCache[str, int] = ByteCache(30, on_drop=lambda _, value: gone.append(value))
    cache.put("a", 1, 10)
    cache.put("a", 2, 20)
    assert gone == [1]
    assert cache.bytes == 20


def test_what_nobody_asks_for_is_dropped_after_a_time() -> None:
    now = [0.0]
    cache: ByteCache[str, int] = ByteCache(30, clock=lambda: now[0])
    cache.put("a", 1, 10)
    cache.put("b", 1, 10)
    now[0] = 50
    cache.get("a")
    now[0] = 70
    assert cache.drop_unused(60) == 1
    assert cache.holds("a")


def test_drop_by_key() -> None:
    cache: ByteCache[tuple[str, int], int] = ByteCache(30)
    for key in (("a", 0), ("a", 1), ("b", 0)):
        cache.put(key, 0, 1)
    assert cache.drop(lambda key: key[0] == "a") == 2
    assert len(cache) == 1


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40), st.booleans()), max_size=60))
def test_the_bound_holds_whatever_happens(steps: list[tuple[int, int, bool]]) -> None:
    held: dict[int, int] = {}
    cache: ByteCache[int, int] = ByteCache(50, on_drop=lambda key, _: held.pop(key))
    for key, size, put in steps:
        if put:
            if cache.put(key, size, size):
                held[key] = size
        else:
            assert cache.get(key) == held.get(key)
        assert cache.bytes == sum(held.values()) <= 50
        assert len(cache) == len(held)


def test_many_threads() -> None:
    cache: ByteCache[int, int] = ByteCache(100)

    def use(seed: int) -> None:
        for step in range(500):
            key = (seed * 7 + step) % 20
            cache.put(key, key, key)
            assert cache.get(key) in (key, None)
            cache.drop(lambda other, key=key: other == key)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache.drop(lambda _: True)
    assert cache.bytes == 0
