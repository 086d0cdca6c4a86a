"""The seam between reading, prediction and writing: a stack is the pictures that belong together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["picture", "pages", "frames", "nifti", "dicom"]


@dataclass(frozen=True)
class Spacing:
    """Distances between the centres of neighbouring pixels, in mm.

    Attributes:
        row: down a column of pixels, from one row to the next (DICOM's first PixelSpacing value).
        column: along a row, from one column to the next.
        slice: from one slice of the stack to the next, measured between their positions; None where the pictures are
            not slices of one volume.
    """

    row: float
    column: float
    slice: float | None = None

    @property
    def pixel_mm2(self) -> float:
        """Area of a pixel."""
        return self.row * self.column

    @property
    def voxel_mm3(self) -> float | None:
        """Volume of a voxel; None where there is no distance between slices."""
        return None if self.slice is None else self.pixel_mm2 * self.slice


class Stack(ABC):
    """Pictures of one size that belong together and are answered together.

    An image file is a stack of one; a multi-page TIFF, a folder of video frames, a NIfTI volume, a DICOM file of many
    frames and a DICOM series are stacks of several.

    Attributes:
        kind: what it was read from; decides the form of the answer.
        name: for outputs; unique among the stacks of one prediction.
        paths: the files it is read from, at least one, in the order of the pictures where there is one per picture.
        size: (H, W) of every picture, as shown (EXIF orientation applied, NIfTI planes as in radiology).
        count: number of pictures.
        spacing: None where the files do not say: areas are then in pixels only.
    """

    kind: Kind
    name: str
    paths: tuple[Path, ...]
    size: tuple[int, int]
    count: int
    spacing: Spacing | None

    @abstractmethod
    def picture(self, index: int) -> npt.NDArray[np.uint8]:
        """Picture ``index`` as the model is shown it: uint8 (H, W, 3) RGB, windowed where it has more than 8 bits.

        Raises:
            DataError: it cannot be read; the message names the file.
        """
