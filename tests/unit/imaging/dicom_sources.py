"""Made-up DICOM images of the kinds that masks are written for; small, valid, with pixels of noise."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    MRImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    UltrasoundMultiFrameImageStorage,
    VLEndoscopicImageStorage,
    generate_uid,
)

RNG = np.random.default_rng(7)
OBLIQUE = [0.8, 0.6, 0.0, 0.0, 0.0, -1.0]


def common(sop_class: str, modality: str, size: tuple[int, int], *, study: str = "", series: str = "") -> Dataset:
    """Patient, study, series, equipment and image size."""
    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.SOPClassUID = sop_class
    found.SOPInstanceUID = generate_uid()
    found.StudyInstanceUID = study or generate_uid()
    found.SeriesInstanceUID = series or generate_uid()
    found.PatientName, found.PatientID, found.PatientBirthDate, found.PatientSex = "Doe^Jane", "P1", "19700101", "F"
    found.StudyDate, found.StudyTime, found.StudyID, found.AccessionNumber = "20240102", "101112", "1", "A1"
    found.ReferringPhysicianName = ""
    found.Modality, found.SeriesNumber, found.InstanceNumber = modality, 3, 1
    found.Manufacturer = "Test"
    found.Rows, found.Columns = size
    return found


def grey(found: Dataset, values: np.ndarray) -> None:
    """Put in 16-bit pixels (H, W) or (N, H, W)."""
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = 16, 16, 15, 0
    found.PixelData = values.astype("<u2").tobytes()


def colours(found: Dataset, values: np.ndarray) -> None:
    """Put in 8-bit RGB pixels (H, W, 3) or (N, H, W, 3)."""
    found.SamplesPerPixel, found.PhotometricInterpretation, found.PlanarConfiguration = 3, "RGB", 0
    found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = 8, 8, 7, 0
    found.PixelData = values.astype(np.uint8).tobytes()


def save(found: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save_as(path, enforce_file_format=True)
    return path


def slices(
    folder: Path,
    *,
    count: int = 4,
    size: tuple[int, int] = (9, 14),
    sop_class: str = CTImageStorage,
    modality: str = "CT",
    orientation: list[float] | None = None,
    gap: float = 2.5,
    compress: str | None = None,
    phases: int = 1,
) -> list[Path]:
    """A series of single slices; with ``phases`` several of each place."""
    turned = orientation or [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    normal = np.cross(turned[:3], turned[3:])
    study, series, reference = generate_uid(), generate_uid(), generate_uid()
    paths = []
    for number in range(count * phases):
        found = common(sop_class, modality, size, study=study, series=series)
        found.InstanceNumber = number + 1
        found.FrameOfReferenceUID, found.PositionReferenceIndicator = reference, ""
        found.ImageOrientationPatient = turned
        place = np.array([-30.0, 12.5, 100.0]) + normal * gap * (number // phases)
        found.ImagePositionPatient = [round(float(one), 4) for one in place]
        found.PixelSpacing, found.SliceThickness = [0.7, 0.5], gap
        found.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        if phases > 1:
            found.TriggerTime = float(10 * (number % phases))
        grey(found, RNG.integers(0, 2000, size))
        found.RescaleIntercept, found.RescaleSlope = -1000, 1
        if compress is not None:
            found.compress(compress)
        paths.append(save(found, folder / f"slice{number:02d}.dcm"))
    return paths


def mr(folder: Path, **changes) -> list[Path]:  # type: ignore[no-untyped-def]
    return slices(folder, **{"sop_class": MRImageStorage, "modality": "MR", "orientation": OBLIQUE, **changes})


def ultrasound(folder: Path, *, count: int = 5, size: tuple[int, int] = (9, 14)) -> list[Path]:
    """A cine loop without frame of reference."""
    found = common(UltrasoundMultiFrameImageStorage, "US", size)
    found.ImageType = ["ORIGINAL", "PRIMARY"]
    found.NumberOfFrames, found.FrameTime = count, 40
    found.FrameIncrementPointer = 0x00181063
    colours(found, RNG.integers(0, 255, (count, *size, 3)))
    return [save(found, folder / "cine.dcm")]


def photograph(
    folder: Path, *, size: tuple[int, int] = (9, 14), sop_class: str = SecondaryCaptureImageStorage
) -> list[Path]:
    """An RGB picture without any geometry."""
    found = common(sop_class, "OT" if sop_class == SecondaryCaptureImageStorage else "ES", size)
    found.ConversionType = "WSD"
    colours(found, RNG.integers(0, 255, (*size, 3)))
    return [save(found, folder / "photo.dcm")]


def jpeg(folder: Path, *, count: int = 3, size: tuple[int, int] = (40, 56), stated: bool = True) -> list[Path]:
    """An ultrasound loop in JPEG Baseline; ``stated``: how lossy it is."""
    found = common(UltrasoundMultiFrameImageStorage, "US", size)
    found.NumberOfFrames, found.FrameTime, found.FrameIncrementPointer = count, 40, 0x00181063
    colours(found, np.zeros((1, 1, 3)))
    found.PhotometricInterpretation = "YBR_FULL_422"
    found.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    found.LossyImageCompression = "01"
    if stated:
        found.LossyImageCompressionRatio, found.LossyImageCompressionMethod = 10.0, "ISO_10918_1"
    encoded = []
    for _ in range(count):
        stream = io.BytesIO()
        Image.fromarray(RNG.integers(0, 255, (*size, 3)).astype(np.uint8)).save(stream, "JPEG", subsampling="4:2:2")
        encoded.append(stream.getvalue())
    found.PixelData = encapsulate(encoded)
    found["PixelData"].is_undefined_length = True
    return [save(found, folder / "jpeg.dcm")]


def endoscopy(folder: Path, **changes) -> list[Path]:  # type: ignore[no-untyped-def]
    return photograph(folder, **{"sop_class": VLEndoscopicImageStorage, **changes})


def captures(folder: Path, *, count: int = 3, size: tuple[int, int] = (9, 14)) -> list[Path]:
    """Frames of a true colour secondary capture."""
    found = common(MultiFrameTrueColorSecondaryCaptureImageStorage, "OT", size)
    found.NumberOfFrames, found.ConversionType = count, "WSD"
    colours(found, RNG.integers(0, 255, (count, *size, 3)))
    return [save(found, folder / "captures.dcm")]


def enhanced(folder: Path, *, count: int = 4, size: tuple[int, int] = (9, 14), backwards: bool = False) -> list[Path]:
    """An enhanced MR file with a place for each frame; ``backwards``: the frames stand against their direction."""
    found = common(EnhancedMRImageStorage, "MR", size)
    found.FrameOfReferenceUID, found.PositionReferenceIndicator = generate_uid(), ""
    found.NumberOfFrames = count
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness, measures.SpacingBetweenSlices = [0.7, 0.5], 2.5, 2.5
    orientation.ImageOrientationPatient = OBLIQUE
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    found.SharedFunctionalGroupsSequence = [shared]
    normal = np.cross(OBLIQUE[:3], OBLIQUE[3:])
    groups = []
    for number in range(count):
        group, place, content = Dataset(), Dataset(), Dataset()
        along = (count - 1 - number if backwards else number) * 2.5
        place.ImagePositionPatient = [round(float(one), 4) for one in np.array([-30.0, 12.5, 100.0]) + normal * along]
        content.DimensionIndexValues = [number + 1]
        group.PlanePositionSequence, group.FrameContentSequence = [place], [content]
        groups.append(group)
    found.PerFrameFunctionalGroupsSequence = groups
    grey(found, RNG.integers(0, 2000, (count, *size)))
    return [save(found, folder / "enhanced.dcm")]
