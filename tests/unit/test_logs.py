"""Where scalars go: TensorBoard for real, W&B and MLflow through their interface, and what is said where they lack."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from vlsm_adapter.config import RunConfig
from vlsm_adapter.errors import ConfigError
from vlsm_adapter.logs import Logs
from vlsm_adapter.run_folder import RunFolder


def config(**log: bool) -> RunConfig:
    return RunConfig.load(None, {"data.path": "x", **{f"log.{key}": value for key, value in log.items()}})


def test_tensorboard_events_can_be_read_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = Logs(config(), RunFolder(tmp_path), first_step=0)
    for step, value in ((1, 0.5), (2, 0.25)):
        logs.write({"train_loss": value}, step)
    logs.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train_loss")] == [(1, 0.5), (2, 0.25)]


def test_wandb_and_mlflow_get_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple] = []
    run = SimpleNamespace(
        log=lambda values, step: seen.append(("wandb", values, step)), finish=lambda: seen.append(("wandb finish",))
    )
    wandb, mlflow = ModuleType("wandb"), ModuleType("mlflow")
    wandb.init = lambda **keywords: run  # type: ignore[attr-defined]
    mlflow.set_experiment = lambda name: seen.append(("experiment", name))  # type: ignore[attr-defined]
    mlflow.start_run = lambda run_name: seen.append(("start", run_name))  # type: ignore[attr-defined]
    mlflow.log_metrics = lambda values, step: seen.append(("mlflow", values, step))  # type: ignore[attr-defined]
    mlflow.end_run = lambda: seen.append(("mlflow end",))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    logs = Logs(config(tensorboard=False, wandb=True, mlflow=True), RunFolder(tmp_path), first_step=0)
    logs.write({"val_dice": 0.5}, 3)
    logs.close()
    assert ("wandb", {"val_dice": 0.5}, 3) in seen
    assert ("mlflow", {"val_dice": 0.5}, 3) in seen
    assert seen[-2:] == [("wandb finish",), ("mlflow end",)]


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_the_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"pip install 'vlsm-adapter\[{package}\]'"):
        Logs(config(tensorboard=False, **{package: True}), RunFolder(tmp_path), first_step=0)


def test_a_resumed_run_keeps_the_event_of_its_last_update_and_drops_later_ones(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, steps in ((0, (2, 4, 6)), (4, (6,))):
        logs = Logs(config(), RunFolder(tmp_path), first_step=first)
        for step in steps:
            logs.write({"train_loss": first + step / 8}, step)
        logs.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train_loss")] == [(2, 0.25), (4, 0.5), (6, 4.75)]
