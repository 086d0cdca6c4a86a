"""``vlsm prompts`` and ``vlsm evaluate --probes`` as a user runs them."""

from __future__ import annotations

import csv
import hashlib
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def digest(root: Path) -> dict[str, str]:
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(root.rglob("*")) if file.is_file()
    }


def test_from_prompts_to_training_to_whether_it_listens(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    before = digest(phantoms)
    words = tmp_path / "prompts.jsonl"
    answer = vlsm("prompts", phantoms, "--out", words, "--show", "2")
    assert answer.code == 0, answer.err
    assert answer.out.count("p1        polyp") == 2
    assert "p6 leaks  " in answer.out
    assert "not said" in answer.err
    assert f"next: vlsm train --data {words}" in answer.err
    assert digest(phantoms) == before

    answer = vlsm("data", "show", words)
    assert answer.code == 0, answer.err
    assert "6 train" in answer.out
    assert "p7: 'polyp, " in answer.out
    assert "p9 (from the ground truth): " in answer.out

    run = tmp_path / "run"
    options = ["--model", base_folder, "--adapter", "dense", "--level", "random", "--epochs", "1", "--batch-size", "3"]
    answer = vlsm("train", "--data", words, *options, "--out", run, "-q")
    assert answer.code == 0, answer.err

    answer = vlsm("evaluate", run, "--probes")
    assert answer.code == 0, answer.err
    assert answer.err.count("prompt sensitivity") == 2
    folder = run / "evaluation" / "test-p1"
    values = json.loads((folder / "sensitivity.json").read_text())
    assert [level["level"] for level in values["levels"]] == [f"p{number}" for number in range(10)]
    assert [level["level"] for level in values["levels"] if not level["leaks"]] == ["p0", "p1", "p7"]
    for variant in ("adapter", "zero_shot"):
        score = values["variants"][variant]["score"]["value"]
        assert score is None or 0 <= score <= 1
        assert values["levels"][1][variant]["n"] == 2
    with (folder / "probes.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {row["variant"] for row in rows} == {"adapter", "zero_shot"}
    report = (folder / "report.md").read_text()
    assert "## Does it listen to words?" in report
    answer = vlsm("report", folder)
    assert answer.code == 0
    assert (folder / "report.md").read_text() == report


def test_own_classes(vlsm: Callable, phantoms: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("bump:\n  also: [polyp]\n  descriptions: [something that stands out]\n")
    answer = vlsm("prompts", phantoms, "--classes", mine, "--show", "1", "--levels", "p1,p7")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[1:] == ["  p1        bump", "  p7        bump, something that stands out"]
    assert not answer.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say where to write"),
        (["--out", "x.json"], "ends in .jsonl"),
        (["--out", "x.jsonl", "--levels", "p12"], "level 'p12' is unknown"),
        (["--out", "x.jsonl", "--classes", "none.yaml"], "none.yaml: no such file"),
        (["--show", "1", "--prompt", " "], "the prompt is empty"),
    ],
)
def test_mistakes_end_in_one_line(
    vlsm: Callable, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = vlsm("prompts", phantoms, *options)
    assert answer.code == 2
    assert message in answer.error
    assert len(answer.error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_missing_data_set(vlsm: Callable, tmp_path: Path) -> None:
    answer = vlsm("prompts", tmp_path / "nothing", "--out", tmp_path / "p.jsonl")
    assert answer.code == 2
    assert "no such folder" in answer.error
    assert not list(tmp_path.iterdir())


def test_bad_cases_are_listed_and_the_next_command_works(vlsm: Callable, phantoms: Path, tmp_path: Path) -> None:
    data = tmp_path / "my data"
    shutil.copytree(phantoms, data)
    mask = next(path for path in sorted(data.rglob("*.png")) if "mask" in str(path.parent))
    mask.write_bytes(b"no picture")
    out = tmp_path / "my prompts.jsonl"
    answer = vlsm("prompts", data, "--out", out, "--skip-bad")
    assert answer.code == 0, answer.err
    assert answer.err.count("  left out: ") == 1
    assert str(mask) in answer.err
    (line,) = [line for line in answer.err.splitlines() if line.startswith("next: ")]
    command = shlex.split(line.removeprefix("next: "))
    assert command == ["vlsm", "train", "--data", str(out), "--level", "random", "--skip-bad"]
    assert vlsm("data", "show", out).code == 2
    assert vlsm("data", "show", out, "--skip-bad").code == 0

    answer = vlsm("prompts", data, "--show", "1", "--skip-bad")
    assert answer.err.count("  left out: ") == 1


@pytest.mark.parametrize(
    ("levels", "free", "asked"),
    [
        ("p1", "p1 is leak-free", []),
        ("p1,p7", "p1 and p7 are leak-free", ["--level", "random"]),
        ("p6", "none is leak-free", ["--level", "p6", "--set", "data.eval_level=p6"]),
        ("p4,p7", "p7 is leak-free", ["--level", "random", "--set", "data.eval_level=p7"]),
    ],
)
def test_the_next_command_asks_for_levels_that_were_made(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path, levels: str, free: str, asked: list[str]
) -> None:
    out = tmp_path / "words.jsonl"
    answer = vlsm("prompts", phantoms, "--out", out, "--levels", levels)
    assert answer.code == 0, answer.err
    assert f"({free})" in answer.err
    (line,) = [line for line in answer.err.splitlines() if line.startswith("next: ")]
    command = shlex.split(line.removeprefix("next: "))
    assert command == ["vlsm", "train", "--data", str(out), *asked]
    options = ["--model", base_folder, "--adapter", "dense", "--epochs", "1", "--batch-size", "3"]
    answer = vlsm(*command[1:], *options, "--out", tmp_path / "run", "-q")
    assert answer.code == 0, answer.err


def test_levels_without_a_description_are_not_said_to_be_there(vlsm: Callable, phantoms: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("thingummy:\n  also: [polyp]\n")
    answer = vlsm("prompts", phantoms, "--classes", mine, "--out", tmp_path / "all.jsonl")
    assert answer.code == 0, answer.err
    assert "no description, so no p7, p8, p9: thingummy" in answer.err
    assert "(p1 is leak-free)" in answer.err
    answer = vlsm("data", "show", tmp_path / "all.jsonl")
    assert "p7" not in answer.out
    for more in ([], ["--skip-bad"]):
        answer = vlsm("prompts", phantoms, "--classes", mine, "--levels", "p7", "--out", tmp_path / "none.jsonl", *more)
        assert answer.code in (0, 2), answer.err
        assert "next: " not in answer.err
