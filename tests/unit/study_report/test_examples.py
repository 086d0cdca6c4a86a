"""Examples are chosen by their names, kept small, and read back; a run keeps the same cases whatever it scores."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vlsm_adapter.errors import UserError
from vlsm_adapter.examples import EXAMPLES, pick_examples, read_examples
from vlsm_adapter.types import CaseScore


def score(case_id: str, dice: float, area: int = 50) -> CaseScore:
    return CaseScore(case_id, "polyp", {"dice": dice}, "px", "none", area, 40)


def test_scores_and_order_have_no_say() -> None:
    names = [f"case{number}" for number in range(40)]
    one = pick_examples([score(name, number / 40) for number, name in enumerate(names)])
    other = pick_examples([score(name, 1 - number / 40) for number, name in enumerate(reversed(names))])
    assert one == other
    assert len(set(one)) == EXAMPLES
    # More cases of the same data change little; those with something to find come first.
    more = pick_examples([score(name, 0.5) for name in [*names, "new"]])
    assert len(set(more) & set(one)) >= EXAMPLES - 1
    empty = pick_examples([score(name, 0.5, area=0 if name in one else 9) for name in names])
    assert not set(empty) & set(one)
    assert pick_examples([score("only", 0.5)]) == ["only"]


def test_they_come_back(fake: ModuleType, tmp_path: Path) -> None:
    fake.write_examples(tmp_path, 0.8, count=2, size=(30, 40))
    first, second = read_examples(tmp_path / "images")
    assert (first.case_id, second.case_id) == ("case_0001", "case_0002")
    assert first.image.shape == (30, 40, 3)
    assert first.truth.dtype == bool
    assert first.truth.any()
    assert set(first.masks) == {"adapter", "zero_shot"}
    overlap = 2 * np.sum(first.masks["adapter"] & first.truth) / (first.masks["adapter"].sum() + first.truth.sum())
    assert first.dice["adapter"] == pytest.approx(overlap)


@pytest.mark.parametrize("what", ["gone", "outside", "other size", "other format", "no list"])
def test_damage(fake: ModuleType, tmp_path: Path, what: str) -> None:
    fake.write_examples(tmp_path, 0.8, count=1, size=(30, 40))
    file = tmp_path / "images/examples.json"
    values = json.loads(file.read_text())
    if what == "gone":
        (tmp_path / "images/example-1-truth.png").unlink()
    elif what == "outside":
        values["cases"][0]["image"] = "../images/example-1.jpg"
    elif what == "other size":
        fake.write_examples(tmp_path / "b", 0.8, count=1, size=(31, 40))
        (tmp_path / "b/images/example-1-truth.png").replace(tmp_path / "images/example-1-truth.png")
    elif what == "other format":
        values["format_version"] = 2
    else:
        values = []
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match="run 'vlsm evaluate' again"):
        read_examples(tmp_path / "images")
