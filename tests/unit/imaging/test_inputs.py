"""From files, folders and patterns to stacks."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from vlsm_adapter.errors import DataError, UserError
from vlsm_adapter.imaging.inputs import find_stacks, input_files
from vlsm_adapter.imaging.options import ReadOptions

nibabel = pytest.importorskip("nibabel")


def png(path: Path, size: tuple[int, int] = (5, 7)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path)
    return path


def nifti(path: Path, shape: tuple[int, ...] = (6, 5, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 3.0, 4.0, 1.0])), path)
    return path


def test_files_folders_and_patterns(tmp_path: Path, dicom_sources: ModuleType) -> None:
    png(tmp_path / "d" / "b2.png")
    png(tmp_path / "d" / "b10.png")
    png(tmp_path / "d" / ".hidden.png")
    png(tmp_path / "d" / ".cache" / "c.png")
    nifti(tmp_path / "d" / "v.NII.GZ".lower())
    dicom_sources.slices(tmp_path / "d" / "ct", count=1)[0].rename(tmp_path / "d" / "ct" / "IM0001")
    (tmp_path / "d" / "notes.txt").write_text("no picture")
    found = [path.relative_to(tmp_path / "d").as_posix() for path in input_files([tmp_path / "d"])]
    assert found == ["b2.png", "b10.png", "ct/IM0001", "v.nii.gz"]
    assert [path.name for path in input_files([f"{tmp_path}/d/*.png"])] == ["b2.png", "b10.png"]
    # A file named by itself is taken whatever it is: what is wrong with it is said where it is read.
    assert input_files([tmp_path / "d" / "notes.txt"]) == [tmp_path / "d" / "notes.txt"]


@pytest.mark.parametrize(
    ("item", "says"), [("absent.png", "no such file"), ("*.gif", "matches no file"), ("a\0b", "NUL")]
)
def test_an_item_that_names_nothing(tmp_path: Path, item: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        input_files([f"{tmp_path}/{item}"])


def test_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "absent.png")
    with pytest.raises(DataError, match=r"a\.png: is a link to what is not there"):
        input_files([tmp_path / "a.png"])


def test_a_folder_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="holds nothing that can be read"):
        input_files([tmp_path])
    with pytest.raises(DataError, match="matches nothing that can be read"):
        input_files([f"{tmp_path}/*"])


def test_outputs_inside_the_inputs_are_no_inputs(tmp_path: Path) -> None:
    png(tmp_path / "a.png")
    png(tmp_path / "predictions" / "a.png")
    files = input_files([tmp_path], leave_out=tmp_path / "predictions")
    assert [path.relative_to(tmp_path).as_posix() for path in files] == ["a.png"]
    assert len(input_files([tmp_path / "predictions"], leave_out=tmp_path / "predictions")) == 1  # asked for


def test_what_belongs_together(tmp_path: Path, dicom_sources: ModuleType) -> None:
    png(tmp_path / "a.png")
    nifti(tmp_path / "v.nii.gz")
    dicom_sources.slices(tmp_path / "ct", count=3)
    dicom_sources.ultrasound(tmp_path / "us", count=5)
    pages = [Image.fromarray(np.full((4, 6), grey, np.uint8)) for grey in (10, 20, 30)]
    pages[0].save(tmp_path / "t.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "one.tif")
    found = find_stacks(input_files([tmp_path]))
    assert [(stack.kind, stack.name, stack.count, stack.size) for stack in found.stacks] == [
        ("picture", "a", 1, (5, 7)),
        ("dicom", "ct", 3, (9, 14)),
        ("picture", "one", 1, (4, 6)),
        ("pages", "t", 3, (4, 6)),
        ("dicom", "cine", 5, (9, 14)),
        ("nifti", "v", 4, (5, 6)),
    ]
    assert found.failures == []
    for stack in found.stacks:
        for index in (0, stack.count - 1):
            picture = stack.picture(index)
            assert picture.shape == (*stack.size, 3)
            assert picture.dtype == np.uint8
    assert [int(found.stacks[3].picture(index).mean()) for index in range(3)] == [10, 20, 30]


def test_names_are_all_different(tmp_path: Path, dicom_sources: ModuleType) -> None:
    for folder in ("p1", "p2"):
        png(tmp_path / folder / "x.png")
        nifti(tmp_path / folder / "x.nii.gz")
        nifti(tmp_path / folder / "x.nii")
        dicom_sources.slices(tmp_path / folder / "series", count=2)
        dicom_sources.slices(tmp_path / folder / "both", count=2)
        for path in dicom_sources.slices(tmp_path / folder / "more", count=2, modality="MR"):
            path.rename(tmp_path / folder / "both" / f"mr{path.name}")
    found = find_stacks(input_files([tmp_path]))
    names = [stack.name for stack in found.stacks]
    assert len({name.casefold() for name in names}) == len(names) == 12
    assert {"p1__series", "p2__series"} <= set(names)
    assert find_stacks(input_files([tmp_path])[::-1]).stacks[0].name in names  # the order of files does not matter
    assert not [name for name in names if "Doe" in name or "P1" in name]  # nothing of the patient


def test_one_bad_file_does_not_stop_the_rest(tmp_path: Path, dicom_sources: ModuleType) -> None:
    good = png(tmp_path / "good.png")
    dicom = dicom_sources.photograph(tmp_path / "dcm")[0]
    (tmp_path / "cut.dcm").write_bytes(dicom.read_bytes()[:300])
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "text.dcm").write_text("I am no DICOM file" * 20)
    (tmp_path / "bad.nii.gz").write_bytes(b"\x1f\x8bgarbage")
    (tmp_path / "bad.tif").write_bytes(b"II*\0garbage")
    files = [
        good,
        *(tmp_path / name for name in ("cut.dcm", "empty.dcm", "text.dcm", "bad.nii.gz", "bad.tif", "no.nii")),
    ]
    found = find_stacks(files)
    assert [stack.name for stack in found.stacks] == ["good"]
    assert [Path(case.path).name for case in found.failures] == [path.name for path in files[1:]]
    for case in found.failures:
        assert case.reason.startswith(case.path)
        assert "\n" not in case.reason


def test_a_picture_under_another_ending_is_read_by_its_content(tmp_path: Path, dicom_sources: ModuleType) -> None:
    dicom = dicom_sources.photograph(tmp_path / "dcm")[0].rename(tmp_path / "photo.png")
    assert find_stacks([dicom]).stacks[0].kind == "dicom"


def test_frames_of_videos(tmp_path: Path) -> None:
    for video in ("v1", "v2"):
        for number in (1, 2, 10):
            png(tmp_path / video / f"f{number}.png")
    options = ReadOptions(frames=True)
    found = find_stacks(input_files([tmp_path]), options)
    assert [(stack.kind, stack.name, stack.count) for stack in found.stacks] == [
        ("frames", "v1", 3),
        ("frames", "v2", 3),
    ]
    assert [path.name for path in found.stacks[0].paths] == ["f1.png", "f2.png", "f10.png"]
    png(tmp_path / "v1" / "f10.png", (3, 3))
    (tmp_path / "v1" / "f1.png").write_bytes(b"")
    stack = find_stacks(input_files([tmp_path / "v1"]), options).stacks[0]
    assert stack.size == (5, 7)  # of the first that can be read
    with pytest.raises(DataError, match=r"f1\.png"):
        stack.picture(0)
    assert stack.picture(1).shape == (5, 7, 3)
    with pytest.raises(DataError, match=r"f10\.png.*one size"):
        stack.picture(2)


def test_pages_of_different_sizes_are_different_stacks(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full(size, 9, np.uint8)) for size in ((4, 6), (8, 9), (4, 6))]
    pages[0].save(tmp_path / "t.tif", save_all=True, append_images=pages[1:])
    stacks = find_stacks([tmp_path / "t.tif"]).stacks
    assert [(stack.count, stack.size) for stack in stacks] == [(2, (4, 6)), (1, (8, 9))]
    assert len({stack.name for stack in stacks}) == 2
    assert stacks[1].picture(0).shape == (8, 9, 3)


def test_four_axes_only_when_asked(tmp_path: Path) -> None:
    path = nifti(tmp_path / "f.nii.gz", (4, 5, 3, 2))
    assert "--frames" in find_stacks([path]).failures[0].reason
    stacks = find_stacks([path], ReadOptions(frames=True)).stacks
    assert [stack.name for stack in stacks] == ["f_frame0000", "f_frame0001"]
    assert not np.array_equal(stacks[0].picture(0), np.zeros_like(stacks[0].picture(0)))


def test_an_unknown_plane() -> None:
    with pytest.raises(UserError, match="did you mean 'axial'"):
        ReadOptions(plane="axal")  # type: ignore[arg-type]
