"""From probability maps to the masks that are kept: competition of prompts, and cleaning of masks.

The order is always the same:

1. threshold: a pixel is foreground where its probability is above it; where prompts compete, it goes to the likeliest;
2. holes are filled;
3. the largest connected component is kept;
4. components below the smallest size are removed.

So a component's size counts what it encloses, and what comes out has no hole, no second component and none that is too
small, whatever was asked for; cleaning it again changes nothing. Components touch at edges or corners (8 neighbours in a
picture, 26 in a volume); a hole is background that reaches no border of the picture or volume by edges (faces) alone. The
slices of a volume are cleaned together, other stacks picture by picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlsm_adapter.errors import ConfigError, DataError
from vlsm_adapter.imaging.base import AnswerOptions, Spacing

Mask = npt.NDArray[np.bool_]
# Logits of float32 are exhausted near this probability; beyond it odds would be infinite.
_MOST = 1 - 2.0**-24


@dataclass(frozen=True)
class Cleaning:
    """What is done to a mask after the threshold; sizes are in pixels or voxels.

    Attributes:
        fill_holes: fill what the mask encloses.
        largest_component: keep only the largest connected component; of equals the first in reading order.
        min_pixels: components of fewer pixels are removed; 0 removes none.
    """

    fill_holes: bool = False
    largest_component: bool = False
    min_pixels: int = 0

    @classmethod
    def of(cls, options: AnswerOptions, spacing: Spacing | None, *, volume: bool, where: str) -> Cleaning:
        """The cleaning that ``options`` ask for of one stack.

        Args:
            options: what is asked for.
            spacing: of the stack.
            volume: whether its pictures are the slices of a volume.
            where: the stack's file, for messages.

        Raises:
            ConfigError: the smallest size is not a number from 0 up.
            DataError: it is in mm and the file does not say its spacing.
        """
        size = float(options.min_size)
        if not (math.isfinite(size) and size >= 0):
            raise ConfigError(f"smallest size {options.min_size!r}: give a number from 0 up")
        if options.min_size_mm and size > 0:
            unit = None if spacing is None else spacing.voxel_mm3 if volume else spacing.pixel_mm2
            if unit is None:
                raise DataError(
                    f"{where}: does not say its spacing, a smallest size in mm cannot be used: give it in px"
                )
            size /= unit
        # A component of exactly the size is kept, whatever the division lost.
        return cls(options.fill_holes, options.largest_component, math.ceil(size * (1 - 1e-9)))

    def __bool__(self) -> bool:
        return self.fill_holes or self.largest_component or self.min_pixels > 1

    def __call__(self, mask: Mask) -> Mask:
        """``mask``, bool (H, W) or (N, H, W), cleaned; a new array.

        An axis of one pixel does not count as an axis: a volume of one slice is cleaned as a picture.
        """
        found = np.array(mask, bool)
        if not self or not found.any():
            return found
        box = bounding_box(found)
        part = found[box]
        flat = part.reshape([size for size, whole in zip(part.shape, mask.shape, strict=True) if whole > 1] or [1])
        found[box] = self._clean(flat).reshape(part.shape)
        return found

    def _clean(self, mask: Mask) -> Mask:
        if self.fill_holes:
            mask = fill_holes(mask)
        if self.largest_component or self.min_pixels > 1:
            labels, count = components(mask)
            sizes = np.bincount(labels.ravel(), minlength=count + 1)
            sizes[0] = 0
            kept = sizes >= max(self.min_pixels, 1)
            if self.largest_component:
                kept &= np.arange(count + 1) == sizes.argmax()
            mask = kept[labels]
        return mask

    def labels(self, labels: npt.NDArray[np.unsignedinteger], count: int) -> npt.NDArray[np.unsignedinteger]:
        """A label map (H, W) or (N, H, W), 0 background and 1..``count``, each label cleaned; a new array.

        Holes are filled with background pixels only: a label never takes another's pixels. A hole inside two labels goes to
        the smaller of them.
        """
        if not self:
            return labels.copy()
        cleaned = {}
        for label in range(1, count + 1):
            own = labels == label
            if own.any():
                cleaned[label] = self(own) & (own | (labels == 0))
        result = np.zeros_like(labels)
        for label in sorted(cleaned, key=lambda label: (-int(cleaned[label].sum()), label)):
            result[cleaned[label]] = label
        return result


def fill_holes(mask: Mask) -> Mask:
    """``mask``, bool of any number of axes, with the background that reaches no border filled."""
    from scipy import ndimage

    outside = np.pad(~mask, 1, constant_values=True)
    regions, _ = ndimage.label(outside)  # background is connected by faces
    corner = regions[(0,) * mask.ndim]
    return np.asarray(regions != corner)[(slice(1, -1),) * mask.ndim]


def components(mask: Mask) -> tuple[npt.NDArray[np.int32], int]:
    """Connected components of ``mask``, bool of any number of axes: their numbers 1, 2, ... in its shape, and how many."""
    from scipy import ndimage

    labels, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim, bool))
    return labels.astype(np.int32, copy=False), int(count)


_MANY_RUNS = 100_000  # of noise: labelling is faster then, its import included


def count_components(mask: Mask) -> int:
    """How many connected components ``mask`` has, bool of any number of axes.

    Of a picture (H, W) it is counted by its runs: pixels next to each other in a row. Importing scipy takes ten times as long
    as any picture, and every prediction counts.
    """
    if mask.ndim != 2:
        return components(mask)[1]
    edges = np.diff(np.pad(mask != 0, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    if len(rows) > _MANY_RUNS:
        return components(mask)[1]
    _, ends = np.nonzero(edges == -1)  # one behind the last pixel
    stride = mask.shape[1] + 2
    # Runs of the next row that begin before one behind this run's end and end behind one before its start touch it.
    first = np.searchsorted(rows * stride + ends, (rows + 1) * stride + starts, "left")
    behind = np.searchsorted(rows * stride + starts, (rows + 1) * stride + ends, "right")
    touched = np.maximum(behind - first, 0)
    above = np.repeat(np.arange(len(rows)), touched)
    below = np.arange(len(above)) - np.repeat(np.cumsum(touched) - touched, touched) + np.repeat(first, touched)
    # Every run points to one of smaller number that it touches, in the end to the first of its component. Each round
    # leaves at most half of the firsts.
    parent = np.arange(len(rows))
    while True:
        one, other = parent[above], parent[below]
        if np.array_equal(one, other):
            return int(np.count_nonzero(parent == np.arange(len(rows))))
        np.minimum.at(parent, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(parent[parent], parent):
            parent = parent[parent]


def bounding_box(mask: Mask) -> tuple[slice, ...]:
    """Slices of the smallest box around ``mask``, which has foreground."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        (found,) = np.nonzero(mask.any(axis=others))
        box.append(slice(int(found[0]), int(found[-1]) + 1))
    return tuple(box)


