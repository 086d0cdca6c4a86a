"""Validation after every few epochs: what a run leaves then, when it stops, and that it goes on with the same bits."""

from __future__ import annotations

import csv
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from vlsm_adapter import fit
from vlsm_adapter.losses import LOSSES
from vlsm_adapter.sharing.card import _training_rows
from vlsm_adapter.sharing.facts import gather
from vlsm_adapter.study.folder import best_validation

TIMES = {"seconds", "images_per_second"}
Rows = list[dict[str, str]]


def options(data: Path, model: Path, out: Path, epochs: int, *settings: str) -> list[object]:
    """Six training cases, two batches an epoch; two validation cases, one batch."""
    assigned = [part for setting in ("train.save_seconds=0", *settings) for part in ("--set", setting)]
    return ["train", "--data", data, "--model", model, "-o", out, "--epochs", epochs, "--batch-size", 4, *assigned]


def rows_of(run: Path) -> Rows:
    with (run / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def validated(run: Path) -> list[int]:
    """Epochs with scores; a row has both of them or none."""
    assert all((row["val_loss"] == "") == (row["val_dice"] == "") for row in rows_of(run))
    return [int(row["epoch"]) for row in rows_of(run) if row["val_dice"]]


@pytest.fixture
def at_call(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, Callable[[], object]], None]]:
    """``at_call(3, act)``: ``act`` is called with the third batch of the run, of training or validation."""
    right, calls = LOSSES.get("dice_bce"), 0

    def have(number: int, act: Callable[[], object]) -> None:
        def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == number:
                act()
            return right(logits, target)

        monkeypatch.setitem(LOSSES._items, "dice_bce", loss)

    yield have
    monkeypatch.undo()


