"""The published SAN, reproduced: features, masks, biases, weights, logits, losses, gradients, training, key lists.

The expected numbers come from the published implementation (fp32, CPU) on a small random SAN; they lie beside a
``../shared`` folder. Without it ``tests/unit/models/test_san.py`` guards the numbers of a smaller model.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from vlsm_adapter.adapters import adapter_config
from vlsm_adapter.adapters.attach import attach
from vlsm_adapter.interop import from_published
from vlsm_adapter.interop.san import aliases_of, published_state_dict
from vlsm_adapter.losses import LOSSES
from vlsm_adapter.models.san import SAN, SANConfig

LOGITS, START_LOSS, GRADIENT_NORM, LOSSES_AFTER = 1e-4, 1e-5, 1e-4, 1e-3  # the second but last relative
# Our graph to that of the fixtures, and the tensors and parameters that train in it.
GRAPHS = {"published": ("published_graph", 77, 340_448), "head_gradient": ("rec_head_grad", 85, 350_258)}
OUR_LOSS = {"correct": "dice_bce", "published": "published"}

FULL_SIZE = {
    "open_clip": {
        "embed_dim": 512,
        "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "head_width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
    },
    "clip_visual_extractor_cfg": {"last_layer_idx": 9},
    "clip_rec_head_cfg": {"first_layer_idx": 9, "sos_token_num": 100},
    "side_vit": {"img_size": 640, "patch_size": 16, "embed_dim": 240, "depth": 8, "num_heads": 6},
    "num_queries": 100,
    "fusion_map": {"0": 0, "3": 1, "6": 2, "9": 3},
    "deep_supervision_idxs": [7, 8],
    "mask_decoder": {"mlp_channels": 256, "embed_channels": 256, "total_heads": 12, "total_layers": 1},
}


@pytest.fixture(scope="session")
def fixture(shared_folder: Path) -> Path:
    return shared_folder / "parity" / "san"


@functools.cache
def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


@pytest.fixture(scope="session")
def inputs(fixture: Path) -> dict[str, torch.Tensor]:
    return tensors_of(fixture / "inputs.safetensors")


@pytest.fixture(scope="session")
def expected(fixture: Path) -> dict[str, torch.Tensor]:
    return tensors_of(fixture / "expected.safetensors")


def model_of(fixture: Path, graph: str = "published") -> SAN:
    model = from_published(fixture, tensors_of(fixture / "weights.safetensors"), model="san", graph=graph)
    assert isinstance(model, SAN)
    return model


@torch.no_grad()
def test_what_stands_between_pixels_and_logits(fixture: Path, inputs: dict, expected: dict) -> None:
    model = model_of(fixture)
    pixels, ids = inputs["pixel_values"], inputs["input_ids_eot"]
    features, _, grid = model.clip_model.visual.features(F.avg_pool2d(pixels, 2))
    queries, maps = model.side_adapter_network.encode(pixels, dict(enumerate(features)), grid)
    masks, bias = model.side_adapter_network.mask_decoder(queries, maps)
    image, text = model.encode_image(pixels), model.encode_text(ids)
    ours = {
        **{f"clip_layer_{k}": feature[:, 1:].transpose(1, 2).unflatten(2, grid) for k, feature in enumerate(features)},
        **{f"clip_layer_{k}_cls": feature[None, :, 0] for k, feature in enumerate(features)},
        "side_query": queries,
        "side_pixels": maps,
        "mask_preds": masks,
        "attn_bias": bias[:, 0],
        "mask_embs": image.activations[1],
        "text_features": text.condition,
        "query_weights": (image.activations[1] * text.condition[:, None]).mean(-1),
    }
    names = {key.removeprefix("eval.") for key in expected if key.startswith("eval.") and ".logits" not in key}
    assert names == set(ours)
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, expected[f"eval.{name}"], atol=LOGITS, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("graph", GRAPHS)
@torch.no_grad()
def test_logits(fixture: Path, inputs: dict, expected: dict, graph: str) -> None:
    model = model_of(fixture, graph)
    pixels, ids = inputs["pixel_values"], inputs["input_ids_eot"]
    logits = model(pixels, ids, inputs["attention_mask"])
    close = functools.partial(torch.testing.assert_close, atol=LOGITS, rtol=0)
    close(logits, expected["eval.logits"])
    close(logits, expected["train.logits"])
    close(model(pixels, inputs["input_ids_pad0"]), expected["eval.logits_pad0"])
    close(model(pixels, ids.roll(1, dims=0)), expected["eval.logits_rolled_prompts"])
    close(model(pixels, ids, image_index=torch.arange(3)), expected["eval.logits"])
    scaling = model.side_adapter_network.mask_decoder.bias_scaling
    scaling.weight.zero_()
    scaling.bias.zero_()
    close(model(pixels, ids), expected["eval.logits_attn_bias_zero"])


@pytest.mark.parametrize("rate", ["1e-3", "1e-4"])
@pytest.mark.parametrize("loss", OUR_LOSS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_six_training_steps(fixture: Path, inputs: dict, expected: dict, graph: str, loss: str, rate: str) -> None:
    """The side network trains as method ``decoder_only``: the same tensors, gradients, losses and outcome as published."""
    model = model_of(fixture, graph)
    name, tensors, parameters = GRAPHS[graph]
    report = attach(model, adapter_config("decoder_only"))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    assert (len(weights), report.trainable) == (tensors, parameters)
    loss_of, target = LOSSES.get(OUR_LOSS[loss]), inputs["mask"][:, 0]
    optimizer = torch.optim.AdamW(weights, lr=float(rate), weight_decay=1e-3)
    losses, norms = [], []
    for _ in range(6):
        value = loss_of(model(inputs["pixel_values"], inputs["input_ids_eot"])[:, 0], target)
        value.backward()
        assert all(weight.grad is not None for weight in weights)
        norms.append(torch.nn.utils.clip_grad_norm_(weights, 0.5))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.detach())
    run = f"train.{name}.{loss}"
    torch.testing.assert_close(losses[0], expected[f"{run}.loss"][0], atol=START_LOSS, rtol=0)
    torch.testing.assert_close(norms[0], expected[f"{run}.grad_norm"][0], atol=0, rtol=GRADIENT_NORM)
    run = f"{run}.lr{rate}"
    torch.testing.assert_close(torch.stack(losses), expected[f"{run}.losses"], atol=LOSSES_AFTER, rtol=0)
    torch.testing.assert_close(torch.stack(norms), expected[f"{run}.grad_norms_before_clip"], atol=0, rtol=LOSSES_AFTER)
    with torch.no_grad():
        logits = model(inputs["pixel_values"], inputs["input_ids_eot"])
    after = expected[f"{run}.train_loss_after_6"][0]
    torch.testing.assert_close(loss_of(logits[:, 0], target), after, atol=LOSSES_AFTER, rtol=0)
    if f"{run}.eval_logits_after_6" in expected:
        torch.testing.assert_close(logits, expected[f"{run}.eval_logits_after_6"], atol=LOSSES_AFTER, rtol=0)


@pytest.mark.parametrize("graph", GRAPHS)
def test_gradient_of_each_tensor(fixture: Path, inputs: dict, graph: str) -> None:
    facts = json.loads((fixture / "summary.json").read_text())[f"grad.{GRAPHS[graph][0]}"]
    model = model_of(fixture, graph)
    attach(model, adapter_config("decoder_only"))
    loss = LOSSES.get("dice_bce")(model(inputs["pixel_values"], inputs["input_ids_eot"])[:, 0], inputs["mask"][:, 0])
    loss.backward()
    bare = ("query_embed", "query_pos_embed", "pos_embed")
    norms = {}
    for key, weight in model.named_parameters():
        if weight.requires_grad:
            name = key.replace(".adapter_copy.default", "")
            name = name.removesuffix(".weight") if name.removesuffix(".weight").endswith(bare) else name
            norms[name] = weight.grad.norm().item()  # type: ignore[union-attr]
    assert sorted(norms) == sorted(facts["nonzero"])
    for name, norm in norms.items():
        assert norm == pytest.approx(facts["norms"][name], rel=1e-3, abs=1e-6), name


def test_weights_go_back_to_the_published_form(fixture: Path) -> None:
    weights = tensors_of(fixture / "weights.safetensors")
    config = json.loads((fixture / "config.json").read_text())
    model = model_of(fixture)
    back = published_state_dict(model, aliases=True)
    assert {key: tuple(tensor.shape) for key, tensor in back.items()} == {k: tuple(t.shape) for k, t in weights.items()}
    assert all(torch.equal(back[key], tensor) for key, tensor in weights.items())
    assert sorted(map(list, aliases_of(back, 3).items())) == sorted(config["aliases"])
    assert sum(weight.numel() for weight in model.parameters()) == 732_475


# -- the papers' size ------------------------------------------------------------------------------------------------------


def full_size(graph: str) -> SAN:
    with torch.device("meta"):
        model = SAN(SANConfig.from_dict(FULL_SIZE, graph=graph))
    model._base_hash = "0" * 64  # there are no bytes to hash
    return model


@pytest.mark.parametrize(
    ("graph", "total", "trainable"),
    [
        ("published", 157_839_795, 7_115_968),
        ("head_gradient", 157_839_795, 7_115_968 + 916_992 + 2),
        ("corrected", 157_839_795 + 512, 8_370_354 + 512),  # the paper's, and the background embedding
    ],
)
def test_parameter_counts_at_the_papers_size(graph: str, total: int, trainable: int) -> None:
    model = full_size(graph)
    assert sum(weight.numel() for weight in model.parameters()) == total
    report = attach(model, adapter_config("decoder_only"))
    assert (report.trainable, report.total) == (trainable, total)


def test_keys_and_shapes_at_the_papers_size(shared_folder: Path) -> None:
    facts: dict[str, Any] = json.loads((shared_folder / "parity" / "full-size" / "san_full.json").read_text())
    ours = published_state_dict(full_size("published"), aliases=True)
    assert {key: list(tensor.shape) for key, tensor in ours.items()} == facts["state_dict"]
    assert sorted(map(list, aliases_of(ours, 9).items())) == sorted(facts["aliases"])