@dataclass(frozen=True)
class Competition:
    """Prompts that compete for the pixels of one picture.

    The odds of a prompt are p / (1 - p), e to the power of its logit; the background's are those of the threshold. Their
    shares are the softmax over the prompts' logits and the background's, and a pixel belongs to the largest: to the
    background exactly where no prompt is above the threshold, else to the likeliest prompt, of equals to the first.

    Attributes:
        labels: uint16 (H, W), 0 background, else the number of the prompt counted from 1.
        total: float64 (H, W), the sum of all odds.
    """

    labels: npt.NDArray[np.uint16]
    total: npt.NDArray[np.float64]

    @classmethod
    def of(cls, maps: Sequence[npt.NDArray[np.float32]], threshold: float) -> Competition:
        """Compare the maps, float32 (H, W) in [0, 1], one at a time."""
        best: npt.NDArray[np.float32] | None = None
        labels = np.zeros((0, 0), np.uint16)
        total = np.zeros((0, 0))
        for number in range(len(maps)):
            probability = maps[number]
            if best is None:
                best = np.full(probability.shape, threshold, np.float32)
                labels = np.zeros(probability.shape, np.uint16)
                total = np.full(probability.shape, float(_odds(np.float64(threshold))))
            wins = probability > best
            labels[wins] = number + 1
            best = np.where(wins, probability, best)
            total += _odds(probability)
        return cls(labels, total)

    def share(self, probability: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The softmax's probability, float32 (H, W), of the prompt whose own map is given."""
        odds = _odds(probability)
        return np.asarray(np.divide(odds, self.total, out=np.zeros_like(odds), where=self.total > 0), np.float32)


def _odds(probability: npt.ArrayLike) -> npt.NDArray[np.float64]:
    bounded = np.minimum(np.asarray(probability, np.float64), _MOST)
    return np.asarray(bounded / (1 - bounded))
