"""``vlsm data import`` as a user runs it: to a set that trains, through a kill, and with mistakes."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Twelve images of six patients, with label maps of two organs (1 and 2)."""
    root = tmp_path / "mine"
    for number in range(12):
        labels = np.zeros((48, 40), np.uint8)
        labels[4:20, 6 : 10 + number] = 1
        labels[30:40, 10:20] = 2
        pixels = np.random.default_rng(number).integers(0, 90, (48, 40, 3)).astype(np.uint8) + labels[..., None] * 60
        for folder, values in (("images", pixels), ("masks", labels)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(root / folder / f"patient{number // 2}_{number}.png")
    return root


def test_import_show_train(vlsm: Callable, labelled: Path, base_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "organs"
    arguments = [
        "data",
        "import",
        labelled,
        "--out",
        out,
        "--classes",
        "1=liver,2=kidney",
        "--group-by",
        "^images/(patient[0-9])",
    ]
    answer = vlsm(*arguments)
    assert answer.code == 0, answer.err
    assert "24 cases on 12 images; liver 12, kidney 12; 6 groups" in answer.err
    assert "next: vlsm data show" in answer.err
    assert "24 of them by an earlier call" in vlsm(*arguments).err
    assert "24 cases" in vlsm("data", "show", out).out
    run = tmp_path / "run"
    answer = vlsm("train", "--data", out, "--model", base_folder, "--epochs", 1, "--batch-size", 8, "--out", run, "-q")
    assert answer.code == 0, answer.err
    assert (run / "adapter").is_dir()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], 'do not say what they show: pass --prompt "polyp"|does not say what they show: pass --prompt "polyp"'),
        (["--classes", "1=liver"], "which the class table does not name: add them, e.g. 2=NAME"),
        (["--classes", "1=liver,2=liver", "--plane", "axial"], "--plane says nothing about the format 'multilabel'"),
        (["--prompt", "x", "--format", "coco"], "no COCO file"),
        (["--prompt", "x", "--format", "cocoa"], "unknown format 'cocoa': did you mean 'coco'"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    vlsm: Callable, labelled: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    import re

    out = tmp_path / "out"
    answer = vlsm("data", "import", labelled, "--out", out, *options)
    assert answer.code == 2
    assert len(answer.error.splitlines()) == 1
    assert re.search(says, answer.error), answer.error
    assert not out.exists()
    assert not answer.out


def test_a_killed_import_goes_on(vlsm: Callable, start: Callable, tmp_path: Path) -> None:
    """SIGKILL in the middle: no data set is there; the same command finishes it, equal to one that was not killed."""
    data, count = tmp_path / "data", 120
    pixels = np.random.default_rng(0).integers(0, 255, (120, 120, 3), np.uint8)
    mask = Image.fromarray((pixels[..., 0] > 127).astype(np.uint8) * np.uint8(255))
    for number in range(count):
        for folder in ("images", "masks"):
            (data / folder).mkdir(parents=True, exist_ok=True)
        pixels[0, 0] = number, 0, 0
        Image.fromarray(pixels).save(data / f"images/{number:03d}.png", compress_level=1)
        mask.save(data / f"masks/{number:03d}.png")

    def arguments(out: Path) -> list[str]:
        return ["data", "import", str(data), "--out", str(out), "--prompt", "polyp", "--jobs", "1"]

    out, whole = tmp_path / "killed/set", tmp_path / "whole/set"
    journal = out / "records.jsonl.partial"
    process = start(*arguments(out))
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        if journal.is_file() and journal.stat().st_size > 3_000:
            process.kill()
            break
        time.sleep(0.002)
    assert process.wait(timeout=30) == -signal.SIGKILL, "it ended before it could be killed: make the set larger"
    assert journal.is_file()
    assert not (out / "records.jsonl").exists()
    refused = vlsm("data", "show", out, "--prompt", "polyp")
    assert refused.code == 2
    assert "was stopped" in refused.error, "half a set is none"
    finished = vlsm(*arguments(out))
    assert finished.code == 0, finished.err
    assert "of them by an earlier call" in finished.err
    assert vlsm(*arguments(whole)).code == 0
    files = [file.relative_to(whole) for file in sorted(whole.rglob("*"))]
    assert files == [file.relative_to(out) for file in sorted(out.rglob("*"))]
    assert [
        file for file in files if (whole / file).is_file() and (whole / file).read_bytes() != (out / file).read_bytes()
    ] == []
    assert json.loads((out / "dataset.json").read_text())["cases"] == count
