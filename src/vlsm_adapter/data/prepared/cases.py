"""A case before it is written: the meeting point of everything that reads foreign material and the writer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt


@runtime_checkable
class ImageFile(Protocol):
    """A file that can be read whole: a ``pathlib.Path``, or a file inside an archive."""

    @property
    def name(self) -> str:
        """Its name without folders."""

    def read_bytes(self) -> bytes:
        """All of it."""


@dataclass(frozen=True)
class RawCase:
    """One image and one thing to find in it, before it is written.

    Attributes:
        case_id: unique in the set and usable as a file name: letters, digits, ``_``, ``-``, ``.``.
        image: a file in a raster format that is read (``data.images``), copied byte for byte; or a function that makes
            the pixels, uint8 or uint16 (H, W) or uint8 (H, W, 3), written as PNG.
        mask: makes the mask, bool (H, W), at the upright image's own size. May raise DataError: a bad case.
        prompts: level to texts, ``{"p1": ("polyp",)}``; at least one level besides p0, which is added.
        leak_free: levels known not to be drawn from the mask, where that is not as usual (``data.prompts.leaks``).
        group: patient, video sequence, ...: what a split must not divide.
        split: ``"train"``, ``"val"``, ``"test"`` or None.
        spacing: (row, column) in mm per pixel.
        attributes: what else is known (class, view, age, ...), kept in the manifest under ``"attributes"``.
        image_id: cases with one ``image_id`` share one image, stored under that name; by default cases with equal
            ``image`` files do.
        where: names the case in messages; by default the image file.
    """

    case_id: str
    image: ImageFile | Callable[[], npt.NDArray[Any]]
    mask: Callable[[], npt.NDArray[np.bool_]]
    prompts: Mapping[str, tuple[str, ...]]
    leak_free: tuple[str, ...] | None = None
    group: str | None = None
    split: str | None = None
    spacing: tuple[float, float] | None = None
    attributes: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    image_id: str | None = None
    where: str = ""

    @property
    def shown(self) -> str:
        """The case in a message."""
        return self.where or (str(self.image) if isinstance(self.image, ImageFile) else self.case_id)
