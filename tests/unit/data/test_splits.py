"""Splits: whole groups, stable, near the fractions."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsm_adapter.data.splits import assign_splits, complete_splits, place
from vlsm_adapter.errors import ConfigError, DataError
from vlsm_adapter.types import Record

FRACTIONS = (0.7, 0.1, 0.2)


def cases(count: int, groups: int = 0, split: str | None = None) -> list[Record]:
    return [
        Record(
            f"c{i}", Path(f"/d/{i}.png"), Path(f"/d/{i}m.png"), split=split, group=f"g{i % groups}" if groups else None
        )
        for i in range(count)
    ]


def of(records: list[Record]) -> dict[str, str | None]:
    return {record.case_id: record.split for record in records}


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 300), st.integers(0, 60), st.integers(0, 2**40), st.randoms(use_true_random=False))
def test_groups_stay_together_and_order_does_not_matter(count: int, groups: int, seed: int, rng: random.Random) -> None:
    records = cases(count, groups)
    made = assign_splits(records, FRACTIONS, seed)
    assert [record.case_id for record in made] == [record.case_id for record in records]
    shuffled = records[:]
    rng.shuffle(shuffled)
    assert of(assign_splits(shuffled, FRACTIONS, seed)) == of(made)
    by_group = defaultdict(set)
    for record in made:
        by_group[record.group or record.case_id].add(record.split)
    assert all(len(splits) == 1 for splits in by_group.values())
    if len(by_group) >= 3:
        assert set(of(made).values()) == {"train", "val", "test"}


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 400), st.integers(0, 1000))
def test_fractions_are_met_to_a_case(count: int, seed: int) -> None:
    counts = Counter(of(assign_splits(cases(count), FRACTIONS, seed)).values())
    for split, fraction in zip(("train", "val", "test"), FRACTIONS, strict=True):
        assert abs(counts[split] - fraction * count) <= 1


def test_fractions_are_met_to_half_a_group_at_each_cut() -> None:
    for seed in range(5):
        counts = Counter(of(assign_splits(cases(1000, groups=100), FRACTIONS, seed)).values())
        assert abs(counts["train"] - 700) <= 5
        assert abs(counts["val"] - 100) <= 10


def test_one_more_case_moves_only_cases_near_a_cut() -> None:
    before, after = of(assign_splits(cases(200))), of(assign_splits(cases(201)))
    assert sum(before[name] != after[name] for name in before) <= 2


def test_the_seed_matters_and_the_hash_is_fixed() -> None:
    assert of(assign_splits(cases(100), seed=0)) != of(assign_splits(cases(100), seed=1))
    # The split of published results must be the same in every later version and on every machine.
    assert place("case:c0", 0) == pytest.approx(0.3414520505956193, abs=1e-15)


@pytest.mark.parametrize(
    ("count", "expected"), [(0, []), (1, ["train"]), (2, ["train", "val"]), (3, ["test", "train", "val"])]
)
def test_few_cases(count: int, expected: list[str]) -> None:
    assert sorted(of(assign_splits(cases(count))).values()) == expected  # type: ignore[type-var]


def test_a_fraction_of_zero_gets_nothing() -> None:
    assert set(of(assign_splits(cases(50), (0.5, 0.5, 0.0))).values()) == {"train", "val"}
    assert set(of(assign_splits(cases(50), (0, 0, 1))).values()) == {"test"}


@pytest.mark.parametrize("fractions", [(0.7, 0.2), (0.7, 0.2, 0.2), (1.2, -0.1, -0.1), (float("nan"), 0, 1), ()])
def test_bad_fractions(fractions: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="together 1"):
        assign_splits(cases(3), fractions)


def test_val_is_taken_out_of_train_and_said(caplog: pytest.LogCaptureFixture) -> None:
    records = cases(80, groups=20, split="train") + [
        Record(f"t{i}", Path(f"/d/t{i}.png"), split="test", group="t") for i in range(20)
    ]
    made = complete_splits(records, seed=3, where="DIR")
    counts = Counter(of(made).values())
    assert abs(counts["val"] - 10) <= 2
    assert counts["test"] == 20
    assert {r.group for r in made if r.split == "val"}.isdisjoint({r.group for r in made if r.split == "train"})
    assert "DIR" in caplog.text
    assert "val" in caplog.text
    assert of(complete_splits(list(reversed(records)), seed=3)) == of(made)
    assert of(complete_splits(records, seed=4)) != of(made)


def test_given_splits_are_left_alone() -> None:
    given_splits = [*cases(3, split="train"), Record("v", Path("/v"), split="val")]
    assert complete_splits(given_splits) == given_splits
    only_test = cases(3, split="test")
    assert complete_splits(only_test) == only_test
    one = cases(1, split="train")
    assert complete_splits(one) == one
    assert complete_splits(cases(5, split="train"), fractions=(0.8, 0.0, 0.2)) == cases(5, split="train")


def test_no_split_anywhere_is_assigned() -> None:
    assert complete_splits(cases(30), seed=5) == assign_splits(cases(30), seed=5)


def test_some_splits_missing_is_an_error() -> None:
    with pytest.raises(DataError, match=r"DIR: 2 of 5 cases have no split, the first is c0"):
        complete_splits(cases(2) + [Record(f"x{i}", Path("/x"), split="test") for i in range(3)], where="DIR")


def test_a_group_divided_by_the_data_itself_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def record(number: int, split: str, group: str | None) -> Record:
        return Record(f"c{number}", Path(f"c{number}.png"), split=split, group=group)

    whole = [record(0, "train", "a"), record(1, "val", "b"), record(2, "test", None), record(3, "train", None)]
    complete_splits(whole)
    assert "stand in more than one split" not in caplog.text
    complete_splits([*whole, record(4, "test", "a")])
    assert "1 group(s) stand in more than one split" in caplog.text
