"""How files become 8-bit pictures: plane, window, frames; what the user may say about it, checked once."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from vlsm_adapter.errors import UserError, nearest
from vlsm_adapter.imaging.base import FORMS, Form

Plane = Literal["auto", "axial", "coronal", "sagittal", "native"]
PLANES: tuple[Plane, ...] = ("auto", "axial", "coronal", "sagittal", "native")
# Of the intensities of a stack that says nothing about its window.
PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Window:
    """Which intensities become black and white.

    Attributes:
        centre, width: in the file's unit (Hounsfield units for CT): ``centre - width / 2`` is black and
            ``centre + width / 2`` white (LINEAR_EXACT of DICOM PS3.3 C.11.2.1.3.2); None where ``percentiles`` are asked.
        percentiles: of the whole stack's intensities, in percent; None where centre and width are given.
    """

    centre: float | None = None
    width: float | None = None
    percentiles: tuple[float, float] | None = None

    @classmethod
    def parse(cls, text: str) -> Window | None:
        """``"40,400"`` (centre, width), ``"percentiles"`` or ``"percentiles:1,99"``; ``"auto"`` is None: as the file says.

        Raises:
            UserError: anything else, a width that is not above 0, or percentiles out of order.
        """
        name, _, rest = text.strip().partition(":")
        if name == "auto" and not rest:
            return None
        if name == "percentiles":
            low, high = _two_numbers(rest, text) if rest else PERCENTILES
            if not 0 <= low < high <= 100:
                raise UserError(f"--window {text}: percentiles rise from 0 to 100, as in percentiles:1,99")
            return cls(percentiles=(low, high))
        centre, width = _two_numbers(text, text)
        if width <= 0:
            raise UserError(f"--window {text}: the width, the second number, must be above 0")
        return cls(centre, width)

    @property
    def limits(self) -> tuple[float, float] | None:
        """The intensities shown black and white, where they are given."""
        if self.centre is None or self.width is None:
            return None
        return self.centre - self.width / 2, self.centre + self.width / 2


@dataclass(frozen=True)
class ReadOptions:
    """How files are read as stacks.

    Attributes:
        window: None for what each file says; see docs/predict.md.
        plane: of NIfTI volumes, DICOM is shown in its acquired plane; ``"auto"`` is axial, and native (as stored) for a
            single slice and where the header does not say how the axes lie in the body.
        frames: a folder of pictures is one video, and every frame of a 4-D NIfTI a volume.
    """

    window: Window | None = None
    plane: Plane = "auto"
    frames: bool = False

    def __post_init__(self) -> None:
        if self.plane not in PLANES:
            raise UserError(f"--plane '{self.plane}': {nearest(str(self.plane), PLANES)}")


def check_form(text: str) -> Form:
    """The form of answers of that name.

    Raises:
        UserError: there is none.
    """
    for form in FORMS:
        if form == text:
            return form
    raise UserError(f"--format {text}: {nearest(text, FORMS)}")


def parse_size(text: str) -> tuple[float, bool]:
    """``"50"``, ``"50px"`` (pixels or voxels) or ``"20mm"``, ``"20mm2"``, ``"20mm3"``: the number, and whether it is in mm.

    Raises:
        UserError: anything else, or a negative number.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(px|mm[23]?)?\s*", text)
    if found is None:
        raise UserError(f"--min-size {text}: give a number of pixels or voxels, 50, or with mm of mm2 or mm3, 20mm")
    return float(found[1]), (found[2] or "px") != "px"


def _two_numbers(text: str, whole: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        first = second = math.nan
    if not (math.isfinite(first) and math.isfinite(second)):
        raise UserError(
            f"--window {whole!r}: give CENTRE,WIDTH as in 40,400, 'percentiles', 'percentiles:LOW,HIGH' or 'auto'"
        )
    return first, second
