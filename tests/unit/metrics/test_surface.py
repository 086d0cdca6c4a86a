"""HD95 and NSD: by hand, against a brute-force reference, by properties, and against MONAI."""

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from vlsm_adapter.metrics import dice, distances, hd95, nsd
from vlsm_adapter.metrics.distances import boundary, surface_distances

SPACINGS = st.sampled_from([0.1, 0.3, 0.5, 1.0, 2.0, 3.7])
CASES = array_shapes(min_dims=1, max_dims=3, max_side=8).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape), st.none() | st.tuples(*[SPACINGS for _ in shape]))
)
Spacing = tuple[float, ...] | None


def square(top: int, left: int, size: int, shape: tuple[int, int] = (40, 40)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[top : top + size, left : left + size] = True
    return mask


@pytest.fixture(params=["as chosen", "distance transform", "k-d tree"])
def search(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both exact searches give the same numbers; force each in turn."""
    forced = {"distance transform": 10**12, "k-d tree": 0}
    if request.param in forced:
        monkeypatch.setattr(distances, "_PIXELS_PER_POINT", forced[request.param])


def brute_force(pred: np.ndarray, truth: np.ndarray, spacing: Spacing) -> tuple[list[float], list[float]]:
    """The definition, pixel by pixel."""
    step = spacing or (1.0,) * pred.ndim

    def edge(mask: np.ndarray) -> list[tuple[int, ...]]:
        found = []
        for index in itertools.product(*map(range, mask.shape)):
            around = [
                (*index[:axis], index[axis] + move, *index[axis + 1 :]) for axis in range(mask.ndim) for move in (-1, 1)
            ]
            inside = [all(0 <= i < n for i, n in zip(at, mask.shape, strict=True)) and mask[at] for at in around]
            if mask[index] and not all(inside):
                found.append(index)
        return found

    def directed(here: list[tuple[int, ...]], there: list[tuple[int, ...]]) -> list[float]:
        return sorted(
            min(math.hypot(*((i - j) * s for i, j, s in zip(a, b, step, strict=True))) for b in there) for a in here
        )

    pred_edge, truth_edge = edge(pred), edge(truth)
    return directed(pred_edge, truth_edge), directed(truth_edge, pred_edge)


def test_hd95_of_two_points_is_their_distance(search: None) -> None:
    assert hd95(square(3, 4, 1), square(6, 8, 1)) == 5
    assert hd95(square(3, 4, 1), square(6, 8, 1), (2.0, 0.5)) == pytest.approx(math.hypot(6, 2))


def test_hd95_interpolates_and_takes_the_larger_direction(search: None) -> None:
    truth = np.zeros((1, 60), dtype=bool)
    truth[0, :11] = True  # a line: every pixel is boundary
    pred = truth.copy()
    pred[0, 30] = True  # 12 points, 11 at distance 0, one at 20: position 0.95 * 11 = 10.45
    assert hd95(pred, truth) == pytest.approx(0.45 * 20)
    assert surface_distances(pred, truth).truth_to_pred.tolist() == [0] * 11


def test_nsd_counts_boundary_pixels_within_tolerance(search: None) -> None:
    truth, pred = square(10, 10, 3), square(10, 12, 3)  # 8 boundary pixels each, one apart in two columns
    # Pred columns 12, 13, 14 (3 + 2 + 3 boundary pixels): distances 0; 1, 1; 2, 2, 2. The truth mirrored.
    assert nsd(pred, truth, 0) == pytest.approx(6 / 16)
    assert nsd(pred, truth, 1) == pytest.approx(10 / 16)
    assert nsd(pred, truth, 1.99) == pytest.approx(10 / 16)
    assert nsd(pred, truth, 2) == 1


def test_a_distance_equal_to_the_tolerance_counts() -> None:
    assert 3 * 0.1 > 0.3  # in double precision
    assert nsd(square(5, 5, 1), square(5, 8, 1), 0.3, (0.1, 0.1)) == 1


def test_boundary_is_of_the_mask_and_includes_the_image_border() -> None:
    full = np.ones((4, 5), dtype=bool)
    assert boundary(full).sum() == 14
    assert boundary(np.ones((3, 3, 3), dtype=bool)).sum() == 26
    assert boundary(square(2, 2, 5)).sum() == 16
    assert not boundary(np.zeros((3, 3), dtype=bool)).any()


@given(CASES)
@settings(max_examples=150, deadline=None)
def test_equals_the_definition(case: tuple[np.ndarray, np.ndarray, Spacing]) -> None:
    pred, truth, spacing = case
    assume(pred.any() and truth.any())
    expected = brute_force(pred, truth, spacing)
    for threshold in (10**12, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distances, "_PIXELS_PER_POINT", threshold)
            found = surface_distances(pred, truth, spacing)
        np.testing.assert_allclose(np.sort(found.pred_to_truth), expected[0], rtol=1e-12)
        np.testing.assert_allclose(np.sort(found.truth_to_pred), expected[1], rtol=1e-12)


@given(CASES, st.floats(0, 5))
@settings(deadline=None)
def test_swapping_the_masks_changes_nothing(case: tuple[np.ndarray, np.ndarray, Spacing], tolerance: float) -> None:
    pred, truth, spacing = case
    assert hd95(pred, truth, spacing) == pytest.approx(hd95(truth, pred, spacing), rel=1e-12)
    assert nsd(pred, truth, tolerance, spacing) == nsd(truth, pred, tolerance, spacing)
    assert hd95(pred, pred, spacing) == 0
    assert nsd(pred, pred, tolerance, spacing) == 1


@given(CASES, st.lists(st.integers(0, 6), min_size=6, max_size=6), st.floats(0, 5))
@settings(deadline=None)
def test_moving_both_masks_in_a_larger_image_changes_nothing(
    case: tuple[np.ndarray, np.ndarray, Spacing], margins: list[int], tolerance: float
) -> None:
    pred, truth, spacing = case
    assume(pred.any() and truth.any())
    pad = [(margins[2 * axis], margins[2 * axis + 1]) for axis in range(pred.ndim)]
    moved = np.pad(pred, pad), np.pad(truth, pad)
    assert hd95(*moved, spacing) == pytest.approx(hd95(pred, truth, spacing), rel=1e-12)
    assert nsd(*moved, tolerance, spacing) == nsd(pred, truth, tolerance, spacing)


@given(CASES, st.sampled_from([0.25, 2.0, 8.0]), st.floats(0.01, 5))
@settings(deadline=None)
def test_scaling_the_spacing_scales_the_distances(
    case: tuple[np.ndarray, np.ndarray, Spacing], factor: float, tolerance: float
) -> None:
    pred, truth, spacing = case
    spacing = spacing or (1.0,) * pred.ndim
    scaled = tuple(step * factor for step in spacing)
    assert hd95(pred, truth, scaled) == pytest.approx(factor * hd95(pred, truth, spacing), rel=1e-12)
    assert nsd(pred, truth, factor * tolerance, scaled) == nsd(pred, truth, tolerance, spacing)


@given(CASES, st.permutations([0, 1, 2]), st.floats(0, 5))
@settings(deadline=None)
def test_turning_the_axes_changes_nothing(
    case: tuple[np.ndarray, np.ndarray, Spacing], order: list[int], tolerance: float
) -> None:
    pred, truth, spacing = case
    axes = [axis for axis in order if axis < pred.ndim]
    turned = tuple(spacing[axis] for axis in axes) if spacing else None
    pair = np.transpose(pred, axes), np.transpose(truth, axes)
    assert hd95(*pair, turned) == pytest.approx(hd95(pred, truth, spacing), rel=1e-12)
    assert nsd(*pair, tolerance, turned) == nsd(pred, truth, tolerance, spacing)


@given(CASES, st.floats(0, 3), st.floats(0, 3))
@settings(deadline=None)
def test_a_wider_tolerance_never_lowers_nsd(
    case: tuple[np.ndarray, np.ndarray, Spacing], tolerance: float, more: float
) -> None:
    pred, truth, spacing = case
    assert nsd(pred, truth, tolerance, spacing) <= nsd(pred, truth, tolerance + more, spacing)


def random_masks(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Speckle, smooth blobs, or a blob and its shifted self: what untrained, trained and good models predict."""
    from scipy.ndimage import gaussian_filter

    def blob() -> np.ndarray:
        field = gaussian_filter(rng.standard_normal(shape), rng.uniform(0.5, 4))
        return np.asarray(field > np.quantile(field, rng.uniform(0.3, 0.97)))

    kind = rng.integers(3)
    if kind == 0:
        density = rng.uniform(0.01, 0.7, size=2)
        return rng.random(shape) < density[0], rng.random(shape) < density[1]
    first = blob()
    return first, (
        blob() if kind == 1 else np.roll(first, tuple(rng.integers(-3, 4, size=len(shape))), range(len(shape)))
    )


@pytest.mark.parametrize("ndim", [2, 3])
def test_equal_to_monai(ndim: int, search: None) -> None:
    monai = pytest.importorskip("monai.metrics", reason="MONAI is not installed (extra: dev)")
    import torch

    rng = np.random.default_rng(ndim)
    compared = 0
    for _ in range(60):
        shape = tuple(int(size) for size in rng.integers(2, 48 if ndim == 2 else 14, size=ndim))
        pred, truth = random_masks(rng, shape)
        if not (pred.any() and truth.any()):
            continue
        compared += 1
        spacing = None if rng.random() < 0.3 else tuple(float(step) for step in rng.choice([0.1, 0.3, 1.0, 2.5], ndim))
        tolerance = float(rng.choice([0.0, 0.3, 0.5, 1.0, 2.0, 2.5]))
        tensors = [torch.from_numpy(mask.astype(np.float32))[None, None] for mask in (pred, truth)]
        options = {"include_background": True, "spacing": spacing}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected_hd = monai.compute_hausdorff_distance(*tensors, percentile=95, **options).item()
            expected_nsd = monai.compute_surface_dice(*tensors, [tolerance], use_subvoxels=False, **options).item()
            expected_dice = monai.compute_dice(*tensors, include_background=True).item()
        assert hd95(pred, truth, spacing) == pytest.approx(expected_hd, rel=2e-5, abs=1e-6)
        assert np.float32(nsd(pred, truth, tolerance, spacing)) == np.float32(expected_nsd)
        assert dice(pred, truth) == pytest.approx(expected_dice, rel=1e-6)
    assert compared > 50
