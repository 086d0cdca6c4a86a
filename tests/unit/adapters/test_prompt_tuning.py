"""CoOp, VPT and MaPLe: learned tokens where the papers put them, and nothing else moved."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vlsm_adapter.adapters import AdapterConfig, CoOpConfig, MaPLeConfig, VPTConfig, adapter_config, tuner
from vlsm_adapter.adapters.attach import attach, detach, use_adapter, without_adapter
from vlsm_adapter.adapters.folder import load_adapter, save_adapter
from vlsm_adapter.errors import AdapterError, ConfigError, ModelError
from vlsm_adapter.inference import TextCache, inferring
from vlsm_adapter.models.base import PromptSegmenter, Site
from vlsm_adapter.models.clipseg import CLIPSeg, _causal_mask
from vlsm_adapter.optimization import check_gradients

Build = Callable[..., CLIPSeg]
START, END = 48, 49
PROMPTS = torch.tensor([[START, 5, 7, END, END, END], [START, 9, 3, 4, 11, END], [START, END, END, END, END, END]])
REAL = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
METHODS = [CoOpConfig(3), VPTConfig(2, depth=1), VPTConfig(2), MaPLeConfig(2)]  # the small model reads 12 tokens
methods = pytest.mark.parametrize("config", METHODS, ids=["coop", "vpt-shallow", "vpt-deep", "maple"])


def shake(model: PromptSegmenter, name: str = "default", seed: int = 0) -> None:
    """Give the adapter weights that matter."""
    generator = torch.Generator().manual_seed(seed)
    weights = {key: torch.randn(old.shape, generator=generator) for key, old in tuner.state_dict(model, name).items()}
    tuner.load_state_dict(model, name, weights, "shake")


def learned(model: PromptSegmenter) -> dict[str, torch.Tensor]:
    return tuner.state_dict(model, "default")


def plain_text(
    model: CLIPSeg, ids: torch.Tensor, mask: torch.Tensor | None, tokens: list[torch.Tensor] | None = None
) -> torch.Tensor:
    """The embedding (P, D) by the definition, for padding on the right: tokens[i] (M, D) at places 1 .. M of block i."""
    text = model.clipseg.clip.text_model
    hidden, end, count = text.embeddings.token_embedding(ids), (ids == END).int().argmax(1), 0
    if tokens:
        count = len(tokens[0])
        hidden = torch.cat([hidden[:, :1], tokens[0].expand(len(ids), -1, -1), hidden[:, 1:]], 1)
        mask = None if mask is None else torch.cat([mask[:, :1], mask.new_ones(len(ids), count), mask[:, 1:]], 1)
    hidden = text.embeddings(inputs_embeds=hidden)
    for number, block in enumerate(text.encoder.layers):
        if tokens and 0 < number < len(tokens):
            own = tokens[number].expand(len(ids), -1, -1)
            hidden = torch.cat([hidden[:, :1], own, hidden[:, 1 + count :]], 1)
        hidden = block(hidden, attention_mask=_causal_mask(hidden, mask))
    states = text.final_layer_norm(hidden[torch.arange(len(ids)), end + count])
    projected: torch.Tensor = model.clipseg.clip.text_projection(states)
    return projected


def plain_image(
    model: CLIPSeg, pixels: torch.Tensor, tokens: list[torch.Tensor] | None = None
) -> tuple[torch.Tensor, ...]:
    """Activations by the definition, with tokens[i] (M, D) of block i behind the class token, where the papers have them."""
    vision = model.clipseg.clip.vision_model
    hidden, count, read = vision.pre_layrnorm(vision.embeddings(pixels)), 0, []
    for number, block in enumerate(vision.encoder.layers[:4]):
        if tokens and number < len(tokens):
            own = tokens[number].expand(len(pixels), -1, -1)
            hidden, count = torch.cat([hidden[:, :1], own, hidden[:, 1 + count :]], 1), own.shape[1]
        hidden = block(hidden, attention_mask=None)
        if number in model.extract_layers:
            read.append(torch.cat([hidden[:, :1], hidden[:, 1 + count :]], 1))
    return tuple(read)


# -- the base is the base ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [REAL, None], ids=["mask", "no mask"])
@torch.no_grad()
def test_without_a_method_every_value_is_the_one_it_was(new_model: Build, mask: torch.Tensor | None) -> None:
    model = new_model()
    assert torch.equal(model.encode_text(PROMPTS, mask).condition, plain_text(model, PROMPTS, mask))
    for ours, plain in zip(model.encode_image(PIXELS).activations, plain_image(model, PIXELS), strict=True):
        assert torch.equal(ours, plain)


@methods
@torch.no_grad()
def test_base_comes_back_bit_for_bit(new_model: Build, config: AdapterConfig) -> None:
    model = new_model()
    base = model(PIXELS, PROMPTS, REAL)
    attach(model, config)
    shake(model)
    assert not torch.equal(model(PIXELS, PROMPTS, REAL), base)
    with without_adapter(model):
        assert torch.equal(model(PIXELS, PROMPTS, REAL), base)
        assert model.context_length == 12
    detach(model, "default")
    assert torch.equal(model(PIXELS, PROMPTS, REAL), base)
    assert model.context_length == 12


# -- the tokens are where the papers put them --------------------------------------------------------------------------


@torch.no_grad()
def test_coop_that_starts_from_words_is_the_prompt_with_these_words(model: CLIPSeg) -> None:
    prompts = ["polyp", "the small round skin lesion", ""]
    expected = model.encode_text(*model.tokenize([f"the image of a {prompt}" for prompt in prompts])).condition
    report = attach(model, CoOpConfig(4, words="the image of a"))
    assert report.trainable == 4 * 16
    torch.testing.assert_close(model.encode_text(*model.tokenize(prompts)).condition, expected, atol=1e-5, rtol=0)
    alone = [model.encode_text(*model.tokenize([prompt])).condition for prompt in prompts]
    torch.testing.assert_close(torch.cat(alone), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("end", [END, 2], ids=["end token", "old end token"])
@torch.no_grad()
def test_context_stands_behind_the_start_token_also_with_padding_on_the_left(new_model: Build, end: int) -> None:
    model = new_model(text_config={"eos_token_id": end})
    words = torch.tensor([21, 22, 23])
    ids, mask = torch.tensor([[0, 0, START, 5, END], [START, 7, 8, 9, END]]), torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    longer = torch.tensor([[0, 0, START, 21, 22, 23, 5, END], [START, 21, 22, 23, 7, 8, 9, END]])
    longer_mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8])
    expected = model.encode_text(longer, longer_mask).condition
    table = model.clipseg.clip.text_model.embeddings.token_embedding.weight
    attach(model, CoOpConfig(3))
    tuner.load_state_dict(model, "default", {"text_tokens.0.adapter_part.tokens": table[words]}, "words")
    torch.testing.assert_close(model.encode_text(ids, mask).condition, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("depth", [1, 2, 4])
@torch.no_grad()
def test_vpt_is_the_papers_sequence(new_model: Build, depth: int) -> None:
    model = new_model()
    attach(model, VPTConfig(3, depth=depth))
    shake(model)
    weights = learned(model)
    tokens = [weights[f"image_tokens.{block}.adapter_part.tokens"] for block in range(depth)]
    assert len(weights) == depth
    for ours, plain in zip(model.encode_image(PIXELS).activations, plain_image(model, PIXELS, tokens), strict=True):
        assert ours.shape == (3, 17, 24)  # class token and patches, no learned one
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mask", [REAL, None], ids=["mask", "no mask"])
@pytest.mark.parametrize("depth", [1, 3, 4])
@torch.no_grad()
def test_maple_couples_both_encoders(new_model: Build, depth: int, mask: torch.Tensor | None) -> None:
    model = new_model()
    attach(model, MaPLeConfig(2, depth=depth))
    shake(model)
    weights = learned(model)
    text = [weights[f"text_tokens.{block}.adapter_part.tokens"] for block in range(depth)]
    image = []
    for block, tokens in enumerate(text):
        part = f"image_tokens.{block}.adapter_part.coupling"
        image.append(tokens @ weights[f"{part}.weight"].T + weights[f"{part}.bias"])
    expected = plain_text(model, PROMPTS, mask, text)
    torch.testing.assert_close(model.encode_text(PROMPTS, mask).condition, expected, atol=1e-5, rtol=0)
    for ours, plain in zip(model.encode_image(PIXELS).activations, plain_image(model, PIXELS, image), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)


@torch.no_grad()
def test_maple_starts_from_words_where_the_model_has_a_tokenizer(model: CLIPSeg, new_model: Build) -> None:
    attach(model, MaPLeConfig(5, words="the image of a"))
    table = model.clipseg.clip.text_model.embeddings.token_embedding.weight
    ids = model.tokenizer("the image of a", add_special_tokens=False)["input_ids"]  # type: ignore[misc]
    weights = learned(model)
    start = weights["text_tokens.0.adapter_part.tokens"]
    assert torch.equal(start[:4], table[ids])
    assert 0 < start[4].abs().max() < 0.1
    assert weights["text_tokens.1.adapter_part.tokens"].abs().max() < 0.1
    without = new_model()
    attach(without, MaPLeConfig(2))
    assert learned(without)["text_tokens.0.adapter_part.tokens"].abs().max() < 0.1
    fewer = copy.deepcopy(model)
    attach(fewer, MaPLeConfig(2, words="the image of a"), "fewer")
    assert torch.equal(tuner.state_dict(fewer, "fewer")["text_tokens.0.adapter_part.tokens"], table[ids[:2]])


def test_counts_at_full_size() -> None:
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    with torch.device("meta"):
        model = CLIPSeg(CLIPSegForImageSegmentation(CLIPSegConfig()))  # 512 and 768 wide, 12 blocks, 10 of them read
    expected = {
        CoOpConfig(): 16 * 512,
        VPTConfig(): 10 * 10 * 768,
        VPTConfig(50, depth=1): 50 * 768,
        MaPLeConfig(): 9 * (2 * 512 + 512 * 768 + 768),  # 3,555,072, the paper's 3.55 million
    }
    for config, count in expected.items():
        shapes = tuner.expected_shapes(config.placements(model), model)
        assert sum(torch.Size(shape).numel() for shape in shapes.values()) == count


# -- prompts in batches ------------------------------------------------------------------------------------------------


@methods
@torch.no_grad()
def test_many_prompts_per_image_equal_one_by_one(model: CLIPSeg, config: AdapterConfig) -> None:
    attach(model, config)
    shake(model)
    prompts = ["polyp", "the small round skin lesion", "polyp", ""]
    index = torch.tensor([1, 0, 1, 2])
    together = model(PIXELS, *model.tokenize(prompts), image_index=index)
    assert torch.equal(together[0], together[2])
    with inferring(model):
        cached = TextCache(model)(prompts)
        staged = model.decode(model.encode_image(PIXELS), cached, index).unsqueeze(1)
    torch.testing.assert_close(staged, together, atol=1e-5, rtol=0)
    for number, image in enumerate(index.tolist()):
        alone = model(PIXELS[image : image + 1], *model.tokenize(prompts[number : number + 1]))
        torch.testing.assert_close(together[number : number + 1], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_images_of_another_size(new_model: Build) -> None:
    model = new_model()
    attach(model, MaPLeConfig(2))
    assert model(torch.randn(1, 3, 24, 40), PROMPTS, REAL).shape == (3, 1, 24, 40)


# -- the context is finite ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_learned_words_take_places_of_the_prompt(model: CLIPSeg, caplog: pytest.LogCaptureFixture) -> None:
    attach(model, VPTConfig(2), "image_only")
    assert model.context_length == 12
    attach(model, CoOpConfig(4), "four")
    assert model.context_length == 8
    attach(model, MaPLeConfig(9), "nine")
    assert model.context_length == 3
    with caplog.at_level(logging.WARNING, logger="vlsm_adapter"):
        assert model.tokenize(["small round polyp"]).input_ids.shape == (1, 3)
    assert "has 5 tokens, the model reads 3" in caplog.text
    use_adapter(model, "image_only")
    assert model.tokenize(["small round polyp"]).input_ids.shape == (1, 5)


@torch.no_grad()
def test_prompt_without_room_is_refused_and_padding_is_not_counted(new_model: Build) -> None:
    model = new_model()
    attach(model, MaPLeConfig(4, depth=2))
    shake(model)
    padded = torch.cat([PROMPTS, torch.full((3, 6), END)], 1)  # to the whole context
    mask = torch.cat([REAL, torch.zeros(3, 6, dtype=torch.long)], 1)
    for real, short in ((mask, REAL), (None, None)):
        expected = model.encode_text(PROMPTS, short).condition
        torch.testing.assert_close(model.encode_text(padded, real).condition, expected, atol=1e-5, rtol=0)
    long = torch.tensor([[START, *range(1, 9), END]])
    with pytest.raises(ModelError, match=r"prompt of 10 tokens beside 4 learned ones: .* at most 8 are left") as caught:
        model.encode_text(long)
    assert "\n" not in str(caught.value)
    with without_adapter(model):
        model.encode_text(long)


@pytest.mark.parametrize("method", ["coop", "maple"])
def test_context_without_room_for_a_word(new_model: Build, method: str) -> None:
    model = new_model()
    attach(model, CoOpConfig(9), "already_there")  # another adapter's tokens are not counted
    with pytest.raises(AdapterError, match=r"tokens=10: .* reads 12 tokens, which leaves 2 .*; at most 9") as caught:
        attach(model, adapter_config(method, tokens=10))
    assert "\n" not in str(caught.value)
    attach(model, adapter_config(method, tokens=9))
    assert model(PIXELS[:1], torch.tensor([[START, 3, END]])).isfinite().all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (VPTConfig(2, depth=5), "depth=5: .* depends on 4 image blocks; at most 4"),
        (MaPLeConfig(2, depth=5), "depth=5: .* depends on 4 text blocks; at most 4"),
    ],
)
def test_depth_beyond_the_blocks(new_model: Build, config: AdapterConfig, message: str) -> None:
    model = new_model()
    with pytest.raises(AdapterError, match=message):
        attach(model, config)
    assert not any(tuner.layers(model))


def test_depth_is_that_of_the_shallower_encoder(new_model: Build) -> None:
    model = new_model(text_config={"num_hidden_layers": 2})
    assert attach(model, MaPLeConfig(2)).sites == {"text.tokens": 2, "image.tokens": 2}


@pytest.mark.parametrize("method", ["coop", "vpt", "maple"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "2", None, 1025, float("nan")])
def test_number_of_tokens_out_of_range(method: str, value: object) -> None:
    with pytest.raises(ConfigError, match=r"tokens=.*: must be a whole number from 1 to 1024"):
        adapter_config(method, tokens=value)


@pytest.mark.parametrize("method", ["vpt", "maple"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "deep", 10**9])
def test_depth_out_of_range(method: str, value: object) -> None:
    with pytest.raises(ConfigError, match=r"depth=.*: must be a number of blocks"):
        adapter_config(method, depth=value)


@pytest.mark.parametrize("method", ["coop", "maple"])
@pytest.mark.parametrize("value", [None, 3, ["a"]])
def test_words_that_are_no_text(method: str, value: object) -> None:
    with pytest.raises(ConfigError, match=r"words=.*: must be text"):
        adapter_config(method, words=value)


@methods
def test_model_without_the_sites(new_model: Build, config: AdapterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model()
    monkeypatch.setattr(type(model), "sites", lambda _: [Site("condition", 0, "condition", 16)])
    with pytest.raises(
        AdapterError, match=r"has no site '(text|image)\.tokens'(, 'image\.tokens')?: it offers condition"
    ):
        attach(model, config)


# -- training, saving, copies ------------------------------------------------------------------------------------------


@methods
def test_training_finds_what_other_tokens_did(new_model: Build, config: AdapterConfig) -> None:
    model = new_model()
    torch.manual_seed(0)
    with torch.no_grad():
        base = model(PIXELS, PROMPTS, REAL)
        attach(model, config, "teacher")
        shake(model, "teacher")
        target = model(PIXELS, PROMPTS, REAL)
    attach(model, config)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.05)
    losses = []
    for step in range(40):
        optimizer.zero_grad()
        loss = (model(PIXELS, PROMPTS, REAL) - target).square().mean()
        loss.backward()
        if step == 0:
            check_gradients(model)
            assert all(weight.grad.abs().max() > 0 for weight in weights if weight.grad is not None)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad(), without_adapter(model):
        assert torch.equal(model(PIXELS, PROMPTS, REAL), base)


@methods
@torch.no_grad()
def test_start_is_near_the_base(new_model: Build, config: AdapterConfig) -> None:
    """Not the base, for tokens draw attention from the first step on; but nothing that training could not mend."""
    model = new_model()
    base = model(PIXELS, PROMPTS, REAL).sigmoid()
    attach(model, config)
    start = model(PIXELS, PROMPTS, REAL).sigmoid()
    assert not torch.equal(start, base)
    assert (start - base).abs().mean() < 0.15


@methods
@torch.no_grad()
def test_saved_and_loaded_under_another_name_beside_another_adapter(
    model: CLIPSeg, inputs: dict, config: AdapterConfig, tmp_path: Path
) -> None:
    other = copy.deepcopy(model)
    attach(model, config)
    shake(model)
    expected = model(**inputs)
    save_adapter(model, tmp_path / "adapter")
    attach(other, MaPLeConfig(3), "first")
    load_adapter(tmp_path / "adapter", model=other, name="again")
    assert torch.equal(other(**inputs), expected)
    use_adapter(other, "first")
    assert not torch.equal(other(**inputs), expected)


@torch.no_grad()
def test_folder_that_lies_about_its_tokens(model: CLIPSeg, tmp_path: Path) -> None:
    attach(model, CoOpConfig(3))
    save_adapter(model, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(file.read_text().replace('"tokens": 3', '"tokens": 4'))
    detach(model, "default")
    with pytest.raises(AdapterError, match=r"has shape \(3, 16\), the adapter needs \(4, 16\)"):
        load_adapter(tmp_path / "adapter", model=model)
    file.write_text(file.read_text().replace('"tokens": 4', '"tokens": 40'))
    with pytest.raises(AdapterError, match="tokens=40: the text encoder") as caught:
        load_adapter(tmp_path / "adapter", model=model)
    assert str(caught.value).startswith(f"{file}: ")


@methods
@torch.no_grad()
def test_copies_are_independent(model: CLIPSeg, inputs: dict, config: AdapterConfig) -> None:
    attach(model, config)
    shake(model)
    expected = model(**inputs)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # workers of a loader are sent a pickle
        assert torch.equal(other(**inputs), expected)
        shake(other, seed=1)
        assert not torch.equal(other(**inputs), expected)
        assert torch.equal(model(**inputs), expected)


@methods
def test_half_precision_base_takes_tokens_in_float32(new_model: Build, config: AdapterConfig) -> None:
    model = new_model().to(torch.bfloat16)
    attach(model, config)
    weights = [tensor for tensor in model.parameters() if tensor.requires_grad]
    assert {tensor.dtype for tensor in weights} == {torch.float32}
    logits = model(PIXELS, PROMPTS, REAL)
    assert logits.dtype == torch.bfloat16
    logits.float().square().mean().backward()
    check_gradients(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.float()(PIXELS, PROMPTS, REAL).isfinite().all()


@methods
def test_tokens_follow_the_models_device(new_model: Build, config: AdapterConfig) -> None:
    model = new_model()
    assert model.base_hash
    model.to("meta")
    attach(model, config)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
