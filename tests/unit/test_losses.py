"""Losses against hand-computed values, and what the published one does to a wrong pixel."""

from __future__ import annotations

import math

import pytest
import torch

from vlsm_adapter.losses import LOSSES, soft_dice_loss


def test_dice_loss_of_hand_computed_cases() -> None:
    target = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    assert soft_dice_loss(target, target).item() == pytest.approx(0.0, abs=1e-6)
    half = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    assert soft_dice_loss(half, target).item() == pytest.approx(1 - 2 / 3, abs=1e-5)
    empty = torch.zeros_like(target)
    assert soft_dice_loss(empty, empty).item() == pytest.approx(0.0, abs=1e-6)


def test_dice_bce_of_a_known_pixel() -> None:
    logits, target = torch.full((1, 1, 1), 2.0), torch.ones(1, 1, 1)
    probability = 1 / (1 + math.exp(-2))
    dice = 1 - (2 * probability + 1e-5) / (probability + 1 + 1e-5)
    assert LOSSES.get("dice_bce")(logits, target).item() == pytest.approx(1.5 * dice - math.log(probability), rel=1e-5)


def test_a_confidently_wrong_pixel_learns_with_ours_and_hardly_with_the_published_one() -> None:
    slopes = {}
    for name in ("dice_bce", "published"):
        logits = torch.zeros(1, 8, 8)
        logits[0, 0, 0] = 12.0
        logits.requires_grad_()
        LOSSES.get(name)(logits, torch.zeros(1, 8, 8)).backward()
        slopes[name] = logits.grad[0, 0, 0].item() * 64
    assert slopes["dice_bce"] == pytest.approx(1.0, abs=0.05)
    assert slopes["published"] < 0.01


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_is_finite_in_half_precision_at_extreme_logits(name: str) -> None:
    logits = torch.tensor([[[-60.0, 60.0], [0.0, 1e4]]], dtype=torch.bfloat16, requires_grad=True)
    loss = LOSSES.get(name)(logits, torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
