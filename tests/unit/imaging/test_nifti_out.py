"""NIfTI answers lie where their source lies: the same header geometry, the same voxel order, for every orientation."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsm_adapter.imaging.base import AnswerOptions, OutputNames, PictureAnswer, Spacing
from vlsm_adapter.imaging.masks_out import write_answers
from vlsm_adapter.imaging.nifti_in import NiftiStack
from vlsm_adapter.imaging.nifti_out import write_nifti
from vlsm_adapter.imaging.options import PLANES, Plane, ReadOptions

nibabel = pytest.importorskip("nibabel")
SHAPE = (3, 4, 5)
GEOMETRY = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "xyzt_units"),
)
ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


def affine_of(order: tuple[int, ...], signs: tuple[int, ...], tilt: float) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, list(order)] * np.array(signs) * np.array([0.7, 1.5, 3.0])
    turn = np.eye(3)
    turn[:2, :2] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = [10, -20, 30.5]
    return affine


def source(path: Path, affine: np.ndarray, codes: tuple[int, int] = (1, 2), second: bool = False) -> np.ndarray:
    """Write a volume of numbers that are all different."""
    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    image = (nibabel.Nifti2Image if second else nibabel.Nifti1Image)(values, affine)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"patient name"
    nibabel.save(image, path)
    return values


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ORIENTATIONS), st.sampled_from(PLANES), st.sampled_from([0.0, 0.3]), st.integers(0, 59))
def test_a_voxel_comes_back_to_its_place(
    tmp_path_factory: pytest.TempPathFactory, orientation: tuple, plane: Plane, tilt: float, number: int
) -> None:
    folder = tmp_path_factory.mktemp("nifti")
    path = folder / "scan.nii"
    values = source(path, affine_of(*orientation, tilt))
    stack = NiftiStack(path, ReadOptions(plane=plane))
    pictures = [stack.slicing.picture(values == number, index) for index in range(stack.count)]
    write_nifti(folder / "mask.nii.gz", stack, lambda index: pictures[index], np.uint8)
    before, after = nibabel.load(path), nibabel.load(folder / "mask.nii.gz")
    assert np.array_equal(np.asarray(after.dataobj), values == number)
    for field in GEOMETRY:
        assert np.array_equal(before.header[field], after.header[field]), field
    assert np.array_equal(before.header["pixdim"][:4], after.header["pixdim"][:4])
    assert np.array_equal(before.affine, after.affine)
    assert after.get_data_dtype() == np.uint8
    assert b"patient" not in bytes(after.header["descrip"])


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 3), (2, 4)])
@pytest.mark.parametrize("second", [False, True])
def test_codes_and_kind_of_the_header_are_kept(tmp_path: Path, codes: tuple[int, int], second: bool) -> None:
    path = tmp_path / "scan.nii.gz"
    source(path, affine_of((0, 1, 2), (-1, 1, 1), 0.2), codes, second)
    stack = NiftiStack(path, ReadOptions())
    write_nifti(tmp_path / "m.nii.gz", stack, lambda index: np.zeros(stack.size, bool), np.uint8)
    before, after = nibabel.load(path), nibabel.load(tmp_path / "m.nii.gz")
    assert type(before) is type(after)
    for field in GEOMETRY:
        assert np.array_equal(before.header[field], after.header[field]), field
    assert np.array_equal(before.affine, after.affine)


def test_the_whole_way_with_labels_and_probabilities(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    source(path, affine_of((2, 0, 1), (-1, -1, 1), 0.0))
    stack = NiftiStack(path, ReadOptions(plane="coronal"))
    maps = np.random.default_rng(0).random((2, stack.count, *stack.size), np.float32)
    names = OutputNames("scan", ("scan__a", "scan__b"))
    given_ = (PictureAnswer(i, stack.picture(i), list(maps[:, i])) for i in range(stack.count))
    rows = write_answers(stack, tmp_path, names, ["a", "b"], given_, AnswerOptions(compete=True, probabilities=True))
    labels = np.asarray(nibabel.load(tmp_path / "scan_labels.nii.gz").dataobj)
    assert nibabel.load(tmp_path / "scan_labels.nii.gz").header["intent_code"] == 1002
    for number, row in enumerate(rows, start=1):
        volume = (labels == number).sum()
        assert row["area_px"] == volume
        assert float(row["volume_mm3"]) == pytest.approx(volume * 0.7 * 1.5 * 3.0, rel=1e-5)
    chances = np.asarray(nibabel.load(tmp_path / "scan__a_probability.nii.gz").dataobj)
    assert chances.dtype == np.float32
    assert chances.shape == SHAPE


def test_the_same_masks_give_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    source(path, np.eye(4))
    stack = NiftiStack(path, ReadOptions())
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, stack, lambda index: np.ones(stack.size, bool), np.uint8)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_pictures_become_volumes_without_orientation(tmp_path: Path) -> None:
    from types import SimpleNamespace

    stack = SimpleNamespace(kind="pages", size=(2, 3), count=4, spacing=Spacing(0.5, 0.25), paths=(Path("a.tif"),))
    write_nifti(tmp_path / "a.nii.gz", stack, lambda index: np.full((2, 3), index), np.uint8)  # type: ignore[arg-type]
    found = nibabel.load(tmp_path / "a.nii.gz")
    assert found.shape == (3, 2, 4)
    assert (found.header["sform_code"], found.header["qform_code"]) == (0, 0)
    assert tuple(found.header.get_zooms()) == (0.25, 0.5, 1.0)
    assert np.array_equal(np.asarray(found.dataobj)[0, 0], [0, 1, 2, 3])


def test_a_dicom_series_lies_where_its_slices_lie(tmp_path: Path, dicom_sources) -> None:  # type: ignore[no-untyped-def]
    from vlsm_adapter.imaging.dicom_headers import read_header
    from vlsm_adapter.imaging.dicom_in import stacks_of_headers

    paths = dicom_sources.mr(tmp_path / "series")
    (stack,), _ = stacks_of_headers([read_header(path) for path in paths], ReadOptions())
    marked = np.zeros((stack.count, *stack.size), bool)
    marked[2, 3, 5] = True
    write_nifti(tmp_path / "m.nii.gz", stack, lambda index: marked[index], np.uint8)
    found = nibabel.load(tmp_path / "m.nii.gz")
    (voxel,) = np.argwhere(np.asarray(found.dataobj))
    dataset = stack.datasets()[stack.frames[2][0]]
    row, column = np.array(dataset.ImageOrientationPatient[:3]), np.array(dataset.ImageOrientationPatient[3:])
    down, along = dataset.PixelSpacing
    place = np.array(dataset.ImagePositionPatient, float) + 5 * along * row + 3 * down * column
    assert (found.affine @ [*voxel, 1])[:3] == pytest.approx(place * [-1, -1, 1], abs=1e-3)
