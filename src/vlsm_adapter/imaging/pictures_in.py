"""Stacks of pictures in common formats: one image file, the pages of a TIFF, a folder of video frames."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlsm_adapter.data.images import header_size, page_sizes, read_image
from vlsm_adapter.errors import DataError
from vlsm_adapter.imaging.base import Kind, Stack

TIFF_ENDINGS = frozenset({".tif", ".tiff"})


class PictureStack(Stack):
    """One image file, which is not touched before its picture or size is asked for.

    Args:
        path: the file.
    """

    kind: Kind = "picture"
    count = 1
    spacing = None

    def __init__(self, path: Path) -> None:
        self.paths = (path,)
        self.name = path.stem

    @cached_property
    def size(self) -> tuple[int, int]:  # type: ignore[override]
        width, height = header_size(self.paths[0])
        return height, width

    def picture(self, index: int) -> npt.NDArray[np.uint8]:
        return read_image(self.paths[0])


class PagesStack(Stack):
    """Pages of one TIFF file that have the same size.

    Args:
        path: the file.
        pages: their numbers in the file, from 0.
        size: (H, W) of each.
    """

    kind: Kind = "pages"
    spacing = None

    def __init__(self, path: Path, pages: Sequence[int], size: tuple[int, int]) -> None:
        self.paths = (path,)
        self.name = path.stem
        self.pages = tuple(pages)
        self.count = len(self.pages)
        self.size = size

    def picture(self, index: int) -> npt.NDArray[np.uint8]:
        return read_image(self.paths[0], page=self.pages[index])


class FramesStack(Stack):
    """The frames of a video, an image file each, all of the size of the first.

    Args:
        paths: the files in their order in time, at least one.
        name: of the video.
    """

    kind: Kind = "frames"
    spacing = None

    def __init__(self, paths: Sequence[Path], name: str) -> None:
        self.paths = tuple(paths)
        self.name = name
        self.count = len(self.paths)

    @cached_property
    def size(self) -> tuple[int, int]:  # type: ignore[override]
        """Of the first frame that can be read.

        Raises:
            DataError: none can.
        """
        for number, path in enumerate(self.paths, start=1):
            try:
                width, height = header_size(path)
            except DataError:
                if number == self.count:
                    raise
            else:
                return height, width
        raise DataError(f"{self.name}: a video without frames")

    def picture(self, index: int) -> npt.NDArray[np.uint8]:
        picture = read_image(self.paths[index])
        if picture.shape[:2] != self.size:
            raise DataError(
                f"{self.paths[index]}: has {picture.shape[1]} x {picture.shape[0]} pixels, the first frame "
                f"{self.size[1]} x {self.size[0]}: frames of a video have one size; leave --frames out"
            )
        return picture


def stacks_of_picture(path: Path) -> list[Stack]:
    """The stacks of one image file: one, or for a TIFF of pages of different sizes one for each size.

    Raises:
        DataError: a TIFF whose headers cannot be read; of other files nothing is read.
    """
    if path.suffix.lower() not in TIFF_ENDINGS:
        return [PictureStack(path)]
    sizes = page_sizes(path)
    if len(sizes) == 1:
        return [PictureStack(path)]
    by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for page, (width, height) in enumerate(sizes):
        by_size[height, width].append(page)
    return [PagesStack(path, pages, size) for size, pages in by_size.items()]
