"""Every adapter method on every base model keeps the same promises.

A new method is in here as soon as it is registered; a new model needs a small instance in ``SMALL``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vlsm_adapter.adapters import ADAPTERS, AdapterConfig, adapter_config, tuner
from vlsm_adapter.adapters.attach import attach, attached, detach, use_adapter, without_adapter
from vlsm_adapter.adapters.config import BottleneckConfig
from vlsm_adapter.adapters.folder import load_adapter, save_adapter
from vlsm_adapter.models import _registry
from vlsm_adapter.models.base import PromptSegmenter

# Family to a small instance with a fixed seed, given the ``new_model`` fixture.
SMALL: dict[str, Callable[[Callable[..., PromptSegmenter]], PromptSegmenter]] = {
    "clipseg": lambda new_model: new_model(),
}
PARTS, VARIANTS = ("v", "vl", "vlc"), ("published", "residual")
BOTTLENECKS = [name for name in ADAPTERS.names() if issubclass(ADAPTERS.get(name), BottleneckConfig)]
METHODS = [
    *itertools.product(BOTTLENECKS, PARTS, VARIANTS),
    *((name, "all", "residual") for name in ADAPTERS.names() if name not in BOTTLENECKS),  # they start as the base
]
CASES = [(family, *method) for family in _registry().names() for method in METHODS]
cases = pytest.mark.parametrize(("family", "method", "parts", "variant"), CASES, ids=["-".join(case) for case in CASES])
each_family = pytest.mark.parametrize("family", _registry().names())


@pytest.fixture
def build(new_model: Callable[..., PromptSegmenter]) -> Callable[[str], PromptSegmenter]:
    return lambda family: SMALL[family](new_model)


def config_of(method: str, parts: str, variant: str) -> AdapterConfig:
    if method not in BOTTLENECKS:
        return adapter_config(method)
    return adapter_config(method, parts=parts, variant=variant, bottleneck_dim=3, condition_dim=4)


def arguments(prompts: int = 2) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[48, 5, 7, 49, 49], [48, 9, 3, 4, 49], [48, 1, 49, 49, 49]])[:prompts]
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])[:prompts]
    pixels = torch.randn(prompts, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}


def train(model: PromptSegmenter, steps: int = 3) -> list[torch.nn.Parameter]:
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**arguments()).sigmoid().mean().backward()
        optimizer.step()
    return weights


def test_every_family_has_a_small_instance() -> None:
    assert sorted(SMALL) == sorted(_registry().names())


@cases
def test_adapter_keeps_its_promises(
    build: Callable[[str], PromptSegmenter], family: str, method: str, parts: str, variant: str, tmp_path: Path
) -> None:
    model = build(family)
    config = config_of(method, parts, variant)
    frozen = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        base = model(**arguments())
    torch.manual_seed(0)
    report = attach(model, config)

    # Counts: what the report says is what trains, and each site is one that the decoder reads.
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad) > 0
    placements = config.placements(model)
    # A copy takes the place of what it copies.
    added = 0 if all(placement.copies for placement in placements) else report.trainable
    assert report.total == added + sum(p.numel() for p in build(family).parameters())
    assert all(".adapter_" in name for name in trains)
    assert report.sites == {
        name: sum(place.site.name == name for place in placements)
        for name in dict.fromkeys(p.site.name for p in placements)
    }
    assert all(placement.site.read for placement in placements)
    shapes = {key: tuple(tensor.shape) for key, tensor in tuner.state_dict(model, "default").items()}
    assert shapes == tuner.expected_shapes(placements, model)

    # Start: residual is the base exactly, published is not.
    with torch.no_grad():
        start = model(**arguments())
    assert torch.equal(start, base) == (variant == "residual")

    # Training: every weight has a gradient, the outcome changes, the base does not.
    weights = train(model)
    assert all(weight.grad is not None for weight in weights)
    with torch.no_grad():
        trained = model(**arguments())
        assert not torch.equal(trained, start)
        with without_adapter(model):
            assert torch.equal(model(**arguments()), base)
        state = {name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items()}
        assert all(torch.equal(tensor, state[name]) for name, tensor in frozen.items())

        # Round trip: bit-equal, also under another name, also on a model that carries another adapter.
        save_adapter(model, tmp_path / "adapter")
        other = build(family)
        attach(other, config, "other")
        load_adapter(tmp_path / "adapter", model=other, name="again")
        assert torch.equal(other(**arguments()), trained)
        detach(other, "again")
        detach(other, "other")
        assert torch.equal(other(**arguments()), base)


@each_family
@torch.no_grad()
def test_all_methods_take_turns_on_one_model(build: Callable[[str], PromptSegmenter], family: str) -> None:
    model = build(family)
    base = model(**arguments())
    expected: dict[str, torch.Tensor] = {}
    for seed, (method, parts, variant) in enumerate(METHODS):
        name = f"{method}-{parts}-{variant}"
        torch.manual_seed(seed)
        attach(model, config_of(method, parts, variant), name)
        for key, parameter in model.named_parameters():
            if f".{name}." in key:
                parameter.add_(0.1 * torch.randn_like(parameter))
        expected[name] = model(**arguments())
    assert attached(model) == list(expected)
    for name in reversed(expected):
        use_adapter(model, name)
        assert torch.equal(model(**arguments()), expected[name]), name
    for name in list(expected):
        detach(model, name)
    assert torch.equal(model(**arguments()), base)


@each_family
@torch.no_grad()
def test_adapted_model_prompts_many_as_one_by_one(build: Callable[[str], PromptSegmenter], family: str) -> None:
    model = build(family)
    attach(model, config_of("dense", "vlc", "published"))
    inputs = arguments(3)
    together = model(inputs["pixel_values"][:1], inputs["input_ids"], inputs["attention_mask"], torch.tensor([0, 0, 0]))
    assert together.shape == (3, 1, 32, 32)
    for number in range(3):
        one = slice(number, number + 1)
        alone = model(inputs["pixel_values"][:1], inputs["input_ids"][one], inputs["attention_mask"][one])
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=0)


@each_family
def test_model_keeps_the_contract_of_the_stages(build: Callable[[str], PromptSegmenter], family: str) -> None:
    model = build(family)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    inputs = arguments()
    image = model.encode_image(inputs["pixel_values"])
    text = model.encode_text(inputs["input_ids"], inputs["attention_mask"])
    staged = model.decode(image, text, torch.tensor([0, 1]))
    assert staged.shape == (2, 32, 32)
    assert torch.equal(staged.unsqueeze(1), model(**inputs))
    for site in model.sites():
        model.get_submodule(site.module)
    assert len(model.base_hash) == 64
    assert model.base_hash == build(family).base_hash
    attach(model, config_of("dense", "vlc", "residual"))
    assert model.base_hash == build(family).base_hash
