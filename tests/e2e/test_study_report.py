"""``vlsm report`` on a folder of runs, from training to the page, as a user runs it."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vlsm_adapter.config import RunConfig
from vlsm_adapter.data.images import read_image
from vlsm_adapter.evaluate import evaluate_run
from vlsm_adapter.examples import read_examples
from vlsm_adapter.train import train


@pytest.fixture(scope="module")
def three_runs(phantoms: Path, base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("three") / "runs"
    for method, seed in (("decoder_only", 1), ("decoder_only", 2), ("shallow", 1)):
        values = {
            "data.path": str(phantoms),
            "model.name": str(base_folder),
            "adapter.method": method,
            "train.seed": seed,
            "train.epochs": 1,
            "train.batch_size": 4,
            "log.tensorboard": False,
        }
        run = train(RunConfig.load(None, values), root / f"{method}-{seed}")
        evaluate_run(run.path)
    return root


@pytest.fixture
def runs(three_runs: Path, tmp_path: Path) -> Path:
    """Three plain runs, two methods, evaluated; made without a study. The test's own."""
    return shutil.copytree(three_runs, tmp_path / "runs")


def test_from_runs_to_a_report_and_back_from_its_small_form(vlsm: Callable, runs: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    answer = vlsm("report", runs, "--small", tmp_path / "small", "--metric", "dice", "--metric", "nsd")
    assert answer.code == 0, answer.err
    assert "4 results in 1 table" in answer.out  # the base model's scores are the same in every run
    out = runs / "report"
    rows = {(row["label"], row["metric"]): row for row in csv.DictReader((out / "table.csv").open())}
    assert {label for label, _ in rows} == {"Zero-shot", "Decoder only", "Shallow"}
    assert {metric for _, metric in rows} == {"dice", "nsd"}
    assert rows["Decoder only", "dice"]["seeds"] == "1 2"
    summary = json.loads((runs / "shallow-1/evaluation/test-p1/summary.json").read_text())
    assert float(rows["Shallow", "dice"]["mean"]) == pytest.approx(
        summary["adapter"]["metrics"]["dice"]["mean"], abs=1e-5
    )
    assert int(rows["Shallow", "dice"]["trainable_parameters"]) == summary["trained_adapter"]["trainable_parameters"]
    # The cases for the grid are the same whatever the method, and their masks are kept with them.
    kept = [read_examples(runs / name / "evaluation/test-p1/images") for name in ("decoder_only-1", "shallow-1")]
    assert [one.case_id for one in kept[0]] == [one.case_id for one in kept[1]]
    assert set(kept[0][0].masks) == {"adapter", "zero_shot"}
    with Image.open(out / "figures/qualitative.png") as picture:
        assert picture.width > 1000
    assert read_image(out / "figures/learning_curves.png").std() > 5
    again = vlsm("report", tmp_path / "small", "-o", tmp_path / "again", "--metric", "dice", "--metric", "nsd")
    assert again.code == 0, again.err
    assert (tmp_path / "again/table.csv").read_bytes() == (out / "table.csv").read_bytes()
    assert not (tmp_path / "again/figures/qualitative.png").exists()


def test_evaluations_are_reported_as_before_and_wrong_options_refused(vlsm: Callable, runs: Path) -> None:
    one, other = (runs / name / "evaluation/test-p1" for name in ("decoder_only-1", "shallow-1"))
    assert vlsm("report", one).out.strip() == str(one / "report.md")
    assert "# Comparison of 2 runs" in vlsm("report", one, other).out
    assert "# Comparison of 2 runs" in vlsm("report", one.parents[1], other.parents[1]).out
    for wrong, says in (
        (("report", one, "--reference", "dense"), "are for a study"),
        (("report", runs, "--pairs", "all"), "--reference"),
        (("report", runs, "--reference", "dense"), "allowed: decoder_only, shallow, zero_shot"),
        (("report", runs, "--metric", "dise"), "did you mean 'dice'"),
        (("report", runs / "none"), "none: is not there; give a study"),
    ):
        answer = vlsm(*wrong)
        assert answer.code == 2
        assert says in answer.error
        assert "Traceback" not in answer.err
    assert not (runs / "report").exists()
