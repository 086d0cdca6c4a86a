"""DICOM SEG of every kind of source: valid by dciodvfy, and read back at the right places by highdicom."""

from __future__ import annotations

import shutil
import subprocess
import tracemalloc
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vlsm_adapter.errors import DataError
from vlsm_adapter.imaging.base import AnswerOptions, OutputNames, PictureAnswer
from vlsm_adapter.imaging.masks_out import planned_files, write_answers

hd = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")
pytestmark = pytest.mark.filterwarnings("ignore")

from vlsm_adapter.imaging.dicom_headers import read_header  # noqa: E402
from vlsm_adapter.imaging.dicom_in import DicomStack, stacks_of_headers  # noqa: E402
from vlsm_adapter.imaging.dicom_seg import Provenance, write_segmentation  # noqa: E402
from vlsm_adapter.imaging.options import ReadOptions  # noqa: E402

PROMPTS = ["polyp", "one weird thing", "skin lesion"]
PROVENANCE = Provenance("runs/polyp", "ab" * 32, "tiny")
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "CT": ("slices", {}),
    "CT one slice": ("slices", {"count": 1}),
    "CT RLE": ("slices", {"compress": "1.2.840.10008.1.2.5"}),
    "CT JPEG 2000": ("slices", {"compress": "1.2.840.10008.1.2.4.90", "size": (64, 70)}),
    "MR oblique": ("mr", {}),
    "MR phases": ("mr", {"phases": 2}),
    "MR enhanced": ("enhanced", {}),
    "MR enhanced backwards": ("enhanced", {"backwards": True}),
    "US loop": ("ultrasound", {}),
    "US loop JPEG": ("jpeg", {}),
    "SC photograph": ("photograph", {}),
    "SC of several frames": ("captures", {}),
    "endoscopy": ("endoscopy", {}),
}
MASKS = ("overlapping", "apart", "empty", "one empty", "single", "probabilities")


def stack_of(paths: list[Path]) -> DicomStack:
    """All pictures of ``paths`` as one stack where they make one, else the first."""
    stacks, _ = stacks_of_headers([read_header(path) for path in paths], ReadOptions())
    return stacks[0]


def masks_for(kind: str, stack: DicomStack) -> np.ndarray:
    random = np.random.default_rng(1)
    shape = (1 if kind == "single" else 3, stack.count, *stack.size)
    if kind == "probabilities":
        return random.random(shape, np.float32) * (random.random((*shape[:2], 1, 1)) < 0.7)
    if kind == "apart":
        return np.arange(3)[:, None, None, None] == random.integers(0, 5, shape[1:])
    masks = random.random(shape) < (0 if kind == "empty" else 0.2)
    if kind == "one empty":
        masks[1], masks[0, 0] = False, False
    return masks


def read_back(seg: Any, stack: DicomStack) -> np.ndarray:
    """The pixels (P, N, H, W) of the pictures of ``stack``, by their references."""
    sources = stack.datasets()
    options: dict[str, Any] = {
        "assert_missing_frames_are_empty": True,
        "rescale_fractional": False,
        "ignore_spatial_locations": True,
    }
    if stack.multi_frame:
        numbers = [number for _, number in stack.frames]
        found = seg.get_pixels_by_source_frame(sources[0].SOPInstanceUID, numbers, **options)
    else:
        uids = [sources[file].SOPInstanceUID for file, _ in stack.frames]
        found = seg.get_pixels_by_source_instance(uids, **options)
    return np.moveaxis(found, -1, 0)


def faults(path: Path) -> list[str]:
    """What dciodvfy calls errors."""
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("needs dciodvfy (Debian: dicom3tools)")
    done = subprocess.run([program, str(path)], capture_output=True, text=True, timeout=60)
    lines = (done.stdout + done.stderr).splitlines()
    assert any("Segmentation" in line for line in lines), "dciodvfy did not know what it is"
    return [line for line in lines if line.startswith("Error")]


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_and_kind_of_mask(source: str, dicom_sources: ModuleType, tmp_path: Path) -> None:
    make, changes = SOURCES[source]
    stack = stack_of(getattr(dicom_sources, make)(tmp_path / "in", **changes))
    for kind in MASKS if source in ("CT", "US loop") else ("overlapping", "empty", "probabilities"):
        values = masks_for(kind, stack)
        path = tmp_path / f"{kind}.dcm"
        prompts = PROMPTS[: len(values)]
        write_segmentation(path, stack, prompts, lambda number, index, v=values: v[number, index], PROVENANCE)  # type: ignore[misc]
        assert faults(path) == [], kind
        seg = hd.seg.segread(path)
        found = read_back(seg, stack)
        expected = np.rint(values * 255) if kind == "probabilities" else values
        # highdicom rounds halves of probabilities its own way.
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= (kind == "probabilities"), kind
        assert seg.NumberOfFrames >= 1
        assert [item.SegmentLabel for item in seg.SegmentSequence] == prompts
        _check_places(seg, stack)


