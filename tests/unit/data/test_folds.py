"""Folds, stratified splits and few-shot subsets: whole groups, alike in size, nested, whatever the order of the cases."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlsm_adapter.data.division import Division
from vlsm_adapter.data.folds import assign_folds, fold_splits, parse_fold
from vlsm_adapter.data.splits import assign_splits
from vlsm_adapter.data.strata import EMPTY, UNKNOWN, bin_by_quantile, foreground_shares, strata_of, stratified_order
from vlsm_adapter.data.subsets import few_shot, parse_subset, subset_name, subset_size, training_order
from vlsm_adapter.errors import ConfigError
from vlsm_adapter.types import Record

SEEDS = st.integers(0, 2**40)
Shares = dict[str, float | None]


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[list[Record], Shares]:
    """Cases in groups of any size, some without group, some empty, some of unknown size."""
    count = draw(st.integers(1, 120))
    groups = draw(st.integers(0, 40))
    rng = random.Random(draw(st.integers(0, 10**6)))
    records, shares = [], {}
    for number in range(count):
        group = f"g{int(groups * rng.random() ** 2)}" if groups and rng.random() < 0.9 else None
        records.append(Record(f"c{number}", Path(f"/d/{number}.png"), split="train", group=group))
        kind = rng.random()
        shares[f"c{number}"] = None if kind < 0.05 else 0.0 if kind < 0.2 else round(rng.random() ** 3, 2)
    return records, shares


def shuffled(records: list[Record], seed: int) -> list[Record]:
    return random.Random(seed).sample(records, len(records))


def plain(count: int, split: str = "train", group_size: int = 0) -> list[Record]:
    return [
        Record(f"c{i}", Path(f"/d/{i}.png"), split=split, group=f"g{i // group_size}" if group_size else None)
        for i in range(count)
    ]


# Strata


def test_bins_lie_at_the_quantiles_and_equal_sizes_share_one() -> None:
    sizes: Shares = {f"c{i}": (i + 1) / 100 for i in range(10)}
    found = bin_by_quantile({**sizes, "nothing": 0.0, "unread": None}, 5)
    assert [found[f"c{i}"] for i in range(10)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert (found["nothing"], found["unread"]) == (EMPTY, UNKNOWN)
    assert set(bin_by_quantile(dict.fromkeys("abcdef", 0.3), 5).values()) == {0}
    assert bin_by_quantile({}, 5) == {}


def test_a_group_has_the_mean_size_of_its_cases() -> None:
    records = [*plain(4, group_size=2), Record("alone", Path("/a"))]
    shares: Shares = {"c0": 0.0, "c1": 0.2, "c2": 0.0, "c3": None, "alone": 0.5}
    found = strata_of(records, shares, bins=2)
    assert found == {"group:g0": 0, "group:g1": EMPTY, "case:alone": 1}


def test_shares_are_read_from_the_masks(tmp_path: Path) -> None:
    mask = np.zeros((10, 20), np.uint8)
    mask[:5, :4] = 1
    Image.fromarray(mask * 255).save(tmp_path / "a.png")
    Image.fromarray(mask * 2).save(tmp_path / "labels.png")
    (tmp_path / "bad.png").write_bytes(b"no mask")
    records = [
        Record("a", tmp_path / "x.png", tmp_path / "a.png"),
        Record("label", tmp_path / "x.png", tmp_path / "labels.png", mask_value=1),
        Record("bad", tmp_path / "x.png", tmp_path / "bad.png"),
        Record("none", tmp_path / "x.png"),
    ]
    done: list[int] = []
    assert foreground_shares(records, done.append) == {"a": 0.1, "label": 0.0, "bad": None, "none": None}
    assert done == [1, 2, 3, 4]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), SEEDS)
def test_every_beginning_of_the_order_holds_the_strata_in_proportion(strata: list[int], seed: int) -> None:
    names = {f"c{i}": stratum for i, stratum in enumerate(strata)}
    order = stratified_order(dict.fromkeys(names, 1), names, seed)
    assert sorted(order) == sorted(names)
    totals, seen = Counter(strata), Counter()
    for number, name in enumerate(order, start=1):
        seen[names[name]] += 1
        for stratum, total in totals.items():
            assert abs(seen[stratum] - total * number / len(order)) <= 1 + len(totals) / 2
    assert all(seen[stratum] == total for stratum, total in totals.items())


# Stratified splits


@settings(max_examples=60, deadline=None)
@given(data_sets(), SEEDS)
def test_stratified_splits_keep_groups_and_forget_the_order(data: tuple[list[Record], Shares], seed: int) -> None:
    records, shares = data
    made = assign_splits(records, seed=seed, shares=shares)
    again = assign_splits(shuffled(records, seed), seed=seed, shares=shares)
    assert {r.case_id: r.split for r in made} == {r.case_id: r.split for r in again}
    of_group = defaultdict(set)
    for record in made:
        of_group[record.group or record.case_id].add(record.split)
    assert all(len(splits) == 1 for splits in of_group.values())


def test_stratified_splits_are_more_alike_than_those_by_hash() -> None:
    records = plain(100)
    shares: Shares = {f"c{i}": 0.0 if i < 20 else (i / 100) ** 2 for i in range(100)}
    for seed in range(5):
        made = assign_splits(records, seed=seed, shares=shares)
        counts = Counter(r.split for r in made)
        assert counts == {"train": 70, "val": 10, "test": 20}
        empty = Counter(r.split for r in made if shares[r.case_id] == 0)
        assert (empty["train"], empty["test"]) == (14, 4)
        means = [np.mean([shares[r.case_id] for r in made if r.split == split]) for split in ("train", "test")]
        assert abs(means[0] - means[1]) < 0.05


# Folds


@settings(max_examples=100, deadline=None)
@given(data_sets(), st.integers(2, 7), SEEDS, st.booleans())
def test_folds_hold_every_case_once_groups_whole_in_any_order(
    data: tuple[list[Record], Shares], folds: int, seed: int, stratify: bool
) -> None:
    records, shares = data
    groups = {r.group or f"case {r.case_id}" for r in records}
    options: dict = {"seed": seed, "shares": shares if stratify else None}
    if folds > len(groups):
        with pytest.raises(ConfigError, match=f"at most {len(groups)} folds"):
            assign_folds(records, folds, **options)
        return
    made = dict(zip([r.case_id for r in records], assign_folds(records, folds, **options), strict=True))
    assert set(made.values()) == set(range(folds))
    other = shuffled(records, seed)
    assert dict(zip([r.case_id for r in other], assign_folds(other, folds, **options), strict=True)) == made
    tested: Counter[str] = Counter()
    for number in range(1, folds + 1):
        split = fold_splits(records, number, folds, **options)
        assert [r.case_id for r in split] == [r.case_id for r in records]
        of_group = defaultdict(set)
        for record in split:
            of_group[record.group or record.case_id].add(record.split)
        assert all(len(splits) == 1 for splits in of_group.values())
        tested.update(r.case_id for r in split if r.split == "test")
        assert any(r.split == "train" for r in split)
    assert set(tested.values()) == {1}
    assert len(tested) == len(records)


@pytest.mark.parametrize("group_size", [0, 3])
def test_folds_of_equal_groups_differ_by_one_group_in_every_stratum(group_size: int) -> None:
    records = plain(123, group_size=group_size)
    shares: Shares = {f"c{i}": (i // (group_size or 1)) % 17 / 17 for i in range(123)}
    fold_of = dict(zip([r.case_id for r in records], assign_folds(records, 5, 3, shares=shares), strict=True))
    step = group_size or 1
    counts = Counter(fold_of.values())
    assert max(counts.values()) - min(counts.values()) <= step
    strata = strata_of(records, shares)
    for stratum in set(strata.values()):
        inside = [
            fold_of[r.case_id]
            for r in records
            if strata[f"group:{r.group}" if r.group else f"case:{r.case_id}"] == stratum
        ]
        held = Counter(inside)
        assert max(held[n] for n in range(5)) - min(held[n] for n in range(5)) <= step


def test_validation_is_taken_from_the_other_folds_in_proportion() -> None:
    records = plain(200)
    made = fold_splits(records, 2, 5, shares={f"c{i}": i / 200 for i in range(200)})
    assert Counter(r.split for r in made) == {"train": 140, "val": 20, "test": 40}
    assert Counter(r.split for r in fold_splits(records, 1, 4, fractions=(0.5, 0.5, 0.0)))["val"] == 75
    assert fold_splits(records, 1, 5, seed=1) != fold_splits(records, 1, 5, seed=2)


def test_a_fold_is_written_which_of_how_many() -> None:
    assert parse_fold("2/5") == parse_fold(" 2 / 5 ") == (2, 5)
    for text in ("0/5", "6/5", "1/1", "2", "a/b", "1/5/9", "-1/5", "1.5/5", ""):
        with pytest.raises(ConfigError, match="which of how many"):
            parse_fold(text)
    with pytest.raises(ConfigError, match="at least 2"):
        assign_folds(plain(4), 1)
    with pytest.raises(ConfigError, match="counted from 1 to 3"):
        fold_splits(plain(4), 4, 3)


# Few-shot subsets


@settings(max_examples=60, deadline=None)
@given(data_sets(), SEEDS, st.integers(1, 120))
def test_subsets_lie_inside_the_larger_ones_and_forget_the_order(
    data: tuple[list[Record], Shares], seed: int, count: int
) -> None:
    records, shares = data
    held_out = [Record(f"t{i}", Path(f"/t{i}"), split="test") for i in range(3)]
    whole = [*held_out, *records]

    def names(subset: str | int, cases: list[Record] = whole) -> set[str]:
        kept = few_shot(cases, subset, seed=seed, shares=shares)
        assert [r for r in cases if r in kept] == kept
        assert [r for r in kept if r.split == "test"] == [r for r in cases if r.split == "test"]
        return {r.case_id for r in kept if r.split == "train"}

    assert names("1%") <= names("5%") <= names("10%") <= names("100%") == {r.case_id for r in records}
    count = min(count, len(records))
    few = names(count)
    assert len(few) == count
    assert names(max(1, count - 1)) <= few
    assert names(count, shuffled(whole, seed)) == few


@settings(max_examples=60, deadline=None)
@given(data_sets(), SEEDS)
def test_no_group_gives_a_second_case_before_all_have_given_one(data: tuple[list[Record], Shares], seed: int) -> None:
    records, shares = data
    group = {r.case_id: r.group or f"case {r.case_id}" for r in records}
    sizes = Counter(group.values())
    given_so_far: Counter[str] = Counter()
    for name in training_order(records, seed=seed, shares=shares):
        given_so_far[group[name]] += 1
        assert all(given_so_far[other] >= min(size, given_so_far[group[name]] - 1) for other, size in sizes.items())


def test_few_cases_cover_the_sizes() -> None:
    records = plain(100)
    shares: Shares = {f"c{i}": (i + 1) / 100 for i in range(100)}
    for seed in range(5):
        kept = few_shot(records, 5, seed=seed, shares=shares)
        assert sorted(int(100 * shares[r.case_id] - 0.5) // 20 for r in kept) == [0, 1, 2, 3, 4]  # type: ignore[operator]
    assert few_shot(records, 5, seed=0) != few_shot(records, 5, seed=1)


def test_a_subset_with_a_seed_of_its_own_changes_the_training_cases_alone() -> None:
    records = plain(100)
    first, second, third = (Division(seed=3, subset="10%", subset_seed=seed, stratify="none") for seed in (None, 4, 3))
    split = [division.split(records, "here") for division in (first, second, third)]
    assert split[0] == split[1] == split[2]  # who is a test case does not depend on it
    kept = [{r.case_id for r in division.shrink(split[0]) if r.split == "train"} for division in (first, second, third)]
    assert kept[0] == kept[2] != kept[1]
    assert len(kept[0]) == len(kept[1]) == 9
    assert (str(first), str(second)) == (
        "10 % of train, split seed 3, not stratified",
        "10 % of train, subset seed 4, split seed 3, not stratified",
    )
    assert (
        str(Division(fold="1/5", subset=4, subset_seed=2))
        == "fold 1 of 5, 4 cases of train, subset seed 2, split seed 0"
    )
    assert second.of("test") == Division(seed=3, stratify="none")
    with pytest.raises(ConfigError, match="subset_seed 2: there is no subset"):
        Division(subset_seed=2)


def test_sizes_and_names_of_subsets() -> None:
    assert [subset_size(text, 800) for text in ("1%", "5 %", "0.1%", "100%", "20", 800)] == [8, 40, 1, 800, 20, 800]
    assert subset_size("12.5%", 4) == 1  # half up
    assert subset_size("1%", 3) == 1
    assert (subset_name("05.50%"), subset_name(1), subset_name("20")) == (
        "5.5 % of train",
        "1 case of train",
        "20 cases of train",
    )
    for value in ("", "0", 0, -3, "0%", "101%", "5", True, 0.05, "five", "1e3", "٣"):
        if value == "5":
            assert parse_subset(value) == (None, 5)
            continue
        with pytest.raises(ConfigError, match="such as 5%, or how many"):
            parse_subset(value)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="there are 10 training cases; give at most 10"):
        few_shot(plain(10), 11)
