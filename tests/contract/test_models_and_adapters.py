"""Every adapter method on every base model keeps the same promises.

A new method is in here as soon as it is registered; a new model needs a small instance in ``SMALL``.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vlsm_adapter.adapters import ADAPTERS, AdapterConfig, adapter_config, tuner
from vlsm_adapter.adapters.attach import attach, attached, detach, use_adapter, without_adapter
from vlsm_adapter.adapters.config import BottleneckConfig
from vlsm_adapter.adapters.folder import load_adapter, save_adapter
from vlsm_adapter.errors import AdapterError
from vlsm_adapter.models import families, family_class
from vlsm_adapter.models.base import PromptSegmenter
from vlsm_adapter.models.features import ImageFeatures, TextFeatures, Trunks

# Family to a small instance with a fixed seed, given the ``new_model`` fixture.
SMALL: dict[str, Callable[[Callable[..., PromptSegmenter]], PromptSegmenter]] = {
    "clipseg": lambda new_model: new_model(),
    "text_free": lambda _: small_text_free(),
    "cris": lambda _: small_cris(),
    "san": lambda _: small_san(),
}
# Sites that a family has nothing for: a method that asks for them is refused, with a message that names what there is.
LACKING = {"cris": {f"image.{name}" for name in ("attn_out", "mlp_in", "mlp_out", "query", "key", "value", "tokens")}}
# Where dense adapters on both encoders are not the ones to try.
OTHER_PARTS = {"cris": "lc"}
# Families that start from random weights: one method trains them whole, every other one is refused.
TRAINED_WHOLE = {"text_free": ("full", "all", "residual")}
PARTS, VARIANTS = ("v", "vl", "vlc", "l", "lc"), ("published", "residual")
BOTTLENECKS = [name for name in ADAPTERS.names() if issubclass(ADAPTERS.get(name), BottleneckConfig)]
# Methods whose learned tokens stand beside the others and change the start, with settings for a short context.
PROMPT_TUNING = {"coop": {"tokens": 3}, "vpt": {"tokens": 2}, "maple": {"depth": 2}}


def has_parts(method: str) -> bool:
    return "parts" in {field.name for field in dataclasses.fields(ADAPTERS.get(method))}


METHODS = [
    *itertools.product(BOTTLENECKS, PARTS, VARIANTS),
    *(
        (name, "all", "published" if name in PROMPT_TUNING else "residual")
        for name in ADAPTERS.names()
        if name not in BOTTLENECKS and ADAPTERS.get(name).trains
    ),
    # On the text encoder alone, for models whose image encoder is no transformer.
    *((name, "l", "residual") for name in ADAPTERS.names() if name not in BOTTLENECKS and has_parts(name)),
]
# Of those with parts and variants two: one for models that have every site, one for the others.
TAKING_TURNS = [
    one for one in METHODS if one[0] not in BOTTLENECKS or one[1:] in (("vlc", "published"), ("lc", "residual"))
]
# Every part with every variant on CLIPSeg; on the other families every part with one of the variants.
FEWER = [one for one in METHODS if one[0] not in BOTTLENECKS or PARTS.index(one[1]) % 2 == VARIANTS.index(one[2])]
METHODS_OF = {
    family: [TRAINED_WHOLE[family]] if family in TRAINED_WHOLE else METHODS if family == "clipseg" else FEWER
    for family in families()
}
CASES = [(family, *method) for family, methods in METHODS_OF.items() for method in methods]
cases = pytest.mark.parametrize(("family", "method", "parts", "variant"), CASES, ids=["-".join(case) for case in CASES])
each_family = pytest.mark.parametrize("family", families())


@pytest.fixture
def build(
    new_model: Callable[..., PromptSegmenter], built_once: Callable[..., PromptSegmenter]
) -> Callable[[str], PromptSegmenter]:
    return lambda family: built_once(("contract", family), lambda: SMALL[family](new_model))


def small_text_free() -> PromptSegmenter:
    from vlsm_adapter.models.text_free import Architecture, TextFree

    torch.manual_seed(0)
    settings = {"channels": (4, 8, 8), "strides": (2, 2), "num_res_units": 1, "norm": ("instance", {"affine": True})}
    return TextFree(Architecture("UNet", settings, reduction=4))


def small_cris() -> PromptSegmenter:
    from vlsm_adapter.models.cris import CRIS, CRISConfig

    sizes = {
        "embed_dim": 16,
        "vision_width": 4,
        "vision_layers": (1, 1, 1, 1),
        "image_resolution": 64,
        "vocab_size": 50,
    }
    text = {
        "transformer_width": 16,
        "transformer_heads": 2,
        "transformer_layers": 2,
        "context_length": 12,
        "word_len": 12,
    }
    decoder = {"fpn_out": (8, 16, 12), "num_layers": 2, "num_head": 2, "dim_ffn": 24, "img_size": 32}
    torch.manual_seed(0)
    model = CRIS(CRISConfig(**sizes, **text, **decoder), base_id="in memory")  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model


def lacks_a_site(model: PromptSegmenter, config: AdapterConfig) -> bool:
    """Whether the method is refused for want of a site that the family is known not to have."""
    try:
        config.placements(model)
    except AdapterError as error:
        missing = re.search(r"has no site ('[a-z_.', ]+'): it offers ", str(error))
        if missing is None or not set(re.findall(r"'([^']+)'", missing[1])) <= set(LACKING.get(model.family, ())):
            raise
        fix = re.search("; (?:choose another method or model|give it parts='([vlc]+)')$", str(error))
        if fix is None or (fix[1] and not dataclasses.replace(config, parts=fix[1]).placements(model)):  # type: ignore[call-arg]
            raise
        return True
    return False


def small_san() -> PromptSegmenter:
    from vlsm_adapter.models.san import SAN, SANConfig

    torch.manual_seed(0)
    clip = {"embed_dim": 16, "clip_image_size": 16, "clip_patch": 8, "split": 2}
    vision = {"vision_layers": 4, "vision_width": 24, "vision_head_width": 8}
    text = {"context_length": 12, "vocab_size": 50, "text_width": 16, "text_heads": 2, "text_layers": 3}
    side = {"side_image_size": 32, "side_patch": 8, "side_width": 12, "side_depth": 3, "side_heads": 3, "queries": 5}
    masks = {"mask_hidden": 8, "mask_embed": 6, "bias_heads": 3, "bias_layers": 1}
    fusion = {"fusion_map": ((0, 0), (1, 1), (2, 2)), "supervised": (2, 3)}
    model = SAN(SANConfig(**clip, **vision, **text, **side, **masks, **fusion))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model


def config_of(method: str, parts: str, variant: str) -> AdapterConfig:
    if method not in BOTTLENECKS:
        where = {} if parts == "all" else {"parts": parts}
        return adapter_config(method, **PROMPT_TUNING.get(method, {}), **where)
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
    assert sorted(SMALL) == sorted(families())
    assert [family_class(family).family for family in families()] == families()


@cases
def test_adapter_keeps_its_promises(
    build: Callable[[str], PromptSegmenter], family: str, method: str, parts: str, variant: str, tmp_path: Path
) -> None:
    model = build(family)
    config = config_of(method, parts, variant)
    if lacks_a_site(model, config):
        return
    frozen = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    size = sum(parameter.numel() for parameter in model.parameters())
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
    assert report.total == added + size
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
    methods = METHODS_OF[family] if family in TRAINED_WHOLE else TAKING_TURNS
    for seed, (method, parts, variant) in enumerate(methods):
        name = f"{method}-{parts}-{variant}"
        if lacks_a_site(model, config_of(method, parts, variant)):
            continue
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
    attach(model, config_of(*TRAINED_WHOLE.get(family, ("dense", OTHER_PARTS.get(family, "vlc"), "published"))))
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
    attach(model, config_of(*TRAINED_WHOLE.get(family, ("dense", OTHER_PARTS.get(family, "vlc"), "residual"))))
    assert model.base_hash == build(family).base_hash


@each_family
@torch.no_grad()
def test_trunk_and_head_of_each_input_alone_make_the_whole(
    build: Callable[[str], PromptSegmenter], family: str
) -> None:
    model = build(family)
    inputs = arguments(3)
    whole = model(**inputs, image_index=torch.tensor([2, 0, 1]))
    texts = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    images = [model.image_trunk(pixels[None]) for pixels in inputs["pixel_values"]]
    # As they are kept: a list of tensors each.
    image = ImageFeatures.join([images[0].with_tensors(one.tensors()) for one in images])
    text = TextFeatures.join(
        [model.text_trunk(ids[None, : mask.sum()], mask[None, : mask.sum()]) for ids, mask in texts]
    )
    assert len(text) == 3
    assert all(len(tensor) == 3 for tensor in image.tensors())
    trunks = Trunks(image, text.with_tensors(text.tensors()))
    torch.testing.assert_close(model(trunks=trunks, image_index=torch.tensor([2, 0, 1])), whole, atol=1e-4, rtol=1e-4)
