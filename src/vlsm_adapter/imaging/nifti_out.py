"""Answers as NIfTI: on the source's own grid, voxel for voxel, with its header's geometry kept bit by bit.

The pictures of a volume are its slices flipped and turned for viewing; what is written is turned back into stored voxel
order, with the source's affine, sform and qform with their codes, pixdim and units. Other stacks become volumes with x
along columns, y along rows and z along pictures: a DICOM series with its affine (RAS+ mm), pictures with their spacing as
pixdim and no orientation (sform and qform code 0).
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlsm_adapter import files
from vlsm_adapter.data.volumes import Slicing
from vlsm_adapter.errors import ConfigError
from vlsm_adapter.imaging.base import Stack

_INTENT_LABEL = 1002


def write_nifti(
    path: Path,
    stack: Stack,
    picture: Callable[[int], npt.NDArray[Any]],
    dtype: npt.DTypeLike,
    *,
    labels: Mapping[int, str] | None = None,
) -> None:
    """Write one volume as ``.nii.gz``, atomically.

    Args:
        path: the file.
        stack: gives the grid.
        picture: the values (H, W) of picture ``index`` of the stack, as shown.
        dtype: of the voxels, e.g. uint8 for a mask, float32 for probabilities.
        labels: names of the values of a label map, which then has the intent code for labels.

    Raises:
        ConfigError: nibabel is not installed.
        UserError: the file cannot be written.
    """
    library = _nibabel()
    height, width = stack.size
    slicing: Slicing | None = getattr(stack, "slicing", None)
    voxels = np.zeros((width, height, stack.count) if slicing is None else slicing.shape, dtype, order="F")
    for index in range(stack.count):
        values = picture(index)
        if slicing is None:
            voxels[:, :, index] = values.T
        else:
            view = np.moveaxis(voxels, slicing.axis, 0)[index]
            view = view.T if slicing.row_axis > slicing.column_axis else view
            view[:: -1 if slicing.flip_rows else 1, :: -1 if slicing.flip_columns else 1] = values
    header = _header(library, stack)
    header.set_data_shape(voxels.shape)
    header.set_data_dtype(voxels.dtype)
    header["intent_code"] = 0 if labels is None else _INTENT_LABEL
    kind = library.Nifti2Image if isinstance(header, library.Nifti2Header) else library.Nifti1Image
    image = kind(voxels, None, header)
    # No file name and no time in it: the same masks give the same bytes.
    with (
        files.atomic_path(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", 4, raw, mtime=0) as packed,
    ):
        image.to_stream(packed)


def _header(library: Any, stack: Stack) -> Any:
    """A header with the geometry of ``stack`` and nothing else of its source: no intensities, no names."""
    own = getattr(stack, "header", None)
    if own is not None and stack.kind == "nifti":
        source = own()
        kind = library.Nifti2Header if isinstance(source, library.Nifti2Header) else library.Nifti1Header
        header = kind()
        header.set_data_shape(_three(source))
        for field in ("qform_code", "sform_code", *(f"quatern_{axis}" for axis in "bcd"), "xyzt_units"):
            header[field] = source[field]
        for field in (*(f"qoffset_{axis}" for axis in "xyz"), *(f"srow_{axis}" for axis in "xyz")):
            header[field] = source[field]
        header["pixdim"][:4] = source["pixdim"][:4]
    else:
        header = library.Nifti1Header()
        affine = getattr(stack, "affine", None)
        spacing = stack.spacing
        steps = (1.0, 1.0, 1.0) if spacing is None else (spacing.column, spacing.row, spacing.slice or 1.0)
        header["pixdim"][1:4] = steps
        if affine is not None:
            header.set_data_shape((stack.size[1], stack.size[0], stack.count))
            header.set_qform(affine, code="scanner")
            header.set_sform(affine, code="scanner")
        if affine is not None or spacing is not None:
            header.set_xyzt_units("mm")
    header["descrip"] = b"vlsm-adapter"
    return header


def _three(source: Any) -> tuple[int, ...]:
    shape = tuple(source.get_data_shape())[:3]
    return shape + (1,) * (3 - len(shape))


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError:
        raise ConfigError("NIfTI needs nibabel: pip install 'vlsm-adapter[volumes]'") from None
    return nibabel
