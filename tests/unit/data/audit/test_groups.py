"""Patients and recordings divided between splits: declared, guessed from names, and neighbouring frames."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlsm_adapter.data.audit.findings import Finding
from vlsm_adapter.data.audit.groups import frame_number, group_findings, guess_group
from vlsm_adapter.data.audit.pixels import Look


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("patient0012_4CH_ED.png", "patient0012"),
        ("scan_Video-7_f3.jpg", "video7"),
        ("seq 3 frame 9.png", "seq3"),
        ("sub-004_ses-1.nii.png", "sub004"),
        ("ISIC_0000324.jpg", None),
        ("impatient3.png", None),
        ("substance.png", None),
        ("274.png", None),
    ],
)
def test_groups_in_names(name: str, group: str | None) -> None:
    assert guess_group(name) == group


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("274.png", ("#", 274)),
        ("ISIC_0000324.jpg", ("ISIC_#", 324)),
        ("p3_frame_0012.png", ("p3_frame_#", 12)),
        ("102_malignant.png", ("#_malignant", 102)),
        ("cju2r11x7sdgx0988o8ule0wl.jpg", None),
        ("04ccdc265a0b0a1230b118fa8625605d.jpeg", None),
        ("name.png", None),
        ("20231231235959123.png", None),
    ],
)
def test_series_in_names(name: str, series: tuple[str, int] | None) -> None:
    assert frame_number(name) == series


@given(st.text(max_size=40))
def test_any_name_is_read(name: str) -> None:
    guess_group(name)
    number = frame_number(name)
    assert number is None or number[1] >= 0


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_declared_groups(new_case: Any) -> None:
    cases = [
        new_case("a.png", "train", group="p1"),
        new_case("b.png", "test", group="p1"),
        new_case("c.png", "test", group="p2"),
        new_case("d.png", "train", group="image:d"),
        new_case("e.png", "test", group="image:d"),
    ]
    finding = only(group_findings(cases, {}))
    assert (finding.code, finding.severity) == ("group-across-splits", "error")
    assert "1 group of 2" in finding.message
    assert set(finding.cases) == {"a", "b"}


def test_guessed_patients(new_case: Any) -> None:
    names = {"train": ["patient1_a", "patient1_b", "patient2_a"], "test": ["patient1_c", "patient3_a"]}
    cases = [new_case(f"{name}.png", split) for split, found in names.items() for name in found]
    finding = only(group_findings(cases, {}))
    assert (finding.code, finding.severity) == ("guessed-group-across-splits", "warning")
    assert "1 group of 3, guessed from file names" in finding.message
    assert "1 in train and test" in finding.message


def test_equal_names_in_two_splits_tell_nothing_of_patients(new_case: Any) -> None:
    cases = [new_case(f"patient{i}.png", split, case_id=f"{split}{i}") for split in ("val", "test") for i in range(20)]
    assert group_findings(cases, {}) == []


def test_one_split_cannot_leak(new_case: Any) -> None:
    assert group_findings([new_case(f"{i}.png", "train") for i in range(20)], {}) == []


def test_guessed_patients_without_splits_are_divided_by_training(new_case: Any) -> None:
    names = ["patient1_a", "patient1_b", "patient2_a", "patient3_a"]
    finding = only(group_findings([new_case(f"{name}.png", None) for name in names], {}))
    assert (finding.code, finding.severity) == ("guessed-group-without-split", "warning")
    assert "1 group of several cases (2 in all), guessed from file names" in finding.message
    assert finding.cases == ("patient1_a", "patient1_b")
    assert "vlsm data split DIR --groups" in finding.advice
    declared = [new_case(f"{name}.png", None, group=name[:8]) for name in names]
    assert group_findings(declared, {}) == []


def frames(new_case: Any, alike: bool, boxes: bool) -> tuple[list[Any], dict[str, Look]]:
    """Numbers 0 to 59, every sixth in test; ``alike``: ten recordings of six frames, else each on its own."""
    random = np.random.default_rng(0)
    scenes = random.uniform(0, 255, (60, 8, 8)).repeat(4, axis=1).repeat(4, axis=2)
    places = random.uniform(0, 200, (60, 2))
    cases, looks = [], {}
    for number in range(60):
        scene = number // 6 * 6 if alike else number
        x, y = places[scene] + random.uniform(0, 3, 2)
        box = (x, y, x + 40, y + 40) if boxes else None
        case = new_case(f"{number}.png", "test" if number % 6 == 3 else "train", box=box)
        cases.append(case)
        looks[case.id] = Look(small=np.clip(scenes[scene] + random.normal(0, 6, (32, 32)), 0, 255).astype(np.uint8))
    return cases, looks


@pytest.mark.parametrize("what", ["pictures", "boxes"])
def test_frames_of_one_recording(new_case: Any, what: str) -> None:
    cases, looks = frames(new_case, alike=True, boxes=what == "boxes")
    finding = only(group_findings(cases, looks if what == "pictures" else {}))
    assert (finding.code, finding.severity) == ("neighbours-across-splits", "warning")
    assert "10 of 10 numbered test cases (100 %)" in finding.message
    assert f"{what} of neighbours agree" in finding.message
    assert "belong together (one" in finding.message
    assert finding.evidence[0].cases == ("2", "3")


@pytest.mark.parametrize("alike", [True, False])
def test_frames_without_splits_are_divided_by_training(new_case: Any, alike: bool) -> None:
    cases, looks = frames(new_case, alike, boxes=False)
    cases = [replace(case, record=replace(case.record, split=None)) for case in cases]
    found = group_findings(cases, looks)
    assert [finding.code for finding in found] == (["neighbours-without-split"] if alike else [])
    if alike:
        assert "pictures of neighbours agree" in found[0].message
        assert found[0].evidence[0].cases == ("0", "1")


@pytest.mark.parametrize("what", ["pictures", "boxes"])
def test_numbers_without_relation_are_a_note(new_case: Any, what: str) -> None:
    cases, looks = frames(new_case, alike=False, boxes=what == "boxes")
    finding = only(group_findings(cases, looks if what == "pictures" else {}))
    assert finding.severity == "note"
    assert "hardly belong together" in finding.message


def test_names_alone_are_called_a_guess(new_case: Any) -> None:
    finding = only(group_findings([new_case(f"{i}.png", "test" if i % 3 == 0 else "train") for i in range(12)], {}))
    assert finding.severity == "warning"
    assert "a guess from file names alone" in finding.message


def test_every_pair_of_splits_is_told_train_and_test_first(new_case: Any) -> None:
    splits = ["train", "val", "val", "test", "train", "test", "val"]
    finding = only(group_findings([new_case(f"{i}.png", split) for i, split in enumerate(splits)], {}))
    told = [
        "2 of 2 numbered test cases (100 %) have a case of the next number in train",
        "1 of 3 numbered val cases (33 %) have a case of the next number in train",
        "2 of 2 numbered test cases (100 %) have a case of the next number in val",
    ]
    assert finding.message.startswith(", ".join(told))
    assert [one.cases for one in finding.evidence] == [("3", "4"), ("4", "5"), ("0", "1"), ("2", "3"), ("5", "6")]


@pytest.mark.parametrize("pair", [("train", "val"), ("val", "test")])
def test_neighbours_that_do_not_touch_train_and_test(new_case: Any, pair: tuple[str, str]) -> None:
    finding = only(group_findings([new_case(f"{i}.png", pair[i % 2]) for i in range(12)], {}))
    assert finding.severity == "warning"
    assert f"6 of 6 numbered {pair[1]} cases (100 %) have a case of the next number in {pair[0]};" in finding.message


def test_series_are_kept_apart(new_case: Any) -> None:
    cases = [new_case("1_benign.png", "train"), new_case("2_malignant.png", "test")]
    assert group_findings(cases, {}) == []
