"""A run killed at any moment and resumed ends with the same bits as one left alone."""

from __future__ import annotations

import csv
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

TIMES = {"seconds", "images_per_second"}


def _options(data: Path, model: Path, out: Path) -> list[object]:
    settings = ["train.save_seconds=0", "log.tensorboard=false", "train.patience=0", "train.schedule=plateau"]
    assigned = [part for setting in settings for part in ("--set", setting)]
    return [
        "train", "--data", data, "--model", model, "-o", out, "--epochs", 12, "--batch-size", 2, "--level", "random",
        *assigned,
    ]  # fmt: skip


def _rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def _progress(run: Path) -> int:
    """Epochs that are done; -1 before there is a run."""
    if not (run / "config.yaml").exists():
        return -1
    return len(_rows(run)) if (run / "metrics.csv").exists() else 0


@pytest.mark.parametrize("every", [1, 5])
def test_killed_at_random_moments_and_resumed_is_bit_equal(
    every: int, start: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    validated = ("--set", f"train.validate_every={every}")
    process = start(*_options(phantoms, base_folder, whole), *validated)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors

    # The first kill comes before or about the first state, the later ones a random while after ever more epochs.
    moments, kills = random.Random(7), 0
    process = start(*_options(phantoms, base_folder, broken), *validated)
    for _ in range(6):
        if kills < 4:
            deadline = time.monotonic() + 60
            while process.poll() is None and _progress(broken) < (0, 2, 5, 8)[kills] and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(moments.uniform(0.0, 0.1))
        if process.poll() is None and kills < 4:
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, errors = process.communicate(timeout=240)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors
        process = start("train", "--resume", broken)
    assert process.returncode == 0
    assert kills >= 3

    expected, got = load_file(whole / "state.safetensors"), load_file(broken / "state.safetensors")
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert _rows(whole) == _rows(broken)
    scored = [int(row["epoch"]) for row in _rows(broken) if row["val_dice"]]
    assert scored == ([5, 10, 12] if every == 5 else list(range(1, 13)))
    name = "adapter/adapter_model.safetensors"
    assert (whole / name).read_bytes() == (broken / name).read_bytes()
    assert not list((broken / "adapter").glob("*.pt"))


def test_ctrl_c_saves_and_says_how_to_continue(
    start: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(*_options(phantoms, base_folder, run)[:-1], "train.schedule=cosine", "--epochs", 500)
    deadline = time.monotonic() + 60
    while not (run / "state.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"vlsm train --resume {run}" in errors
    assert "Traceback" not in errors
    process = start("train", "--resume", run)
    while "resumed" not in (run / "log.txt").read_text() and time.monotonic() < deadline + 60:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "resumed at epoch" in errors
