"""Masks and images from files of a tree, read when a case is written."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from vlsm_adapter.data.archives import TreeFile
from vlsm_adapter.data.images import read_image, read_mask
from vlsm_adapter.errors import DataError

Mask = npt.NDArray[np.bool_]


def read_mask_file(file: TreeFile) -> Mask:
    """A mask file as bool (H, W), by the rule of ``images.read_mask``."""
    with file.on_disk() as path:
        return read_mask(path)


def read_colours(file: TreeFile) -> npt.NDArray[np.uint8]:
    """An image file as uint8 (H, W, 3)."""
    with file.on_disk() as path:
        return read_image(path)


def mask_from(files: Sequence[TreeFile]) -> Callable[[], Mask]:
    """Makes the union of one or more mask files of one size."""
    return functools.partial(_union, tuple(files))


def unusable(message: str) -> Callable[[], Any]:
    """In place of an image or mask that is not there: the case is bad, and the message says why."""

    def fail() -> NoReturn:
        raise DataError(message)

    return fail


def _union(files: tuple[TreeFile, ...]) -> Mask:
    joined = read_mask_file(files[0])
    for file in files[1:]:
        mask = read_mask_file(file)
        if mask.shape != joined.shape:
            raise DataError(
                f"{file}: {mask.shape[1]} x {mask.shape[0]} pixels, but {files[0].name} of the same image has "
                f"{joined.shape[1]} x {joined.shape[0]}"
            )
        joined |= mask
    return joined
