"""NIfTI files that hold one 2D image each, by the reader of volumes (nibabel, an optional dependency)."""

from __future__ import annotations

import zlib

import numpy as np

from vlsm_adapter.data.archives import TreeFile
from vlsm_adapter.data.sources.metaimage import Slice
from vlsm_adapter.data.volumes import Volume, pixel_size
from vlsm_adapter.errors import DataError

_START = 64 * 1024
_HEADER = 1024  # of NIfTI-2 540 bytes, of NIfTI-1 348


def read_nifti_slice(file: TreeFile) -> Slice:
    """The single slice of ``file``, upright: rows down, columns to the right, as ITK shows it.

    Raises:
        DataError: the file is damaged, or it holds more than one slice.
        ConfigError: nibabel is not installed.
    """
    with file.on_disk() as path:
        volume = Volume(path)
        if volume.shape[2] * volume.frames != 1:
            sizes = (*volume.shape, *([volume.frames] if volume.frames > 1 else []))
            raise DataError(f"{path}: has {' x '.join(map(str, sizes))} elements; needed: one 2D slice")
        pixels = volume.slicing("native").picture(volume.intensities(), 0)
        return Slice(np.ascontiguousarray(pixels), volume.pixel_size)


def read_nifti_spacing(file: TreeFile) -> tuple[float, float] | None:
    """(row, column) in mm per pixel by the header alone, None where it does not tell.

    Raises:
        DataError: the file is damaged.
        ConfigError: nibabel is not installed.
    """
    start = file.read_start(_START)
    if start.startswith(b"\x1f\x8b"):
        try:
            start = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(start, _HEADER)
        except zlib.error as error:
            raise DataError(f"{file}: cannot be unpacked ({error}): damaged; fetch it again") from None
    return pixel_size(start[:_HEADER], str(file))