def test_epochs_between_are_trained_and_saved_alone(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    states: list[int] = []
    save = fit._save
    monkeypatch.setattr(fit, "_save", lambda session: states.append(session.progress.epoch) or save(session))
    run, often = tmp_path / "run", tmp_path / "often"
    settings = ("train.precision=32-true", "train.save_seconds=1000")
    answer = vlsm(*options(phantoms, base_folder, run, 5, "train.validate_every=2", *settings))
    assert answer.code == 0, answer.err
    assert states == [1, 2, 3, 4, 5]
    assert [row["epoch"] for row in rows_of(run)] == ["1", "2", "3", "4", "5"]
    assert validated(run) == [2, 4, 5]
    told = dict(re.findall(r"epoch +(\d)/5: (.*) images/s", answer.err))
    loss, scores, speed = r"loss [\d.]+, ", r"validation loss [\d.]+, Dice [\d.]+( \(best\))?, ", r"[\d.]+"
    assert len(told) == 5
    for epoch, text in told.items():
        assert re.fullmatch(loss + scores * (epoch in "245") + speed, text), text
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    updates = {name: [event.step for event in events.Scalars(name)] for name in ("train_loss", "val_loss", "val_dice")}
    assert updates == {"train_loss": [2, 4, 6, 8, 10], "val_loss": [4, 8, 10], "val_dice": [4, 8, 10]}

    # Validation takes no part in training: only what is scored differs.
    assert vlsm(*options(phantoms, base_folder, often, 5, *settings)).code == 0
    expected, got = load_file(often / "state.safetensors"), load_file(run / "state.safetensors")
    assert all(torch.equal(expected[key], got[key]) for key in expected if not key.startswith("random/"))
    scores = {row["epoch"]: row for row in rows_of(often)}
    assert all(row == scores[row["epoch"]] for row in rows_of(run) if row["val_dice"])

    # Those who read the table: the study, the card, and the learning curve of the report.
    dice, epoch = max((float(row["val_dice"]), -int(row["epoch"])) for row in rows_of(run) if row["val_dice"])
    assert best_validation(run) == (dice, -epoch)
    facts = gather(run)
    assert (facts.epochs, facts.best) == (5, -epoch)
    assert f"epoch {-epoch}, by validation Dice every 2 epochs" in dict(_training_rows(facts))["epochs"]
    assert "by validation Dice (" in dict(_training_rows(gather(often)))["epochs"]
    assert vlsm("evaluate", run).code == 0
    svg = (run / "evaluation" / "test-p1" / "images" / "learning_curve.svg").read_text()
    lines = [points.split() for points in re.findall(r'<polyline points="([^"]+)"', svg)]
    assert [len(points) for points in lines] == [5, 3, 3]


# Batches of epochs 1 to 4: 1 2, 3 4, 5 6 and 7 of validation, 8 9 and 10 of validation.
@pytest.mark.parametrize(
    ("call", "epochs", "where"),
    [
        (3, 1, "epoch 2, batch 1"),
        (4, 2, "epoch 3, batch 0"),
        (6, 2, "epoch 3, batch 2"),
        (7, 2, "epoch 3, batch 2"),
        (8, 3, "epoch 4, batch 1"),
    ],
)
def test_stopped_anywhere_it_goes_on_with_the_same_bits(
    call: int,
    epochs: int,
    where: str,
    vlsm: Callable,
    at_call: Callable,
    phantoms: Path,
    base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings = ("train.validate_every=3", "train.schedule=plateau", "log.tensorboard=false", "data.level=random")
    assert vlsm(*options(phantoms, base_folder, whole, 4, *settings)).code == 0
    at_call(call, lambda: signal.raise_signal(signal.SIGINT))
    answer = vlsm(*options(phantoms, base_folder, broken, 4, *settings))
    assert answer.code == 130, answer.err
    assert len(rows_of(broken)) == epochs
    assert (broken / "adapter").is_dir() == (epochs >= 3)
    answer = vlsm("train", "--resume", broken)
    assert answer.code == 0, answer.err
    assert f"resumed at {where}" in answer.err
    assert validated(broken) == [3, 4]
    assert rows_of(broken) == rows_of(whole)
    expected, got = load_file(whole / "state.safetensors"), load_file(broken / "state.safetensors")
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    name = "adapter/adapter_model.safetensors"
    assert (whole / name).read_bytes() == (broken / name).read_bytes()


def test_patience_is_counted_in_epochs_and_ends_a_run_when_it_is_validated(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    settings = ("train.validate_every=3", "train.patience=4", "train.lr=1e-12", "log.tensorboard=false")
    answer = vlsm(*options(phantoms, base_folder, tmp_path / "run", 50, *settings))
    assert answer.code == 0, answer.err
    assert "finished: no better validation Dice for 6 epochs" in answer.err
    assert validated(tmp_path / "run") == [3, 6, 9]
    assert len(rows_of(tmp_path / "run")) == 9


def test_the_plateau_is_counted_in_epochs_and_ends_at_a_validation(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    settings = ("train.validate_every=4", "train.schedule=plateau", "train.lr=1e-12", "log.tensorboard=false")
    assert vlsm(*options(phantoms, base_folder, tmp_path / "run", 13, *settings)).code == 0
    rates = [float(row["learning_rate"]) for row in rows_of(tmp_path / "run")]
    assert rates == pytest.approx([1e-12] * 12 + [3e-13])


def test_a_run_of_an_earlier_version_goes_on_and_more_epochs_may_be_asked_for(
    vlsm: Callable, at_call: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    at_call(8, lambda: signal.raise_signal(signal.SIGINT))  # in epoch 3: a batch of validation after each
    assert vlsm(*options(phantoms, base_folder, run, 3, "log.tensorboard=false")).code == 130
    file = run / "config.yaml"
    config = yaml.safe_load(file.read_text())
    assert config["train"].pop("validate_every") == 1
    file.write_text(yaml.safe_dump(config))
    older = shutil.copytree(run, tmp_path / "older")
    assert vlsm("train", "--resume", older).code == 0
    assert validated(older) == [1, 2, 3]
    config["train"] |= {"validate_every": 4, "epochs": 6}
    file.write_text(yaml.safe_dump(config))
    assert vlsm("train", "--resume", run).code == 0
    assert validated(run) == [1, 2, 4, 6]
    assert gather(run).best in (1, 2, 4, 6)


def test_an_adapter_that_training_begins_from_is_scored_first(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    first, run = tmp_path / "first", tmp_path / "run"
    assert vlsm(*options(phantoms, base_folder, first, 1, "log.tensorboard=false")).code == 0
    answer = vlsm(
        "train", "--resume-from", first, "--data", phantoms, "-o", run, "--epochs", 9, "--lr", 1e-12,
        "--set", "train.validate_every=2", "--set", "train.patience=3", "--set", "log.tensorboard=false",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert "before training: validation loss" in answer.err
    assert "finished: no better validation Dice for 4 epochs" in answer.err
    assert validated(run) == [2, 4]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("0", "must be from 1 to 100000"),
        ("-1", "must be from 1 to 100000"),
        ("2.5", "must be of type int"),
        ("often", "must be of type int"),
        ("true", "must be of type int"),
    ],
)
def test_what_is_no_number_of_epochs_is_one_line(
    value: str, says: str, vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    answer = vlsm(*options(phantoms, base_folder, tmp_path / "run", 2, f"train.validate_every={value}"))
    assert answer.code == 2
    assert len(answer.error.splitlines()) == 1
    assert "train.validate_every=" in answer.error
    assert says in answer.error
    assert not (tmp_path / "run").exists()
