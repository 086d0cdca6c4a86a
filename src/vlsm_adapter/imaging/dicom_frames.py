"""DICOM SEG whose frames stand in the order of their source images, each referring to the one it is about.

For what highdicom would hold in memory as a whole (probabilities, segments that overlap), and for sources that it does not
take: several pictures without frame of reference, several at one place, of different orientations, or of a retired class.
highdicom makes the file's head; the frames are put together here one after the other, a stack of the multi-frame dimension
module (PS3.3 C.7.6.16.2.2, C.7.6.17): segment first, then position in the stack.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from vlsm_adapter.imaging.dicom_headers import functional_group
from vlsm_adapter.imaging.kept import no_room

_STACK = "1"
_MOST_BYTES = 2**32 - 2  # of one element (PS3.5 section 7.1.1)


def framewise(
    sources: list[Any],
    frames: Sequence[tuple[int, int]],
    segments: int,
    values: Callable[[int, int], npt.NDArray[Any]],
    fractional: bool,
    common: dict[str, Any],
    gap: float | None = None,
) -> Any:
    """A segmentation with a frame for every segment and picture that is not empty.

    Args:
        sources: data sets without pixels, prepared.
        frames: of each picture the index of its data set and its frame there, from 1.
        segments: how many.
        values: of (segment from 0, picture), bool or float32 (H, W).
        fractional: whether values are probabilities.
        common: arguments of highdicom's Segmentation apart from source and pixels.
        gap: distance of neighbouring slices in mm, where the pictures are those of a volume.

    Raises:
        OverflowError: more than a DICOM file holds.
        UserError: the disk of temporary files is full.
    """
    from vlsm_adapter.imaging.dicom_seg import highdicom, stand_in

    size = (int(sources[0].Rows), int(sources[0].Columns))
    blank = np.zeros((1, 1, 1, segments), np.float32 if fractional else np.uint8)
    segmentation = highdicom().seg.Segmentation([stand_in(sources[0])], blank, omit_empty_frames=False, **common)
    start = segmentation.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
    planes = _planes(sources, frames, gap)
    packer = _Bytes() if fractional else _Bits()
    groups, used, overlap = [], set(), False
    covered: dict[int, npt.NDArray[np.bool_]] = {}
    for segment in range(segments):
        shown = False
        for index, (file, frame) in enumerate(frames):
            pixels = values(segment, index)
            pixels = np.rint(pixels * 255).astype(np.uint8) if fractional else pixels.astype(np.uint8)
            if not pixels.any():
                continue
            shown = True
            used.add(index)
            if not fractional and segments > 1:
                overlap = overlap or bool((covered.get(index, False) & (pixels > 0)).any())
                covered[index] = covered.get(index, np.zeros(size, bool)) | (pixels > 0)
            packer.add(pixels)
            groups.append(_group(segment, index, _derivation(start, sources[file], frame), planes, segments))
        if not shown and not used and segment == segments - 1:
            # All empty: a file has at least a frame.
            for blank_segment in range(segments):
                packer.add(np.zeros(size, np.uint8))
                file, frame = frames[0]
                groups.append(_group(blank_segment, 0, _derivation(start, sources[file], frame), planes, segments))
    if len(groups) * size[0] * size[1] // (1 if fractional else 8) > _MOST_BYTES:
        raise OverflowError(f"{len(groups)} frames of {size[1]} x {size[0]} pixels are more than a DICOM file holds")
    segmentation.Rows, segmentation.Columns = size
    segmentation.NumberOfFrames = len(groups)
    segmentation.PixelData = packer.pixels()
    segmentation.PerFrameFunctionalGroupsSequence = groups
    if segments > 1:
        segmentation.SegmentsOverlap = "UNDEFINED" if fractional else "YES" if overlap else "NO"
    _dimensions(segmentation)
    _references(segmentation, sources)
    if planes is not None:
        _share(segmentation.SharedFunctionalGroupsSequence[0], groups)
        segmentation.FrameOfReferenceUID = sources[0].FrameOfReferenceUID
        segmentation.PositionReferenceIndicator = sources[0].get("PositionReferenceIndicator", "")
    return segmentation


def _planes(sources: list[Any], frames: Sequence[tuple[int, int]], gap: float | None) -> list[dict[str, Any]] | None:
    """Position, orientation and spacing of each picture; None unless all have their own in one frame of reference."""
    from pydicom import Dataset
    from pydicom.valuerep import DSfloat

    reference = sources[0].get("FrameOfReferenceUID")
    if not reference or any(source.get("FrameOfReferenceUID") != reference for source in sources):
        return None
    wanted = {
        "PlanePositionSequence": ("ImagePositionPatient",),
        "PlaneOrientationSequence": ("ImageOrientationPatient",),
        "PixelMeasuresSequence": ("PixelSpacing",),
    }
    found = []
    for file, frame in frames:
        source, of_frame = sources[file], {}
        for name, keywords in wanted.items():
            item = functional_group(source, frame - 1, name)
            if item is None and name == "PlanePositionSequence" and int(source.get("NumberOfFrames") or 1) > 1:
                return None  # a place that the file states once is not that of each of its frames
            holder = item if item is not None else source
            if any(not holder.get(keyword) for keyword in keywords):
                return None
            copied = Dataset()
            for keyword in keywords:
                setattr(copied, keyword, holder.get(keyword))
            if name == "PixelMeasuresSequence" and holder.get("SliceThickness"):
                copied.SliceThickness = holder.SliceThickness
            if name == "PixelMeasuresSequence" and gap is not None:
                copied.SpacingBetweenSlices = DSfloat(gap, auto_format=True)
            of_frame[name] = copied
        found.append(of_frame)
    return found


def _share(shared: Any, groups: Sequence[Any]) -> None:
    """Say once what the groups of all frames say: many readers look for it there."""
    for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        first = groups[0][name].value
        if all(group[name].value == first for group in groups):
            setattr(shared, name, first)
            for group in groups:
                del group[name]


def _group(segment: int, index: int, derivation: Any, planes: list[dict[str, Any]] | None, segments: int) -> Any:
    from pydicom import Dataset

    content = Dataset()
    content.StackID = _STACK
    content.InStackPositionNumber = index + 1
    content.DimensionIndexValues = [segment + 1, 1, index + 1]
    group = Dataset()
    group.FrameContentSequence = [content]
    group.DerivationImageSequence = [derivation]
    if segments > 1:  # of a single one it stands in the shared group
        identification = Dataset()
        identification.ReferencedSegmentNumber = segment + 1
        group.SegmentIdentificationSequence = [identification]
    for name, item in (planes[index] if planes is not None else {}).items():
        setattr(group, name, [item])
    return group


def _derivation(start: Any, source: Any, frame: int) -> Any:
    """The derivation image item of highdicom's frame, with another source."""
    item = copy.deepcopy(start)
    image = item.SourceImageSequence[0]
    image.ReferencedSOPClassUID = source.SOPClassUID
    image.ReferencedSOPInstanceUID = source.SOPInstanceUID
    if _of_frames(source):
        image.ReferencedFrameNumber = frame
    return item


