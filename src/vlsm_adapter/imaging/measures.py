"""How large, how many and where: a row of numbers for each mask, for ``predictions.csv``.

Rows, columns and slices count from 0; coordinates are those of the picture as shown, (0, 0) the centre of the first pixel.
Lengths stand in mm where the file says its spacing; where it does not, ``unit`` is ``px`` and the columns in mm are empty,
never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlsm_adapter.imaging.base import Stack
from vlsm_adapter.imaging.postprocess import bounding_box, count_components

COLUMNS = (
    "image",
    "prompt",
    "mask",
    "width",
    "height",
    "area_px",
    "area_fraction",
    "mean_probability_in_mask",
    "threshold",
    "kind",
    "picture",
    "pictures",
    "label",
    "area_mm2",
    "volume_mm3",
    "components",
    "centroid_row",
    "centroid_column",
    "centroid_slice",
    "first_row",
    "last_row",
    "first_column",
    "last_column",
    "first_slice",
    "last_slice",
    "spacing_row_mm",
    "spacing_column_mm",
    "spacing_slice_mm",
    "unit",
)


@dataclass(frozen=True)
class Measures:
    """Size and place of one mask; of an empty one only ``pixels`` and ``components`` say something.

    Attributes:
        pixels: foreground pixels, or voxels.
        components: connected components (8 or 26 neighbours).
        centroid: mean index of the foreground along each axis.
        box: first and last index of the foreground along each axis.
    """

    pixels: int
    components: int
    centroid: tuple[float, ...] = ()
    box: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, mask: npt.NDArray[np.bool_]) -> Measures:
        """Measure ``mask``, bool (H, W) or (N, H, W)."""
        pixels = int(np.count_nonzero(mask))
        if not pixels:
            return cls(0, 0)
        box = bounding_box(mask)
        part = mask[box]
        centroid = []
        for axis, bounds in enumerate(box):
            along = part.sum(axis=tuple(other for other in range(part.ndim) if other != axis), dtype=np.int64)
            centroid.append(bounds.start + float(along @ np.arange(along.size)) / pixels)
        return cls(
            pixels, count_components(part), tuple(centroid), tuple((bounds.start, bounds.stop - 1) for bounds in box)
        )


def is_volume(stack: Stack) -> bool:
    """Whether the pictures of ``stack`` are the slices of one volume, which is then measured and cleaned as such."""
    return stack.count > 1 and stack.spacing is not None and stack.spacing.slice is not None


def row(
    stack: Stack,
    measures: Measures,
    *,
    prompt: str,
    mask: str,
    threshold: float,
    mean_probability: float | None,
    index: int | None,
    label: int | None = None,
) -> dict[str, Any]:
    """One row of ``predictions.csv`` (:data:`COLUMNS`).

    Args:
        stack: what the mask belongs to.
        measures: of the mask, two axes for a picture, three for a volume.
        prompt, threshold: what was asked, and the threshold.
        mask: file of the mask, relative to the output folder.
        mean_probability: inside the mask; None where it is empty.
        index: of the picture; None for a volume.
        label: of the prompt in a label map.
    """
    height, width = stack.size
    spacing = stack.spacing
    volume = index is None
    total = height * width * (stack.count if volume else 1)
    found: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    found.update(
        image=_source(stack, index),
        prompt=prompt,
        mask=mask,
        width=width,
        height=height,
        area_px=measures.pixels,
        area_fraction=f"{measures.pixels / total:.6g}",
        mean_probability_in_mask="" if mean_probability is None else f"{mean_probability:.6g}",
        threshold=f"{threshold:g}",
        kind=stack.kind,
        picture="" if volume else index,
        pictures=stack.count,
        label="" if label is None else label,
        components=measures.components,
        unit="px" if spacing is None else "mm",
    )
    axes = ("slice", "row", "column") if volume else ("row", "column")
    for axis, centre, (first, last) in zip(axes, measures.centroid, measures.box, strict=False):
        found[f"centroid_{axis}"] = f"{centre:.2f}"
        found[f"first_{axis}"], found[f"last_{axis}"] = first, last
    if spacing is not None:
        found["spacing_row_mm"], found["spacing_column_mm"] = f"{spacing.row:.6g}", f"{spacing.column:.6g}"
        if not volume:
            found["area_mm2"] = f"{measures.pixels * spacing.pixel_mm2:.6g}"
        if spacing.slice is not None:
            found["spacing_slice_mm"] = f"{spacing.slice:.6g}"
            found["volume_mm3"] = f"{measures.pixels * spacing.pixel_mm2 * spacing.slice:.6g}" if volume else ""
    return found


def _source(stack: Stack, index: int | None) -> str:
    if stack.kind == "frames" and index is not None:
        return str(stack.paths[index])
    return str(stack.paths[0] if len(stack.paths) == 1 else stack.paths[0].parent)
