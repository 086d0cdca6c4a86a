"""Few-shot training and cross-validation through the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

FAST = ("--epochs", 1, "--batch-size", 4, "--set", "log.tensorboard=false")


def test_split_train_on_a_few_cases_and_evaluate(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    before = {file: file.stat().st_mtime_ns for file in phantoms.rglob("*")}
    out = tmp_path / "splits"
    answer = vlsm("data", "split", phantoms, "--out", out, "--folds", 5, "--subset", "50%", "--subset", 2, "--quiet")
    assert answer.code == 0, answer.err
    assert len(answer.out.splitlines()) == 15
    assert "fold-1-of-5.json: " in answer.out
    assert {file: file.stat().st_mtime_ns for file in phantoms.rglob("*")} == before

    direct, by_file = tmp_path / "direct", tmp_path / "by_file"
    options = ("--data", phantoms, "--model", base_folder, *FAST)
    answer = vlsm("train", *options, "-o", direct, "--set", "data.fold=2/5", "--set", "data.subset=50%")
    assert answer.code == 0, answer.err
    assert "(fold 2 of 5, 50 % of train, split seed 0)" in answer.err
    split_file = out / "fold-2-of-5_train-50pct.json"
    answer = vlsm("train", *options, "-o", by_file, "--set", f"data.split_file={split_file}")
    assert answer.code == 0, answer.err
    one, other = (json.loads((run / "data.json").read_text())["splits"] for run in (direct, by_file))
    assert {name: sorted(cases) for name, cases in one.items()} == {
        name: sorted(cases) for name, cases in other.items()
    }
    named = json.loads(split_file.read_text())
    assert {name: sorted(cases) for name, cases in one.items()} == {name: named[name] for name in one}
    card = (direct / "adapter" / "README.md").read_text()
    assert ", fold 2 of 5, 50 % of train, split seed 0 (" in card
    assert str(tmp_path) not in (by_file / "adapter" / "README.md").read_text().replace(str(base_folder), "")

    answer = vlsm("evaluate", direct, "--split", "test")
    assert answer.code == 0, answer.err
    assert "trained on" not in answer.err
    folder = direct / "evaluation" / "test-p1"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["adapter"]["n_cases"] == len(one["test"]) == 2
    assert summary["data"]["division"] == "fold 2 of 5, 50 % of train, split seed 0"
    assert summary["training_cases"] == {"seen_in_training": 0, "copies_of_training": 0, "new": 0, "gone": 0}
    assert "fold 2 of 5, 50 % of train" in (folder / "report.md").read_text()
    assert (folder / "cases.csv").read_text().startswith("case_id,prompt,dice,iou,hd95,nsd,precision,recall,ece,brier,")
    answer = vlsm("evaluate", by_file, "--split", "all")
    assert answer.code == 0, answer.err
    answer = vlsm("report", folder, folder / "zero_shot_cases.csv", "--metric", "dice")
    assert answer.code == 0, answer.err
    assert "| Dice (higher is better) | direct zero-shot | direct |" in answer.out
    answer = vlsm("report", direct, by_file)
    assert answer.code == 2
    assert "--common compares those that all have" in answer.error
    answer = vlsm("report", direct, by_file, "--common", "--out", tmp_path / "comparison.md")
    assert answer.out.split() == [str(tmp_path / "comparison.md"), str(tmp_path / "comparison.json")]
    answer = vlsm("report", folder, "--common")
    assert (answer.code, "at least two" in answer.error) == (2, True)


def test_a_base_model_alone_on_a_fold(vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path) -> None:
    splits = tmp_path / "splits"
    assert vlsm("data", "split", phantoms, "--out", splits, "--folds", 5, "--seed", 3, "--quiet").code == 0
    file = splits / "fold-2-of-5.json"
    wanted = json.loads(file.read_text())["test"]
    options = ("--model", base_folder, "--data", phantoms)
    for name, more in (("a", ("--split-file", file)), ("b", ("--fold", "2/5", "--split-seed", 3))):
        answer = vlsm("evaluate", *options, *more, "-o", tmp_path / name)
        assert answer.code == 0, answer.err
        rows = list(csv.DictReader((tmp_path / name / "zero_shot_cases.csv").read_text().splitlines()))
        assert sorted(row["case_id"] for row in rows) == sorted(wanted)
    assert "fold 2 of 5, split seed 3" in (tmp_path / "b" / "report.md").read_text()
    answer = vlsm("evaluate", *options, "--split-file", file, "--fold", "2/5", "-o", tmp_path / "c")
    assert (answer.code, "give one of them" in answer.error) == (2, True)
    answer = vlsm("evaluate", tmp_path / "run", "--fold", "2/5")
    assert (answer.code, "are for a base model alone" in answer.error) == (2, True)


def test_wrong_divisions_are_one_line(vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path) -> None:
    for arguments, says in (
        (("--folds", 99), "give at most 10 folds"),
        (("--subset", "5 cases"), "such as 5%, or how many, such as 20"),
        (("--fractions", 0.5, 0.5, 0.5), "together 1"),
        (("--stratify", "area"), "stratify 'area'"),
    ):
        answer = vlsm("data", "split", phantoms, "--out", tmp_path / "out", *arguments)
        assert answer.code == 2
        assert says in answer.error
        assert len(answer.error.splitlines()) == 1
        assert not (tmp_path / "out").exists()
    answer = vlsm("train", "--data", phantoms, "--model", base_folder, "-o", tmp_path / "r", "--set", "data.subset=7")
    assert (answer.code, answer.error.count("\n")) == (2, 0)
    assert "there are 6 training cases; give at most 6" in answer.error
    assert not (tmp_path / "r").exists()
