"""The whole report: its files, what it replaces, what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest

from vlsm_adapter import files
from vlsm_adapter.errors import UserError
from vlsm_adapter.study_report.figures import draw
from vlsm_adapter.study_report.write import write_study_report


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def small_study(fake: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One data set; reports on it have no figures, which take their time."""
    monkeypatch.setattr("vlsm_adapter.study_report.figures.draw.drawn", lambda *_: iter(()))
    return fake.write_study(tmp_path / "study", methods=("decoder_only", "dense_v"), data=("isic",), seeds=(1, 2))


def test_all_files(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    all_drawn = draw.drawn
    monkeypatch.setattr(draw, "drawn", lambda *given: islice(all_drawn(*given), 1))  # one is enough to find its files
    report = write_study_report([study], out=tmp_path / "out", n_boot=60)
    listed = names(tmp_path / "out")
    assert {"report.md", "report.html", "report.json", "table.csv", "runs.csv", "tables/table1.tex"} <= listed
    assert {f"figures/pareto.{ending}" for ending in ("svg", "pdf", "png")} <= listed
    values = json.loads((tmp_path / "out/report.json").read_text())
    assert set(values["files"]) | {"report.json"} == listed
    assert len(values["tables"]) == 2
    runs = list(csv.DictReader((tmp_path / "out/runs.csv").open()))
    lora = [row for row in runs if row["method"] == "lora" and row["metric"] == "dice" and row["data"] == "isic"]
    assert {(row["fraction"], row["seed"]) for row in lora} == {(f, s) for f in ("100%", "10%") for s in ("41", "42")}
    markdown = (tmp_path / "out/report.md").read_text()
    assert "](figures/pareto.svg)" in markdown
    assert str(study.parent) not in markdown + (tmp_path / "out/report.html").read_text() + json.dumps(values)
    assert report.notes[-1] == f"report: {tmp_path / 'out/report.html'}"


def test_a_report_is_replaced_and_nothing_else(small_study: Path, tmp_path: Path) -> None:
    out = small_study / "report"
    write_study_report([small_study], n_boot=20)
    stale = out / "figures/old.svg"
    stale.parent.mkdir()
    stale.write_text("x")
    (out / "mine.txt").write_text("x")
    outside = tmp_path / "outside.txt"
    outside.write_text("x")
    values = json.loads((out / "report.json").read_text())
    values["files"] += ["figures/old.svg", "../../outside.txt", str(outside)]
    (out / "report.json").write_text(json.dumps(values))
    write_study_report([small_study], n_boot=20)
    assert not stale.exists()
    assert (out / "mine.txt").exists()
    assert outside.exists()
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "README.md").write_text("mine")
    with pytest.raises(UserError, match="holds no report of a study"):
        write_study_report([small_study], out=taken)
    with pytest.raises(UserError, match="is a file"):
        write_study_report([small_study], out=taken / "README.md")
    (taken / "table.csv").write_text("mine")
    with pytest.raises(UserError, match="not of a study's small form"):
        write_study_report([small_study], small=taken)