def _check_places(seg: Any, stack: DicomStack) -> None:
    """Every frame refers to a source of the stack, and where that has a place, the frame has the same."""
    places = {}
    for dataset, path in zip(stack.datasets(), stack.paths, strict=True):
        for frame in read_header(path).frames:
            places[str(dataset.SOPInstanceUID), frame.number + 1] = frame.position
        assert seg.StudyInstanceUID == dataset.StudyInstanceUID
        assert seg.PatientID == dataset.PatientID
        assert seg.get("FrameOfReferenceUID") == dataset.get("FrameOfReferenceUID")
    for group in seg.PerFrameFunctionalGroupsSequence:
        (image,) = group.DerivationImageSequence[0].SourceImageSequence
        place = places[str(image.ReferencedSOPInstanceUID), int(image.get("ReferencedFrameNumber", 1))]
        if place is None:
            assert "PlanePositionSequence" not in group
        else:
            assert list(map(float, group.PlanePositionSequence[0].ImagePositionPatient)) == pytest.approx(place)
    referred = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referred == {dataset.SOPInstanceUID for dataset in stack.datasets()}


def test_memory_does_not_grow_with_the_prompts(dicom_sources: ModuleType, tmp_path: Path) -> None:
    """Probabilities, and masks that overlap, are taken a frame at a time; at once they would be 3 to 12 MB for each prompt."""
    stack = stack_of(dicom_sources.slices(tmp_path / "in", count=12, size=(512, 500)))
    frame = np.random.default_rng(0).random(stack.size, np.float32)
    for picture in (frame, frame > 0.5):
        peaks = []
        for number in (1, 2, 8):  # the first call imports
            prompts = [f"polyp {one}" for one in range(number)]
            tracemalloc.start()
            write_segmentation(tmp_path / "m.dcm", stack, prompts, lambda number, index, of=picture: of)  # type: ignore[misc]
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[2] - peaks[1] < 5 * 2**20, peaks
        seg = hd.seg.segread(tmp_path / "m.dcm")
        assert seg.NumberOfFrames == 8 * 12
        # A volume at the place of the source, also for readers that know nothing of references.
        volume = seg.get_volume(combine_segments=False, rescale_fractional=False)
        assert volume.affine[:3, :3] == pytest.approx(np.array([[0, 0, 0.5], [0, 0.7, 0], [-2.5, 0, 0]]))
        measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        assert (measures.PixelSpacing, measures.SpacingBetweenSlices) == ([0.7, 0.5], 2.5)


def test_pictures_of_one_place_in_one_stack(dicom_sources: ModuleType, tmp_path: Path) -> None:
    """A cine series kept together: places repeat, and highdicom alone would refuse it."""
    headers = [read_header(path) for path in dicom_sources.mr(tmp_path / "in", phases=3)]
    stack = DicomStack([(header, header.frames[0]) for header in headers], ReadOptions())
    values = masks_for("overlapping", stack)
    write_segmentation(tmp_path / "m.dcm", stack, PROMPTS, lambda number, index: values[number, index])
    assert faults(tmp_path / "m.dcm") == []
    seg = hd.seg.segread(tmp_path / "m.dcm")
    assert np.array_equal(read_back(seg, stack), values)
    assert seg.SegmentsOverlap == "YES"
    _check_places(seg, stack)


