"""The state file: round trip, and damaged or foreign ones."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from vlsm_adapter.checkpoint import Progress, load_state, read_state, save_state
from vlsm_adapter.errors import TrainingError


def trained() -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(5, 4)).square().sum().backward()
    optimizer.step()


def test_continued_from_a_file_is_continued_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = trained()
    progress = Progress(epoch=2, batch=3, update=9, best=0.5, history=[{"epoch": 1, "loss": 0.1 + 0.2}])
    save_state(tmp_path / "state.safetensors", model, optimizer, progress)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[2].weight.zero_()
    fresh = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        step(model, optimizer)
    assert load_state(tmp_path / "state.safetensors", other, fresh) == progress
    for _ in range(2):
        step(other, fresh)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, this machine has none"),
            ],
        ),
    ],
)
def test_a_fused_optimizer_goes_on_from_a_plain_one(tmp_path: Path, device: str) -> None:
    model, optimizer = trained()
    save_state(tmp_path / "state.safetensors", model, optimizer, Progress())
    other = copy.deepcopy(model).to(device)
    fused = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], lr=0.1, fused=True)
    load_state(tmp_path / "state.safetensors", other, fused)
    x = torch.randn(5, 4)
    for one, steps in ((model, optimizer), (other, fused)):
        steps.zero_grad()
        one(x.to(next(one.parameters()).device)).square().sum().backward()
        steps.step()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.cpu())


def test_frozen_weights_are_not_stored(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_state(tmp_path / "state.safetensors", model, optimizer, Progress())
    tensors, _ = read_state(tmp_path / "state.safetensors")
    assert not any(key.startswith("weights/0.") for key in tensors)


def test_damaged_and_foreign_states_are_refused_and_change_nothing(tmp_path: Path) -> None:
    model, optimizer = trained()
    file = tmp_path / "state.safetensors"
    save_state(file, model, optimizer, Progress())
    before = [parameter.clone() for parameter in model.parameters()]
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(TrainingError, match="damaged"):
        load_state(file, model, optimizer)
    save_state(file, model, optimizer, Progress())
    model[0].requires_grad_(True)
    with pytest.raises(TrainingError, match="another model or adapter"):
        load_state(file, model, optimizer)
    model[0].requires_grad_(False)
    model[2] = nn.Linear(3, 7)
    with pytest.raises(TrainingError, match="another shape"):
        load_state(file, model, optimizer)
    assert torch.equal(before[0], next(model.parameters()))
    file.write_bytes(b"\x80\x04junk")
    with pytest.raises(TrainingError, match="damaged"):
        read_state(file)
