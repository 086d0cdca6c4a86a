"""Masks as DICOM Segmentation (PS3.3 sections A.51 and C.8.20), referring to the images they were made from.

A segment per prompt, all in one file: binary masks, or probabilities as a fractional segmentation. Patient and study are the
source's. Three cases:

- masks that do not overlap, of slices that each lie at a place of their own, of single images or of one enhanced file:
  highdicom's way, in the source's frame of reference;
- probabilities, masks that overlap or are all empty, pictures that share places (phases, echoes) or differ in orientation:
  frames stand in the order of their source images, with their places beside it (:mod:`.dicom_frames`). One frame after the
  other is taken, so that memory does not grow with the number of prompts;
- pictures without frame of reference (photographs, endoscopy, ultrasound, scanned film): the standard then wants the same
  rows and columns as the source and a reference from each frame to its source (PS3.3 A.51.5.1), which is what they get.

Frames in which a segment is empty are left out; a file in which every segment is empty has one blank frame for each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlsm_adapter import files
from vlsm_adapter.errors import ConfigError, DataError, UserError, one_line
from vlsm_adapter.imaging.base import Stack
from vlsm_adapter.imaging.codes import SCHEME, Code, codes_of
from vlsm_adapter.imaging.dicom_headers import INSTALL
from vlsm_adapter.imaging.rasters import label_colour

NAME = "vlsm-adapter"
_BLANK = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "ReferringPhysicianName"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns")
Values = Callable[[int, int], npt.NDArray[Any]]


@dataclass(frozen=True)
class Provenance:
    """What made the masks, for readers of the file.

    Attributes:
        adapter: name of the run or adapter, or ``"zero-shot"``.
        adapter_hash: SHA-256 of its weights file in hexadecimal, empty without adapter.
        base: id of the base model.
    """

    adapter: str = "unknown"
    adapter_hash: str = ""
    base: str = "unknown"


def check_source(stack: Stack) -> None:
    """Check that a DICOM SEG about ``stack`` can be made at all, without reading its files.

    Raises:
        ConfigError: highdicom is not installed.
        DataError: not DICOM.
    """
    highdicom()
    if not hasattr(stack, "datasets"):
        raise DataError(f"{stack.paths[0]}: DICOM SEG needs a DICOM source to refer to: choose png, tiff or nifti")


def write_segmentation(
    path: Path, stack: Any, prompts: Sequence[str], values: Values, provenance: Provenance | None = None
) -> None:
    """Write one DICOM SEG, atomically.

    Args:
        path: the file.
        stack: a DICOM stack: ``datasets()`` gives its files without pixels, ``frames`` for each picture the index of its
            file and its frame there, from 1.
        prompts: a segment for each.
        values: of (number of the prompt, index of the picture), as stored: bool (H, W) for a binary segmentation, or
            float32 (H, W) in [0, 1] for a fractional one.
        provenance: goes into the equipment and the algorithm's identification.

    Raises:
        ConfigError: highdicom is not installed.
        DataError: the source lacks what must be referred to, cannot be referred to, or the file would be too large.
        UserError: the file cannot be written.
    """
    highdicom()
    sources = stack.datasets()
    for source, place in zip(sources, stack.paths, strict=True):
        _prepare(source, place)
    try:
        segmentation = _build(stack, sources, prompts, values, provenance or Provenance())
    except UserError:
        raise
    except Exception as error:  # highdicom checks what it copies, and raises nearly anything
        raise DataError(
            f"{stack.paths[0]}: no DICOM SEG can be made of it ({one_line(error)[:200]}): choose --format nifti or png"
        ) from error
    if "FrameOfReferenceUID" not in segmentation and "PatientOrientation" not in segmentation:
        # Wanted where no position is given; blank where it is not known (PS3.3 C.7.6.1).
        segmentation.PatientOrientation = sources[0].get("PatientOrientation") or ""
    with files.atomic_path(path) as temporary:
        segmentation.save_as(temporary, enforce_file_format=True)


def _build(stack: Any, sources: list[Any], prompts: Sequence[str], values: Values, provenance: Provenance) -> Any:
    from vlsm_adapter.imaging.dicom_frames import framewise

    fractional = values(0, 0).dtype.kind == "f"
    common = _common(sources[0], prompts, provenance, fractional)
    order = None if fractional else _placed(sources, stack.frames)
    if order is not None:
        pixels = _label_map(stack.size, len(prompts), values, order)
        if pixels is not None:
            images = sources if len(sources) == 1 else [sources[stack.frames[index][0]] for index in order]
            return highdicom().seg.Segmentation(images, pixels, **common)
    gap = None if stack.spacing is None else stack.spacing.slice
    return framewise(sources, stack.frames, len(prompts), values, fractional, common, gap)


def _placed(sources: list[Any], frames: Sequence[tuple[int, int]]) -> list[int] | None:
    """The pictures in the order in which highdicom wants them; None where it does not take these sources."""
    from highdicom._standard_utils import is_multiframe_image
    from highdicom.spatial import get_image_coordinate_system

    first = sources[0]
    try:
        several = is_multiframe_image(first)
    except KeyError:  # of a class that is not in the standard (any more)
        return None
    system = get_image_coordinate_system(first)
    if system is None or system.value != "PATIENT" or "FrameOfReferenceUID" not in first:
        return None
    if several:
        shared = first.get("SharedFunctionalGroupsSequence")
        per_frame = first.get("PerFrameFunctionalGroupsSequence")
        if len(sources) > 1 or not shared or not per_frame or len(per_frame) != len(frames):
            return None
        if "PlaneOrientationSequence" not in shared[0] or "PixelMeasuresSequence" not in shared[0]:
            return None
        positions = [item.get("PlanePositionSequence") for item in per_frame]
        if any(not found or "ImagePositionPatient" not in found[0] for found in positions):
            return None
        places = [tuple(map(float, found[0].ImagePositionPatient)) for found in positions]
        order = sorted(range(len(frames)), key=lambda index: frames[index][1])
    else:
        wanted = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        if any(not source.get(name) for source in sources for name in wanted):
            return None
        same = ("ImageOrientationPatient", "FrameOfReferenceUID", "SeriesInstanceUID", "StudyInstanceUID")
        if any(source.get(name) != first.get(name) for source in sources for name in same):
            return None
        places = [tuple(map(float, source.ImagePositionPatient)) for source in sources]
        order = list(range(len(frames)))
    return order if len(set(places)) == len(places) == len(frames) else None


def _label_map(
    size: tuple[int, int], segments: int, values: Values, order: Sequence[int]
) -> npt.NDArray[np.unsignedinteger] | None:
    """uint8 or uint16 (N, H, W), 0 or the number of the segment from 1; None where segments overlap or all are empty."""
    labels = np.zeros((len(order), *size), np.uint8 if segments < 256 else np.uint16)
    for place, index in enumerate(order):
        for number in range(segments):
            mask = values(number, index)
            if labels[place][mask].any():
                return None
            labels[place][mask] = number + 1
    return labels if labels.any() else None


# -- what a file says besides its pixels ---------------------------------------------------------------------------------


def _common(source: Any, prompts: Sequence[str], provenance: Provenance, fractional: bool) -> dict[str, Any]:
    """The arguments of highdicom's Segmentation apart from source and pixels."""
    from pydicom.sr.codedict import codes

    library, own_version = highdicom(), _version()
    identification = library.AlgorithmIdentificationSequence(
        name=NAME,
        version=own_version,
        family=codes.cid7162.ArtificialIntelligence,
        source=NAME,
        parameters={
            "adapter": _text(provenance.adapter, 200),
            "adapter_sha256": provenance.adapter_hash or "none",
            "base": _text(provenance.base, 200),
        },
    )
    descriptions = [
        _description(library, number, prompt, identification) for number, prompt in enumerate(prompts, start=1)
    ]
    plain = "".join((*prompts, provenance.adapter, provenance.base)).isascii()
    latin = source.get("SpecificCharacterSet") in (None, "", "ISO_IR 6", "ISO_IR 100")
    kind = library.seg.SegmentationTypeValues
    return {
        "segmentation_type": kind.FRACTIONAL if fractional else kind.BINARY,
        "segment_descriptions": descriptions,
        "series_instance_uid": library.UID(),
        "series_number": 1000 + int(source.get("SeriesNumber") or 0) % 1_000_000,
        "series_description": _text(("probabilities: " if fractional else "masks: ") + ", ".join(prompts), 64),
        "sop_instance_uid": library.UID(),
        "instance_number": 1,
        "manufacturer": NAME,
        "manufacturer_model_name": _text(provenance.adapter, 64),
        "software_versions": own_version,
        "device_serial_number": provenance.adapter_hash[:64] or "none",
        "content_label": "SEGMENTATION",
        "content_description": _text(", ".join(prompts), 64),
        # Text of the source in another character set is written anew in this one.
        "specific_character_set": "ISO_IR 100" if plain and latin else "ISO_IR 192",
        "coding_schemes": _own_scheme() if any(not codes_of(prompt).known for prompt in prompts) else None,
    }


