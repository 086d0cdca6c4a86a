"""DICOM files as stacks: series put together by where their slices lie, files of several frames, single images."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlsm_adapter.errors import DataError
from vlsm_adapter.imaging.base import Kind, Spacing, Stack
from vlsm_adapter.imaging.dicom_headers import Frame, Header, read_dataset
from vlsm_adapter.imaging.dicom_pixels import PixelFile, Stored, intensities, says_window, to_rgb
from vlsm_adapter.imaging.options import PERCENTILES, ReadOptions

# Of slices without positions: what comes in volumes. Images of other modalities stand for themselves.
_VOLUMES = frozenset({"CT", "MR", "PT", "NM", "OPT", "OCT"})
_SAMPLED_PICTURES = 16
_SAMPLED_PIXELS = 250_000
# Share of the distance of slices by which one may be off and still count as evenly spaced.
_UNEVEN = 0.02
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class DicomStack(Stack):
    """Frames of DICOM files, of one size and orientation.

    Args:
        frames: (file, frame of it), in order.
        options: the window.
        name: for outputs.

    Attributes:
        frames: of each picture the index of its file in ``paths`` and the number of its frame there, from 1 as in DICOM.
        multi_frame: whether the pictures are frames of one file.
        series_number: None where absent.
        affine: float64 (4, 4), (column, row, slice, 1) to RAS+ coordinates in mm; None where the files do not say where
            their slices lie or these are not evenly spaced.
    """

    kind: Kind = "dicom"

    def __init__(self, frames: Sequence[tuple[Header, Frame]], options: ReadOptions, name: str = "") -> None:
        first, start = frames[0]
        headers = {header.path: header for header, _ in frames}
        files = {path: index for index, path in enumerate(headers)}
        self.name = name
        self.paths = tuple(headers)
        self.frames = tuple((files[header.path], frame.number + 1) for header, frame in frames)
        self.multi_frame = first.multi_frame
        self.series_number = first.series_number
        self.size = first.size
        self.count = len(frames)
        self.affine = _affine([frame for _, frame in frames], first)
        self.spacing = None
        notes = []
        if start.spacing is None:
            notes.append(f"{first.path}: does not say the size of its pixels: areas are in px")
        else:
            self.spacing = Spacing(*start.spacing, self._slice_gap(first))
            if first.detector:
                notes.append(f"{first.path}: sizes in mm are those on the detector, larger than in the body")
            if self.count > 1 and self.affine is None and start.position is not None:
                notes.append(f"{first.path.parent}: slices are not evenly spaced: no volumes in mm3 are given")
        self.notes = tuple(notes)
        self._options = options
        self._opening, self._windowing = threading.Lock(), threading.Lock()
        self._open: PixelFile | None = None
        self._limits: tuple[float, float] | None = None

    def _slice_gap(self, first: Header) -> float | None:
        if self.count == 1:
            return None
        if self.affine is not None:
            normal = np.cross(self.affine[:3, 0], self.affine[:3, 1])
            return abs(float(self.affine[:3, 2] @ normal)) / float(np.linalg.norm(normal))
        positioned = first.frames[0].position is not None
        return None if positioned or first.modality not in _VOLUMES else first.gap

    def datasets(self) -> list[Any]:
        """The files of ``paths`` as pydicom data sets without pixels.

        Raises:
            DataError: one cannot be read any more.
        """
        return [read_dataset(path) for path in self.paths]

    def picture(self, index: int) -> npt.NDArray[np.uint8]:
        stored = self._stored(index)
        window = self._options.window
        if window is not None and window.limits is not None:
            return to_rgb(stored, window.limits)
        if window is None and says_window(stored):
            return to_rgb(stored, None)
        return to_rgb(stored, self._stack_limits() if stored.is_grey else None)

    def close(self) -> None:
        with self._opening:
            self._open = None

    def _stored(self, index: int) -> Stored:
        file, number = self.frames[index]
        path = self.paths[file]
        if not self.multi_frame:
            return PixelFile(path, self.size).stored(number - 1)
        with self._opening:
            if self._open is None:
                self._open = PixelFile(path, self.size)
            opened = self._open
        return opened.stored(number - 1)

    def _stack_limits(self) -> tuple[float, float]:
        """Percentiles of the intensities of all pictures, or of evenly spaced ones."""
        with self._windowing:
            if self._limits is None:
                window = self._options.window
                asked = PERCENTILES if window is None or window.percentiles is None else window.percentiles
                steps = np.linspace(0, self.count - 1, min(self.count, _SAMPLED_PICTURES)).round().astype(int)
                values = np.concatenate([self._sample(int(index)) for index in np.unique(steps)])
                if not values.size:
                    raise DataError(f"{self.paths[0]}: holds no value to show, all of it is padding: check the file")
                low, high = np.percentile(values, asked)
                self._limits = float(low), float(high)
            return self._limits

    def _sample(self, index: int) -> npt.NDArray[np.float32]:
        stored = self._stored(index)
        if not stored.is_grey:
            return np.zeros(0, np.float32)
        flat = intensities(stored).ravel()
        flat = flat[:: max(1, math.ceil(flat.size / _SAMPLED_PIXELS))]
        return flat[np.isfinite(flat)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opening": None, "_windowing": None, "_open": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _opening=threading.Lock(), _windowing=threading.Lock())


def stacks_of_headers(headers: Iterable[Header], options: ReadOptions) -> tuple[list[DicomStack], list[str]]:
    """Put files together.

    A file of several frames is a stack by itself. Single images of one series make a stack where they have positions or
    come of a modality of volumes; others (radiographs, photographs) stand alone. Pictures of different size, orientation
    or spacing are different stacks, and so are volumes of one place at several times (echoes, phases).

    Args:
        headers: in any order.
        options: the window.

    Returns:
        The stacks, unnamed, in the order of their first files; and what to tell the user.
    """
    headers = sorted(headers, key=lambda header: str(header.path))
    notes: list[str] = []
    groups: dict[Any, list[tuple[Header, Frame]]] = defaultdict(list)
    seen: dict[str, Header] = {}
    for header in headers:
        before = seen.get(header.instance) if header.instance else None
        # Careless anonymisation gives one UID to different pictures: those are no copies.
        if before is not None and replace(before, path=header.path) == header and _same_size(before.path, header.path):
            notes.append(f"{header.path}: is a copy of {before.path}; left out")
            continue
        seen[header.instance] = header
        for frame in header.frames:
            groups[_group(header, frame)].append((header, frame))
    stacks: list[DicomStack] = []
    for group in groups.values():
        parts = [group] if group[0][0].multi_frame else _in_order(group)
        stacks += [DicomStack(part, options) for part in parts]
    return sorted(stacks, key=lambda stack: str(min(stack.paths))), notes


def _same_size(one: Path, other: Path) -> bool:
    try:
        return one.stat().st_size == other.stat().st_size
    except OSError:
        return False


def _group(header: Header, frame: Frame) -> tuple[Any, ...]:
    look = (header.size, header.colours, _rounded(frame.orientation, 3), _rounded(frame.spacing, 4))
    together = not header.multi_frame and header.series and (frame.position or header.modality in _VOLUMES)
    return (header.series if together else str(header.path), bool(together), *look)


def _rounded(numbers: Sequence[float] | None, digits: int) -> tuple[float, ...] | None:
    return None if numbers is None else tuple(round(number, digits) + 0.0 for number in numbers)


def _in_order(group: list[tuple[Header, Frame]]) -> list[list[tuple[Header, Frame]]]:
    """The group as one stack, or as several where every place was pictured the same number of times."""

    def number(one: tuple[Header, Frame]) -> tuple[Any, ...]:
        header = one[0]
        known = header.instance_number is not None
        return (not known, header.instance_number or 0, str(header.path))

    if any(frame.position is None or frame.orientation is None for _, frame in group):
        return [sorted(group, key=number)]
    along = _along_normal(group[0][1])
    places: dict[float, list[tuple[Header, Frame]]] = defaultdict(list)
    for one in sorted(group, key=lambda one: (one[0].times, number(one))):
        places[round(along(one[1]), 3)].append(one)
    ordered = [places[place] for place in sorted(places)]
    if len({len(place) for place in ordered}) == 1:
        return [list(part) for part in zip(*ordered, strict=True)]
    return [[one for place in ordered for one in place]]


def _along_normal(frame: Frame) -> Callable[[Frame], float]:
    assert frame.orientation is not None
    normal = np.cross(frame.orientation[:3], frame.orientation[3:])
    return lambda one: float(np.dot(normal, one.position))  # type: ignore[arg-type]


def _affine(frames: Sequence[Frame], header: Header) -> npt.NDArray[np.float64] | None:
    first = frames[0]
    if first.orientation is None or first.spacing is None or any(frame.position is None for frame in frames):
        return None
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    positions = np.array([frame.position for frame in frames], np.float64)
    if len(frames) == 1:
        step = np.cross(row, column) * (header.gap or header.thickness or 1.0)
    else:
        step = (positions[-1] - positions[0]) / (len(frames) - 1)
        gap = abs(float(step @ np.cross(row, column)))
        off = np.abs(positions - (positions[0] + np.arange(len(frames))[:, None] * step)).max()
        if gap < 1e-4 or off > max(_UNEVEN * gap, 2e-3):
            return None
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * first.spacing[1], column * first.spacing[0], step
    affine[:3, 3] = positions[0]
    return _LPS_TO_RAS @ affine
