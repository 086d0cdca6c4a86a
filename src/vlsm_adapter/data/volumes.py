"""NIfTI volumes and their slices: reading them safely, and where in the body each pixel of a picture lies.

A picture of one of the three body planes is shown as in radiology, by flipping and exchanging stored axes alone, never by
resampling: where the axes are oblique, the plane is the one closest to the name.

=========  ===================  ===========================  ================
plane      rows, from the top   columns, from the left       one slice after the other
=========  ===================  ===========================  ================
axial      front to back        patient's right to left      in the stored order
coronal    head to foot         patient's right to left      in the stored order
sagittal   head to foot         front to back                in the stored order
native     second stored axis   first stored axis            third stored axis
=========  ===================  ===========================  ================

World coordinates are millimetres in RAS+ (NIfTI-1: x to the patient's right, y to the front, z to the head).
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from vlsm_adapter.data.images import MAX_PIXELS
from vlsm_adapter.errors import ConfigError, DataError, one_line

if TYPE_CHECKING:
    import nibabel

ENDINGS = (".nii", ".nii.gz")
# 2 GiB as float32; a whole-body CT of 512 x 512 x 2000 fits.
MAX_VOXELS = 2**29
# World axis (0 right, 1 front, 2 head) of the slices, the rows and the columns.
_PLANES = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
_MM_PER_UNIT = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
# Of the volume's diagonal in voxels: a corner further off than this belongs to another grid.
_TOLERANCE_VOXELS = 0.1
_MOST_SAMPLED = 4_000_000


@dataclass(frozen=True)
class Slicing:
    """How a volume is cut into pictures.

    Attributes:
        axis: stored axis that the slices follow.
        row_axis, column_axis: stored axes that become rows and columns.
        flip_rows, flip_columns: whether they run against their stored order.
        shape: of the volume, three axes.
        affine: float64 (4, 4), stored voxel indices to world coordinates in mm.
    """

    axis: int
    row_axis: int
    column_axis: int
    flip_rows: bool
    flip_columns: bool
    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]

    @property
    def count(self) -> int:
        """Number of slices."""
        return self.shape[self.axis]

    @property
    def spacing(self) -> tuple[float, float]:
        """Distance of the centres of neighbouring pixels, (down a row, along a column), in mm."""
        steps = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(steps[self.row_axis]), float(steps[self.column_axis])

    def picture(self, volume: npt.NDArray[Any], index: int) -> npt.NDArray[Any]:
        """Slice ``index`` of a volume of ``shape`` as (H, W), a view."""
        picture = np.take(volume, index, axis=self.axis) if self.axis != 2 else volume[:, :, index]
        if self.row_axis > self.column_axis:
            picture = picture.T
        return picture[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def to_voxel(self) -> npt.NDArray[np.float64]:
        """float64 (4, 4): (row, column, slice, 1) of a picture's pixel centre to stored voxel indices."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = matrix[self.axis, 2] = 1
        for place, axis, flip in ((0, self.row_axis, self.flip_rows), (1, self.column_axis, self.flip_columns)):
            matrix[axis, place] = -1 if flip else 1
            matrix[axis, 3] = self.shape[axis] - 1 if flip else 0
        return matrix

    def to_world(self) -> npt.NDArray[np.float64]:
        """float64 (4, 4): (row, column, slice, 1) of a picture's pixel centre to world coordinates in mm."""
        return self.affine @ self.to_voxel()


