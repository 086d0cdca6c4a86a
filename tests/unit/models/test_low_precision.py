"""Prediction in 8 and 16 bits: near the float32 answer, adapters as before, and clear words where it cannot be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vlsm_adapter import Predictor, attach, save_adapter
from vlsm_adapter.adapters import adapter_config, tuner
from vlsm_adapter.errors import AdapterError, ModelError
from vlsm_adapter.models.clipseg import CLIPSeg
from vlsm_adapter.models.low_precision import Int8Linear, cast_frozen, lower_precision

Build = Callable[..., CLIPSeg]
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def adapted(model: CLIPSeg, method: str = "dense") -> CLIPSeg:
    torch.manual_seed(1)
    attach(model, adapter_config(method))
    for value in model.parameters():
        if value.requires_grad:
            nn.init.normal_(value.data, std=0.05)
    return model


def asked(model: CLIPSeg) -> np.ndarray:
    predictor = Predictor(model)
    predictor.set_image(IMAGE)
    return predictor.probabilities(["polyp", "a small round tumor"])


@pytest.mark.parametrize("rows", [1, 17])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_map_in_8_bits(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 40, bias=bias)
    x = torch.randn(2, rows, 96)
    got, expected = Int8Linear(linear)(x), linear(x)
    assert got.shape == expected.shape
    assert (got - expected).norm() / expected.norm() < 0.02
    assert not torch.equal(got, expected)  # it is in 8 bits
    assert Int8Linear(linear)(x.bfloat16()).dtype == torch.bfloat16


def test_adapters_stay_in_float32_and_are_saved_so(model: CLIPSeg) -> None:
    adapted(model)
    before = {key: value.clone() for key, value in tuner.state_dict(model, "default").items()}
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # as a loaded adapter's
    lower_precision(model, "bf16")
    after = tuner.state_dict(model, "default")
    assert {value.dtype for value in after.values()} == {torch.float32}
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_no_gradient_passes_a_model_in_8_bits_for_prediction(model: CLIPSeg) -> None:
    lower_precision(model, "int8")
    adapted(model)
    tokens = model.tokenize(["polyp"])
    height, width = model.preprocessing.size
    logits = model(torch.zeros(1, 3, height, width), tokens.input_ids, tokens.attention_mask)
    with pytest.raises(ModelError, match="8 bits for prediction, and no gradient passes"):
        logits.mean().backward()


@pytest.mark.parametrize("method", ["full", "bitfit"])
def test_what_copies_weights_is_not_attached_to_a_model_in_8_bits(model: CLIPSeg, method: str) -> None:
    lower_precision(model, "int8")
    with pytest.raises(AdapterError, match=f"'{method}' trains copies of weights, .* are in 8 bits"):
        attach(model, adapter_config(method))
    attach(model, adapter_config("layernorm"))  # norms are not


@pytest.mark.parametrize("precision", ["int8", "bf16"])
@pytest.mark.parametrize("method", ["dense", "shallow", "decoder_only"])
def test_answers_are_near_those_of_float32(model: CLIPSeg, method: str, precision: str) -> None:
    adapted(model, method)
    expected = asked(model)
    told = lower_precision(model, precision)
    assert told.startswith(precision)
    got = asked(model)
    assert got.dtype == np.float32
    assert not np.array_equal(got, expected)
    assert np.abs(got - expected).max() < 0.05
    with tuner.disabled(model):
        assert not np.array_equal(asked(model), got)  # the adapter still switches


def test_every_linear_map_of_the_encoders_is_converted_beside_bottlenecks(model: CLIPSeg) -> None:
    adapted(model)
    told = lower_precision(model, "int8")
    count, total = (int(word) for word in told.split() if word.isdigit())
    assert count == total > 20
    left = [type(layer) for layer in model.clipseg.clip.vision_model.encoder.layers[0].modules()]
    assert Int8Linear in left


def test_layers_whose_weights_a_method_reads_stay(model: CLIPSeg) -> None:
    adapted(model, "dora")
    told = lower_precision(model, "int8")
    count, total = (int(word) for word in told.split() if word.isdigit())
    assert 0 < count < total


def test_nothing_to_convert_is_said(model: CLIPSeg) -> None:
    adapted(model, "full")
    with pytest.raises(ModelError, match=r"none of the .* use 'fp32' or 'bf16'"):
        lower_precision(model, "int8")


def test_weights_are_cast_once_to_what_autocast_computes(model: CLIPSeg) -> None:
    adapted(model)
    images, ids = torch.randn(1, 3, 32, 32), torch.tensor([[48, 5, 49]])
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(images, ids)
        cast_frozen(model, torch.bfloat16)
        assert torch.equal(model(images, ids), expected)
    kinds = {value.dtype for value in model.parameters() if value.requires_grad}
    assert kinds == {torch.float32}  # what trains keeps its small steps
    assert model.clipseg.clip.vision_model.encoder.layers[0].mlp.fc1.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("precision", "message"),
    [("int4", "allowed: fp32, bf16, fp16, int8"), ("fp16", "not for a CPU: use 'bf16' or 'int8'")],
)
def test_what_cannot_be_is_said(new_model: Build, precision: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        lower_precision(new_model(), precision)


def test_only_one_conversion(new_model: Build) -> None:
    model = new_model()
    assert lower_precision(model, "fp32") == "fp32"
    lower_precision(model, "bf16")
    with pytest.raises(ModelError, match="in bf16 already"):
        lower_precision(model, "int8")


def test_a_saved_adapter_answers_in_8_bits(model: CLIPSeg, base_folder: Path, tmp_path: Path) -> None:
    adapted(model)
    save_adapter(model, tmp_path / "adapter")
    answers = {}
    for precision in ("fp32", "int8"):
        predictor = Predictor.load(tmp_path / "adapter", base=base_folder, precision=precision)
        predictor.set_image(IMAGE)
        answers[precision] = predictor.probabilities(["polyp"])
        assert predictor.origin is not None
        assert predictor.origin.precision == precision  # so that other processes load the same
    assert 0 < np.abs(answers["int8"] - answers["fp32"]).max() < 0.05


# -- training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_the_gradient_through_a_map_in_8_bits(spread: float) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 40).requires_grad_(False)
    x = torch.randn(2, 17, 96, requires_grad=True)
    # Rows of very different size: each is rounded by its own range.
    gradient = torch.randn(2, 17, 40) * torch.exp(spread * torch.randn(2, 17, 1))
    (expected,) = torch.autograd.grad(linear(x), x, gradient)
    (got,) = torch.autograd.grad(Int8Linear(linear, trains=True)(x), x, gradient.clone())
    error = (got - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert 0 < error.max() < 0.03
    assert not Int8Linear(linear, trains=True)(x.detach()).requires_grad
    zero = torch.autograd.grad(Int8Linear(linear, trains=True)(x), x, torch.zeros(2, 17, 40))[0]
    assert torch.equal(zero, torch.zeros_like(zero))


@pytest.mark.parametrize("method", ["dense", "adaptformer"])
def test_training_in_8_bits_follows_float32(model: CLIPSeg, inputs: dict[str, torch.Tensor], method: str) -> None:
    gradients = {}
    for precision in ("fp32", "int8"):
        one = adapted(deepcopy(model), method)
        lower_precision(one, precision, trains=True)
        one(**inputs).square().mean().backward()
        gradients[precision] = {name: p.grad for name, p in one.named_parameters() if p.requires_grad}
    both = []
    for name, expected in gradients["fp32"].items():
        got = gradients["int8"][name]
        assert got is not None, name
        assert expected is not None, name
        both.append((got.flatten(), expected.flatten()))
    got, expected = (torch.cat(parts) for parts in zip(*both, strict=True))
    assert not torch.equal(got, expected)
    assert nn.functional.cosine_similarity(got, expected, dim=0) > 0.95
    assert got.norm() / expected.norm() == pytest.approx(1, abs=0.1)


def test_maps_whose_biases_train_stay(model: CLIPSeg, inputs: dict[str, torch.Tensor]) -> None:
    attach(model, adapter_config("bitfit"))
    count, total = (int(word) for word in lower_precision(model, "int8", trains=True).split() if word.isdigit())
    assert count < total
    model(**inputs).square().mean().backward()
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)


def test_denormal_numbers_are_zero_in_all_threads_while_a_model_computes() -> None:
    # In a process of its own: torch's threads inherit it where they have not been started before.
    code = """
import warnings
import numpy, torch
torch.set_num_threads(2)
from vlsm_adapter.inference import inferring
from vlsm_adapter.models import load_model
model = load_model("tiny")
warnings.simplefilter("error")  # numpy warns where it first looks while they are zero
with inferring(model):
    small = torch.full((1_000_000,), 1e-30) * 1e-10
    assert not small.any(), int(small.count_nonzero())
    numpy.finfo(numpy.float32).smallest_subnormal, numpy.finfo(float).eps
assert numpy.float32(1e-30) * numpy.float32(1e-10) > 0  # the caller's own thread is as it was
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
