"""NIfTI volumes as stacks of slices, 8-bit by one window for all slices."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlsm_adapter.data.volumes import ENDINGS, Volume, to_8_bit
from vlsm_adapter.errors import DataError
from vlsm_adapter.imaging.base import Kind, Spacing, Stack
from vlsm_adapter.imaging.options import Plane, ReadOptions


class NiftiStack(Stack):
    """One volume of a NIfTI file, cut into slices of a plane.

    Voxels are read with the first picture and held until :meth:`close`. Of the window see
    :meth:`vlsm_adapter.data.volumes.Volume.window`: the same for all slices.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file.
        options: plane and window.
        frame: along the fourth axis, from 0.
        volume: the file, where it is open already.

    Attributes:
        slicing: how pictures lie in the volume.
        frame: along the fourth axis.
        frames: how many the file has along it.

    Raises:
        DataError: the header cannot be used.
        ConfigError: nibabel is not installed.
    """

    kind: Kind = "nifti"

    def __init__(self, path: Path, options: ReadOptions, frame: int = 0, volume: Volume | None = None) -> None:
        self.paths = (path,)
        self.name = path.name[: -len(next(end for end in ENDINGS[::-1] if path.name.lower().endswith(end)))]
        self.frame = frame
        self._options = options
        volume = volume or Volume(path)
        self.frames = volume.frames
        self.slicing = volume.slicing(_plane(volume, options.plane))
        rows, columns = (volume.shape[axis] for axis in (self.slicing.row_axis, self.slicing.column_axis))
        self.size = (rows, columns)
        self.count = self.slicing.count
        row, column = self.slicing.spacing
        # Between the planes of neighbouring slices; of a tilted stack (gantry tilt) their step is longer.
        steps = volume.affine[:3, :3]
        normal = np.cross(steps[:, self.slicing.row_axis], steps[:, self.slicing.column_axis])
        self.spacing = Spacing(row, column, float(abs(steps[:, self.slicing.axis] @ normal) / np.linalg.norm(normal)))
        if min(volume.shape) == 1:  # a picture: nothing can be said of a volume
            self.spacing = Spacing(row, column)
        self._lock = threading.Lock()
        self._voxels: npt.NDArray[np.float32] | None = None
        self._limits = (0.0, 255.0)

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """float64 (4, 4), stored voxel indices to world coordinates in mm (RAS+)."""
        return self.slicing.affine

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the volume as it is stored."""
        return self.slicing.shape

    def header(self) -> Any:
        """The file's header, as nibabel has it.

        Raises:
            DataError: the file cannot be read any more.
        """
        return Volume(self.paths[0]).header

    def picture(self, index: int) -> npt.NDArray[np.uint8]:
        with self._lock:
            if self._voxels is None:
                self._voxels, self._limits = self._read()
            voxels, limits = self._voxels, self._limits
        grey = to_8_bit(self.slicing.picture(voxels, index), *limits)
        return np.repeat(grey[:, :, None], 3, axis=2)

    def _read(self) -> tuple[npt.NDArray[np.float32], tuple[float, float]]:
        volume = Volume(self.paths[0])
        if volume.shape != self.slicing.shape:
            raise DataError(f"{self.paths[0]}: has changed while it was read: run the command again")
        voxels = volume.intensities(self.frame)
        window = self._options.window
        if window is None:
            return voxels, volume.window(voxels, None, None)
        return voxels, window.limits or volume.window(voxels, None, window.percentiles)

    def resident_bytes(self) -> int:
        # As stored (up to 8 bytes), beside them as float32.
        return 12 * int(np.prod(self.slicing.shape))

    def close(self) -> None:
        with self._lock:
            self._voxels = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_voxels": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def stacks_of_nifti(path: Path, options: ReadOptions) -> list[Stack]:
    """The stack of a NIfTI file; one for each frame of the fourth axis where ``options.frames``.

    Raises:
        DataError: the header cannot be used, or there is a fourth axis and ``options.frames`` is not set.
        ConfigError: nibabel is not installed.
    """
    volume = Volume(path)
    if volume.frames > 1 and not options.frames:
        raise DataError(
            f"{path}: has a fourth axis of {volume.frames} frames: --frames predicts each as a volume of its own, or split "
            "the file"
        )
    return [NiftiStack(path, options, frame, volume) for frame in range(volume.frames)]


def _plane(volume: Volume, plane: Plane) -> str:
    if plane != "auto":
        return plane
    return "axial" if volume.oriented and volume.shape[2] > 1 else "native"
