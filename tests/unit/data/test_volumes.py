"""Slices of NIfTI volumes: every pixel lies where its voxel lies, pictures are shown as in radiology, files are checked."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlsm_adapter.data.importing.options import PLANES
from vlsm_adapter.data.volumes import Volume, pixel_size, to_8_bit
from vlsm_adapter.errors import DataError

nibabel = pytest.importorskip("nibabel", reason="needs nibabel (pip install 'vlsm-adapter[volumes]')")


def write(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Any order and direction of axes, any voxel size, tilted by up to half a radian about each axis."""
    order = draw(st.permutations([0, 1, 2]))
    signs = [draw(st.sampled_from([-1, 1])) for _ in range(3)]
    sizes = [draw(st.floats(0.1, 8)) for _ in range(3)]
    matrix = np.zeros((3, 3))
    for axis, world in enumerate(order):
        matrix[world, axis] = signs[axis]
    for first, second in ((0, 1), (1, 2), (0, 2)):
        angle = draw(st.floats(-0.5, 0.5))
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    affine = np.eye(4)
    affine[:3, :3] = matrix * sizes
    affine[:3, 3] = [draw(st.floats(-200, 200)) for _ in range(3)]
    return affine


shapes = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes, affines(), st.sampled_from(PLANES))
def test_a_pixel_lies_where_its_voxel_lies(
    tmp_path: Path, shape: tuple[int, int, int], affine: np.ndarray, plane: str
) -> None:
    """Each voxel holds its own number, so that a pixel tells which voxel it is: its world coordinate is looked up by that."""
    numbers = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    volume = Volume(write(tmp_path / "v.nii", numbers, affine))
    slicing = volume.slicing(plane)
    voxels, seen = volume.labels(), []
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    for index in range(slicing.count):
        picture = slicing.picture(voxels, index)
        seen += picture.ravel().tolist()
        for row, column in np.ndindex(picture.shape):
            stored = np.unravel_index(int(picture[row, column]), shape)
            truth = (affine @ [*stored, 1])[:3]
            assert np.allclose(slicing.to_world() @ [row, column, index, 1], [*truth, 1], atol=1e-3 * steps.max())
            assert np.allclose((slicing.to_voxel() @ [row, column, index, 1])[:3], stored)
    assert sorted(seen) == list(range(numbers.size)), "every voxel is on one slice"
    origin = slicing.to_world() @ [0, 0, 0, 1]
    for place, distance in enumerate(slicing.spacing):
        step = slicing.to_world() @ [place == 0, place == 1, 0, 1] - origin
        assert np.linalg.norm(step) == pytest.approx(distance, rel=1e-4)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(affines(), st.sampled_from(["axial", "coronal", "sagittal"]))
def test_pictures_are_shown_as_in_radiology(tmp_path: Path, affine: np.ndarray, plane: str) -> None:
    """Down a row and along a column the world coordinate changes most in the direction that the plane names."""
    slicing = Volume(write(tmp_path / "v.nii", np.zeros((3, 4, 5), np.int16), affine)).slicing(plane)
    right, front, head = 0, 1, 2
    down, along, through = {
        "axial": (front, right, head),
        "coronal": (head, right, front),
        "sagittal": (head, front, right),
    }[plane]
    directions = slicing.to_world()[:3, :3] / np.linalg.norm(slicing.to_world()[:3, :3], axis=0)
    assert directions[down, 0] < 0.0
    assert directions[along, 1] < 0.0
    # Tilted by less than 45 degrees each named direction is also the largest; the closest assignment holds for all.
    chosen = abs(directions[down, 0]) + abs(directions[along, 1]) + abs(directions[through, 2])
    for other in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        assert chosen > 0.8 * sum(abs(directions[world, place]) for place, world in enumerate(other))


def test_one_voxel_by_hand(tmp_path: Path) -> None:
    """LAS storage, as many scanners write: x runs to the left. A voxel in front, on the left, low."""
    values = np.zeros((10, 20, 6), np.uint8)
    values[8, 17, 1] = 1
    volume = Volume(write(tmp_path / "v.nii.gz", values, np.diag([-0.5, 0.75, 3, 1])))
    axial = volume.slicing("axial")
    assert axial.picture(values, 1).shape == (20, 10)
    assert np.argwhere(axial.picture(values, 1)).tolist() == [[2, 8]], "front is up; the patient's left is right"
    assert axial.spacing == pytest.approx((0.75, 0.5))
    coronal = volume.slicing("coronal")
    assert np.argwhere(coronal.picture(values, 17)).tolist() == [[4, 8]], "low is down"
    assert coronal.spacing == pytest.approx((3, 0.5))
    sagittal = volume.slicing("sagittal")
    assert np.argwhere(sagittal.picture(values, 8)).tolist() == [[4, 2]], "front is left"
    native = volume.slicing("native")
    assert np.argwhere(native.picture(values, 1)).tolist() == [[17, 8]]


