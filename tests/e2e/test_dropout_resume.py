"""Dropout and batch statistics in a run: they depend on its configuration alone, wherever it was cut off and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vlsm_adapter import fit as fit_module

FAST = ("--epochs", 2, "--batch-size", 2, "--set", "log.tensorboard=false", "--set", "train.save_seconds=0")
TELESCOPIC = ("--adapter", "telescopic", "--set", "adapter.settings.variant=published")
LORA = ("--adapter", "dora", "--set", "adapter.settings.dropout=0.3")


class CutOffError(Exception):
    """The process is gone."""


@pytest.mark.parametrize("method", [TELESCOPIC, LORA], ids=["telescopic", "dora"])
def test_cut_off_and_resumed_is_bit_equal(
    vlsm: Callable,
    phantoms: Path,
    base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: tuple[str, ...],
) -> None:
    options = ("train", "--data", phantoms, "--model", base_folder, *FAST, *method)
    assert vlsm(*options, "-o", tmp_path / "whole").code == 0

    update, done = fit_module._update, [0]

    def cut_off(*arguments: object) -> None:
        done[0] += 1
        if done[0] in (3, 6):  # in the middle of the first and of the second epoch; each time one update is lost
            raise CutOffError
        update(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fit_module, "_update", cut_off)
    broken = tmp_path / "broken"
    assert vlsm(*options, "-o", broken).code == 1
    torch.manual_seed(5)  # whatever the process that resumes has done before
    assert vlsm("train", "--resume", broken).code == 1
    torch.manual_seed(6)
    assert vlsm("train", "--resume", broken).code == 0
    assert done[0] == 2 * 3 + 2

    whole, resumed = (load_file(run / "state.safetensors") for run in (tmp_path / "whole", broken))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (broken / name).read_bytes()
    if method is TELESCOPIC:
        statistics = {key: tensor for key, tensor in whole.items() if key.startswith("buffers/")}
        assert len(statistics) == 3
        assert any(key.endswith("num_batches_tracked") and tensor == 6 for key, tensor in statistics.items())


def test_dropout_changes_the_run_and_seeds_change_the_dropout(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    def final(name: str, *more: object) -> dict[str, torch.Tensor]:
        options = ("train", "--data", phantoms, "--model", base_folder, *FAST, "--adapter", "lora")
        assert vlsm(*options, *more, "-o", tmp_path / name).code == 0
        return load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")

    dropout = ("--set", "adapter.settings.dropout=0.5")
    plain, dropped, again = final("plain"), final("dropped", *dropout), final("again", *dropout)
    assert all(torch.equal(tensor, again[key]) for key, tensor in dropped.items())
    assert not all(torch.equal(tensor, plain[key]) for key, tensor in dropped.items())
