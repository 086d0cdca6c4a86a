"""Metrics of the boundary: 95th percentile Hausdorff distance and normalised surface Dice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlsm_adapter.metrics.base import MaskPair, metric


@metric("hd95", display_name="HD95", higher_is_better=False, unit="distance")
def _hd95(pair: MaskPair) -> float:
    if pair.emptiness != "none":
        return 0.0 if pair.emptiness == "both" else pair.diagonal
    directed = (pair.surface.pred_to_truth, pair.surface.truth_to_pred)
    return max(float(np.percentile(distances, 95)) for distances in directed)


@metric("nsd", display_name="NSD", higher_is_better=True)
def _nsd(pair: MaskPair) -> float:
    if pair.emptiness != "none":
        return 1.0 if pair.emptiness == "both" else 0.0
    # In single precision, so that a distance equal to the tolerance counts: 3 pixels of 0.1 mm are within 0.3 mm.
    tolerance = np.float32(pair.nsd_tolerance)
    directed = (pair.surface.pred_to_truth, pair.surface.truth_to_pred)
    within = sum(int(np.count_nonzero(distances.astype(np.float32) <= tolerance)) for distances in directed)
    return within / sum(len(distances) for distances in directed)


def hd95(pred: Any, truth: Any, spacing: Sequence[float] | None = None) -> float:
    """95th percentile Hausdorff distance, lower is better.

    The larger of two directed distances; each is the 95th percentile (linearly interpolated) of the Euclidean distances
    from the boundary pixels of one mask to the boundary of the other (Huttenlocher et al., TPAMI 1993; the symmetric
    form of Metrics Reloaded, Maier-Hein et al., Nature Methods 2024). Equal to MONAI's
    ``compute_hausdorff_distance(percentile=95)``.

    Both masks empty: 0. Exactly one empty: the length of the image diagonal, so that a missed lesion is never rewarded.

    Args:
        pred, truth: masks of one shape, (H, W) or any number of axes, bool or 0/1.
        spacing: pixel size per axis, (row, column), in mm; None for distances in pixels.

    Returns:
        A distance in mm, or in pixels without a spacing.

    Raises:
        DataError: the shapes differ, a mask is not a mask, or the spacing is not one positive number per axis.
    """
    return _hd95(MaskPair.of(pred, truth, spacing=spacing))


def nsd(pred: Any, truth: Any, tolerance: float, spacing: Sequence[float] | None = None) -> float:
    """Normalised surface Dice at a tolerance, in [0, 1], higher is better.

    The boundary pixels of both masks that lie within ``tolerance`` (inclusive) of the other boundary, as a fraction of
    all boundary pixels of both (Nikolov et al., 2018, arXiv 1809.04430, with a boundary's length taken as its number of
    pixels). Equal to MONAI's ``compute_surface_dice(use_subvoxels=False)``.

    Both masks empty: 1. Exactly one empty: 0.

    Args:
        pred, truth: masks of one shape, (H, W) or any number of axes, bool or 0/1.
        tolerance: the deviation that counts as none, in mm, or in pixels without a spacing.
        spacing: pixel size per axis, (row, column), in mm; None for distances in pixels.

    Raises:
        DataError: the shapes differ, a mask is not a mask, or the spacing is not one positive number per axis.
        ConfigError: the tolerance is not a finite number >= 0.
    """
    return _nsd(MaskPair.of(pred, truth, spacing=spacing, nsd_tolerance=tolerance))
