"""The published dense and shallow adapters, reproduced: logits, losses, gradient norms, training, parameter counts.

The expected numbers come from the published implementation (fp32, CPU), on a small random CLIPSeg: 8 AdamW steps at
lr 5e-3, weight decay 1e-3, gradients clipped at norm 0.5, loss 1.5 Dice + 1.0 BCE, once on logits ("correct") and once
with the sigmoid taken twice as in the published code ("published"). ``clipseg.xz`` is an exact, compact copy
(see make_compact.py); beside a ``../shared`` folder the full fixtures are checked too.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from vlsm_adapter.adapters import DenseAdapterConfig, ShallowAdapterConfig
from vlsm_adapter.adapters.attach import attach
from vlsm_adapter.interop import from_published
from vlsm_adapter.models import load_model

VARIANTS = ("dense_v", "dense_vl", "dense_vlc", "shallow_v", "shallow_vl", "shallow_vlc")
LOGITS, LOSSES, GRADIENT_NORM = 1e-4, 1e-3, 1e-4  # absolute, absolute, relative

FULL_SIZE = {  # trainable, total: the papers' CLIPSeg (ViT-B/16), widths 64 and 512, condition 256
    "dense_v": (1_784_448, 152_532_194),
    "dense_vl": (2_974_464, 153_722_210),
    "dense_vlc": (3_237_376, 153_985_122),
    "shallow_v": (2_363_136, 153_110_882),
    "shallow_vl": (3_939_072, 154_686_818),
    "shallow_vlc": (4_201_984, 154_949_730),
}


@functools.cache
def make_compact() -> ModuleType:
    path = Path(__file__).with_name("make_compact.py")
    spec = importlib.util.spec_from_file_location("make_compact", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def compact() -> tuple[dict[str, torch.Tensor], dict]:
    return make_compact().unpack(Path(__file__).with_name("clipseg.xz").read_bytes())


def group(name: str) -> dict[str, torch.Tensor]:
    tensors, _ = compact()
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


def start_weights(variant: str) -> dict[str, torch.Tensor]:
    weights, (_, facts) = group(variant.partition("_")[0]), compact()
    return {key: weights[key] for key in facts["adapter_keys"][variant]}


@pytest.fixture(scope="session")
def parity_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base in Hugging Face format; weights that the compact copy leaves out are NaN: nothing may read them."""
    folder = tmp_path_factory.mktemp("parity") / "base"
    folder.mkdir()
    _, facts = compact()
    (folder / "config.json").write_text(json.dumps(facts["base_config"]))
    left_out = {key: torch.full(shape, torch.nan) for key, shape in facts["left_out"].items()}
    save_file({**group("base"), **left_out}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def inputs() -> dict[str, torch.Tensor]:
    return group("inputs")


def loss_of(logits: torch.Tensor, target: torch.Tensor, kind: str) -> torch.Tensor:
    probability = logits.sigmoid()
    overlap = (probability * target).sum((1, 2, 3))
    dice = (2 * overlap + 1e-5) / (probability.sum((1, 2, 3)) + target.sum((1, 2, 3)) + 1e-5)
    # The published code hands probabilities to a loss that takes logits.
    entropy = F.binary_cross_entropy_with_logits(logits if kind == "correct" else probability, target)
    return 1.5 * (1 - dice).mean() + entropy


@pytest.fixture(scope="session")
def measured(parity_base: Path, inputs: dict[str, torch.Tensor]):  # type: ignore[no-untyped-def]
    """variant -> our numbers under the names of the expected ones; computed once, on demand."""
    target = inputs["mask"].float()
    arguments = {key: inputs[key] for key in ("pixel_values", "input_ids", "attention_mask")}

    @functools.cache
    def measure(variant: str) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        model = from_published(parity_base, start_weights(variant))
        with torch.no_grad():
            found["logits"] = model(**arguments)
        weights = [tensor for name, tensor in model.named_parameters() if ".adapter_" in name]
        start = [tensor.detach().clone() for tensor in weights]
        for kind in ("correct", "published"):
            for tensor, value in zip(weights, start, strict=True):
                tensor.data.copy_(value)
                tensor.requires_grad_(True)
            optimizer = torch.optim.AdamW(weights, lr=5e-3, weight_decay=1e-3)
            losses = []
            for step in range(8):
                loss = loss_of(model(**arguments), target, kind)
                optimizer.zero_grad()
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(weights, 0.5)
                if step == 0:
                    found[f"grad_norm_{kind}"] = norm.reshape(1)
                    assert all(tensor.grad is not None for tensor in weights), "a weight without gradient"
                optimizer.step()
                losses.append(loss.detach())
            found[f"losses_{kind}"] = torch.stack(losses)
            with torch.no_grad():
                found[f"logits_after_8_steps_{kind}"] = model(**arguments)
        return found

    return measure


def test_base_without_adapter_gives_the_zero_shot_logits(parity_base: Path, inputs: dict[str, torch.Tensor]) -> None:
    model = load_model(parity_base)
    with torch.no_grad():
        logits = model(inputs["pixel_values"], inputs["input_ids"], inputs["attention_mask"])
    torch.testing.assert_close(make_compact().sampled(logits), group("zero_shot")["logits"], atol=LOGITS, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_start_logits(variant: str, measured) -> None:  # type: ignore[no-untyped-def]
    logits = make_compact().sampled(measured(variant)["logits"])
    torch.testing.assert_close(logits, group(variant)["logits"], atol=LOGITS, rtol=0)


@pytest.mark.parametrize("loss", ["correct", "published"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_eight_training_steps(variant: str, loss: str, measured) -> None:  # type: ignore[no-untyped-def]
    ours, expected = measured(variant), group(variant)
    norm = f"grad_norm_{loss}"
    torch.testing.assert_close(ours[norm], expected[norm], rtol=GRADIENT_NORM, atol=0)
    torch.testing.assert_close(ours[f"losses_{loss}"], expected[f"losses_{loss}"], atol=LOSSES, rtol=0)
    after = f"logits_after_8_steps_{loss}"
    torch.testing.assert_close(make_compact().sampled(ours[after]), expected[after], atol=LOGITS, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_full_fixtures_agree_too(variant: str, measured, shared_folder: Path) -> None:  # type: ignore[no-untyped-def]
    folder = shared_folder / "parity" / "clipseg"
    weights = load_file(folder / f"{variant}.adapter.safetensors")
    ours = start_weights(variant)
    assert weights.keys() == ours.keys()
    assert all(torch.equal(weights[key], ours[key]) for key in weights)
    for key, expected in load_file(folder / f"{variant}.expected.safetensors").items():
        if key != "mask":
            tolerance = {"l": LOGITS, "g": GRADIENT_NORM}[key[0]] if "loss" not in key else LOSSES
            torch.testing.assert_close(measured(variant)[key], expected, atol=tolerance, rtol=GRADIENT_NORM)


def test_compact_copy_is_exact(shared_folder: Path) -> None:
    tensors, facts = make_compact().collect(shared_folder / "parity" / "clipseg")
    ours, our_facts = compact()
    assert facts == our_facts
    assert tensors.keys() == ours.keys()
    assert all(torch.equal(tensors[key], ours[key]) for key in tensors)


# -- the papers' size ------------------------------------------------------------------------------------------------------


def full_size_model():  # type: ignore[no-untyped-def]
    """CLIPSeg at the papers' size on the meta device: shapes without memory."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    from vlsm_adapter.models.clipseg import CLIPSeg

    config = CLIPSegConfig(
        text_config={"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048},
        vision_config={"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16},
        projection_dim=512,
        extract_layers=[3, 6, 9],
        reduce_dim=64,
        use_complex_transposed_convolution=True,
    )
    with torch.device("meta"):
        model = CLIPSeg(CLIPSegForImageSegmentation(config), base_id="papers' size")
    model._base_hash = "0" * 64  # there are no bytes to hash
    return model


def config_of(variant: str) -> DenseAdapterConfig | ShallowAdapterConfig:
    kind, parts = variant.split("_")
    return (DenseAdapterConfig if kind == "dense" else ShallowAdapterConfig)(parts=parts, variant="published")


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_counts_at_the_papers_size(variant: str) -> None:
    model = full_size_model()
    assert sum(parameter.numel() for parameter in model.parameters()) == 150_747_746
    report = attach(model, config_of(variant))
    assert (report.trainable, report.total) == FULL_SIZE[variant]
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_shapes_at_the_papers_size(shared_folder: Path) -> None:
    from vlsm_adapter.adapters import tuner

    facts = json.loads((shared_folder / "parity" / "full-size" / "clipseg_full.json").read_text())
    model = full_size_model()
    base = {key: list(value.shape) for key, value in model.clipseg.state_dict().items()}
    published = {key.removeprefix("net.").removeprefix("clipseg."): shape for key, shape in facts["state_dict"].items()}
    assert {key: shape for key, shape in published.items() if not key.endswith("position_ids")} == base
    for variant in VARIANTS:
        assert facts["variants"][variant]["trainable"] == FULL_SIZE[variant][0]
        assert facts["variants"][variant]["total"] == FULL_SIZE[variant][1]
        ours = tuner.expected_shapes(config_of(variant).placements(model), model)
        assert sorted(map(list, ours.values())) == sorted(facts["variants_keys"][variant].values())
