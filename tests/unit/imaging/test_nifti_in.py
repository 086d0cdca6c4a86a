"""NIfTI volumes as stacks."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from vlsm_adapter.imaging.nifti_in import NiftiStack
from vlsm_adapter.imaging.options import ReadOptions, Window

nibabel = pytest.importorskip("nibabel")


def volume(path: Path, values: np.ndarray, affine: np.ndarray | None = None, **header: float) -> Path:
    image = nibabel.Nifti1Image(values, np.diag([-2.0, -3.0, 4.0, 1.0]) if affine is None else affine)
    if header:
        image.header.set_slope_inter(header["slope"], header["inter"])
    nibabel.save(image, path)
    return path


def test_slices_lie_as_in_radiology(tmp_path: Path) -> None:
    values = np.zeros((5, 6, 4), np.uint8)
    values[0, 0, 2] = 255  # by this affine (LPS+): right, front, third from the feet
    stack = NiftiStack(volume(tmp_path / "v.nii.gz", values), ReadOptions())
    assert (stack.size, stack.count) == ((6, 5), 4)
    assert stack.spacing is not None
    assert (stack.spacing.row, stack.spacing.column, stack.spacing.slice) == (3, 2, 4)
    shown = stack.picture(2)[:, :, 0]
    assert np.argwhere(shown).tolist() == [[0, 0]]  # right of the patient on the left, front on top
    assert not stack.picture(1).any()
    assert stack.shape == (5, 6, 4)
    np.testing.assert_allclose(stack.affine, np.diag([-2.0, -3.0, 4.0, 1.0]))
    coronal = NiftiStack(tmp_path / "v.nii.gz", ReadOptions(plane="coronal"))
    assert (coronal.size, coronal.count) == ((4, 5), 6)


def test_scale_and_window(tmp_path: Path) -> None:
    stored = np.array([0, 100, 200, 300], np.int16).reshape(4, 1, 1) * np.ones((1, 3, 2), np.int16)
    path = volume(tmp_path / "v.nii", stored, slope=2.0, inter=-100.0)  # -100, 100, 300, 500
    stack = NiftiStack(path, ReadOptions(window=Window(90, 400), plane="native"))
    assert stack.picture(0)[0, :, 0].tolist() == [6, 134, 255, 255]
    by_percentile = NiftiStack(path, ReadOptions(window=Window(percentiles=(0, 100)), plane="native"))
    assert by_percentile.picture(0)[0, :, 0].tolist() == [0, 85, 170, 255]


def test_voxels_are_let_go_and_it_travels(tmp_path: Path) -> None:
    stack = NiftiStack(volume(tmp_path / "v.nii.gz", np.ones((5, 6, 4), np.int16)), ReadOptions())
    stack.picture(0)
    stack.close()
    assert pickle.loads(pickle.dumps(stack)).picture(3).shape == (6, 5, 3)
    assert stack.resident_bytes() > 5 * 6 * 4


def test_a_single_slice_is_shown_as_stored(tmp_path: Path) -> None:
    stack = NiftiStack(volume(tmp_path / "v.nii.gz", np.ones((5, 6, 1), np.uint8)), ReadOptions())
    assert (stack.size, stack.count) == ((6, 5), 1)
    assert stack.spacing is not None
    assert stack.spacing.slice is None


def test_without_orientation_it_is_shown_as_stored(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.ones((5, 6, 4), np.uint8), None)
    image.header.set_zooms((2.0, 3.0, 4.0))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "v.nii.gz")
    stack = NiftiStack(tmp_path / "v.nii.gz", ReadOptions())
    assert (stack.size, stack.count) == ((6, 5), 4)


@pytest.mark.parametrize("degrees", [0, 20, 30])
def test_slices_of_a_tilted_stack_are_as_far_apart_as_their_planes(tmp_path: Path, degrees: float) -> None:
    affine = np.diag([0.5, 0.5, 5.0, 1.0])
    affine[1, 2] = 5.0 * np.tan(np.radians(degrees))  # the planes stay 5 mm apart
    stack = NiftiStack(volume(tmp_path / "v.nii", np.ones((5, 6, 4), np.uint8), affine), ReadOptions())
    assert stack.spacing.slice == pytest.approx(5.0)


@pytest.mark.parametrize(("slope", "inter"), [(1 / 255, 0.0), (16.0, -1024.0)])
def test_scaled_bytes_are_windowed_as_intensities(tmp_path: Path, slope: float, inter: float) -> None:
    values = np.arange(5 * 6 * 4, dtype=np.uint8).reshape(5, 6, 4)
    plain = NiftiStack(volume(tmp_path / "plain.nii", values), ReadOptions())
    assert int(plain.picture(0).max()) == int(values[:, :, 0].max())
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.header.set_slope_inter(slope, inter)
    image.to_filename(tmp_path / "scaled.nii")
    # What to_filename does with the slope differs by version: the header is what counts.
    assert nibabel.load(tmp_path / "scaled.nii").dataobj.slope == pytest.approx(slope)
    stack = NiftiStack(tmp_path / "scaled.nii", ReadOptions())
    shown = np.stack([stack.picture(index)[:, :, 0] for index in range(4)])
    assert len(np.unique(shown)) > 100
    assert (shown.min(), shown.max()) == (0, 255)