class Volume:
    """One NIfTI file whose header was checked; voxels are read when they are asked for.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file.

    Attributes:
        shape: three axes.
        frames: along the fourth, 1 where there is none.
        affine: float64 (4, 4), voxel indices to world coordinates in mm.
        oriented: whether the header says how the axes lie in the body.
        pixel_size: see the function of that name.
        header: as nibabel has it.

    Raises:
        DataError: missing, empty, truncated, not NIfTI, too large, more than four axes, colour or complex voxels, or axes
            that do not span space.
        ConfigError: nibabel is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _readable(path):
            file = _load(path)
            header: Any = file.header
            shape = tuple(int(size) for size in file.shape)
            dtype = file.get_data_dtype()
            affine = np.array(file.affine, np.float64) if file.affine is not None else np.full((4, 4), np.nan)
            self.oriented = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
            scale = _mm_per_unit(header)
            self.pixel_size = _pixel_size(header)
        self._file = file
        self.header = header
        self.shape, self.frames = self._axes(shape)
        self.affine = _with_thickness(np.diag([scale, scale, scale, 1.0]) @ affine, self.shape)
        self._check_grid()
        if dtype.fields is not None or dtype.kind not in "iuf":
            raise DataError(f"{path}: its voxels are {_kind(dtype)}: convert them to one number a voxel")
        proxy: Any = file.dataobj
        scaled = (proxy.slope, proxy.inter) != (1.0, 0.0)
        self._bytes = dtype == np.uint8 and not scaled  # scaled ones are intensities like any other

    def _axes(self, shape: tuple[int, ...]) -> tuple[tuple[int, int, int], int]:
        sizes = list(shape)
        while len(sizes) > 3 and sizes[-1] == 1:
            sizes.pop()
        if not 2 <= len(sizes) <= 4 or min(sizes) < 1:
            raise DataError(f"{self.path}: has the axes {list(shape)}; two to four, none empty, are read")
        sizes += [1] * (4 - len(sizes))
        x, y, z, frames = sizes
        if x * y * z > MAX_VOXELS or max(x * y, y * z, x * z) > MAX_PIXELS:
            raise DataError(
                f"{self.path}: {x} x {y} x {z} voxels; at most {MAX_VOXELS} are read: crop or split the volume"
            )
        return (x, y, z), frames

    def _check_grid(self) -> None:
        steps = np.linalg.norm(self.affine[:3, :3], axis=0)
        if not np.isfinite(self.affine).all() or steps.min() < 1e-6 or steps.max() > 1e6:
            raise DataError(
                f"{self.path}: its affine gives no voxel size (steps of {_listed(steps)} mm): repair the header"
            )
        # The volume of the cell of unit steps: 1 where they are at right angles, 0 where they do not span space.
        if abs(np.linalg.det(self.affine[:3, :3] / steps)) < 1e-3:
            raise DataError(f"{self.path}: its affine is singular, two axes run the same way: repair the header")

    def slicing(self, plane: str) -> Slicing:
        """How this volume is cut into pictures of ``plane``.

        Raises:
            DataError: a body plane is asked for and the header does not say how the axes lie.
        """
        if plane == "native":
            return Slicing(2, 1, 0, False, False, self.shape, self.affine)
        if not self.oriented:
            raise DataError(
                f"{self.path}: does not say how its axes lie in the body (sform and qform code 0): --plane native slices it as stored"
            )
        from nibabel.orientations import io_orientation

        # For each stored axis the closest world axis, and whether it runs along it (1) or against it (-1).
        orientation = io_orientation(self.affine)
        if not np.isfinite(orientation).all():
            raise DataError(f"{self.path}: its affine is singular, two axes run the same way: repair the header")
        stored = {int(world): axis for axis, (world, _) in enumerate(orientation)}
        along = orientation[:, 1] > 0
        axis, row_axis, column_axis = (stored[world] for world in _PLANES[plane])
        # Every world axis named by _PLANES for rows and columns points to the top or to the left of the picture.
        return Slicing(
            axis, row_axis, column_axis, bool(along[row_axis]), bool(along[column_axis]), self.shape, self.affine
        )

    def check_same_grid(self, other: Volume) -> None:
        """Refuse ``other`` where its voxels do not lie where ours do.

        Raises:
            DataError: another shape, or a corner off by more than a tenth of a voxel.
        """
        if self.shape != other.shape:
            raise DataError(
                f"{other.path}: has {_by(other.shape)} voxels but its image {self.path} has {_by(self.shape)}: resample it onto the image"
            )
        if not (self.oriented and other.oriented):
            return  # one of them does not say where it lies
        corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float64)
        corners[:, :3] *= np.array(self.shape) - 1
        apart = np.linalg.norm((corners @ (self.affine - other.affine).T)[:, :3], axis=1).max()
        step = np.linalg.norm(self.affine[:3, :3], axis=0).min()
        if apart > _TOLERANCE_VOXELS * step:
            raise DataError(
                f"{other.path}: lies up to {apart:.3g} mm off its image {self.path} (voxels of {step:.3g} mm): resample it onto the image"
            )

    def intensities(self, frame: int = 0) -> npt.NDArray[np.float32]:
        """The voxels of one frame, scaled as the header says, float32 of ``shape``.

        Raises:
            DataError: the file is truncated or damaged.
        """
        return self._voxels(frame).astype(np.float32, copy=False)

    def labels(self, frame: int = 0) -> npt.NDArray[np.integer]:
        """The voxels of one frame as whole numbers of ``shape``.

        Raises:
            DataError: as ``intensities``, or values that are not whole numbers.
        """
        values = self._voxels(frame)
        if values.dtype.kind in "iu":
            return values
        whole = np.rint(values)
        # Programs that scale labels leave errors of rounding; a probability map is further off.
        if not np.isfinite(values).all() or np.abs(values - whole).max() > 1e-3 or np.abs(whole).max() > 2**30:
            raise DataError(f"{self.path}: its values are no labels (not whole numbers): threshold or round them first")
        return whole.astype(np.int32)

    def _voxels(self, frame: int) -> npt.NDArray[Any]:
        with _readable(self.path):
            proxy: Any = self._file.dataobj
            axes = len(self._file.shape)
            index = (slice(None),) * min(axes, 3) + ((frame,) if axes > 3 else ()) + (0,) * (axes - 4)
            values = np.asarray(proxy[index] if axes > 3 else proxy)
            return values.reshape(self.shape)

    def window(
        self,
        voxels: npt.NDArray[np.float32],
        window: tuple[float, float] | None,
        percentiles: tuple[float, float] | None,
    ) -> tuple[float, float]:
        """The intensities that become 0 and 255.

        Without ``window`` (level, width) and ``percentiles`` a file of bytes that its header does not scale is kept as it is, and any other is cut at its
        percentiles 0.5 and 99.5. Percentiles are those of the whole volume, so that its slices stay comparable; of more
        than four million voxels of evenly spaced ones.
        """
        if window is not None:
            return window[0] - window[1] / 2, window[0] + window[1] / 2
        if percentiles is None and self._bytes:
            return 0.0, 255.0
        flat = voxels.ravel(order="K")
        sample = flat[:: max(1, math.ceil(flat.size / _MOST_SAMPLED))]
        sample = sample[np.isfinite(sample)]
        if not sample.size:
            raise DataError(f"{self.path}: holds no finite voxel: damaged; fetch the file again")
        low, high = np.percentile(sample, percentiles or (0.5, 99.5))
        return float(low), float(high)


def pixel_size(start: bytes, where: str) -> tuple[float, float] | None:
    """Distance of neighbouring pixels of the native plane, (down a row, along a column) in mm, by ``pixdim`` of the header.

    Args:
        start: of a NIfTI file, unpacked, at least its header.
        where: the file, for messages.

    Returns:
        None where the header does not tell.

    Raises:
        DataError: no header of NIfTI.
        ConfigError: nibabel is not installed.
    """
    nibabel = _nibabel()
    try:
        second = int.from_bytes(start[:4], "little") == 540 or int.from_bytes(start[:4], "big") == 540
        kind = nibabel.Nifti2Header if second else nibabel.Nifti1Header
        return _pixel_size(kind.from_fileobj(io.BytesIO(start)))
    except Exception as error:  # nibabel raises nearly anything on damaged headers
        raise DataError(
            f"{where}: cannot be read as NIfTI ({one_line(error)[:160]}): damaged or truncated; fetch the file again"
        ) from None


def _pixel_size(header: Any) -> tuple[float, float] | None:
    along = [float(value) * _mm_per_unit(header) for value in header["pixdim"][1:3]]  # columns first
    return (along[1], along[0]) if all(1e-6 <= value <= 1e6 for value in along) else None


def _mm_per_unit(header: Any) -> float:
    return _MM_PER_UNIT.get(header.get_xyzt_units()[0], 1.0)


def _with_thickness(affine: npt.NDArray[np.float64], shape: tuple[int, int, int]) -> npt.NDArray[np.float64]:
    """``affine`` with 1 mm for the thickness of a single slice where the header of a 2D image gives it as 0."""
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    if shape[2] == 1 and steps[2] == 0 and steps[:2].all():
        affine = affine.copy()
        normal = np.cross(affine[:3, 0] / steps[0], affine[:3, 1] / steps[1])
        affine[:3, 2] = normal / (np.linalg.norm(normal) or 1.0)
    return affine


def to_8_bit(picture: npt.NDArray[np.float32], low: float, high: float) -> npt.NDArray[np.uint8]:
    """``picture`` with ``low`` as 0 and ``high`` as 255, cut at both; what is not a number is 0."""
    if high <= low:
        return np.zeros(picture.shape, np.uint8)
    scaled = (picture.astype(np.float64) - low) * (255.0 / (high - low))
    return np.rint(np.clip(np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0), 0, 255)).astype(np.uint8)


def is_volume(path: Path) -> bool:
    """Whether the name is that of a NIfTI file."""
    return path.name.lower().endswith(ENDINGS) and not path.name.startswith(".")


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError:
        raise ConfigError("NIfTI volumes need nibabel: pip install 'vlsm-adapter[volumes]'") from None
    return nibabel


def _load(path: Path) -> nibabel.Nifti1Image:
    library = _nibabel()
    if not path.is_file():
        raise DataError(f"{path}: no such file: check the path")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty (0 bytes): fetch the file again")
    # Not mapped into memory: a file cut off while it is read would end the process.
    file = library.load(path, mmap=False)
    if not isinstance(file, library.Nifti1Image):
        raise DataError(f"{path}: is {type(file).__name__}, not NIfTI: convert it to .nii.gz")
    return cast("nibabel.Nifti1Image", file)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes the reader raise becomes one DataError that names the file."""
    try:
        # A damaged affine makes numpy warn; it is checked after.
        with np.errstate(all="ignore"):
            yield
    except (DataError, ConfigError):
        raise
    except PermissionError:
        raise DataError(f"{path}: may not be read: check its permissions") from None
    except MemoryError:
        raise DataError(f"{path}: too large for the memory of this machine: crop or split the volume") from None
    except Exception as error:
        raise DataError(
            f"{path}: cannot be read as NIfTI ({one_line(error)[:160]}): damaged or truncated; fetch the file again"
        ) from None


def _kind(dtype: np.dtype[Any]) -> str:
    if dtype.fields is not None:
        return "colours (RGB)"
    return "complex numbers" if dtype.kind == "c" else str(dtype)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _listed(numbers: npt.NDArray[np.float64]) -> str:
    return ", ".join(f"{number:.3g}" for number in numbers)
