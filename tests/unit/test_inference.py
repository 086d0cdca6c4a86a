"""Logits at native size, the text cache, devices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlsm_adapter.errors import UserError
from vlsm_adapter.inference import (
    TextCache,
    check_threshold,
    choose_device,
    decode,
    inferring,
    probability_at_size,
    resize_logits,
    weights_in_use,
)
from vlsm_adapter.models.low_precision import lower_precision


def test_enlarged_logits_give_a_smooth_edge_where_an_enlarged_mask_has_steps() -> None:
    ramp = torch.linspace(-3, 3, 8).expand(8, 8)  # zero lies between columns 3 and 4
    tilted = ramp + torch.linspace(-1.5, 1.5, 8)[:, None]
    mask = probability_at_size(tilted, (80, 80)) > 0.5
    first = mask.argmax(axis=1)
    assert len(set(first.tolist())) > 20  # an edge of many places; a mask enlarged tenfold has at most eight
    assert (np.diff(first) <= 0).all()


def test_equal_size_changes_nothing_and_half_becomes_float32() -> None:
    logits = torch.randn(2, 5, 7)
    assert torch.equal(resize_logits(logits, (5, 7)), logits)
    assert resize_logits(logits.half(), (10, 14)).dtype == torch.float32


def test_shrinking_reads_every_pixel() -> None:
    one = torch.zeros(1, 64, 64)
    one[0, 21, 42] = 64.0
    assert resize_logits(one, (8, 8)).sum() > 0.9  # a bilinear filter without antialias would step over it
    flat = resize_logits(torch.full((1, 64, 64), 1.5), (7, 90))
    torch.testing.assert_close(flat, torch.full((1, 7, 90), 1.5))


def test_pixel_areas_are_aligned() -> None:
    # The image's centre of mass stays: nothing moves by half a pixel.
    logits = torch.zeros(1, 9, 9)
    logits[0, 4, 4] = 1.0
    large = resize_logits(logits, (45, 45))[0]
    place = torch.arange(45.0)
    assert (large.sum(1) * place).sum() / large.sum() == pytest.approx(22.0, abs=1e-3)
    assert (large.sum(0) * place).sum() / large.sum() == pytest.approx(22.0, abs=1e-3)


def test_training_mode_is_put_back_module_by_module(model) -> None:
    model.eval()
    model.clipseg.decoder.train()
    with inferring(model):
        assert not any(module.training for module in model.modules())
        assert torch.is_inference_mode_enabled()
    assert model.clipseg.decoder.training
    assert not model.clipseg.clip.training


def test_prompts_are_encoded_once_and_as_one_by_one(model, monkeypatch) -> None:
    calls: list[int] = []
    encode = model.encode_text
    monkeypatch.setattr(model, "encode_text", lambda ids, mask=None: calls.append(len(ids)) or encode(ids, mask))
    texts = TextCache(model)
    with inferring(model):
        both = texts(["polyp", "the small round skin lesion", "polyp"]).condition
        assert calls == [2]
        again = texts(["the small round skin lesion"]).condition
        assert calls == [2]
        alone = TextCache(model)(["polyp"]).condition
    assert torch.equal(both[0], both[2])
    assert torch.equal(again[0], both[1])
    torch.testing.assert_close(alone[0], both[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("at_once", [32, 2, 1])
def test_many_prompts_are_decoded_in_parts_with_the_same_result(model, inputs, monkeypatch, at_once: int) -> None:
    monkeypatch.setattr(type(model), "prompts_at_once", lambda self, image: at_once)
    prompts = [f"{word} {number}" for number in range(9) for word in ("skin", "the", "polyp", "round", "in")]
    with inferring(model):
        image = model.encode_image(inputs["pixel_values"])
        text = TextCache(model)(prompts)
        index = [number % 2 for number in range(len(prompts))]
        whole = model.decode(image, text, torch.tensor(index))
        torch.testing.assert_close(decode(model, image, text, index), whole, atol=1e-5, rtol=1e-5)


def test_few_wide_prompts_are_decoded_together(model, inputs, monkeypatch) -> None:
    with inferring(model):
        image = model.encode_image(inputs["pixel_values"])
    few = model.prompts_at_once(image)
    assert 1 <= few <= 32
    monkeypatch.setattr(model.clipseg.config, "decoder_intermediate_size", 10**7)
    assert model.prompts_at_once(image) == 1


def test_a_change_of_weights_is_seen(model) -> None:
    before = weights_in_use(model)
    assert weights_in_use(model) == before
    with torch.no_grad():
        next(model.parameters()).add_(0.0)
    assert weights_in_use(model) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.to(torch.bfloat16),
        lambda model: model.to("meta"),
        lambda model: setattr(next(model.parameters()), "data", next(model.parameters()).data.clone()),
        lambda model: lower_precision(model, "bf16"),
    ],
    ids=["type", "device", "data", "precision"],
)
def test_a_change_of_type_device_or_precision_is_seen(model, change) -> None:
    before = weights_in_use(model)
    change(model)
    assert weights_in_use(model) != before


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device(None).type in ("cpu", "cuda")
    with pytest.raises(UserError, match="unknown"):
        choose_device("gpu0")
    with pytest.raises(UserError, match="not on this machine"):
        choose_device("cuda:99")


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), "high", None])
def test_a_threshold_is_a_probability(threshold: object) -> None:
    with pytest.raises(UserError, match="from 0 to 1"):
        check_threshold(threshold)  # type: ignore[arg-type]
    assert check_threshold("0.25") == 0.25  # type: ignore[arg-type]
