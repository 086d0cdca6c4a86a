"""Optimizer groups, schedules and the gradient check."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from vlsm_adapter.checkpoint import Progress
from vlsm_adapter.config import TrainConfig
from vlsm_adapter.errors import TrainingError
from vlsm_adapter.optimization import (
    check_gradients,
    choose_precision,
    learning_rate,
    make_optimizer,
    step_plateau,
    told_precision,
)


def test_only_trainable_weights_are_optimised_and_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.1))  # type: ignore[arg-type]
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert [id(parameter) for parameter in decayed["params"]] == [id(model[2].weight)]
    assert plain["weight_decay"] == 0.0
    assert {id(p) for p in plain["params"]} == {id(p) for p in (model[1].weight, model[1].bias, model[2].bias)}


def test_the_fused_optimizer_takes_the_same_steps() -> None:
    torch.manual_seed(0)
    first = nn.Linear(3, 4)
    second = copy.deepcopy(first)
    plain = make_optimizer(first, TrainConfig(lr=0.1))  # type: ignore[arg-type]
    fused = make_optimizer(second, TrainConfig(lr=0.1), fused=True)  # type: ignore[arg-type]
    for _ in range(3):
        x = torch.randn(5, 3)
        for model, optimizer in ((first, plain), (second, fused)):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        torch.testing.assert_close(first.weight, second.weight)


def test_nothing_to_train_is_an_error() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(TrainingError, match="no trainable parameter"):
        make_optimizer(model, TrainConfig())  # type: ignore[arg-type]


def test_cosine_rises_linearly_and_falls_to_zero() -> None:
    config = TrainConfig(lr=1.0, schedule="cosine", warmup=0.1)
    rates = [learning_rate(config, update, 100) for update in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] < 0.01
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_other_schedules_are_constant_but_for_the_plateau_factor() -> None:
    for schedule in ("plateau", "constant"):
        config = TrainConfig(lr=0.5, schedule=schedule)
        assert {learning_rate(config, update, 10) for update in range(10)} == {0.5}


def test_plateau_is_that_of_torch() -> None:
    losses = [1.0, 0.9, *[0.95] * 7, 0.8, *[0.81] * 14]
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=5)
    progress = Progress()
    for loss in losses:
        reference.step(loss)
        step_plateau(progress, loss)
        assert progress.plateau.get("factor", 1.0) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert progress.plateau["factor"] == pytest.approx(0.3**3)


def test_the_plateau_counts_epochs_that_are_not_validated_and_ends_at_a_validation() -> None:
    progress = Progress()
    # Validated after every third epoch: 1.0, then never lower.
    losses = [None, None, 1.0, None, None, 1.1, None, None, 1.2, None, None, 1.1, None, None, 0.9, None]
    factors = []
    for loss in losses:
        step_plateau(progress, loss)
        factors.append(progress.plateau.get("factor", 1.0))
    assert factors == [1.0] * 8 + [0.3] * 8  # six epochs are more than five, as where each is validated
    assert progress.plateau == {"best": 0.9, "bad": 1, "factor": 0.3}


def test_a_trainable_tensor_without_gradient_is_named() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 1)})
    model["used"](torch.ones(1, 2)).sum().backward()
    with pytest.raises(TrainingError, match=r"2 trainable tensors get no gradient, the first is 'idle.weight'"):
        check_gradients(model)
    model["idle"].requires_grad_(False)
    check_gradients(model)


def test_precision_is_fabrics_own_name_and_half_needs_a_gpu() -> None:
    assert choose_precision("auto") in ("32-true", "bf16-mixed", "16-mixed")
    assert choose_precision("32-true") == "32-true"


@pytest.mark.parametrize(
    ("gpu", "given", "says"),
    [
        (False, "16-mixed", "16-mixed needs a GPU; allowed on this machine: auto, 32-true, bf16-mixed, int8"),
        (True, "int8", "int8 is for a CPU; allowed on this machine: auto, 32-true, 16-mixed, bf16-mixed"),
        (False, "fp8", "fp8 is unknown; allowed on this machine: auto, 32-true, bf16-mixed, int8"),
    ],
)
def test_a_precision_that_is_not_for_this_machine(
    gpu: bool, given: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    with pytest.raises(TrainingError) as caught:
        choose_precision(given)
    assert str(caught.value) == f"train.precision={says}"


def test_what_training_computes_in_is_told_where_it_is_not_plain_float32() -> None:
    assert told_precision("32-true", "32-true") == told_precision("auto", "32-true") == ""
    assert told_precision("bf16-mixed", "bf16-mixed") == "precision bf16-mixed"
    told = told_precision("auto", "bf16-mixed")
    assert told.startswith("precision bf16-mixed, which this machine computes fast")
    assert "train.precision=32-true" in told