def _of_frames(source: Any) -> bool:
    """Whether a reference to a picture of ``source`` names its frame: in all files of a class that may have several."""
    from highdicom._standard_utils import is_multiframe_image

    try:
        return bool(is_multiframe_image(source))
    except KeyError:  # of a class that is not in the standard (any more)
        return int(source.get("NumberOfFrames") or 1) > 1


def _dimensions(segmentation: Any) -> None:
    from pydicom import Dataset

    uid = segmentation.DimensionOrganizationSequence[0].DimensionOrganizationUID
    for pointer, description in (("StackID", "Stack"), ("InStackPositionNumber", "Source image")):
        item = Dataset()
        item.DimensionIndexPointer = _tag(pointer)
        item.FunctionalGroupPointer = _tag("FrameContentSequence")
        item.DimensionOrganizationUID = uid
        item.DimensionDescriptionLabel = description
        segmentation.DimensionIndexSequence.append(item)


def _references(segmentation: Any, sources: list[Any]) -> None:
    """Source images, and the series that they are of, instead of the stand-in's."""
    from pydicom import Dataset

    series: dict[str, list[Any]] = {}
    images = []
    for source in sources:
        image = Dataset()
        image.ReferencedSOPClassUID = source.SOPClassUID
        image.ReferencedSOPInstanceUID = source.SOPInstanceUID
        images.append(image)
        series.setdefault(str(source.SeriesInstanceUID), []).append(image)
    segmentation.SourceImageSequence = images
    listed = []
    for uid, of_series in series.items():
        item = Dataset()
        item.SeriesInstanceUID = uid
        item.ReferencedInstanceSequence = of_series
        listed.append(item)
    segmentation.ReferencedSeriesSequence = listed


def _tag(keyword: str) -> Any:
    from pydicom.tag import Tag

    return Tag(keyword)


class _Bytes:
    """Frames of 8 bits, kept in an unnamed temporary file, which vanishes with the data set."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (read when the data set is written)

    def add(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Take in one frame (H, W)."""
        self._write(pixels)

    def pixels(self) -> IO[bytes]:
        """All frames, for PixelData, whose length is even."""
        if self._file.tell() % 2:
            self._write(np.zeros(1, np.uint8))
        self._file.seek(0)
        return self._file

    def _write(self, values: npt.NDArray[np.uint8]) -> None:
        try:
            self._file.write(values.tobytes())
        except OSError as error:
            raise no_room(error) from error


class _Bits(_Bytes):
    """Frames of 0 and 1 as bits without gaps between frames, the first pixel in the lowest bit (PS3.5 section 8.1.1)."""

    def __init__(self) -> None:
        super().__init__()
        self._rest = np.zeros(0, np.uint8)

    def add(self, pixels: npt.NDArray[np.uint8]) -> None:
        bits = np.concatenate([self._rest, pixels.ravel()])
        whole = bits.size // 8 * 8
        self._write(np.packbits(bits[:whole], bitorder="little"))
        self._rest = bits[whole:]

    def pixels(self) -> IO[bytes]:
        self._write(np.packbits(self._rest, bitorder="little"))
        return super().pixels()