def test_units_other_than_mm(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.diag([500, 250, 1000, 1]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "v.nii")
    assert Volume(tmp_path / "v.nii").slicing("axial").spacing == pytest.approx((0.25, 0.5))


def test_without_orientation_only_the_stored_plane_is_known(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.uint8), None)
    image.header.set_zooms((0.5, 0.25, 2))
    nibabel.save(image, tmp_path / "v.nii")
    volume = Volume(tmp_path / "v.nii")
    with pytest.raises(DataError, match="--plane native"):
        volume.slicing("axial")
    assert volume.slicing("native").spacing == pytest.approx((0.25, 0.5))


def test_scaled_labels_and_intensities(tmp_path: Path) -> None:
    values = np.array([0, 1, 2, 5], np.int16).reshape(4, 1, 1)
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.header.set_slope_inter(2, -1)
    nibabel.save(image, tmp_path / "v.nii")
    volume = Volume(tmp_path / "v.nii")
    assert volume.intensities().ravel().tolist() == [-1, 1, 3, 9]
    write(tmp_path / "f.nii", (values * 1.0).astype(np.float32))
    assert Volume(tmp_path / "f.nii").labels().ravel().tolist() == [0, 1, 2, 5]
    write(tmp_path / "p.nii", (values * 0.3).astype(np.float32))
    with pytest.raises(DataError, match="its values are no labels"):
        Volume(tmp_path / "p.nii").labels()
    write(tmp_path / "n.nii", np.full((2, 2, 2), np.nan, np.float32))
    with pytest.raises(DataError, match="its values are no labels"):
        Volume(tmp_path / "n.nii").labels()
    with pytest.raises(DataError, match="no finite voxel"):
        Volume(tmp_path / "n.nii").window(Volume(tmp_path / "n.nii").intensities(), None, None)


def test_windows(tmp_path: Path) -> None:
    values = np.linspace(-1000, 1000, 1000, dtype=np.float32).reshape(10, 10, 10)
    volume = Volume(write(tmp_path / "v.nii", values))
    assert volume.window(values, (40, 400), None) == (-160, 240)
    assert volume.window(values, None, (10, 90)) == pytest.approx((-800, 800), abs=5)
    assert volume.window(values, None, None) == pytest.approx((-990, 990), abs=5)
    picture = np.array([[-2000, -160, 40, 240, np.nan, np.inf, -np.inf]], np.float32)
    assert to_8_bit(picture, -160, 240).tolist() == [[0, 0, 127, 255, 0, 255, 0]]
    assert to_8_bit(picture, 3, 3).max() == 0
    as_bytes = Volume(write(tmp_path / "b.nii", np.arange(27, dtype=np.uint8).reshape(3, 3, 3)))
    assert as_bytes.window(as_bytes.intensities(), None, None) == (0, 255), "bytes are kept as they are"


def test_shapes(tmp_path: Path) -> None:
    assert Volume(write(tmp_path / "a.nii", np.zeros((4, 5), np.uint8))).shape == (4, 5, 1)
    moving = np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5)
    volume = Volume(write(tmp_path / "b.nii.gz", moving))
    assert (volume.shape, volume.frames) == ((2, 3, 4), 5)
    assert (volume.labels(3) == moving[..., 3]).all()
    assert Volume(write(tmp_path / "c.nii", moving[..., :1])).frames == 1
    five = Volume(write(tmp_path / "d.nii", moving[..., None]))
    assert five.frames == 5
    assert (five.labels(2) == moving[..., 2]).all()
    with pytest.raises(DataError, match="two to four"):
        Volume(write(tmp_path / "e.nii", moving[:, :, :, None, :]))


def _header_with(path: Path, offset: int, content: bytes, tail: bytes = b"") -> Path:
    """A small file whose header was changed by hand: nibabel itself refuses to write such."""
    write(path, np.zeros((4, 4, 4), np.int16))
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(bytes(data) + tail)
    return path


def read_all(path: Path) -> np.ndarray:
    volume = Volume(path)
    volume.slicing("axial")
    return volume.intensities()