def test_a_place_stated_once_is_not_that_of_every_frame(dicom_sources: ModuleType, tmp_path: Path) -> None:
    """A nuclear medicine volume whose header has one position and no functional groups: all masks would lie in one plane."""
    found = dicom_sources.common("1.2.840.10008.5.1.4.1.1.20", "NM", (9, 14))
    found.FrameOfReferenceUID, found.NumberOfFrames = pydicom.uid.generate_uid(), 4
    found.ImagePositionPatient, found.ImageOrientationPatient = [1, 2, 3], [1, 0, 0, 0, 1, 0]
    found.PixelSpacing, found.SpacingBetweenSlices = [2, 2], 3
    dicom_sources.grey(found, np.arange(4 * 9 * 14).reshape(4, 9, 14))
    stack = stack_of([dicom_sources.save(found, tmp_path / "in" / "nm.dcm")])
    for kind in ("overlapping", "empty", "probabilities"):
        values = masks_for(kind, stack)
        write_segmentation(tmp_path / "m.dcm", stack, PROMPTS, lambda number, index, v=values: v[number, index])  # type: ignore[misc]
        seg = hd.seg.segread(tmp_path / "m.dcm")
        expected = np.rint(values * 255) if kind == "probabilities" else values
        assert np.abs(read_back(seg, stack).astype(int) - expected.astype(int)).max() <= (kind == "probabilities")
        assert "FrameOfReferenceUID" not in seg
        assert not any("PlanePositionSequence" in group for group in seg.PerFrameFunctionalGroupsSequence)


def test_what_the_file_says_of_itself(dicom_sources: ModuleType, tmp_path: Path) -> None:
    stack = stack_of(dicom_sources.slices(tmp_path / "in"))
    write_segmentation(tmp_path / "m.dcm", stack, PROMPTS, lambda number, index: np.ones(stack.size, bool), PROVENANCE)
    seg = pydicom.dcmread(tmp_path / "m.dcm")
    from vlsm_adapter import __version__

    polyp, weird, lesion = seg.SegmentSequence
    assert polyp.SegmentedPropertyTypeCodeSequence[0].CodeValue == "41329004"
    assert weird.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99VLSM"
    assert lesion.AnatomicRegionSequence[0].CodeMeaning == "Skin"
    algorithm = polyp.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("vlsm-adapter", __version__)
    assert f"adapter_sha256={'ab' * 32}" in algorithm.AlgorithmParameters
    assert polyp.SegmentAlgorithmType == "AUTOMATIC"
    assert seg.SegmentationType == "BINARY"
    assert seg.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99VLSM"


@pytest.mark.parametrize(
    "prompt", ["полип", "息肉 \\ 結腸", "x" * 500, 'a^b=c\n"d"', "tumour with a very long description " * 40]
)
def test_prompts_of_any_text(prompt: str, dicom_sources: ModuleType, tmp_path: Path) -> None:
    stack = stack_of(dicom_sources.slices(tmp_path / "in", count=2))
    write_segmentation(tmp_path / "m.dcm", stack, [prompt], lambda number, index: np.ones(stack.size, bool), PROVENANCE)
    assert faults(tmp_path / "m.dcm") == []
    (segment,) = hd.seg.segread(tmp_path / "m.dcm").SegmentSequence
    assert (
        segment.SegmentLabel[:4] == " ".join(prompt.replace("\\", " ").replace("^", " ").replace("=", " ").split())[:4]
    )


def test_sources_with_odd_headers(dicom_sources: ModuleType, tmp_path: Path) -> None:
    """Missing and damaged values of patient and study do not stand in the way, and stay out of the answer."""
    for number, path in enumerate(paths := dicom_sources.slices(tmp_path / "in", count=2)):
        dataset = pydicom.dcmread(path)
        for name in ("PatientBirthDate", "AccessionNumber", "StudyID", "StudyTime", "ReferringPhysicianName"):
            delattr(dataset, name)
        dataset.SpecificCharacterSet = "ISO_IR 100"
        dataset.PatientName = "Müller^Jörg"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset.PatientSex = "female"
            dataset.StudyDate = "2024"
            dataset.SeriesNumber = None
        dataset.save_as(path)
        assert number < 2
    stack = stack_of(paths)
    write_segmentation(tmp_path / "m.dcm", stack, ["polyp"], lambda number, index: np.ones(stack.size, bool))
    found = pydicom.dcmread(tmp_path / "m.dcm")
    assert str(found.PatientName) == "Müller^Jörg"
    assert (found.PatientSex, found.StudyDate) == ("", "")
    assert faults(tmp_path / "m.dcm") == []


