"""Comparing evaluations from their files alone, also those written before a metric was added."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlsm_adapter import files
from vlsm_adapter.comparison import compare_evaluations, open_entry, render_comparison, write_comparison
from vlsm_adapter.errors import ConfigError, UserError
from vlsm_adapter.evaluation_folder import EvaluationFolder, write_scores
from vlsm_adapter.types import CaseScore

ALL = ("dice", "iou", "hd95", "nsd", "precision", "recall", "ece", "brier")
OLD = ALL[:4]


def scores(dice: np.ndarray, names: tuple[str, ...] = ALL, first: int = 0) -> list[CaseScore]:
    return [
        CaseScore(
            f"c{number:02}",
            "polyp",
            {name: (1 - value if name in ("hd95", "ece", "brier") else value) for name in names},
            "px",
            "missed" if value == 0 else "none",
            50,
            0 if value == 0 else 60,
        )
        for number, value in enumerate(map(float, dice), start=first)
    ]


def evaluation(
    path: Path,
    found: list[CaseScore],
    zero_shot: list[CaseScore] | None = None,
    groups: dict[str, str | None] | None = None,
    **about: Any,
) -> Path:
    folder = EvaluationFolder(path)
    write_scores(folder.cases_file, found, groups)
    if zero_shot is not None:
        write_scores(folder.zero_shot_file, zero_shot, groups)
    summary = {
        "format": "vlsm-evaluation",
        "format_version": 1,
        "split": "test",
        "level": "p1",
        "threshold": 0.5,
        "nsd_tolerance": 2.0,
        "trained_adapter": {"method": "dense"},
    }
    files.write_json(folder.summary_file, {**summary, **about})
    return path


@pytest.fixture
def base() -> np.ndarray:
    return np.random.default_rng(0).random(24) * 0.5 + 0.1


def test_two_runs_and_a_zero_shot(tmp_path: Path, base: np.ndarray) -> None:
    groups: dict[str, str | None] = {f"c{number:02}": f"p{number // 2}" for number in range(24)}
    dense = evaluation(tmp_path / "runs/dense/evaluation/test-p1", scores(base), scores(base * 0.2), groups)
    shallow = evaluation(
        tmp_path / "runs/shallow/evaluation/test-p1", scores(base + 0.2), groups=groups,
        trained_adapter={"method": "shallow"},
    )  # fmt: skip
    result = compare_evaluations([dense, tmp_path / "runs/shallow", dense / "zero_shot_cases.csv"])
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["runs"] == ["dense", "shallow", "dense zero-shot"]
    assert [about["method"] for about in result["entries"].values()] == ["dense", "shallow", "zero-shot"]
    assert (result["resampled"], result["n_groups"]) == ("group", 12)
    assert [(row["run"], row["metric"]) for row in result["rows"]] == [
        (run, name) for run in ("shallow", "dense zero-shot") for name in ALL
    ]
    assert all(row["p_sign_flip"] < 0.001 and row["p_wilcoxon"] < 0.001 for row in result["rows"])
    text = render_comparison(result)
    assert "# Comparison of 3 runs on 24 cases" in text
    assert "| Dice (higher is better) | shallow | dense | +0.2000 [+0.2000, +0.2000] | 24 / 0 / 0 |" in text
    assert "of groups (patients, videos)" in text
    assert "over the 16 rows of this table" in text
    one = compare_evaluations([dense, shallow], metrics=["dice"])
    assert [row["metric"] for row in one["rows"]] == ["dice"]
    every = compare_evaluations([dense, shallow, dense / "zero_shot_cases.csv"], metrics=["dice"], pairs="all")
    assert len(every["rows"]) == 3


def test_an_evaluation_of_an_earlier_version_is_compared_on_what_it_has(tmp_path: Path, base: np.ndarray) -> None:
    new = evaluation(tmp_path / "new", scores(base))
    old = evaluation(tmp_path / "old", scores(base, OLD))
    result = compare_evaluations([old, new])
    assert [row["metric"] for row in result["rows"]] == list(OLD)
    with pytest.raises(UserError, match="no 'ece'"):
        compare_evaluations([old, new], metrics=["ece"])


def test_what_differs_beside_the_model_is_said(tmp_path: Path, base: np.ndarray) -> None:
    one = evaluation(tmp_path / "a", scores(base))
    other = evaluation(tmp_path / "b", scores(base), level="p6", threshold=0.4, nsd_tolerance=4.0)
    result = compare_evaluations([one, other])
    text = render_comparison(result)
    assert "differ in their prompt levels (p1, p6)" in text
    assert "differ in their thresholds (0.4, 0.5)" in text
    assert "NSD is left out: it was measured at different tolerances (2, 4)" in text
    assert "nsd" not in {row["metric"] for row in result["rows"]}
    with pytest.raises(UserError, match="'nsd' cannot be compared"):
        compare_evaluations([one, other], metrics=["nsd"])


def test_other_cases_are_refused_or_left_out_and_counted(tmp_path: Path, base: np.ndarray) -> None:
    one = evaluation(tmp_path / "a", scores(base))
    other = evaluation(tmp_path / "b", scores(base[:20], first=2))
    with pytest.raises(UserError, match=r"lacks 4 of the 24 cases of .*--common") as error:
        compare_evaluations([one, other])
    assert "\n" not in str(error.value)
    result = compare_evaluations([one, other], common=True)
    assert (result["n_cases"], result["left_out"]) == (20, {"a": 4, "b": 0})
    assert "left out: 4 scores of `a`" in render_comparison(result)
    with pytest.raises(UserError, match="no case in common"):
        compare_evaluations([one, evaluation(tmp_path / "c", scores(base, first=50))], common=True)


def test_few_groups_cannot_show_anything_and_the_table_says_so(tmp_path: Path) -> None:
    groups: dict[str, str | None] = {f"c{number:02}": f"p{number % 4}" for number in range(12)}
    one = evaluation(tmp_path / "a", scores(np.full(12, 0.2)), groups=groups)
    other = evaluation(tmp_path / "b", scores(np.full(12, 0.9)), groups=groups)
    result = compare_evaluations([one, other], metrics=["dice"])
    assert result["rows"][0]["p_sign_flip"] == 2 / 16
    assert "With 4 groups (patients, videos) no p-value can be below 0.05" in render_comparison(result)
    groups["c00"] = "another"
    moved = evaluation(tmp_path / "c", scores(np.full(12, 0.5)), groups=groups)
    with pytest.raises(UserError, match="case 'c00' is of group 'another' in c and of 'p0' in a"):
        compare_evaluations([one, moved])


def test_names_tell_runs_apart(tmp_path: Path, base: np.ndarray) -> None:
    paths = [
        evaluation(tmp_path / "x/run/evaluation/test-p1", scores(base)),
        evaluation(tmp_path / "x/run/evaluation/test-p6", scores(base)),
    ]
    assert compare_evaluations(paths, metrics=["dice"])["runs"] == ["test-p1", "test-p6"]
    with pytest.raises(UserError, match=r"holds several evaluations \(test-p1, test-p6\)"):
        open_entry(tmp_path / "x/run")
    paths.append(evaluation(tmp_path / "y/run/evaluation/test-p1", scores(base)))
    assert compare_evaluations(paths, metrics=["dice"])["runs"] == ["x/run/test-p1", "x/run/test-p6", "y/run/test-p1"]
    with pytest.raises(UserError, match="given twice"):
        compare_evaluations([paths[0], paths[0]])
    hostile = evaluation(tmp_path / "a|b<i>", scores(base))
    assert "<i>" not in render_comparison(compare_evaluations([paths[0], hostile], metrics=["dice"]))


@pytest.mark.parametrize(
    ("options", "says"),
    [({"pairs": "each"}, "allowed: all, first"), ({"metrics": ["dise"]}, "did you mean 'dice'")],
)
def test_wrong_choices_are_told(tmp_path: Path, options: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        compare_evaluations([tmp_path, tmp_path], **options)


def test_what_nothing_is_common_to_is_not_told_to_be_compared_by_it(tmp_path: Path, base: np.ndarray) -> None:
    one, other = evaluation(tmp_path / "a", scores(base)), evaluation(tmp_path / "b", scores(base))
    head, *rows = (other / "cases.csv").read_text().splitlines()
    files.write_text(other / "cases.csv", "\n".join([head, *(f"x{row}" for row in rows)]) + "\n")
    with pytest.raises(UserError, match=r"evaluate both on the same split$"):
        compare_evaluations([one, other])


def test_what_is_no_evaluation_is_told(tmp_path: Path, base: np.ndarray) -> None:
    one = evaluation(tmp_path / "a", scores(base))
    with pytest.raises(UserError, match="not an evaluation"):
        compare_evaluations([one, tmp_path / "absent"])
    files.write_text(tmp_path / "other.csv", "a,b\n1,2\n")
    with pytest.raises(UserError, match=r"other\.csv: lacks the column"):
        compare_evaluations([one, tmp_path / "other.csv"])


def test_it_is_written_and_loads_no_model(tmp_path: Path, base: np.ndarray) -> None:
    one, other = evaluation(tmp_path / "a", scores(base)), evaluation(tmp_path / "b", scores(base * 0.9))
    code = (
        "import sys; from vlsm_adapter.comparison import *; "
        "write_comparison(compare_evaluations(sys.argv[1:3]), sys.argv[3]); "
        "assert not {'torch', 'transformers', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(one), str(other), str(tmp_path / "c.md")], check=True)
    assert "# Comparison of 2 runs" in (tmp_path / "c.md").read_text()
    assert json.loads((tmp_path / "c.json").read_text())["runs"] == ["a", "b"]
    with pytest.raises(UserError, match=r"ends in \.md"):
        write_comparison(compare_evaluations([one, other]), tmp_path / "c.html")


def test_a_file_of_the_user_is_not_written_over(tmp_path: Path, base: np.ndarray) -> None:
    one, other = evaluation(tmp_path / "a", scores(base)), evaluation(tmp_path / "b", scores(base * 0.9))
    result = compare_evaluations([one, other])
    (tmp_path / "README.md").write_text("# Mine\n")
    (tmp_path / "data.json").write_text("[1]")
    for name in ("README", "data"):
        with pytest.raises(UserError, match="is there already and no comparison"):
            write_comparison(result, tmp_path / f"{name}.md")
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    assert (tmp_path / "data.json").read_text() == "[1]"
    assert not (tmp_path / "README.json").exists()
    write_comparison(result, tmp_path / "c.md")
    write_comparison(result, tmp_path / "c.md")
