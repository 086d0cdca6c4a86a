"""CRIS as published, reproduced: logits under every padding, intermediates, losses, gradients, batch norm, training.

The expected numbers come from the published implementation (fp32, CPU) on a small random CRIS; they and their noise
floors lie in ``../shared/parity/cris`` and are too large for the repository, as random weights do not compress. Without
that folder a model filled by a fixed rule must give the numbers that this implementation gave when it reproduced them.
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from vlsm_adapter.interop import from_published
from vlsm_adapter.interop.cris import published_shapes, published_state_dict
from vlsm_adapter.models.cris import CRIS, CRISConfig

LOGITS = 1e-4  # absolute; the noise floor is 4e-5
FIRST_LOSS, GRADIENT_NORM = 1e-5, 1e-4  # absolute, relative
TRAJECTORY = (
    1e-4,
    1e-4,
    5e-3,
    5e-3,
    5e-3,
    5e-3,
)  # absolute; kernels and thread counts alone move the later ones by 2e-3

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def folder(shared_folder: Path) -> Path:
    return shared_folder / "parity" / "cris"


@pytest.fixture(scope="session")
def weights(folder: Path) -> Tensors:
    return load_file(folder / "weights.safetensors")


@pytest.fixture(scope="session")
def inputs(folder: Path) -> Tensors:
    return load_file(folder / "inputs.safetensors")


@pytest.fixture(scope="session")
def expected(folder: Path) -> Tensors:
    return load_file(folder / "expected.safetensors")


@pytest.fixture
def build(folder: Path, weights: Tensors) -> Callable[..., CRIS]:
    def make(padding: str = "published") -> CRIS:
        model = from_published(folder / "config.json", weights, model="cris", padding=padding)
        assert isinstance(model, CRIS)
        return model

    return make


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = LOGITS) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


# -- evaluation ------------------------------------------------------------------------------------------------------------


def test_config_as_a_mapping_gives_the_same_graph(folder: Path, build: Callable[..., CRIS], weights: Tensors) -> None:
    values = json.loads((folder / "config.json").read_text())
    other = from_published(values, weights, model="cris", padding="published")
    assert other.config == build().config
    assert other.base_hash == build().base_hash
    assert not any(parameter.requires_grad for parameter in other.parameters())
    assert not other.training


def test_weights_go_back_bit_for_bit(build: Callable[..., CRIS], weights: Tensors) -> None:
    back = published_state_dict(build())
    assert back.keys() == weights.keys()
    assert len(back) == 320
    assert all(torch.equal(back[key], weights[key]) for key in weights)
    assert sum(parameter.numel() for parameter in build().parameters()) == 1_432_336


@pytest.mark.parametrize("ids", ["eot", "pad0", "bang"])
@torch.no_grad()
def test_logits_as_published(ids: str, build: Callable[..., CRIS], inputs: Tensors, expected: Tensors) -> None:
    logits = build()(inputs["pixel_values"], inputs[f"input_ids_{ids}"], inputs["attention_mask"])
    close(logits, expected[f"eval.{ids}.logits"])


@torch.no_grad()
def test_published_padding_needs_no_mask_and_no_padded_ids(
    build: Callable[..., CRIS], inputs: Tensors, expected: Tensors
) -> None:
    longest = int(inputs["attention_mask"].sum(1).max())
    logits = build()(inputs["pixel_values"], inputs["input_ids_eot"][:, :longest])
    close(logits, expected["eval.eot.logits"])


@torch.no_grad()
def test_other_prompts(build: Callable[..., CRIS], inputs: Tensors, expected: Tensors) -> None:
    model = build()
    rolled = inputs["input_ids_eot"].roll(1, 0)
    close(model(inputs["pixel_values"], rolled), expected["eval.eot_rolled_prompts.logits"])
    image, text = model.encode_image(inputs["pixel_values"]), model.encode_text(inputs["input_ids_eot"])
    order = torch.tensor([1, 2, 3, 0])
    close(model.decode(image, text, order)[[3, 0, 1, 2], None], expected["eval.eot_rolled_prompts.logits"])


@torch.no_grad()
def test_masked_padding(build: Callable[..., CRIS], inputs: Tensors, expected: Tensors) -> None:
    """The decoder does not see padding, whatever the padding ids, and also where there is none to see."""
    model, pixels, mask = build("masked"), inputs["pixel_values"], inputs["attention_mask"]
    longest = int(mask.sum(1).max())
    right = expected["eval.eot.logits_if_masked_by_attention_mask"]
    assert torch.equal(right, expected["eval.pad0.logits"])
    close(model(pixels, inputs["input_ids_eot"], mask), right)
    close(model(pixels, inputs["input_ids_pad0"], mask), right)
    close(model(pixels, inputs["input_ids_eot"][:, :longest], mask[:, :longest]), right)
    close(model(pixels, inputs["input_ids_eot"]), right)
    bang = model(pixels, inputs["input_ids_bang"], mask)
    assert (bang - expected["eval.bang.logits"]).abs().max() > 0.1  # the published rule hides a real token there


@pytest.mark.parametrize("ids", ["eot", "pad0", "bang"])
@torch.no_grad()
def test_intermediates(ids: str, build: Callable[..., CRIS], inputs: Tensors, expected: Tensors) -> None:
    model = build()
    image, text = model.encode_image(inputs["pixel_values"]), model.encode_text(inputs[f"input_ids_{ids}"])
    assert text.words is not None
    assert text.words_mask is not None
    close(image.activations[0][:1], expected["eval.c3"])
    close(image.activations[1][:1], expected["eval.c4"])
    close(image.activations[2], expected["eval.c5"])
    assert image.grid == (3, 3)
    close(text.condition, expected[f"eval.{ids}.state"])
    close(text.words, expected[f"eval.{ids}.words"])
    fused = model.neck(image.activations, text.condition)
    decoded = model.decoder(fused, text.words, text.words_mask)
    found = {"neck": fused, "decoder": decoded, "pred_lowres": model.proj(decoded, text.condition)}
    compared = [name for name in found if f"eval.{ids}.{name}" in expected]
    for name in compared:
        close(found[name], expected[f"eval.{ids}.{name}"])
    assert len(compared) == {"eot": 3, "pad0": 2, "bang": 0}[ids]


# -- training --------------------------------------------------------------------------------------------------------------


def loss_of(logits: torch.Tensor, target: torch.Tensor, kind: str) -> torch.Tensor:
    probability = logits.sigmoid()
    overlap = (probability * target).sum((1, 2, 3))
    dice = (2 * overlap + 1e-5) / (probability.sum((1, 2, 3)) + target.sum((1, 2, 3)) + 1e-5)
    # The published code hands probabilities to a loss that takes logits.
    entropy = F.binary_cross_entropy_with_logits(logits if kind == "correct" else probability, target)
    return 1.5 * (1 - dice).mean() + entropy


@pytest.mark.parametrize("loss", ["correct", "published"])
@pytest.mark.parametrize("ids", ["eot", "pad0"])
def test_six_training_steps(
    ids: str, loss: str, build: Callable[..., CRIS], inputs: Tensors, expected: Tensors
) -> None:
    model = build().unfreeze()
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-3)
    losses, first = [], f"train.{ids}.{loss}"
    for step in range(6):
        logits = model(inputs["pixel_values"], inputs[f"input_ids_{ids}"], inputs["attention_mask"])
        value = loss_of(logits, inputs["mask"], loss)
        optimizer.zero_grad()
        value.backward()
        assert all(parameter.grad is not None for parameter in trained)
        norm = torch.nn.utils.clip_grad_norm_(trained, 0.5)
        if step == 0:
            close(logits.detach(), expected[f"train.{ids}.logits"])
            close(value.detach().reshape(1), expected[f"{first}.loss"], FIRST_LOSS)
            torch.testing.assert_close(norm.reshape(1), expected[f"{first}.grad_norm"], rtol=GRADIENT_NORM, atol=0)
        optimizer.step()
        losses.append(value.item())
    away = (torch.tensor(losses) - expected[f"{first}.lr1e-4.losses"]).abs()
    assert (away <= torch.tensor(TRAJECTORY)).all(), away


def test_gradient_of_every_parameter(folder: Path, build: Callable[..., CRIS], inputs: Tensors) -> None:
    from vlsm_adapter.models.clip_blocks import to_openai_names

    norms = json.loads((folder / "summary.json").read_text())["grad_norm_per_parameter"]
    model = build()
    model.train().requires_grad_(True)
    loss_of(model(inputs["pixel_values"], inputs["input_ids_eot"]), inputs["mask"], "correct").backward()
    assert model.backbone.logit_scale.grad is None
    assert norms.pop("backbone.logit_scale") is None
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    bare = [name for name in norms if not name.endswith((".weight", ".bias", "in_proj_weight", "in_proj_bias"))]
    published = to_openai_names(gradients, bare)
    assert published.keys() == norms.keys()
    assert not published["backbone.visual.attnpool.positional_embedding"][0].any()  # the class token's row is idle
    for name, norm in norms.items():
        found = published[name].norm().item()
        assert found == pytest.approx(norm, rel=1e-3, abs=1e-6), name


@torch.no_grad()
def test_batch_norm_moves_as_published(build: Callable[..., CRIS], inputs: Tensors, expected: Tensors) -> None:
    model = build()
    model.train()
    model(inputs["pixel_values"], inputs["input_ids_eot"], inputs["attention_mask"])
    model.eval()
    state = model.state_dict()
    compared = [key for key in expected if key.startswith("bn.") and "running" in key]
    assert len(compared) == 10
    for key in compared:
        close(state[key.removeprefix("bn.")], expected[key], 1e-5)
    close(
        model(inputs["pixel_values"], inputs["input_ids_eot"], inputs["attention_mask"]),
        expected["bn.eval_logits_after_1_train_forward"],
    )


# -- the papers' size, and numbers that need no folder ------------------------------------------------------------------------


def test_parameter_counts_at_the_papers_size() -> None:
    with torch.device("meta"):
        model = CRIS(CRISConfig())
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    counts = {name: count for name, count in counts.items() if count}
    assert counts == {"backbone": 104_106_337, "neck": 24_142_336, "decoder": 12_631_552, "proj": 5_968_897}
    assert sum(counts.values()) == 146_849_122
    assert sum(p.numel() for p in model.backbone.visual.parameters()) == 40_416_096


def test_shapes_at_the_papers_size(shared_folder: Path) -> None:
    facts = json.loads((shared_folder / "parity" / "full-size" / "cris_full.json").read_text())
    config = CRISConfig.from_dict(facts["config"])
    assert config == CRISConfig()
    shapes = published_shapes(config)
    assert {key: list(shape) for key, shape in shapes.items()} == facts["state_dict"]
    assert len(shapes) == 662
    frozen = CRISConfig.from_dict({**facts["config"], "cris": {**facts["config"]["cris"], "freeze_encoder": True}})
    with torch.device("meta"):
        model = CRIS(frozen).unfreeze()
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == facts["parameters_freeze_encoder_true"]["trainable"] == 42_742_785


@functools.cache
def filled_by_rule() -> CRIS:
    """A small CRIS whose weights follow from their names, with every size different from every other."""
    config = CRISConfig(
        embed_dim=20,
        image_resolution=64,
        vision_layers=(2, 1, 1, 2),
        vision_width=6,
        vision_heads=4,
        context_length=14,
        vocab_size=60,
        transformer_width=16,
        transformer_heads=2,
        transformer_layers=2,
        word_len=12,
        fpn_out=(10, 16, 18),
        num_layers=2,
        num_head=4,
        dim_ffn=24,
        img_size=64,
        padding="published",
    )
    weights: Tensors = {}
    for name, shape in published_shapes(config).items():
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        if name.endswith("running_var"):
            values = 1 + 0.5 * np.abs(values)
        elif name.endswith("num_batches_tracked"):
            values = np.zeros(shape)
        elif len(shape) > 1:
            values = values * (2 / fan) ** 0.5
        else:
            values = 0.1 * values + (1 if name.endswith("weight") else 0)
        weights[name] = torch.tensor(values, dtype=torch.int64 if name.endswith("tracked") else torch.float32)
    model = from_published(config.to_dict(), weights, model="cris")
    assert isinstance(model, CRIS)
    return model


GOLDEN = {  # padding: mean and standard deviation of the logits, four pixels on the diagonal of each
    "published": (
        -3.41734,
        2.33963,
        (-8.48018, -2.87455, -2.71095, -1.89708, -4.41643, -8.37031, -4.0413, -0.52026),
    ),
    "masked": (
        -4.58507,
        3.85618,
        (-8.07702, -2.18323, -2.26034, -1.33455, -5.48095, -12.17566, -7.79106, -2.23207),
    ),
}


@pytest.mark.parametrize("padding", ["published", "masked"])
@torch.no_grad()
def test_numbers_stay(padding: str) -> None:
    model = filled_by_rule()
    pixels = torch.tensor(np.random.default_rng(0).standard_normal((2, 3, 64, 64)), dtype=torch.float32)
    ids = torch.tensor([[58, 5, 7, 0, 59, 59], [58, 9, 59, 59, 59, 59]])
    if padding == "masked":
        masked = CRIS(CRISConfig.from_dict(model.config.to_dict(), "masked"))
        masked.load_state_dict(model.state_dict())
        model = masked
    logits = model(pixels, ids, image_index=torch.tensor([0, 1]))
    mean, deviation, diagonal = GOLDEN[padding]
    assert logits.mean().item() == pytest.approx(mean, abs=2e-4)
    assert logits.std().item() == pytest.approx(deviation, abs=2e-4)
    close(logits[:, 0].diagonal(dim1=1, dim2=2)[:, ::21].flatten(), torch.tensor(diagonal), 1e-3)
