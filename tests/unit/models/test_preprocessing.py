"""Preprocessing as data: what it does to pixels, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlsm_adapter.errors import ModelError
from vlsm_adapter.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def test_same_pixels_as_the_stock_image_processor() -> None:
    transformers = pytest.importorskip("transformers")
    image = np.random.default_rng(0).integers(0, 256, (61, 47, 3), dtype=np.uint8)
    # The Pillow backend: the other one needs torchvision.
    stock = transformers.models.vit.image_processing_pil_vit.ViTImageProcessorPil(
        size={"height": 32, "width": 32}, image_mean=list(IMAGENET_MEAN), image_std=list(IMAGENET_STD), resample=2
    )
    expected = stock(images=image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(Preprocessing(size=(32, 32))(image), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [60.0, 55.0, 50.0]},
        {"do_rescale": False, "do_normalize": False},
    ],
)
def test_steps_that_an_image_processor_leaves_out_or_changes(changes: dict) -> None:
    """A base model that was trained without normalisation must not get it."""
    transformers = pytest.importorskip("transformers")
    image = np.random.default_rng(0).integers(0, 256, (61, 47, 3), dtype=np.uint8)
    values = {**Preprocessing(size=(32, 32)).to_hugging_face(), **changes}
    stock = transformers.models.vit.image_processing_pil_vit.ViTImageProcessorPil(**values)
    expected = stock(images=image, return_tensors="pt")["pixel_values"][0].float()
    torch.testing.assert_close(Preprocessing.from_hugging_face(values)(image), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("factor", [0, -1, math.nan, math.inf, "x"])
def test_rescaling_by_nothing_is_refused(factor: object) -> None:
    with pytest.raises(ModelError, match=r"preprocessor_config\.json"):
        Preprocessing.from_hugging_face({"rescale_factor": factor})


def test_height_and_width_are_not_confused() -> None:
    image = np.zeros((10, 20, 3), np.uint8)
    image[:5] = 255
    pixels = Preprocessing(size=(4, 8), mean=(0, 0, 0), std=(1, 1, 1))(image)
    assert pixels.shape == (3, 4, 8)
    assert pixels.dtype == torch.float32
    assert pixels[:, 0].min() == 1
    assert pixels[:, -1].max() == 0


def test_image_of_the_right_size_is_only_normalised() -> None:
    image = np.full((4, 4, 3), (124, 116, 104), np.uint8)
    pixels = Preprocessing(size=(4, 4))(image)
    expected = (torch.tensor([124, 116, 104]) / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(pixels[:, 2, 3], expected, atol=1e-5, rtol=0)


def test_read_only_and_strided_images_are_taken() -> None:
    image = np.zeros((8, 8, 4), np.uint8)[..., :3]
    image.flags.writeable = False
    assert Preprocessing(size=(8, 8))(image).shape == (3, 8, 8)
    assert Preprocessing(size=(4, 4))(image[::2, ::-1]).shape == (3, 4, 4)


sizes = st.tuples(st.integers(1, 4096), st.integers(1, 4096))
triples = st.tuples(*[st.floats(0.01, 10)] * 3)


@given(sizes, triples, triples, st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]))
def test_both_written_forms_read_back(size: tuple, mean: tuple, std: tuple, resample: str) -> None:
    preprocessing = Preprocessing(size, mean, std, resample)
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
    assert Preprocessing.from_hugging_face(preprocessing.to_hugging_face()) == preprocessing


@given(JSON, JSON, JSON, JSON)
def test_malformed_values_are_one_line_errors(size: object, mean: object, std: object, resample: object) -> None:
    ours = {"size": size, "mean": mean, "std": std, "resample": resample}
    theirs = {"size": size, "image_mean": mean, "image_std": std, "resample": resample}
    for read, values in ((Preprocessing.from_dict, ours), (Preprocessing.from_hugging_face, theirs)):
        try:
            read(values)
        except ModelError as error:
            message = str(error)
        else:
            message = ""
        assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (0, 5)}, "1 to 4096"),
        ({"size": (32, 5000)}, "1 to 4096"),
        ({"std": (1, 0, 1)}, "positive"),
        ({"std": (1, math.nan, 1)}, "positive"),
        ({"mean": (0, math.inf, 0)}, "finite"),
        ({"resample": "cubic"}, "bicubic"),
    ],
)
def test_values_out_of_range(changes: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Preprocessing(**changes)


def test_hugging_face_sizes_in_all_their_forms() -> None:
    for size in (32, {"height": 32, "width": 32}, {"shortest_edge": 32}):
        assert Preprocessing.from_hugging_face({"size": size}).size == (32, 32)
    with pytest.raises(ModelError, match=r"preprocessor_config\.json"):
        Preprocessing.from_hugging_face({"size": {"longest_edge": 32}})
