"""Cleaning of masks and competition of prompts, against plain statements of what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vlsm_adapter.errors import ConfigError, DataError
from vlsm_adapter.imaging.base import AnswerOptions, Spacing
from vlsm_adapter.imaging.postprocess import (
    Cleaning,
    Competition,
    bounding_box,
    components,
    count_components,
    fill_holes,
)


def noise(shape: list[int], density: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < density


# By seed: drawing every pixel from hypothesis is a hundred times slower.
shapes = st.lists(st.integers(1, 7), min_size=2, max_size=3)
seeds = st.integers(0, 2**32)
masks = st.builds(noise, shapes, st.floats(0, 1), seeds)
cleanings = st.builds(Cleaning, st.booleans(), st.booleans(), st.integers(0, 8))


@settings(max_examples=150, deadline=None)
@given(masks, cleanings)
def test_what_comes_out_is_clean(mask: np.ndarray, cleaning: Cleaning) -> None:
    cleaned = cleaning(mask)
    assert cleaned.shape == mask.shape
    assert np.array_equal(cleaning(cleaned), cleaned), "cleaning again changes something"
    labels, count = ndimage.label(cleaned, np.ones((3,) * mask.ndim))
    if cleaning.min_pixels:
        assert all(size >= cleaning.min_pixels for size in np.bincount(labels.ravel())[1:])
    if cleaning.largest_component:
        assert count <= 1
    if cleaning.fill_holes:
        flat = cleaned.reshape([side for side in cleaned.shape if side > 1] or [1])
        assert np.array_equal(ndimage.binary_fill_holes(flat), flat)
    else:
        assert not (cleaned & ~mask).any(), "foreground was added"


@settings(max_examples=60, deadline=None)
@given(masks)
def test_filling_is_that_of_scipy(mask: np.ndarray) -> None:
    assert np.array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))


@settings(max_examples=60, deadline=None)
@given(shapes, seeds, cleanings)
def test_labels_never_take_pixels_of_each_other(shape: list[int], seed: int, cleaning: Cleaning) -> None:
    labels = np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)
    cleaned = cleaning.labels(labels, 3)
    changed = cleaned != labels
    assert not (changed & (labels > 0) & (cleaned > 0)).any()


def test_order_is_holes_then_largest_then_size() -> None:
    ring = np.zeros((9, 20), bool)
    ring[1:6, 1:6] = True
    ring[2:5, 2:5] = False  # 16 pixels of ring, 25 when filled
    ring[1:5, 10:15] = True  # 20 pixels, larger than the ring alone
    kept = Cleaning(fill_holes=True, largest_component=True)(ring)
    assert kept.sum() == 25
    assert kept[3, 3]
    assert not kept[:, 9:].any()
    assert Cleaning(largest_component=True)(ring)[:, 9:].any()
    assert not Cleaning(fill_holes=True, min_pixels=26)(ring).any()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=2), st.floats(0, 1), seeds)
def test_components_counted_by_runs_are_those_labelled(shape: list[int], density: float, seed: int) -> None:
    mask = noise(shape, density, seed)
    assert count_components(mask) == components(mask)[1]
    assert count_components(~mask) == components(~mask)[1]


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1), (3, 4, 5)])
def test_components_are_counted_in_any_shape(shape: tuple[int, ...]) -> None:
    assert count_components(np.zeros(shape, bool)) == 0
    assert count_components(np.ones(shape, bool)) == (1 if np.prod(shape) else 0)


def test_components_of_numbers_and_of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = noise([40, 50], 0.4, 3)
    assert count_components((255 * mask).astype(np.uint8)) == components(mask)[1]
    monkeypatch.setattr("vlsm_adapter.imaging.postprocess._MANY_RUNS", 5)
    assert count_components(mask) == components(mask)[1]


def test_components_that_meet_late_are_one() -> None:
    """A spiral and a comb: runs that seem apart until the last row or the innermost turn."""
    comb = np.zeros((200, 201), bool)
    comb[:, ::2] = True
    comb[-1] = True
    spiral = np.zeros((41, 41), bool)
    row = column = 20
    spiral[row, column] = True
    for turn in range(1, 38):
        down, right = ((0, 1), (1, 0), (0, -1), (-1, 0))[turn % 4]
        for _ in range((turn + 1) // 2 * 2):
            row, column = row + down, column + right
            if not (0 <= row < 41 and 0 <= column < 41):
                break
            spiral[row, column] = True
    for mask in (comb, spiral, np.kron(np.eye(50, dtype=bool), np.ones((3, 3), bool)), comb.T):
        assert count_components(mask) == components(mask)[1]


def test_components_touch_at_corners_and_across_slices() -> None:
    volume = np.zeros((3, 4, 4), bool)
    volume[0, 0, 0] = volume[1, 1, 1] = volume[2, 2, 2] = True
    assert components(volume)[1] == 1
    assert Cleaning(min_pixels=3)(volume).sum() == 3
    assert [Cleaning(min_pixels=3)(slice_).sum() for slice_ in volume] == [0, 0, 0]


def test_a_hole_of_a_volume_is_closed_on_all_sides() -> None:
    volume = np.ones((3, 3, 3), bool)
    volume[1, 1, 1] = False
    assert fill_holes(volume).all()
    volume[0, 1, 1] = False
    assert not fill_holes(volume)[1, 1, 1]
    single = np.ones((1, 3, 3), bool)
    single[0, 1, 1] = False
    assert Cleaning(fill_holes=True)(single).all(), "a volume of one slice is a picture"


def test_nested_labels_fill_from_inside() -> None:
    labels = np.full((9, 9), 1, np.uint8)
    labels[2:7, 2:7] = 2
    labels[4, 4] = 0
    assert Cleaning(fill_holes=True).labels(labels, 2)[4, 4] == 2


@pytest.mark.parametrize(
    ("size", "spacing", "volume", "pixels"),
    [
        (3.0, Spacing(0.5, 0.5), False, 12),
        (3.0, Spacing(0.5, 0.5, 3.0), True, 4),
        (0.1 * 3, Spacing(0.1, 1.0), False, 3),  # 0.30000000000000004 / 0.1 is above 3
    ],
)
def test_sizes_in_mm(size: float, spacing: Spacing, volume: bool, pixels: int) -> None:
    options = AnswerOptions(min_size=size, min_size_mm=True)
    assert Cleaning.of(options, spacing, volume=volume, where="a.nii").min_pixels == pixels


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(DataError, match=r"a\.png: does not say its spacing"):
        Cleaning.of(AnswerOptions(min_size=3, min_size_mm=True), None, volume=False, where="a.png")
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="smallest size"):
            Cleaning.of(AnswerOptions(min_size=wrong), None, volume=False, where="a.png")


@settings(max_examples=60, deadline=None)
@given(seeds, st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1)))
def test_competition_is_the_softmax_with_the_threshold_as_background(seed: int, threshold: float) -> None:
    maps = np.random.default_rng(seed).random((3, 4, 5), np.float32)
    maps[:, 0, 0], maps[:, 0, 1], maps[1, 0, 2] = 0, 1, threshold
    contest = Competition.of(list(maps), threshold)
    above = (maps > np.float32(threshold)).any(axis=0)
    assert np.array_equal(contest.labels > 0, above)
    assert np.array_equal(contest.labels[above], maps.argmax(axis=0)[above] + 1)
    shares = np.stack([contest.share(one) for one in maps])
    assert np.isfinite(shares).all()
    assert (shares >= 0).all()
    assert (shares.sum(axis=0) <= 1 + 1e-6).all()


def test_competition_equals_a_softmax_of_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 6, 7)).astype(np.float32)
    maps = 1 / (1 + np.exp(-logits))
    contest = Competition.of(list(maps), 0.5)
    exponents = np.exp(np.concatenate([np.zeros((1, 6, 7)), logits]))
    softmax = exponents / exponents.sum(axis=0)
    assert np.array_equal(contest.labels, softmax.argmax(axis=0))
    for number, one in enumerate(maps):
        assert np.allclose(contest.share(one), softmax[number + 1], atol=1e-5)


def test_bounding_box() -> None:
    mask = np.zeros((4, 5, 6), bool)
    mask[1:3, 4, 2:6] = True
    assert bounding_box(mask) == (slice(1, 3), slice(4, 5), slice(2, 6))
