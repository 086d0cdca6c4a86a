"""Several processes that train one run end where one process with as large a batch does."""

from __future__ import annotations

import csv
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

# Five training cases: in the last batch of an epoch the second process has none.
_SETTINGS = (
    "train.precision=32-true", "data.subset=5", "log.tensorboard=false", "train.schedule=plateau", "train.patience=0",
    "data.level=random",
)  # fmt: skip


def _options(data: Path, model: Path, out: Path, epochs: int, *settings: str) -> list[object]:
    assigned = [part for setting in (*_SETTINGS, *settings) for part in ("--set", setting)]
    return ["train", "--data", data, "--model", model, "-o", out, "--epochs", epochs, "--lr", 0.01, *assigned]


def _rows(run: Path) -> list[dict[str, float | None]]:
    with (run / "metrics.csv").open() as file:
        return [{key: float(value) if value else None for key, value in row.items()} for row in csv.DictReader(file)]


def test_two_processes_are_one_with_twice_the_batch(
    start: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    every = "train.validate_every=2"
    processes = [
        start(*_options(phantoms, base_folder, one, 3, "train.batch_size=4", every)),
        start(*_options(phantoms, base_folder, two, 3, "train.batch_size=2", "train.devices=2", every)),
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert errors.count("finished: all 3 epochs") == 1, errors  # the second process says nothing

    for single, shared in zip(_rows(one), _rows(two), strict=True):
        assert single["updates"] == shared["updates"]
        for name in ("train_loss", "val_loss", "val_dice"):
            assert single[name] == shared[name] is None or abs(single[name] - shared[name]) < 1e-4, name
    assert [row["epoch"] for row in _rows(two) if row["val_dice"] is not None] == [2, 3]
    expected, got = load_file(one / "state.safetensors"), load_file(two / "state.safetensors")
    weights = [key for key in expected if key.startswith("weights/")]
    assert weights
    for key in weights:
        # Sums in another order differ in their last bits, and AdamW's first steps are as long for a gradient near zero as for
        # any other: single weights may differ by a part of a step, the others by rounding.
        torch.testing.assert_close(got[key], expected[key], atol=1e-3, rtol=1e-3)
        assert (got[key] - expected[key]).abs().median() < 1e-4, key
    assert (two / "adapter" / "adapter_model.safetensors").is_file()
    assert (
        json.loads((two / "environment.json").read_text())["device"]
        == json.loads((one / "environment.json").read_text())["device"]
    )
    assert not [file.name for file in two.iterdir() if file.name.startswith(".")]


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(
    start: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    # Most epochs are not validated: the stops come in such a one.
    settings = ("train.batch_size=2", "train.devices=2", "train.validate_every=150")
    process = start(*_options(phantoms, base_folder, run, 400, *settings))
    deadline = time.monotonic() + 120
    while not (run / "state.safetensors").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # to the first alone: it tells the second
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"vlsm train --resume {run}" in errors
    assert "Traceback" not in errors
    assert errors.count("stopping after this update") == 1

    process = start("train", "--resume", run)
    while "resumed at" not in (run / "log.txt").read_text() and time.monotonic() < deadline + 120:
        time.sleep(0.05)
    done = len(_rows(run))
    while len(_rows(run)) < done + 2 and process.poll() is None and time.monotonic() < deadline + 120:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert len(_rows(run)) >= done + 2
