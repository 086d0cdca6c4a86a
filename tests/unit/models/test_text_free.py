"""Text-free references: one map per image whatever is asked, trained whole, rebuilt from the adapter folder alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vlsm_adapter import Predictor, attach, load_model, save_adapter
from vlsm_adapter.adapters import ADAPTERS, FullConfig, adapter_config
from vlsm_adapter.adapters.folder import CARD_NAME, load_adapter
from vlsm_adapter.errors import AdapterError, ModelError
from vlsm_adapter.evaluate import evaluate_model
from vlsm_adapter.models import text_free_models
from vlsm_adapter.models.text_free import ARCHITECTURES, SIDE, TextFree

PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def named(name: str, seed: int = 0) -> TextFree:
    torch.manual_seed(seed)
    model = load_model(name)
    assert isinstance(model, TextFree)
    return model


@pytest.fixture(scope="module")
def unet() -> TextFree:
    """Read only."""
    return named("unet")


def test_the_listed_names_are_the_networks() -> None:
    assert text_free_models() == list(ARCHITECTURES)
    with pytest.raises(ModelError, match="did you mean 'unet'"):
        load_model("unett")


@pytest.mark.parametrize(
    ("name", "parameters"), [("unet", 6_500_734), ("segresnet", 6_299_073), ("dynunet", 20_611_713)]
)
def test_every_network_gives_a_map_and_every_weight_a_gradient(name: str, parameters: int) -> None:
    model = named(name)
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    assert model.preprocess([np.zeros((40, 30, 3), np.uint8)]).shape == (1, 3, SIDE, SIDE)
    # Statistics that training moves would be lost: only parameters are in the state of a run.
    assert not list(model.buffers())
    with torch.no_grad():
        before = model.encode_image(PIXELS).activations[0]
        assert before.shape == (2, 1, 64, 64)
        model.train()
        assert torch.equal(model.encode_image(PIXELS).activations[0], before)
    attach(model, FullConfig())
    tokens = model.tokenize(["polyp", "skin lesion"])
    model(PIXELS, tokens.input_ids, tokens.attention_mask).square().mean().backward()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert sum(weight.numel() for weight in trained) == parameters
    assert all(weight.grad is not None for weight in trained)


@torch.no_grad()
def test_words_change_nothing_and_each_prompt_is_answered_on_its_image(unet: TextFree) -> None:
    tokens = unet.tokenize(["polyp", "", "no polyp at all", "ü" * 5000])
    assert tokens.input_ids.shape == tokens.attention_mask.shape == (4, 1)
    index = torch.tensor([0, 1, 0, 1])
    logits = unet(PIXELS, tokens.input_ids, tokens.attention_mask, index)
    assert logits.shape == (4, 1, 64, 64)
    assert torch.equal(logits[0], logits[2])
    assert torch.equal(logits[1], logits[3])
    assert not torch.equal(logits[0], logits[1])
    # Without an index: all of them of the only image.
    alone = unet(PIXELS[:1], tokens.input_ids, tokens.attention_mask)
    torch.testing.assert_close(alone, logits[:1].expand(4, -1, -1, -1), atol=1e-5, rtol=0)
    with pytest.raises(ModelError, match="no prompt given"):
        unet.tokenize([])


@pytest.mark.parametrize(("height", "width"), [(65, 64), (64, 40), (16, 16)])
def test_sizes_that_it_cannot_halve_are_refused(unet: TextFree, height: int, width: int) -> None:
    with pytest.raises(ModelError, match=rf"{height} x {width} pixels: 'unet' needs .* multiples of 16, 32 or more"):
        unet.encode_image(torch.zeros(1, 3, height, width))


@torch.no_grad()
def test_seeds_differ_but_the_base_is_one(unet: TextFree) -> None:
    same, other = named("unet", 0), named("unet", 1)
    first = unet.encode_image(PIXELS).activations[0]
    assert torch.equal(same.encode_image(PIXELS).activations[0], first)
    assert not torch.equal(other.encode_image(PIXELS).activations[0], first)
    assert unet.base_hash == other.base_hash
    assert len({unet.base_hash, named("segresnet").base_hash, named("dynunet").base_hash}) == 3


@pytest.mark.parametrize("method", [name for name in ADAPTERS.names() if name != "full"])
def test_other_methods_are_refused_in_one_line(unet: TextFree, method: str) -> None:
    with pytest.raises(AdapterError, match=r"starts from random weights.*--adapter full") as error:
        attach(unet, adapter_config(method))
    assert "\n" not in str(error.value)
    assert not any(weight.requires_grad for weight in unet.parameters())


def test_untrained_it_is_not_asked() -> None:
    with pytest.raises(ModelError, match="knows nothing yet: train it first"):
        Predictor.zero_shot("unet")


def test_a_network_that_there_is_not() -> None:
    with pytest.raises(ModelError, match=r"'vnet' is unknown: did you mean 'unet'"):
        TextFree.from_pretrained("vnet", "vnet", torch.float32)


def test_the_folder_rebuilds_the_predictions(tmp_path: Path) -> None:
    model = named("unet", 3)
    attach(model, FullConfig())
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    save_adapter(model, tmp_path / "adapter")
    assert "reads no text" in (tmp_path / "adapter" / CARD_NAME).read_text()
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    predictor = Predictor(model)
    predictor.set_image(image)
    expected = predictor.probabilities(["polyp"])
    torch.manual_seed(99)  # the random weights that it starts from are others
    anew = Predictor.load(tmp_path / "adapter")
    anew.set_image(image)
    np.testing.assert_array_equal(anew.probabilities(["anything else"]), expected)


def test_the_folder_of_another_network_is_refused(tmp_path: Path) -> None:
    model = named("unet")
    attach(model, FullConfig())
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(AdapterError, match="made for base 'unet'"):
        load_adapter(tmp_path / "adapter", base="segresnet")


def test_without_monai_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "monai"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(ModelError, match=r"pip install 'vlsm-adapter\[monai\]'") as error:
        load_model("unet")
    assert "\n" not in str(error.value)


def test_zero_shot_evaluation_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    from vlsm_adapter.data.phantoms import write_phantoms

    write_phantoms(tmp_path / "data", cases_per_modality=10, seed=1, modalities=("endoscopy",))
    with pytest.raises(ModelError, match="random weights"):
        evaluate_model("unet", tmp_path / "data", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