def _description(library: Any, number: int, prompt: str, identification: Any) -> Any:
    from pydicom.sr.coding import Code as Coded

    def coded(code: Code) -> Any:
        return Coded(code.value, code.scheme, _text(code.meaning, 64))

    found = codes_of(prompt)
    segment = library.seg.SegmentDescription(
        segment_number=number,
        segment_label=_text(prompt, 64),
        segmented_property_category=coded(found.category),
        segmented_property_type=coded(found.type),
        algorithm_type=library.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=identification,
        tracking_uid=library.UID(),
        tracking_id=_text(prompt, 64),
        anatomic_regions=None if found.region is None else [coded(found.region)],
        display_color=library.color.CIELabColor.from_rgb(*label_colour(number)),
    )
    segment.SegmentDescription = _text(prompt, 1024)
    return segment


def _own_scheme() -> Any:
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    return [
        CodingSchemeIdentificationItem(SCHEME, name="Prompts of vlsm-adapter", responsible_organization="vlsm-adapter")
    ]


def _text(value: str, most: int) -> str:
    """``value`` as one line of at most ``most`` characters that every text element takes."""
    plain = "".join(char if char.isprintable() and char not in "\\^=" else " " for char in value)
    plain = " ".join(plain.split()) or "-"
    return plain if len(plain) <= most else plain[: most - 3] + "..."