def test_a_report_that_was_cut_short_is_made_anew(
    small_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes = files.write_bytes
    out, small = tmp_path / "out", tmp_path / "small"
    for dies_at in (out / "table.csv", small / "table.csv"):

        def killed(path: Path, content: bytes, at: Path = dies_at) -> None:
            if path == at:
                raise KeyboardInterrupt
            write_bytes(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(files, "write_bytes", killed)
            with pytest.raises(KeyboardInterrupt):
                write_study_report([small_study], out=out, small=small, n_boot=20)
        # What was written before its end is known as this report's, and goes with a next one that lacks it.
        assert (out / "tables/table1.tex").is_file()
        assert "tables/table1.tex" in json.loads((out / "report.json").read_text())["files"]
    write_study_report([small_study], out=out, small=small, n_boot=20)
    assert json.loads((out / "report.json").read_text())["tables"]
    assert (small / "table.csv").is_file()


def test_a_study_goes_on_elsewhere_from_its_small_form(fake: ModuleType, small_study: Path, tmp_path: Path) -> None:
    small = tmp_path / "docs/results/study"
    write_study_report([small_study], small=small, n_boot=20)
    first = (small / "table.csv").read_bytes()
    assert {"runs.csv", "table.csv", "table.json"} <= names(small)
    # Rebuilt without the run folders: the very same table.
    write_study_report([small], out=tmp_path / "again", n_boot=20)
    assert (tmp_path / "again/table.csv").read_bytes() == first
    # The other machine has no old run folders, runs one more method, and merges.
    other = fake.write_study(tmp_path / "other", methods=("lora",), data=("isic",), seeds=(1, 2))
    write_study_report([other], small=small, n_boot=20)
    labels = {row["label"] for row in csv.DictReader((small / "table.csv").open())}
    assert labels == {"Zero-shot", "Decoder only", "LoRA", "Dense V"}
    assert not [name for name in names(small) if name.endswith((".png", ".jpg", ".svg", ".html"))]
    # A run of the same cell and seed with other numbers is no merge.
    clash = fake.write_study(tmp_path / "clash", methods=("lora",), data=("isic",), seeds=(1,))
    scores = next(clash.glob("runs/*/*/*/*/*/*/evaluation/*/cases.csv"))
    lines = scores.read_text().splitlines()
    fields = lines[1].split(",")
    fields[2] = str(float(fields[2]) - 0.001)
    scores.write_text("\n".join([lines[0], ",".join(fields), *lines[2:]]) + "\n")
    before = names(small)
    with pytest.raises(UserError, match="are both isic, lora, level p1, seed 1, but dice of case") as caught:
        write_study_report([clash], small=small)
    assert str(small / "runs") in str(caught.value)  # where that file is, not where its run once was
    assert names(small) == before


def test_without_matplotlib_there_are_tables(
    small_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report = write_study_report([small_study], out=tmp_path / "out", n_boot=20)
    assert "pip install 'vlsm-adapter[study]'" in report.notes[0]
    assert "\n" not in report.notes[0]
    assert "report.html" in names(tmp_path / "out")
    assert not [name for name in names(tmp_path / "out") if name.startswith("figures/")]


def test_nothing_to_report(fake: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no run folder and no result"):
        write_study_report([tmp_path / "empty"])
    run = fake.FakeRun(tmp_path / "study/run", [0.5, 0.6]).write()
    shutil.rmtree(run / "evaluation")
    with pytest.raises(UserError, match="1 run, none evaluated yet"):
        write_study_report([tmp_path / "study"])
    fake.FakeRun(tmp_path / "study/run", [0.5, 0.6]).write()
    (run / "evaluation/test-p1/summary.json").write_text("{")
    with pytest.raises(UserError, match=r"no evaluation can be used; study/run/evaluation/test-p1: .*damaged"):
        write_study_report([tmp_path / "study"])
    assert not (tmp_path / "study/report").exists()


def test_a_reference_that_is_no_method_writes_nothing(small_study: Path) -> None:
    with pytest.raises(UserError, match="allowed: decoder_only, dense_v, zero_shot"):
        write_study_report([small_study], reference="dense_x")
    with pytest.raises(UserError, match="--metric"):
        write_study_report([small_study], metrics=["accuracy"])
    assert not (small_study / "report").exists()


def test_a_split_without_results_writes_nothing(small_study: Path) -> None:
    with pytest.raises(UserError, match="--split 'tset': no result is of this split; did you mean 'test'"):
        write_study_report([small_study], splits=["tset"])
    for summary in small_study.rglob("summary.json"):
        summary.write_text(summary.read_text().replace('"split": "test"', '"split": "val"'))
    with pytest.raises(UserError, match="no result is of split test or all: choose with --split one of val"):
        write_study_report([small_study])
    assert not (small_study / "report").exists()


def test_unfinished_and_damaged_runs_are_in_the_report(fake: ModuleType, small_study: Path, tmp_path: Path) -> None:
    run = fake.FakeRun(small_study / "runs/half", [0.5, 0.6]).write()
    shutil.rmtree(run / "evaluation")
    (small_study / "runs/isic/bad.result.json.gz").write_bytes(b"x")
    report = write_study_report([small_study], n_boot=20)
    text = (report.folder / "report.md").read_text()
    assert "study/runs/half" in text
    assert "bad.result.json.gz" in text
    assert "1 run not finished" in report.notes[0]
