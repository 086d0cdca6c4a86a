"""CLIPSeg in three stages against the stock transformers model, and what the stages promise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from vlsm_adapter.errors import ModelError
from vlsm_adapter.models import load_model
from vlsm_adapter.models.base import PromptSegmenter
from vlsm_adapter.models.clipseg import CLIPSeg, _upsample

START, END = 48, 49
PROMPTS = torch.tensor([[START, 5, 7, END, END, END], [START, 9, 3, 4, 11, END], [START, END, END, END, END, END]])
REAL = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
Build = Callable[..., CLIPSeg]


def pixels(count: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def stock_logits(model: CLIPSeg, images: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    with torch.no_grad():
        output = model.clipseg(pixel_values=images, input_ids=ids, attention_mask=mask)
    return output.logits.reshape(len(images), 1, *images.shape[-2:])


@pytest.mark.parametrize("side", [32, 48], ids=["size trained on", "interpolated positions"])
@pytest.mark.parametrize("mask", [REAL, None], ids=["mask", "no mask"])
@torch.no_grad()
def test_logits_are_the_stock_models(new_model: Build, side: int, mask: torch.Tensor | None) -> None:
    model = new_model()
    images = pixels(3, side)
    expected = stock_logits(model, images, PROMPTS, mask)
    assert expected.std() > 0.01  # not a constant that anything would match
    torch.testing.assert_close(model(images, PROMPTS, mask), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_complex_transposed_convolution": True, "vision_config": {"patch_size": 16}},
        {"conditional_layer": 2},
        {"extract_layers": [3]},
        {"text_config": {"num_hidden_layers": 1}},
        {"text_config": {"eos_token_id": 2, "pad_token_id": 1}},
    ],
    ids=["complex convolution", "conditional layer", "one layer", "shallow text", "old end token"],
)
@torch.no_grad()
def test_logits_are_the_stock_models_in_other_configurations(new_model: Build, changes: dict) -> None:
    model = new_model(**changes)
    images = pixels(3, 32)
    expected = stock_logits(model, images, PROMPTS, REAL)
    torch.testing.assert_close(model(images, PROMPTS, REAL), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_logits_are_the_stock_models_at_the_papers_geometry(new_model: Build) -> None:
    """352 pixels, patch 16, positions of 224 pixels, 12 blocks, 77 tokens, extract 3 6 9; narrow to be quick."""
    model = new_model(
        vision_config={"num_hidden_layers": 12, "image_size": 224, "patch_size": 16},
        text_config={"num_hidden_layers": 12, "max_position_embeddings": 77},
        extract_layers=[3, 6, 9],
        use_complex_transposed_convolution=True,
    )
    ids = torch.full((1, 77), END)
    ids[0, :5] = torch.tensor([START, 5, 6, 7, 8])
    mask = (torch.arange(77) < 6).long()[None]
    images = pixels(1, 352)
    logits = model(images, ids, mask)
    assert logits.shape == (1, 1, 352, 352)
    torch.testing.assert_close(logits, stock_logits(model, images, ids, mask), atol=1e-5, rtol=0)
    torch.testing.assert_close(model(images, ids[:, :6]), logits, atol=1e-5, rtol=0)  # padding changes nothing


@torch.no_grad()
def test_prompts_of_unequal_length_do_not_disturb_each_other(model: PromptSegmenter) -> None:
    prompts = ["polyp", "the small round skin lesion", "a", "heart of the image in left"]
    images = pixels(1, 32)
    together = model(images, *model.tokenize(prompts))
    assert together.shape == (4, 1, 32, 32)
    for number, prompt in enumerate(prompts):
        alone = model(images, *model.tokenize([prompt]))
        torch.testing.assert_close(together[number : number + 1], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_many_prompts_per_image_equal_one_by_one(new_model: Build) -> None:
    model = new_model()
    images, index = pixels(2, 32), torch.tensor([1, 0, 1])
    together = model(images, PROMPTS, REAL, image_index=index)
    encoded = model.encode_image(images)
    staged = model.decode(encoded, model.encode_text(PROMPTS, REAL), index)
    torch.testing.assert_close(staged.unsqueeze(1), together, atol=0, rtol=0)
    for number, image in enumerate(index.tolist()):
        one = slice(number, number + 1)
        alone = model(images[image : image + 1], PROMPTS[one], REAL[one])
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_images_need_not_be_square(new_model: Build) -> None:
    logits = new_model()(torch.randn(1, 3, 24, 40), PROMPTS[:1])
    assert logits.shape == (1, 1, 24, 40)
    assert logits.isfinite().all()


@torch.no_grad()
def test_left_padding_gives_no_nan(new_model: Build) -> None:
    ids, mask = torch.tensor([[0, 0, START, 5, END]]), torch.tensor([[0, 0, 1, 1, 1]])
    assert new_model()(pixels(1, 32), ids, mask).isfinite().all()


def test_gradients_flow_through_all_three_stages(new_model: Build) -> None:
    model = new_model()
    model.requires_grad_(True)
    model(pixels(3, 32), PROMPTS, REAL).square().mean().backward()
    unread = ("encoder.layers.4.", "post_layernorm", "visual_projection", "logit_scale")
    for name, parameter in model.named_parameters():
        if name.startswith("clipseg.clip.vision_model") and any(part in name for part in unread):
            assert parameter.grad is None, name
        elif not any(part in name for part in unread):
            assert parameter.grad is not None, name
            # A key's bias moves all scores of a query alike: its gradient is zero but for rounding.
            assert name.endswith("k_proj.bias") or parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_unread_parts_are_not_run(new_model: Build) -> None:
    model = new_model()
    before = model(pixels(3, 32), PROMPTS, REAL)
    clip = model.clipseg.clip
    for unread in (clip.vision_model.encoder.layers[4], clip.vision_model.post_layernorm, clip.visual_projection):
        unread.register_forward_pre_hook(lambda *_: pytest.fail("an unread part is run"))
        for parameter in unread.parameters():
            parameter.fill_(torch.nan)
    assert torch.equal(model(pixels(3, 32), PROMPTS, REAL), before)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(base_folder: Path, inputs: dict, dtype: torch.dtype) -> None:
    exact = load_model(base_folder)(**inputs)
    model = load_model(base_folder, dtype=dtype)
    assert model.dtype == dtype
    half = model(**inputs)
    assert half.dtype == dtype
    assert (half.float() - exact).abs().max() < 0.1 * exact.abs().max()
    assert model.base_hash == load_model(base_folder).base_hash  # of the file, not of what memory holds


@torch.no_grad()
def test_autocast_stays_close(model: PromptSegmenter, inputs: dict) -> None:
    exact = model(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(**inputs)
    assert (mixed.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_wrong_numbers_of_images_and_prompts(new_model: Build) -> None:
    model = new_model()
    with pytest.raises(ModelError, match="3 prompts for 2 images: pass image_index"):
        model(pixels(2, 32), PROMPTS)
    with pytest.raises(ModelError, match=r"image_index of shape \(2,\) for 3 prompts"):
        model(pixels(2, 32), PROMPTS, image_index=torch.tensor([0, 1]))


def test_size_that_is_no_multiple_of_the_patch(new_model: Build) -> None:
    with pytest.raises(ModelError, match="30 x 32 pixels: both sides must be multiples of 8"):
        new_model()(torch.zeros(1, 3, 30, 32), PROMPTS[:1])


@pytest.mark.parametrize("layers", [[], [5], [0, -1]])
def test_extract_layers_must_exist(new_model: Build, layers: list[int]) -> None:
    with pytest.raises(ModelError, match="each from 0 to 4"):
        new_model(extract_layers=layers)


def test_logits_smaller_than_the_image_are_refused(new_model: Build) -> None:
    with pytest.raises(ModelError, match="allowed: patch_size 16"):
        new_model(use_complex_transposed_convolution=True)


BLOCK = ("query", "key", "value", "attn_out", "mlp_in", "mlp_out")


def test_sites_name_existing_modules_of_the_stated_width(new_model: Build) -> None:
    model = new_model()
    sites = model.sites()
    whole = [site for site in sites if site.name in ("image", "text", "decoder")]
    assert len({site.module for site in whole}) == len(whole)
    assert len({site.module for site in sites if site not in whole}) == len(sites) - len(whole)
    assert {site.name for site in sites} == {
        *(f"{tower}.{name}" for tower in ("image", "text") for name in BLOCK), "image.tokens", "text.tokens",
        "image.skip", "text.skip", "text.projection", "condition", "logits", "image", "text", "decoder",
    }  # fmt: skip
    for site in sites:
        module = model.get_submodule(site.module)
        passes = "in_features" if site.name.endswith(".mlp_in") else "out_features"
        assert site in whole or getattr(module, passes, site.width) == site.width
    unread = [site.module for site in sites if not site.read]
    block = "clipseg.clip.vision_model.encoder.layers.4"
    inside = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
    assert unread == ["image_tokens.4", *(f"{block}.{module}" for module in inside)]


def test_text_skip_of_a_block_that_is_not_there_is_not_read(new_model: Build) -> None:
    sites = new_model(text_config={"num_hidden_layers": 2}).sites()
    assert [site.read for site in sites if site.name == "text.skip"] == [True, True, False]


def test_loaded_model_is_frozen_and_in_evaluation_mode(model: PromptSegmenter) -> None:
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_hash_names_the_weights(new_model: Build, tmp_path: Path) -> None:
    one, same, other = new_model(seed=0), new_model(seed=0), new_model(seed=1)
    assert one.base_hash == same.base_hash != other.base_hash
    one.clipseg.save_pretrained(tmp_path)
    assert load_model(tmp_path).base_hash == one.base_hash  # in memory and in a file


@pytest.mark.parametrize("complex_form", [True, False])
@torch.no_grad()
def test_upsampling_is_that_of_the_stock_layers(complex_form: bool) -> None:
    torch.manual_seed(0)
    stack: nn.Module = nn.ConvTranspose2d(6, 1, 8, stride=8)
    if complex_form:
        stack = nn.Sequential(
            nn.Conv2d(6, 6, 3, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 4, 2, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 1, 4, stride=4),
        )
    patches = torch.randn(3, 6, 5, 4)
    torch.testing.assert_close(_upsample(stack, patches), stack(patches).squeeze(1))


@torch.no_grad()
def test_upsampling_leaves_overlapping_layers_to_torch() -> None:
    stack = nn.Sequential(nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 1, 2, 2))
    patches = torch.randn(2, 6, 5, 4)
    assert torch.equal(_upsample(stack, patches), stack(patches).squeeze(1))
