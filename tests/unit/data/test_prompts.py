"""Prompts: chosen reproducibly, evenly, and known to leak or not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsm_adapter.data.prompts import choose_prompt, common_levels, leaks, levels, reveals_emptiness
from vlsm_adapter.errors import DataError
from vlsm_adapter.types import Record

PUBLISHED = {
    "p0": ("",),
    "p1": ("polyp",),
    "p2": ("round polyp",),
    "p7": ("polyp which is a growth", "polyp which is a lump"),
    "p9": ("small round polyp which is a growth in the left",),
}


def case(case_id: str = "a", prompts: dict[str, tuple[str, ...]] | None = None) -> Record:
    return Record(case_id, Path("/x.png"), prompts=PUBLISHED if prompts is None else prompts)


texts = st.lists(st.text(min_size=1), min_size=1, max_size=5).map(tuple)
prompt_sets = st.dictionaries(st.sampled_from([f"p{i}" for i in range(1, 10)]), texts, min_size=1)


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1), prompt_sets, st.integers(), st.none() | st.integers(0, 10**6))
def test_a_choice_is_one_of_the_texts_and_always_the_same(
    case_id: str, prompts: dict[str, tuple[str, ...]], seed: int, epoch: int | None
) -> None:
    record = case(case_id, prompts)
    for level in [*prompts, "random"]:
        chosen = choose_prompt(record, level, seed=seed, epoch=epoch)
        assert chosen == choose_prompt(record, level, seed=seed, epoch=epoch)
        allowed = prompts[level] if level in prompts else [text for found in prompts.values() for text in found]
        assert chosen in allowed
    reordered = case(case_id, dict(reversed(prompts.items())))
    assert choose_prompt(reordered, "random", seed=seed, epoch=epoch) == choose_prompt(
        record, "random", seed=seed, epoch=epoch
    )


def test_random_draws_levels_evenly_and_anew_each_epoch() -> None:
    drawn = Counter(choose_prompt(case(), "random", seed=1, epoch=epoch) for epoch in range(4000))
    assert "" not in drawn
    by_level = [drawn["polyp"], drawn["round polyp"], sum(drawn[t] for t in PUBLISHED["p7"]), drawn[PUBLISHED["p9"][0]]]
    assert all(900 <= count <= 1100 for count in by_level)
    assert min(drawn[text] for text in PUBLISHED["p7"]) > 400
    per_case = {choose_prompt(case(f"c{i}"), "random", seed=1) for i in range(50)}
    assert len(per_case) == 5
    per_seed = {choose_prompt(case(), "random", seed=seed) for seed in range(50)}
    assert len(per_seed) == 5


def test_fixed_values() -> None:
    # Results name level and seed: the same words must come out in every later version.
    assert [choose_prompt(case(f"c{i}"), "p7", seed=42) for i in range(6)] == [
        PUBLISHED["p7"][i] for i in [1, 0, 0, 1, 1, 1]
    ]


def test_without_epoch_the_choice_is_fixed_and_with_it_drawn_anew() -> None:
    fixed = choose_prompt(case(), "p7", seed=0)
    assert fixed == choose_prompt(case(), "p7", seed=0, epoch=None)
    assert {choose_prompt(case(), "p7", seed=0, epoch=epoch) for epoch in range(30)} == set(PUBLISHED["p7"])


def test_missing_level_lists_those_there_are() -> None:
    with pytest.raises(DataError) as error:
        choose_prompt(case("case7"), "p5")
    assert str(error.value) == "case case7: has no prompt level 'p5'; it has: p0, p1, p2, p7, p9 (or 'random')"
    with pytest.raises(DataError, match="to draw from"):
        choose_prompt(case(prompts={"p0": ("",), "mine": ("x",)}), "random")
    assert choose_prompt(case(prompts={"mine": ("x",)}), "mine") == "x"
    assert choose_prompt(case(prompts={}), "p0") == ""


def test_levels_in_order() -> None:
    assert levels(case(prompts={"p10": ("a",), "b": ("b",), "p2": ("c",), "p3": ()})) == ["p0", "p2", "p10", "b"]
    assert common_levels([case(), case(prompts={"p1": ("x",), "p9": ("y",)})]) == ["p0", "p1", "p9"]
    assert common_levels([]) == []


def test_leaks() -> None:
    assert [level for level in [f"p{i}" for i in range(10)] if not leaks(level)] == ["p0", "p1", "p7"]
    assert leaks("random")
    assert leaks("mine")
    assert leaks("p7", ["p0", "p1", "p7"])  # CAMUS: p7 adds the shape
    assert not leaks("p7", PUBLISHED)


def test_reveals_emptiness() -> None:
    records = [
        case("empty", {"p1": ("No tumor in the breast ultrasound image.",), "p7": ("x",)}),
        case("full", {"p1": ("Tumor in the breast ultrasound image.",), "p7": ("an abnormal growth, notable",)}),
    ]
    assert reveals_emptiness(records, "p1") == ["empty"]
    assert reveals_emptiness(records, "p7") == []
    assert reveals_emptiness(records, "random") == ["empty"]
    assert reveals_emptiness(records, "p0") == []