@pytest.mark.parametrize("name", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_a_source_that_cannot_be_referred_to(name: str, dicom_sources: ModuleType, tmp_path: Path) -> None:
    (path,) = dicom_sources.photograph(tmp_path / "in")
    dataset = pydicom.dcmread(path)
    delattr(dataset, name)
    dataset.save_as(path)
    stack = stack_of([path])
    with pytest.raises(DataError, match=rf"photo\.dcm: has no {name}"):
        write_segmentation(tmp_path / "m.dcm", stack, ["polyp"], lambda number, index: np.ones(stack.size, bool))
    assert not (tmp_path / "m.dcm").exists()


def test_a_retired_class(dicom_sources: ModuleType, tmp_path: Path) -> None:
    (path,) = dicom_sources.ultrasound(tmp_path / "in")
    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.3"
    dataset.save_as(path)
    stack = stack_of([path])
    values = masks_for("overlapping", stack)
    write_segmentation(tmp_path / "m.dcm", stack, PROMPTS, lambda number, index: values[number, index])
    # dciodvfy does not know that files of this class have several frames, and wants no number of a frame.
    assert {fault for fault in faults(tmp_path / "m.dcm") if "ReferencedFrameNumber" not in fault} == set()
    assert np.array_equal(read_back(hd.seg.segread(tmp_path / "m.dcm"), stack), values)


def test_a_single_image_that_counts_its_frame(dicom_sources: ModuleType, tmp_path: Path) -> None:
    (path,) = dicom_sources.photograph(tmp_path / "in")
    dataset = pydicom.dcmread(path)
    dataset.NumberOfFrames = 1
    dataset.save_as(path)
    stack = stack_of([path])
    for number, kind in enumerate(("single", "empty")):
        values = masks_for(kind, stack)
        target = tmp_path / f"m{number}.dcm"
        write_segmentation(target, stack, PROMPTS[: len(values)], lambda number, index, v=values: v[number, index])  # type: ignore[misc]
        assert faults(target) == []


def test_the_whole_way(dicom_sources: ModuleType, tmp_path: Path) -> None:
    """Maps in, a segmentation with its probabilities and numbers out, in kind."""
    stack = stack_of(dicom_sources.mr(tmp_path / "in"))
    maps = np.random.default_rng(0).random((2, stack.count, *stack.size), np.float32)
    names = OutputNames("series", ("series__a", "series__b"))
    options = AnswerOptions(probabilities=True, compete=True, contours=True)
    answers = (PictureAnswer(index, stack.picture(index), list(maps[:, index])) for index in range(stack.count))
    rows = write_answers(stack, tmp_path / "out", names, ["a", "b"], answers, options, PROVENANCE)
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert (
        made
        == sorted(planned_files(stack, names, options))
        == [
            "series.dcm",
            "series_contours.geojson",
            "series_probability.dcm",
        ]
    )
    found = read_back(hd.seg.segread(tmp_path / "out" / "series.dcm"), stack)
    labels = np.where((maps > 0.5).any(axis=0), maps.argmax(axis=0) + 1, 0)
    for number, row in enumerate(rows, start=1):
        assert np.array_equal(found[number - 1], labels == number)
        assert (row["mask"], row["label"], row["area_px"]) == ("series.dcm", number, (labels == number).sum())
        assert float(row["volume_mm3"]) == pytest.approx((labels == number).sum() * 0.7 * 0.5 * 2.5, rel=1e-3)
    for name in ("series.dcm", "series_probability.dcm"):
        assert faults(tmp_path / "out" / name) == []
    assert hd.seg.segread(tmp_path / "out" / "series_probability.dcm").SegmentationFractionalType == "PROBABILITY"


def test_patients_of_any_script(dicom_sources: ModuleType, tmp_path: Path) -> None:
    """The source's character set may not hold the prompt; text of both is readable in the answer."""
    (path,) = dicom_sources.photograph(tmp_path / "in")
    dataset = pydicom.dcmread(path)
    dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 144", "Иванов^Иван"
    dataset.save_as(path)
    stack = stack_of([path])
    write_segmentation(tmp_path / "m.dcm", stack, ["结肠"], lambda number, index: np.ones(stack.size, bool))
    found = pydicom.dcmread(tmp_path / "m.dcm")
    assert str(found.PatientName) == "Иванов^Иван"
    assert found.SegmentSequence[0].SegmentLabel == "结肠"
    assert faults(tmp_path / "m.dcm") == []
