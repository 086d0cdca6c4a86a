"""Measurements of a mask that the checks of sizes and of words share: area, place, number and shape.

Lengths are fractions of the image's width or height, areas fractions of the image, so that cases of different size compare.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from vlsm_adapter.data.describing.measure import Moments, speck_limit

_GRID = 12  # cells a side, a multiple of 2, 3 and 4: halves, thirds and quarters are whole cells


@dataclass(frozen=True, slots=True)
class Part:
    """One component of a mask.

    Attributes:
        share: its area as part of the image.
        centre: (across, down) of its centroid, 0 to 1 from the top left corner.
        axis_ratio: long to short axis of the ellipse of equal second moments, 1 for a disc.
        ellipse_iou: IoU with that ellipse, 1 for an ellipse.
        extent: area as part of the upright bounding box: 1 for an upright rectangle, pi / 4 for an upright ellipse.
    """

    share: float
    centre: tuple[float, float]
    axis_ratio: float
    ellipse_iou: float
    extent: float


@dataclass(frozen=True, slots=True)
class MaskFacts:
    """One mask.

    Attributes:
        pixels: foreground pixels.
        share: foreground as part of the image.
        box: (left, top, right, bottom) of the foreground in pixels, right and bottom inclusive; zeros where empty.
        parts: the components (8-connected) that count, by the rule of ``describing.measure``, the largest first.
        specks: number of components too small to count.
        speck_at: (column, row) of the first pixel of the first speck in reading order, or None.
        holes: background pixels enclosed by foreground, as part of the foreground.
        grid: bool (12, 12), the cells of the image that hold foreground.
        sides: foreground touching left, top, right, bottom border.
    """

    pixels: int
    share: float
    box: tuple[int, int, int, int]
    parts: tuple[Part, ...]
    specks: int
    speck_at: tuple[int, int] | None
    holes: float
    grid: np.ndarray
    sides: tuple[bool, bool, bool, bool]

    @property
    def empty(self) -> bool:
        """No foreground at all."""
        return self.pixels == 0


def measure_mask(mask: np.ndarray) -> MaskFacts:
    """Measure ``mask``, bool (H, W)."""
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        nothing = (False, False, False, False)
        return MaskFacts(0, 0.0, (0, 0, 0, 0), (), 0, None, 0.0, np.zeros((_GRID, _GRID), bool), nothing)
    top, bottom, left, right = int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])
    inner = mask[top : bottom + 1, left : right + 1]
    pixels = int(np.count_nonzero(inner))
    labels, count = ndimage.label(inner, structure=np.ones((3, 3), bool))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    least = speck_limit(mask.size, int(sizes.max()))
    large = [int(index) for index in np.argsort(-sizes, kind="stable") if sizes[index] >= least]
    boxes = ndimage.find_objects(labels)
    parts = tuple(
        _part(labels[boxes[index]] == index + 1, boxes[index], (left, top), (width, height)) for index in large
    )
    speck_at = None
    if count > len(large):
        row, column = np.argwhere(~np.isin(labels, [0, *(index + 1 for index in large)]))[0]
        speck_at = (int(column) + left, int(row) + top)
    holes = _enclosed(inner)
    return MaskFacts(
        pixels=pixels,
        share=pixels / mask.size,
        box=(left, top, right, bottom),
        parts=parts,
        specks=count - len(large),
        speck_at=speck_at,
        holes=holes / pixels,
        grid=_grid(mask),
        sides=(left == 0, top == 0, right == width - 1, bottom == height - 1),
    )


def _enclosed(mask: np.ndarray) -> int:
    """Background pixels that foreground encloses: of background components (4-connected) without a way to the border."""
    labels, count = ndimage.label(np.pad(~mask, 1, constant_values=True))
    # The padding joins all background that reaches the border; its label is that of the corner.
    return int(np.count_nonzero(labels)) - int(np.count_nonzero(labels == labels[0, 0])) if count > 1 else 0


def _part(component: np.ndarray, box: tuple[slice, slice], origin: tuple[int, int], size: tuple[int, int]) -> Part:
    moments = Moments.of(component)
    height, width = component.shape
    # The ellipse may reach over the component's box, where it meets no foreground: its area is known without drawing it.
    inside = int(np.count_nonzero(component & moments.ellipse(height, width)))
    ellipse_area = 4 * np.pi * float(np.prod(np.sqrt(moments.axes)))
    return Part(
        share=moments.area / (size[0] * size[1]),
        centre=(
            (moments.column + box[1].start + origin[0] + 0.5) / size[0],
            (moments.row + box[0].start + origin[1] + 0.5) / size[1],
        ),
        axis_ratio=moments.axis_ratio,
        ellipse_iou=float(inside / max(moments.area + ellipse_area - inside, 1.0)),
        extent=moments.area / component.size,
    )


def _grid(mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    lines = np.flatnonzero(mask.any(axis=1))
    grid = np.zeros((_GRID, _GRID), bool)
    if len(lines):
        rows, columns = np.nonzero(mask[lines[0] : lines[-1] + 1])
        grid[(rows + lines[0]) * _GRID // height, columns * _GRID // width] = True
    return grid
