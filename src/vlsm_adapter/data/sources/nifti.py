"""Reading a NIfTI file that holds one 2D image, by nibabel (an optional dependency)."""

from __future__ import annotations

import math

import numpy as np

from vlsm_adapter.data.archives import TreeFile
from vlsm_adapter.data.images import MAX_PIXELS
from vlsm_adapter.data.sources.metaimage import Slice
from vlsm_adapter.errors import DataError, one_line


def read_nifti_slice(file: TreeFile) -> Slice:
    """The single slice of ``file``, upright: rows down, columns to the right, as ITK shows it.

    Raises:
        DataError: nibabel is not there, the file is damaged, or it holds more than one slice.
    """
    try:
        import nibabel
    except ImportError:
        raise DataError(f"{file}: NIfTI needs nibabel: pip install 'vlsm-adapter[volumes]'") from None
    with file.on_disk() as path:
        try:
            image = nibabel.load(path)
            shape = tuple(int(size) for size in image.shape)
            if len(shape) < 2 or math.prod(shape[2:]) != 1:
                raise DataError(f"{path}: has {' x '.join(map(str, shape))} elements; needed: one 2D slice")
            if not 0 < shape[0] * shape[1] <= MAX_PIXELS:
                raise DataError(f"{path}: {shape[0]} x {shape[1]} pixels; at most {MAX_PIXELS} are read")
            pixels = np.asanyarray(image.dataobj).reshape(shape[:2])
            zooms = [float(value) for value in image.header.get_zooms()[:2]]
        except DataError:
            raise
        except Exception as error:
            # nibabel raises nearly anything on damaged files (ImageFileError, OSError, EOFError, zlib.error, ...).
            raise DataError(f"{path}: cannot be read ({one_line(error)}): damaged or cut off; fetch it again") from None
    # NIfTI counts columns first.
    spacing = (zooms[1], zooms[0]) if all(1e-6 <= value <= 1e6 for value in zooms) else None
    return Slice(np.ascontiguousarray(pixels.T), spacing)
