"""Empty, full, tiny and ragged masks; boxes; and splits drawn from different sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from vlsm_adapter.data.audit.findings import Finding
from vlsm_adapter.data.audit.sizes import size_findings, two_sample_distance


def codes(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.code: finding for finding in findings}


@pytest.mark.parametrize(("sizes", "shift"), [((300, 80), 0.0), ((300, 80), 0.6), ((40, 25), 0.3), ((12, 15), 1.0)])
def test_distance_of_two_samples_agrees_with_scipy(sizes: tuple[int, int], shift: float) -> None:
    random = np.random.default_rng(int(10 * shift) + sizes[0])
    one, other = random.normal(size=sizes[0]), random.normal(shift, size=sizes[1])
    distance, p = two_sample_distance(one, other)
    reference = stats.ks_2samp(one, other)
    assert distance == pytest.approx(reference.statistic)
    assert p == pytest.approx(reference.pvalue, abs=0.06)
    assert two_sample_distance(one, one) == (0.0, 1.0)


def test_empty_masks_by_split(new_case: Any, seen: Any, round_mask: Any) -> None:
    empty = np.zeros((80, 96), bool)
    cases = [new_case(f"{i}.png", "test" if i >= 30 else "train") for i in range(60)]
    looks = {
        case.id: seen(empty if number % 10 == 0 and number < 40 else round_mask()) for number, case in enumerate(cases)
    }
    found = codes(size_findings(cases, looks))
    assert "4 empty masks (6.7 %): train 3 of 30, test 1 of 30" in found["empty-masks"].message
    assert found["empty-masks"].severity == "note"
    assert found["empty-masks"].cases == ("0", "10", "20", "30")
    assert found["split-missing"].message == "no case in val"


def test_extremes_specks_and_holes(new_case: Any, seen: Any, round_mask: Any) -> None:
    tiny = np.zeros((200, 200), bool)
    tiny[100:104, 100:104] = True
    corner = round_mask()
    corner[0, 0] = True
    holed = round_mask(radius=0.4) & ~round_mask(radius=0.1)
    masks = {"full": ~round_mask(radius=0.05), "tiny": tiny, "holed": holed, **{f"corner{i}": corner for i in range(6)}}
    cases = [new_case(f"{name}.png", "train") for name in masks]
    found = codes(size_findings(cases, {name: seen(mask) for name, mask in masks.items()}))
    assert found["mask-nearly-full"].cases == ("full",)
    assert found["mask-nearly-full"].severity == "warning"
    assert found["mask-tiny"].cases == ("tiny",)
    assert "holed" in found["mask-holes"].cases
    assert found["mask-specks"].severity == "warning"
    assert "in 6 of them the first is at the same pixel, column 0, row 0" in found["mask-specks"].message
    found = codes(size_findings(cases[-2:], {case.id: seen(corner) for case in cases[-2:]}))
    assert found["mask-specks"].severity == "note"


def test_boxes_are_compared_with_the_mask(new_case: Any, seen: Any) -> None:
    mask = np.zeros((100, 200), bool)
    mask[20:60, 50:120] = True
    boxes = {"inclusive": (50, 20, 119, 59), "exclusive": (50, 20, 120, 60), "swapped": (20, 50, 60, 120)}
    cases = [new_case(f"{name}.png", box=box) for name, box in boxes.items()]
    found = codes(size_findings(cases, {name: seen(mask) for name in boxes}))
    assert found["box-against-mask"].cases == ("swapped",)
    assert "1 case of 3" in found["box-against-mask"].message


def test_shift_of_sizes_between_splits(new_case: Any, seen: Any, round_mask: Any) -> None:
    random = np.random.default_rng(0)

    def audited(test: tuple[float, float]) -> dict[str, Finding]:
        cases, looks = [], {}
        for split, count, (low, high) in (("train", 80, (0.1, 0.3)), ("val", 30, (0.1, 0.3)), ("test", 40, test)):
            for index in range(count):
                case = new_case(f"{split}{index}x.png", split)
                cases.append(case)
                looks[case.id] = seen(round_mask(radius=random.uniform(low, high)))
        return codes(size_findings(cases, looks))

    assert "split-shift" not in audited((0.1, 0.3))
    finding = audited((0.25, 0.45))["split-shift"]
    assert finding.severity == "warning"
    assert finding.message.startswith("foreground sizes of test differ")


def test_splits_given_to_some_only(new_case: Any, seen: Any, round_mask: Any) -> None:
    cases = [new_case("a.png", "train"), new_case("b.png", None)]
    found = codes(size_findings(cases, {case.id: seen(round_mask()) for case in cases}))
    assert found["split-for-some"].severity == "error"
    assert found["split-for-some"].cases == ("b",)
