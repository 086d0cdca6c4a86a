"""Telescopic adapters: the published schedule and formula, the boundary term, and what only happens in training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from vlsm_adapter.adapters import TelescopicConfig, adapter_config, tuner
from vlsm_adapter.adapters.attach import attach, detach, training_mode, without_adapter
from vlsm_adapter.adapters.folder import load_adapter, save_adapter
from vlsm_adapter.adapters.telescopic import BoundaryTerm, TelescopicAdapter
from vlsm_adapter.errors import AdapterError, ConfigError
from vlsm_adapter.models.base import PromptSegmenter

Build = Callable[..., PromptSegmenter]
PUBLISHED = TelescopicConfig(variant="published")


def widths(model: PromptSegmenter, config: TelescopicConfig) -> dict[str, list[tuple[int, int]]]:
    found: dict[str, list[tuple[int, int]]] = {}
    for site, width in config.schedule(model):
        found.setdefault(site.name, []).append((site.index, width))
    return found


def test_published_schedule_and_count_at_the_papers_size(full_size_model: PromptSegmenter) -> None:
    model = full_size_model
    image = list(enumerate([8, 8, 10, 14, 17, 21, 24, 28, 32]))
    text = [(9, 16), (10, 16), (11, 16)]
    assert widths(model, PUBLISHED) == {
        "image.attn_out": image, "image.mlp_out": image, "text.attn_out": text, "text.mlp_out": text,
        "condition": [(0, 16)],
    }  # fmt: skip
    report = attach(model, PUBLISHED)
    assert report.trainable == 613_297
    assert report.total == 150_747_746 + 613_297
    assert report.sites["logits"] == 1
    assert attach(model, TelescopicConfig(variant="published", boundary=False), "plain").trainable == 613_297 - 48
    detach(model, "default")
    detach(model, "plain")
    # Ours also covers block 9, which the decoder reads.
    ours = widths(model, TelescopicConfig())
    assert ours["image.attn_out"] == list(enumerate([8, 8, 9, 12, 16, 19, 22, 25, 28, 32]))
    assert ours["text.mlp_out"] == text


@pytest.mark.parametrize("parts", ["v", "vl", "vlc", "l", "lc"])
def test_parameters_are_two_projections_a_norm_and_a_scale(new_model: Build, parts: str) -> None:
    model = new_model()
    config = TelescopicConfig(20, parts=parts)
    expected = sum(2 * site.width * width + 2 * width + 1 for site, width in config.schedule(model))
    assert attach(model, config).trainable == expected


def test_no_bottleneck_is_wider_than_a_quarter_or_narrower_than_eight(new_model: Build) -> None:
    wide = new_model(vision_config={"hidden_size": 96, "num_attention_heads": 4})
    assert widths(wide, TelescopicConfig(100, parts="v"))["image.attn_out"] == list(enumerate([12, 24, 24, 24]))
    assert {width for _, width in TelescopicConfig(1).schedule(wide)} == {8}


def test_text_has_at_most_as_many_blocks_as_the_image(new_model: Build) -> None:
    model = new_model(extract_layers=[0, 2])
    assert [index for index, _ in widths(model, PUBLISHED)["text.attn_out"]] == [2, 3]
    assert [index for index, _ in widths(model, TelescopicConfig(parts="l"))["text.attn_out"]] == [1, 2, 3]


@torch.no_grad()
def test_adapter_computes_the_formula() -> None:
    torch.manual_seed(0)
    base = nn.Linear(6, 12)
    part = TelescopicAdapter(base, width=12, bottleneck_dim=8, dropout=0.5, zero_start=False).eval()
    part.scale.fill_(0.3)
    x = torch.randn(2, 5, 6)
    y = base(x)
    narrow = y @ part.down_project.weight.T
    normed = (narrow - narrow.mean(-1, keepdim=True)) / (narrow.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    normed = normed * part.norm.weight + part.norm.bias
    expected = y + 0.3 * (normed * normed.sigmoid()) @ part.up_project.weight.T
    torch.testing.assert_close(part(base, x), expected)
    part.train()
    assert not torch.equal(part(base, x), part(base, x))
    part.train(False)
    assert torch.equal(part(base, x), part(base, x))


@torch.no_grad()
def test_boundary_term_computes_the_formula_and_keeps_every_sign() -> None:
    torch.manual_seed(0)
    part = BoundaryTerm(nn.Identity()).eval()
    assert sum(weight.numel() for weight in part.parameters()) == 48
    conv, norm, _, last = part.layers
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    z = 5 * torch.randn(2, 7, 9)
    inner = torch.conv2d(z[:, None], conv.weight, padding=1)
    inner = (inner - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + 1e-5).sqrt()
    inner = torch.conv2d(inner * inner.sigmoid(), last.weight)[:, 0]
    out = part(nn.Identity(), z)
    torch.testing.assert_close(out, z * (1 + inner.sigmoid()))
    assert torch.equal(out > 0, z > 0)
    before = norm.running_mean.clone()
    part(nn.Identity(), z)
    assert torch.equal(norm.running_mean, before)
    part.train()(nn.Identity(), z)
    assert not torch.equal(norm.running_mean, before)


def test_starts(new_model: Build, inputs: dict) -> None:
    arguments = {"pixel_values": inputs["pixel_values"], "input_ids": torch.tensor([[48, 1, 49], [48, 3, 49]])}
    base = new_model()(**arguments)
    for config, same in ((TelescopicConfig(), True), (PUBLISHED, False)):
        model = new_model()
        attach(model, config)
        assert torch.equal(model(**arguments), base) == same
        with without_adapter(model):
            assert torch.equal(model(**arguments), base)


def test_training_mode_is_the_adapters_alone_and_ends(model: PromptSegmenter, inputs: dict) -> None:
    attach(model, PUBLISHED)
    with torch.no_grad():
        expected = model(**inputs)
        assert torch.equal(model(**inputs), expected)
        with training_mode(model):
            assert {name.partition(".adapter_part.")[1] for name, m in model.named_modules() if m.training} == {
                ".adapter_part."
            }
            assert not torch.equal(model(**inputs), model(**inputs))
        assert not any(module.training for module in model.modules())
        assert not torch.equal(model(**inputs), expected)  # the running statistics have moved
        with pytest.raises(RuntimeError, match="inside"), training_mode(model):
            raise RuntimeError("inside")
        assert not any(module.training for module in model.modules())


def test_every_tensor_learns(model: PromptSegmenter, inputs: dict) -> None:
    from vlsm_adapter.optimization import check_gradients

    attach(model, PUBLISHED)
    before = {name: parameter.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        with training_mode(model):
            model(**inputs).square().mean().backward()
        check_gradients(model)
        optimizer.step()
    now = dict(model.named_parameters())
    assert not [name for name, weight in before.items() if torch.equal(now[name], weight)]


@torch.no_grad()
def test_running_statistics_are_saved_with_the_adapter(model: PromptSegmenter, inputs: dict, tmp_path: Path) -> None:
    fresh = copy.deepcopy(model)
    attach(model, PUBLISHED)
    with training_mode(model):
        model(**inputs)
    save_adapter(model, tmp_path / "a")
    count = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert f"| parameters | {count:,} |" in (tmp_path / "a" / "README.md").read_text()  # statistics are not counted
    loaded = load_adapter(tmp_path / "a", model=fresh, name="other")
    assert torch.equal(loaded(**inputs), model(**inputs))
    weights = tuner.state_dict(model, "default")
    assert weights["logits.adapter_part.layers.1.num_batches_tracked"] == 1
    for key, value, part in (
        ("running_var", torch.full((4,), -1.0), "a negative variance"),
        ("num_batches_tracked", torch.tensor(1, dtype=torch.int32), "is of type torch.int32"),
    ):
        bad = {**weights, f"logits.adapter_part.layers.1.{key}": value}
        with pytest.raises(AdapterError, match=part):
            tuner.load_state_dict(model, "default", bad, "bad.safetensors")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bottleneck_dim", 0), ("bottleneck_dim", 1e3), ("parts", "c"), ("variant", "telescopic"), ("boundary", "yes"),
        ("boundary", 1), ("boundary", True), ("dropout", 1), ("dropout", -0.1), ("dropout", "0"), ("dropout", True),
        ("dropout", float("nan")),
    ],
)  # fmt: skip
def test_values_out_of_range(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name}=") as caught:
        adapter_config("telescopic", **{name: value})
    assert "\n" not in str(caught.value)