def test_damaged_and_hostile_files_are_refused_in_one_line(tmp_path: Path) -> None:
    good = write(tmp_path / "good.nii.gz", np.random.default_rng(0).integers(0, 99, (30, 30, 30)).astype(np.int16))
    zero = np.zeros(12, np.float32).tobytes()
    (tmp_path / "empty.nii.gz").touch()
    (tmp_path / "cut.nii.gz").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (tmp_path / "cut.nii").write_bytes(gzip.decompress(good.read_bytes())[:-1000])
    (tmp_path / "text.nii").write_text("not a volume" * 100)
    (tmp_path / "notgz.nii.gz").write_bytes(gzip.decompress(good.read_bytes()))
    (tmp_path / "folder.nii").mkdir()
    large = np.array([3, 32000, 32000, 32000], "<i2").tobytes()
    negative = np.array([3, -4, 4, 4], "<i2").tobytes()
    rgb = np.zeros((3, 3, 3), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nan = np.full(4, np.nan, np.float32).tobytes()
    cases = {
        tmp_path / "absent.nii": "no such file",
        tmp_path / "empty.nii.gz": "0 bytes",
        tmp_path / "cut.nii.gz": "damaged or truncated",
        tmp_path / "cut.nii": "damaged or truncated",
        tmp_path / "text.nii": "cannot be read as NIfTI|not NIfTI",
        tmp_path / "notgz.nii.gz": "cannot be read as NIfTI",
        tmp_path / "folder.nii": "no such file",
        _header_with(tmp_path / "large.nii", 40, large): "at most 536870912 are read",
        _header_with(tmp_path / "negative.nii", 40, negative): "none empty|cannot be read",
        write(tmp_path / "rgb.nii", rgb): r"colours \(RGB\)",
        write(tmp_path / "complex.nii", np.zeros((3, 3, 3), np.complex64)): "complex numbers",
        # Rows of the sform: at 280, 296 and 312, each four float32.
        _header_with(tmp_path / "singular.nii", 280, zero): "gives no voxel size|singular",
        _header_with(tmp_path / "nan.nii", 280, nan): "gives no voxel size",
        _header_with(
            tmp_path / "same.nii", 296, np.array([1, 0, 0, 0], np.float32).tobytes()
        ): "gives no voxel size|singular",
        _header_with(
            tmp_path / "huge.nii", 280, np.array([1e30, 0, 0, 0], np.float32).tobytes()
        ): "gives no voxel size",
    }
    for path, says in cases.items():
        with pytest.raises(DataError, match=says) as caught:
            read_all(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=12))
def test_any_damaged_header_is_read_or_refused_in_one_line(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    path = write(tmp_path / "v.nii", np.zeros((4, 4, 4), np.int16))
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[place] = value
    path.write_bytes(bytes(data))
    said = ""
    try:
        volume = Volume(path)
        volume.slicing("axial" if volume.oriented else "native")
        volume.intensities()
    except DataError as error:
        said = str(error)
    assert "\n" not in said


def test_grids_are_compared(tmp_path: Path) -> None:
    values, affine = np.zeros((10, 10, 10), np.uint8), np.diag([0.5, 0.5, 2, 1])
    image = Volume(write(tmp_path / "i.nii", values, affine))
    image.check_same_grid(Volume(write(tmp_path / "m.nii", values, affine + np.diag([1e-5, 0, 0, 0]))))
    shifted = affine.copy()
    shifted[2, 3] = 2
    with pytest.raises(DataError, match=r"lies up to 2 mm off its image .* \(voxels of 0.5 mm\): resample"):
        image.check_same_grid(Volume(write(tmp_path / "s.nii", values, shifted)))
    with pytest.raises(DataError, match=r"has 10 x 10 x 9 voxels but its image .* has 10 x 10 x 10"):
        image.check_same_grid(Volume(write(tmp_path / "t.nii", values[..., :9], affine)))


@pytest.mark.parametrize("plane", ["axial", "native"])
def test_a_picture_without_a_thickness_is_read(tmp_path: Path, plane: str) -> None:
    affine = np.diag([-0.2, 0.3, 0, 1.0])
    image = nibabel.Nifti1Image(np.arange(20, dtype=np.uint8).reshape(4, 5), None)
    image.header.set_sform(affine, 1)
    image.header["pixdim"][1:4] = 0.2, 0.3, 0
    nibabel.save(image, tmp_path / "a.nii.gz")
    volume = Volume(tmp_path / "a.nii.gz")
    assert volume.slicing(plane).spacing == pytest.approx((0.3, 0.2))
    assert volume.affine[:3, 2] == pytest.approx([0, 0, -1])


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("meter", 1000), ("micron", 1e-3), ("unknown", 1)])
def test_pixel_size_by_the_header_alone(tmp_path: Path, kind: type, unit: str, factor: float) -> None:
    image = kind(np.zeros((4, 5), np.uint8), np.diag([2.0, 3.0, 1, 1]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    assert pixel_size(content[:544], "a.nii") == pytest.approx((3 * factor, 2 * factor))
    assert Volume(tmp_path / "a.nii").pixel_size == pytest.approx((3 * factor, 2 * factor))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=600))
def test_no_header_is_one_line(start: bytes) -> None:
    said, size = "a.nii: cannot be read as NIfTI", None
    try:
        size = pixel_size(start, "a.nii")
    except DataError as error:
        said = str(error)
    assert said.startswith("a.nii: cannot be read as NIfTI")
    assert "\n" not in said
    assert size is None or min(size) > 0
