"""Predictor: one image, many prompts, native size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlsm_adapter import DenseAdapterConfig, Predictor, attach, save_adapter, without_adapter
from vlsm_adapter.adapters.attach import use_adapter
from vlsm_adapter.adapters.folder import AdapterInfo
from vlsm_adapter.errors import AdapterError, DataError, ModelError, UserError
from vlsm_adapter.models.base import PromptSegmenter

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


def adapted(model: PromptSegmenter, name: str = "default", seed: int = 1) -> PromptSegmenter:
    """``model`` with an adapter that changes what it says (a fresh one changes nothing)."""
    attach(model, DenseAdapterConfig(bottleneck_dim=4), name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if f".{name}." in key or key.endswith(f".{name}"):
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def predictor(model: PromptSegmenter) -> Predictor:
    return Predictor(model)


def test_masks_are_upsampled_logits_above_the_threshold(predictor: Predictor) -> None:
    prompts = ["polyp", "the skin lesion"]
    predictor.set_image(IMAGE)
    model = predictor.model
    tokens = model.tokenize(prompts)
    with torch.no_grad():
        logits = model(model.preprocess([IMAGE]), tokens.input_ids, tokens.attention_mask)
    expected = torch.nn.functional.interpolate(logits, (50, 70), mode="bilinear", align_corners=False)[:, 0].sigmoid()
    probabilities = predictor.probabilities(prompts)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected.numpy(), atol=1e-5)
    masks = predictor.predict(prompts, threshold=0.4)
    assert masks.dtype == bool
    assert masks.shape == (2, 50, 70)
    assert (masks == (probabilities > 0.4)).all()
    assert 0 < masks.mean() < 1
    for number, one in enumerate(predictor.predictions(prompts)):
        assert one.prompt == prompts[number]
        assert one.threshold == 0.5
        assert (one.mask == (probabilities[number] > 0.5)).all()


def test_the_image_and_each_text_are_encoded_once(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, texts = predictor.model, [], []
    encode_image, encode_text = model.encode_image, model.encode_text
    monkeypatch.setattr(model, "encode_image", lambda pixels: images.append(1) or encode_image(pixels))
    monkeypatch.setattr(model, "encode_text", lambda ids, mask=None: texts.append(len(ids)) or encode_text(ids, mask))
    predictor.set_image(IMAGE)
    predictor.predict(["polyp", "skin"])
    predictor.predict(["skin", "polyp", "skin"])
    assert images == [1]
    predictor.set_image(IMAGE[::2])
    predictor.predict(["skin"])
    assert len(images) == 2
    assert texts == [2]


def test_every_kind_of_image_is_the_same_image(predictor: Predictor, tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    Image.fromarray(IMAGE).save(file)
    answers = []
    for image in (IMAGE, Image.fromarray(IMAGE), file, str(file), np.asfortranarray(IMAGE), IMAGE[:, ::-1][:, ::-1]):
        predictor.set_image(image)
        assert predictor.image_size == (50, 70)
        answers.append(predictor.probabilities(["polyp"]))
    assert all((answer == answers[0]).all() for answer in answers)


def test_grey_is_grey_in_colour(predictor: Predictor) -> None:
    grey = IMAGE[..., 0]
    predictor.set_image(np.stack([grey] * 3, axis=2))
    expected = predictor.probabilities(["polyp"])
    for image in (grey, Image.fromarray(grey)):
        predictor.set_image(image)
        assert (predictor.probabilities(["polyp"]) == expected).all()


def test_transparency_is_laid_on_black(predictor: Predictor) -> None:
    alpha = np.full((50, 70), 255, np.uint8)
    alpha[:20] = 0
    predictor.set_image(Image.fromarray(np.dstack([IMAGE, alpha])))
    got = predictor.probabilities(["polyp"])
    black = IMAGE.copy()
    black[:20] = 0
    predictor.set_image(black)
    assert (predictor.probabilities(["polyp"]) == got).all()


def test_a_turned_photo_is_answered_upright(predictor: Predictor, tmp_path: Path) -> None:
    picture = Image.fromarray(IMAGE)
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    predictor.set_image(tmp_path / "turned.png")
    assert predictor.predict(["polyp"]).shape == (1, 70, 50)
    with Image.open(tmp_path / "turned.png") as opened:
        predictor.set_image(opened)
    assert predictor.predict(["polyp"]).shape == (1, 70, 50)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (IMAGE.astype(np.float32) / 255, "dtype float32: give uint8"),
        (IMAGE.astype(np.uint16), "dtype uint16"),
        (np.dstack([IMAGE, IMAGE[..., :1]]), r"shape \(50, 70, 4\).*alpha"),
        (IMAGE[None], r"shape \(1, 50, 70, 3\)"),
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
        ([[1, 2]], "type list"),
        (Image.fromarray(IMAGE[..., 0].astype(np.uint16) * 256), "more than 8 bits"),
    ],
)
def test_an_image_of_another_kind_is_refused(predictor: Predictor, image: object, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        predictor.set_image(image)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_leaves_the_image_before(predictor: Predictor, tmp_path: Path) -> None:
    predictor.set_image(IMAGE)
    before = predictor.probabilities(["polyp"])
    with pytest.raises(DataError, match=r"absent\.png"):
        predictor.set_image(tmp_path / "absent.png")
    assert (predictor.probabilities(["polyp"]) == before).all()


def test_prompts_are_checked(predictor: Predictor) -> None:
    with pytest.raises(UserError, match="set_image"):
        predictor.predict(["polyp"])
    predictor.set_image(IMAGE)
    with pytest.raises(UserError, match="no prompt"):
        predictor.predict([])
    with pytest.raises(UserError, match=r"one string: give a list of texts, \['polyp'\]"):
        predictor.predict("polyp")
    with pytest.raises(UserError, match="prompts are texts"):
        predictor.predict([3])  # type: ignore[list-item]
    with pytest.raises(UserError, match="not Unicode"):
        predictor.predict(["\udcff"])
    with pytest.raises(UserError, match="from 0 to 1"):
        predictor.each(["polyp"], threshold=2)  # at the call, before anything is asked for
    assert predictor.predict([""]).shape == (1, 50, 70)  # the empty prompt is level p0 of the published protocol


def test_thresholds_at_the_ends(predictor: Predictor) -> None:
    predictor.set_image(IMAGE)
    assert predictor.predict(["polyp"], threshold=0).all()
    assert not predictor.predict(["polyp"], threshold=1).any()


def test_switching_or_training_the_adapter_is_never_answered_from_the_cache(model: PromptSegmenter) -> None:
    predictor = Predictor(adapted(adapted(model, "a", seed=1), "b", seed=2))

    def answer() -> np.ndarray:
        return predictor.probabilities(["polyp"])

    predictor.set_image(IMAGE)
    second = answer()
    with without_adapter(model):
        base = answer()
    use_adapter(model, "a")
    first = answer()
    for one, other in ((first, second), (first, base), (second, base)):
        assert np.abs(one - other).max() > 1e-3
    use_adapter(model, "b")
    assert (answer() == second).all()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)  # as an optimizer would
    assert np.abs(answer() - second).max() > 1e-4


def test_another_type_or_device_is_never_answered_from_the_cache(model: PromptSegmenter) -> None:
    predictor = Predictor(adapted(model))
    predictor.set_image(IMAGE)
    first = predictor.probabilities(["polyp"])
    model.to(torch.bfloat16)
    fresh = Predictor(model)
    fresh.set_image(IMAGE)
    assert (predictor.probabilities(["polyp"]) == fresh.probabilities(["polyp"])).all()
    model.to(torch.float32)
    fresh = Predictor(model)
    fresh.set_image(IMAGE)
    again = predictor.probabilities(["polyp"])  # of weights that were rounded; the image was not
    assert (again == fresh.probabilities(["polyp"])).all()
    assert (again != first).any()
    model.to("meta")
    with pytest.raises(NotImplementedError):  # nothing is left to answer with
        predictor.probabilities(["polyp"])


def test_the_model_is_left_as_it_was(model: PromptSegmenter) -> None:
    adapted(model)
    model.train()
    predictor = Predictor(model)
    predictor.set_image(IMAGE)
    predictor.predict(["polyp"])
    assert all(module.training for module in model.modules())
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_an_adapter_folder_and_a_run_are_loaded(model: PromptSegmenter, tmp_path: Path) -> None:
    folder = save_adapter(adapted(model), tmp_path / "run" / "adapter", info=AdapterInfo(threshold=0.3))
    expected = Predictor(model, 0.3)
    expected.set_image(IMAGE)
    for path in (folder, tmp_path / "run", str(tmp_path / "run")):
        loaded = Predictor.load(path)
        assert loaded.threshold == 0.3
        loaded.set_image(IMAGE)
        np.testing.assert_allclose(
            loaded.probabilities(["polyp"]), expected.probabilities(["polyp"]), atol=1e-6, rtol=1e-6
        )
    assert Predictor.load(folder, threshold=0.7, device="cpu").threshold == 0.7


def test_the_base_may_have_moved(model: PromptSegmenter, base_folder: Path, tmp_path: Path) -> None:
    model.base_id = str(tmp_path / "gone")
    folder = save_adapter(adapted(model), tmp_path / "adapter")
    with pytest.raises(ModelError):
        Predictor.load(folder)
    Predictor.load(folder, base=base_folder).set_image(IMAGE)


def test_a_folder_without_adapter_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no such folder"):
        Predictor.load(tmp_path / "absent")
    with pytest.raises(AdapterError, match="neither an adapter folder"):
        Predictor.load(tmp_path)
    (tmp_path / "config.yaml").write_text("data: {path: x}\n")
    with pytest.raises(AdapterError, match=r"no epoch of it was validated.*--resume"):
        Predictor.load(tmp_path)


def test_zero_shot_is_the_base(base_folder: Path, predictor: Predictor) -> None:
    base = Predictor.zero_shot(base_folder, threshold=0.2)
    assert base.threshold == 0.2
    base.set_image(IMAGE)
    predictor.set_image(IMAGE)
    # Weights mapped from a file lie at other addresses, and some processors' sums depend on that.
    np.testing.assert_allclose(base.probabilities(["skin"]), predictor.probabilities(["skin"]), atol=1e-6)
    with pytest.raises(ModelError):
        Predictor.zero_shot("no-such-model")
