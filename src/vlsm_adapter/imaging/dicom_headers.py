"""What the header of a DICOM file says about its frames, read without their pixels (DICOM PS3.3, PS3.10).

Files are known by content, the ``DICM`` mark after 128 bytes; a name that ends in ``.dcm`` may lack it.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlsm_adapter.data.images import MAX_PIXELS
from vlsm_adapter.errors import ConfigError, DataError, one_line

ENDINGS = frozenset({".dcm", ".dicom", ".ima"})
INSTALL = "pip install 'vlsm-adapter[dicom]'"
# A file whose deflated part is larger than this is taken for a decompression bomb.
MAX_INFLATED = 2**31
_DEFLATED = "1.2.840.10008.1.2.1.99"
_DIRECTORY = "1.2.840.10008.1.3.10"
# They have rows and columns, but are answers about pictures: segmentations (binary, label map) and doses.
_NO_PICTURES = frozenset(
    {"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7", "1.2.840.10008.5.1.4.1.1.481.2"}
)
# What pydicom says where no decoder is there for a compression.
_NO_DECODER = (
    "missing required dependencies",
    "is not supported",
    "decoders have been implemented",
    "missing dependencies",
)
_CENTIMETRES = 3  # PhysicalUnitsXDirection of an ultrasound region, PS3.3 C.8.5.5.1.15
_TAGS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "InstanceNumber",
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "EchoTime",
    "TriggerTime",
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "SpacingBetweenSlices",
    "SliceThickness",
    "EstimatedRadiographicMagnificationFactor",
    "SequenceOfUltrasoundRegions",
    "EncryptedAttributesSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)


class NoPicture(DataError):
    """A sound DICOM file that holds no picture: a directory, a report, a plan, a segmentation."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a DICOM file.

    Attributes:
        number: in its file, from 0.
        position: of the centre of its first pixel, in mm (LPS), or None.
        orientation: direction cosines of a row, then of a column, or None.
        spacing: (row, column) in mm, or None.
    """

    number: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Header:
    """What is kept of a DICOM file.

    Attributes:
        path: the file.
        instance, series: SOPInstanceUID and SeriesInstanceUID; empty where absent.
        series_number, instance_number: None where absent.
        modality: such as ``"CT"``; empty where absent.
        size: (H, W).
        colours: samples per pixel.
        times: what tells apart pictures of one place: acquisition, temporal position, echo, trigger.
        frames: at least one.
        multi_frame: whether it has several frames, or the form of files that may.
        gap: distance of neighbouring slices as the file states it, in mm, or None.
        thickness: of the slice in mm, or None.
        detector: whether the spacing is that on a detector, before which the body lies magnified.
    """

    path: Path
    instance: str
    series: str
    series_number: int | None
    instance_number: int | None
    modality: str
    size: tuple[int, int]
    colours: int
    times: tuple[float, ...]
    frames: tuple[Frame, ...]
    multi_frame: bool
    gap: float | None
    thickness: float | None
    detector: bool


@functools.cache
def pydicom() -> Any:
    """The module, which keeps its warnings about oddities in headers to itself.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pydicom
        import pydicom.config
    except ImportError:
        raise ConfigError(f"DICOM files need pydicom: {INSTALL}") from None
    warnings.filterwarnings("ignore", module=r"pydicom|vlsm_adapter\.imaging|pylibjpeg|openjpeg|libjpeg|highdicom")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes the reader raise becomes one DataError that names the file."""
    try:
        yield
    except (DataError, ConfigError):
        raise
    except PermissionError:
        raise DataError(f"{path}: may not be read: check its permissions") from None
    except FileNotFoundError:
        raise DataError(f"{path}: no such file: check the path") from None
    except MemoryError:
        raise DataError(f"{path}: too large for the memory of this machine") from None
    except Exception as error:
        reason = one_line(error)[:160]
        if any(sign in reason for sign in _NO_DECODER):
            raise DataError(
                f"{path}: its compression cannot be decoded ({reason}): {INSTALL}, or decompress it"
            ) from None
        raise DataError(
            f"{path}: cannot be read as DICOM ({reason}): damaged or truncated; fetch the file again"
        ) from None


def read_dataset(path: Path, tags: list[str] | None = None) -> Any:
    """The data set of a file without its pixels.

    Args:
        path: the file.
        tags: keywords to read; by default all.

    Raises:
        DataError: not DICOM, damaged, or a decompression bomb.
        ConfigError: pydicom is not installed.
    """
    library = pydicom()
    with readable(path):
        if path.stat().st_size == 0:
            raise DataError(f"{path}: is empty (0 bytes): fetch the file again")
        marked = is_dicom(path)
        if marked:
            inflated_bytes(path)
        elif path.suffix.lower() not in ENDINGS:
            raise DataError(f"{path}: is not DICOM (no DICM mark): check the file")
        found = library.dcmread(path, stop_before_pixels=True, specific_tags=tags, force=not marked)
        if not marked and "SOPClassUID" not in found:
            raise DataError(f"{path}: is not DICOM (no DICM mark): another format, damaged, or encrypted as a whole")
        return found


def is_dicom(path: Path) -> bool:
    """Whether the file has the mark of DICOM, whatever its name."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_header(path: Path) -> Header:
    """The header of a DICOM file with pictures.

    Raises:
        NoPicture: it holds none.
        DataError: not DICOM, damaged, encrypted, or of absurd dimensions.
        ConfigError: pydicom is not installed.
    """
    found = read_dataset(path, list(_TAGS))
    with readable(path):
        _check_picture(path, found)
        rows, columns = int(found.Rows), int(found.Columns)
        count = int(found.get("NumberOfFrames") or 1)
        _check_dimensions(path, rows, columns, count)
        detector, spacing = _spacing(found)
        frames = tuple(_frames(found, count, spacing))
        return Header(
            path=path,
            instance=str(found.get("SOPInstanceUID", "")),
            series=str(found.get("SeriesInstanceUID", "")),
            series_number=_whole(found, "SeriesNumber"),
            instance_number=_whole(found, "InstanceNumber"),
            modality=str(found.get("Modality", "")),
            size=(rows, columns),
            colours=_whole(found, "SamplesPerPixel") or 1,
            times=tuple(
                _number(found, name) or 0.0
                for name in ("TemporalPositionIdentifier", "AcquisitionNumber", "EchoTime", "TriggerTime")
            ),
            frames=frames,
            # Single images that say they have one frame are common; one with functional groups is an enhanced one.
            multi_frame=count > 1 or "SharedFunctionalGroupsSequence" in found,
            gap=_stated(found, "SpacingBetweenSlices"),
            thickness=_stated(found, "SliceThickness"),
            detector=detector,
        )


