"""Training through the command line: what a run leaves, and what stops it."""

from __future__ import annotations

import csv
import json
import math
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from vlsm_adapter import files, load_adapter
from vlsm_adapter import train as training
from vlsm_adapter.config import RunConfig
from vlsm_adapter.losses import LOSSES

FAST = ("--epochs", 2, "--batch-size", 4, "--set", "log.tensorboard=false")


def test_a_run_folder_holds_everything_and_is_readable_without_us(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    answer = vlsm(
        "train", "--data", phantoms, "--model", base_folder, "--adapter", "dense", "-o", run, "--epochs", 2,
        "--batch-size", 4,
    )  # fmt: skip
    assert answer.code == 0, answer.err
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["adapter"]["method"] == "dense"
    assert config["train"]["epochs"] == 2
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(math.isfinite(float(row["train_loss"])) for row in rows)
    splits = json.loads((run / "data.json").read_text())["splits"]
    assert {name: len(cases) for name, cases in splits.items()} == {"train": 6, "val": 2, "test": 2}
    environment = json.loads((run / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__
    assert list((run / "tensorboard").glob("events*"))
    assert "best validation Dice" in (run / "log.txt").read_text()
    with safe_open(run / "state.safetensors", framework="pt") as state:
        assert json.loads(state.metadata()["progress"])["finished"] == "all 2 epochs"
    model = load_adapter(run / "adapter")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert "validation Dice" in (run / "adapter" / "README.md").read_text()


def test_only_weights_of_the_adapter_change_and_only_weights_decay(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    answer = vlsm("train", "--data", phantoms, "--model", base_folder, "-o", run, *FAST, "--seed", 3)
    assert answer.code == 0, answer.err
    state = load_file(run / "state.safetensors")
    names = {key.split("/")[1] for key in state if key.startswith("weights/")}
    assert names
    assert all(".adapter_" in name for name in names)
    moments = {key for key in state if key.startswith("optimizer/") and key.endswith("/exp_avg")}
    assert len(moments) == len(names)


def test_two_runs_of_one_seed_are_equal_and_another_seed_differs(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    weights = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        answer = vlsm(
            "train", "--data", phantoms, "--model", base_folder, "-o", tmp_path / name, *FAST, "--seed", seed,
            "--level", "random",
        )  # fmt: skip
        assert answer.code == 0, answer.err
        weights.append(load_file(tmp_path / name / "state.safetensors"))
    same, other = weights[1], weights[2]
    assert all(torch.equal(weights[0][key], same[key]) for key in same if key.startswith("weights/"))
    assert not all(torch.equal(weights[0][key], other[key]) for key in other if key.startswith("weights/"))


def test_accumulated_steps_equal_one_large_batch(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    # The cross-entropy is a mean over pixels and the Dice loss a mean over cases, so equal parts add up exactly.
    results = []
    for name, batch, accumulate in (("whole", 6, 1), ("parts", 3, 2), ("uneven", 4, 2)):
        answer = vlsm(
            "train", "--data", phantoms, "--model", base_folder, "-o", tmp_path / name, *FAST,
            "--batch-size", batch, "--set", f"train.accumulate={accumulate}", "--set", "train.precision=32-true",
        )  # fmt: skip
        assert answer.code == 0, answer.err
        results.append(load_file(tmp_path / name / "state.safetensors"))
    for key in results[0]:
        if key.startswith("weights/"):
            for other in results[1:]:
                torch.testing.assert_close(results[0][key], other[key], atol=2e-4, rtol=0)


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "constant"])
@pytest.mark.parametrize("adapter", ["dense", "shallow"])
def test_schedules_and_methods_train(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path, schedule: str, adapter: str
) -> None:
    answer = vlsm(
        "train", "--data", phantoms, "--model", base_folder, "-o", tmp_path / "run", *FAST, "--adapter", adapter,
        "--set", f"train.schedule={schedule}", "--set", "adapter.settings.bottleneck_dim=8",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    losses = [float(row["train_loss"]) for row in csv.DictReader((tmp_path / "run" / "metrics.csv").open())]
    assert losses[1] < losses[0]


def test_early_stopping_counts_epochs_without_a_gain(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    answer = vlsm(
        "train", "--data", phantoms, "--model", base_folder, "-o", tmp_path / "run", *FAST, "--epochs", 50,
        "--lr", 1e-12, "--set", "train.patience=2",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert "no better validation Dice for 2 epochs" in answer.err
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 1 + 3


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_state(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, calls = LOSSES.get("dice_bce"), []

    def breaks(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return right(logits, target) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setitem(LOSSES._items, "dice_bce", breaks)
    run = tmp_path / "run"
    answer = vlsm("train", "--data", phantoms, "--model", base_folder, "-o", run, *FAST)
    assert answer.code == 2
    assert "loss is nan in epoch 2, batch 1 (cases phantom_endoscopy_" in answer.error
    assert "last good state is kept" in answer.error
    monkeypatch.undo()
    again = vlsm("train", "--resume", run)
    assert again.code == 0, again.err
    assert "resumed at epoch 2" in again.err


def test_a_full_disk_leaves_the_previous_state_intact(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert vlsm("train", "--data", phantoms, "--model", base_folder, "-o", run, *FAST, "--epochs", 1).code == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["train"]["epochs"] = 3
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    state = run / "state.safetensors"
    with safe_open(state, framework="pt") as handle:
        progress = json.loads(handle.metadata()["progress"])
    progress["finished"] = None
    from safetensors.torch import save_file

    save_file(load_file(state), state, metadata={"format_version": "1", "progress": json.dumps(progress)})
    before = state.read_bytes()
    adapter = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # a file that grows beyond is an error, as on a full disk
    try:
        answer = vlsm("train", "--resume", run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert answer.code == 2
    assert "cannot be written" in answer.error
    assert "is intact" in answer.error
    assert state.read_bytes() == before
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == adapter
    assert not list(run.rglob("*.tmp"))
    assert vlsm("train", "--resume", run).code == 0


def test_a_finished_run_is_left_alone_and_an_existing_folder_is_not_overwritten(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert vlsm("train", "--data", phantoms, "--model", base_folder, "-o", run, *FAST).code == 0
    before = (run / "state.safetensors").read_bytes()
    answer = vlsm("train", "--resume", run)
    assert answer.code == 0
    assert "finished already" in answer.err
    answer = vlsm("train", "--data", phantoms, "--model", base_folder, "-o", run, *FAST)
    assert answer.code == 2
    assert "--resume" in answer.error
    assert (run / "state.safetensors").read_bytes() == before


def test_skip_bad_lists_and_counts_what_it_leaves_out(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    entry = json.loads((data / "anns" / "train.json").read_text())[0]
    image = data / "images" / entry["img_name"]
    image.write_bytes(image.read_bytes()[:-2000])  # the header is sound, the pixels are not
    strict = vlsm("train", "--data", data, "--model", base_folder, "-o", tmp_path / "strict", *FAST)
    assert strict.code == 2
    assert image.name in strict.error
    assert "--skip-bad" in strict.error
    assert not (tmp_path / "strict").exists()
    lenient = vlsm("train", "--data", data, "--model", base_folder, "-o", tmp_path / "run", *FAST, "--skip-bad")
    assert lenient.code == 0, lenient.err
    assert "1 bad cases left out" in lenient.err
    skipped = json.loads((tmp_path / "run" / "data.json").read_text())["skipped"]
    assert [Path(case["path"]).name for case in skipped] == [image.name]
    evaluated = vlsm("evaluate", tmp_path / "run")
    assert evaluated.code == 0, evaluated.err
    report = (tmp_path / "run" / "evaluation" / "test-p1" / "report.md").read_text()
    assert image.name in report.replace("\\", "")


@pytest.mark.parametrize(
    ("setting", "says"), [("train.precision=16-mixed", "needs a GPU"), ("model.image_size=50", "multiples of")]
)
def test_what_cannot_run_leaves_no_folder(
    setting: str, says: str, vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    if torch.cuda.is_available() and "precision" in setting:
        pytest.skip("this machine can")
    answer = vlsm("train", "--data", phantoms, "--model", base_folder, "-o", tmp_path / "run", *FAST, "--set", setting)
    assert answer.code == 2
    assert says in answer.error
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_its_own_cases_only(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(phantoms, data)
    calls: list[int] = []
    right = LOSSES.get("dice_bce")

    def breaks(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return right(logits, target) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setitem(LOSSES._items, "dice_bce", breaks)
    assert vlsm("train", "--data", data, "--model", base_folder, "-o", run, *FAST).code == 2
    monkeypatch.undo()
    state, cases = (run / "state.safetensors").read_bytes(), (run / "data.json").read_text()
    train, test = (json.loads((data / "anns" / f"{split}.json").read_text()) for split in ("train", "test"))
    test.append(train.pop())
    for split, entries in (("train", train), ("test", test)):
        (data / "anns" / f"{split}.json").write_text(json.dumps(entries))
    answer = vlsm("train", "--resume", run)
    assert answer.code == 2
    assert "its cases are not those that run" in answer.error
    assert (run / "state.safetensors").read_bytes() == state
    assert (run / "data.json").read_text() == cases


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_a_gradient_that_is_not_a_number_is_never_saved(
    schedule: str, vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, calls = LOSSES.get("dice_bce"), []

    def breaks(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        loss = right(logits, target)
        if len(calls) == 5:  # the last batch of epoch 2: its loss is finite, its gradient is not
            loss = loss + (logits.sum() * 0).sqrt()
        return loss

    monkeypatch.setitem(LOSSES._items, "dice_bce", breaks)
    run = tmp_path / "run"
    options = (*FAST, "--set", f"train.schedule={schedule}", "--set", "train.clip_norm=0")
    answer = vlsm("train", "--data", phantoms, "--model", base_folder, "-o", run, *options)
    assert answer.code == 2
    assert "norm of the gradient is nan in epoch 2, batch 2" in answer.error
    assert all(torch.isfinite(tensor).all() for tensor in load_file(run / "state.safetensors").values())


def test_a_run_started_in_the_same_folder_meanwhile_is_left_alone(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    build = training.build

    def slowly(config: RunConfig, *args: Any, **options: Any) -> training.Parts:
        parts = build(config, *args, **options)
        files.write_text(run / "config.yaml", replace(config, train=replace(config.train, lr=0.5)).to_yaml())
        return parts

    monkeypatch.setattr(training, "build", slowly)
    answer = vlsm("train", "--data", phantoms, "--model", base_folder, "-o", run, *FAST)
    assert answer.code == 2
    assert f"{run}: another run was started there meanwhile; choose another --out" in answer.err
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["lr"] == 0.5
    assert not (run / "metrics.csv").exists()
    assert not (run / "state.safetensors").exists()
