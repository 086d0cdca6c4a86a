"""The seam between reading, prediction and writing: a stack is the pictures that belong together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["picture", "pages", "frames", "nifti", "dicom"]
Form = Literal["auto", "png", "tiff", "nifti", "seg"]
FORMS: tuple[Form, ...] = ("auto", "png", "tiff", "nifti", "seg")


@dataclass(frozen=True)
class Spacing:
    """Distances between the centres of neighbouring pixels, in mm.

    Attributes:
        row: down a column of pixels, from one row to the next (DICOM's first PixelSpacing value).
        column: along a row, from one column to the next.
        slice: from the plane of one slice of the stack to that of the next; None where the pictures are
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
        notes: what the user should know about it, a line each; may grow as pictures are read.
    """

    kind: Kind
    name: str
    paths: tuple[Path, ...]
    size: tuple[int, int]
    count: int
    spacing: Spacing | None
    notes: tuple[str, ...] = ()

    @abstractmethod
    def picture(self, index: int) -> npt.NDArray[np.uint8]:
        """Picture ``index`` as the model is shown it: uint8 (H, W, 3) RGB, windowed where it has more than 8 bits.

        Raises:
            DataError: it cannot be read; the message names the file.
        """

    def resident_bytes(self) -> int:
        """Memory that reading holds besides the picture at hand, until :meth:`close`: that of a volume's voxels."""
        return 0

    def close(self) -> None:  # noqa: B027 (most hold nothing)
        """Let go of what reading holds; a picture asked for later is read anew."""


@dataclass(frozen=True)
class PictureAnswer:
    """What the model says about one picture of a stack.

    Attributes:
        index: of the picture in its stack.
        picture: uint8 (H, W, 3), as the model was shown it.
        maps: P probability maps, each float32 (H, W) in [0, 1], in the order of the prompts. A map may be computed anew
            at every access, so that only one map of a large picture is in memory.
    """

    index: int
    picture: npt.NDArray[np.uint8]
    maps: Sequence[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class AnswerOptions:
    """What is written of the answers, and in which form.

    Attributes:
        form: ``"auto"`` answers in kind: NIfTI for NIfTI, DICOM SEG for DICOM, TIFF for pages, PNG for the rest.
        threshold: probability above which a pixel is foreground.
        compete: prompts compete for every pixel: a softmax over them and the background, whose logit is 0.
        probabilities, overlays, contours: also probability maps, pictures of mask on image, outlines as GeoJSON.
        largest_component: keep only the largest connected component of each mask.
        fill_holes: fill what a mask encloses.
        min_size: connected components smaller than this are removed.
        min_size_mm: whether ``min_size`` is in mm2 of a picture and mm3 of a volume, instead of pixels and voxels.
    """

    form: Form = "auto"
    threshold: float = 0.5
    compete: bool = False
    probabilities: bool = False
    overlays: bool = False
    contours: bool = False
    largest_component: bool = False
    fill_holes: bool = False
    min_size: float = 0.0
    min_size_mm: bool = False


@dataclass(frozen=True)
class OutputNames:
    """File names of one stack's answers, without ending, which no other stack's answers share.

    Attributes:
        stack: for files about all prompts.
        prompts: one for each prompt; with a single prompt that of the stack.
    """

    stack: str
    prompts: tuple[str, ...]