def _prepare(source: Any, path: Path) -> None:
    """Put blanks where the source lacks what may be blank, and for values that no reader would take.

    Raises:
        DataError: it lacks what a segmentation must refer to.
    """
    from pydicom.valuerep import DA, TM

    for name in _NEEDED:
        if not source.get(name):
            raise DataError(
                f"{path}: has no {name}, so that no DICOM SEG can refer to it: choose --format nifti or png"
            )
    source.decode()
    for name in _BLANK:
        if source.get(name) is None:
            setattr(source, name, "")
    for name, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        try:
            kind(source.get(name))
        except (ValueError, TypeError):
            setattr(source, name, "")
    if source.PatientSex not in ("M", "F", "O"):
        source.PatientSex = ""


def stand_in(source: Any) -> Any:
    """A data set with patient and study of ``source`` that passes for a photograph of one pixel, to begin a file from."""
    from pydicom.uid import SecondaryCaptureImageStorage

    found = copy.deepcopy(source)
    for name in (
        *(
            "FrameOfReferenceUID",
            "NumberOfFrames",
            "SharedFunctionalGroupsSequence",
            "PerFrameFunctionalGroupsSequence",
        ),
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImageOrientationSlide"),
        *("ImageCenterPointCoordinatesSequence", "DimensionOrganizationType", "TotalPixelMatrixRows"),
    ):
        if name in found:
            delattr(found, name)
    found.SOPClassUID = SecondaryCaptureImageStorage
    found.Rows = found.Columns = 1
    return found


def _version() -> str:
    try:
        return version(NAME)
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"


def highdicom() -> Any:
    """The module.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import highdicom as library
    except ImportError:
        raise ConfigError(f"DICOM SEG needs highdicom: {INSTALL}") from None
    return library