def functional_group(dataset: Any, frame: int, name: str) -> Any:
    """The item of a functional group macro for ``frame`` (from 0): its own, else the shared one, else None (C.7.6.16)."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    own = per_frame[frame].get(name) if per_frame and frame < len(per_frame) else None
    if own:
        return own[0]
    shared = dataset.get("SharedFunctionalGroupsSequence")
    common = shared[0].get(name) if shared else None
    return common[0] if common else None


def numbers(dataset: Any, name: str, count: int) -> tuple[float, ...] | None:
    """``count`` finite numbers of an element, or None where they are not that."""
    try:
        value: Any = dataset.get(name) if dataset is not None else None
        values = tuple(float(one) for one in ([value] if count == 1 else value))
    except (TypeError, ValueError, ArithmeticError):
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None


def _number(dataset: Any, name: str) -> float | None:
    found = numbers(dataset, name, 1)
    return found[0] if found else None


def _whole(dataset: Any, name: str) -> int | None:
    found = _number(dataset, name)
    return None if found is None else int(found)


def _positive(dataset: Any, name: str) -> tuple[float, float] | None:
    found = numbers(dataset, name, 2)
    return (found[0], found[1]) if found and all(1e-6 < one < 1e6 for one in found) else None


def _stated(dataset: Any, name: str) -> float | None:
    """A length of the file or, where they share it, of its frames."""
    found = _number(dataset, name) or _number(functional_group(dataset, 0, "PixelMeasuresSequence"), name)
    return found if found and 1e-6 < found < 1e6 else None


def _spacing(dataset: Any) -> tuple[bool, tuple[float, float] | None]:
    """Whether it is that on the detector, and (row, column) in mm for all frames that do not say it themselves."""
    if own := _positive(dataset, "PixelSpacing"):
        return False, own
    if on_detector := _positive(dataset, "ImagerPixelSpacing"):
        factor = _number(dataset, "EstimatedRadiographicMagnificationFactor")
        if factor and 0.1 < factor < 10:
            return False, (on_detector[0] / factor, on_detector[1] / factor)
        return True, on_detector
    if scanned := _positive(dataset, "NominalScannedPixelSpacing"):
        return False, scanned
    regions = {_region_spacing(region) for region in dataset.get("SequenceOfUltrasoundRegions") or ()}
    return False, regions.pop() if len(regions) == 1 else None


def _region_spacing(region: Any) -> tuple[float, float] | None:
    """Of an ultrasound region, where both directions are lengths."""
    units = {_whole(region, f"PhysicalUnits{axis}Direction") for axis in "XY"}
    along, down = _number(region, "PhysicalDeltaX"), _number(region, "PhysicalDeltaY")
    if units != {_CENTIMETRES} or not along or not down:
        return None
    return abs(down) * 10, abs(along) * 10


def _frames(dataset: Any, count: int, spacing: tuple[float, float] | None) -> Iterator[Frame]:
    position = numbers(dataset, "ImagePositionPatient", 3)
    orientation = _directions(dataset)
    grouped = "PerFrameFunctionalGroupsSequence" in dataset or "SharedFunctionalGroupsSequence" in dataset
    for number in range(count):
        if not grouped:
            # Of several frames without groups nothing says that they lie in one place.
            yield Frame(number, position if count == 1 else None, orientation if count == 1 else None, spacing)
            continue
        measures = functional_group(dataset, number, "PixelMeasuresSequence")
        plane = functional_group(dataset, number, "PlanePositionSequence")
        turned = functional_group(dataset, number, "PlaneOrientationSequence")
        yield Frame(
            number,
            numbers(plane, "ImagePositionPatient", 3) or (position if count == 1 else None),
            _directions(turned) or orientation,
            _positive(measures, "PixelSpacing") or spacing,
        )


def _directions(dataset: Any) -> tuple[float, ...] | None:
    """Direction cosines that are unit vectors at right angles, or None."""
    found = numbers(dataset, "ImageOrientationPatient", 6)
    if found is None:
        return None
    row, column = found[:3], found[3:]
    along = sum(a * b for a, b in zip(row, column, strict=True))
    lengths = [math.sqrt(sum(a * a for a in one)) for one in (row, column)]
    return found if abs(along) < 1e-2 and all(abs(one - 1) < 1e-2 for one in lengths) else None


def _check_picture(path: Path, found: Any) -> None:
    kind = found.get("SOPClassUID") or getattr(found, "file_meta", {}).get("MediaStorageSOPClassUID", "")
    name = getattr(kind, "name", "") or "no SOP class"
    if kind == _DIRECTORY:
        raise NoPicture(f"{path}: is a DICOMDIR: the files that it lists are found without it")
    if kind in _NO_PICTURES or "Rows" not in found or "Columns" not in found:
        if "EncryptedAttributesSequence" in found and kind not in _NO_PICTURES:
            raise DataError(f"{path}: its pictures are encrypted: decrypt the file first")
        if kind not in _NO_PICTURES and (not kind or "Image" in name):
            raise DataError(
                f"{path}: its header ends before the size of its pictures: damaged, truncated or encrypted; fetch it again"
            )
        raise NoPicture(f"{path}: holds no picture to segment ({name}): give the images it is about")


def _check_dimensions(path: Path, rows: int, columns: int, count: int) -> None:
    if rows < 1 or columns < 1 or count < 1:
        raise DataError(f"{path}: has {columns} x {rows} pixels in {count} frames: damaged; fetch the file again")
    if rows * columns > MAX_PIXELS:
        raise DataError(f"{path}: {columns} x {rows} pixels; at most {MAX_PIXELS} are read: make the image smaller")
    if count > max(1, path.stat().st_size // 2):
        raise DataError(f"{path}: says it has {count} frames, more than its size allows: damaged; fetch the file again")


def inflated_bytes(path: Path, most: int | None = None) -> int:
    """How large the data set of a deflated file is, found without holding it; 0 where the file is not deflated.

    Args:
        path: a file with the mark of DICOM.
        most: bytes, :data:`MAX_INFLATED` by default; pydicom inflates in one piece.

    Raises:
        DataError: more than ``most``, or damaged.
        ConfigError: pydicom is not installed.
    """
    library = pydicom()
    most = MAX_INFLATED if most is None else most
    with readable(path):
        meta = library.filereader.read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") != _DEFLATED:
            return 0
        start = 144 + int(meta.get("FileMetaInformationGroupLength", 0))
        inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        with path.open("rb") as stream:
            stream.seek(start)
            # What follows the end, a byte that makes the length even (PS3.5 section A.5), stays "unconsumed" for ever.
            while not inflater.eof and (chunk := stream.read(1 << 16)):
                while chunk and not inflater.eof:
                    total += len(inflater.decompress(chunk, 1 << 22))
                    chunk = inflater.unconsumed_tail
                    if total > most:
                        raise DataError(f"{path}: inflates to more than {most} bytes: not read; decompress it yourself")
        return total
