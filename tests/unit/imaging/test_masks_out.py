"""Answers in kind, written and read back: what is planned is what is written, and it says what was answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlsm_adapter import files
from vlsm_adapter.data.images import read_labels, read_mask
from vlsm_adapter.errors import ConfigError, DataError, UserError
from vlsm_adapter.imaging import kept
from vlsm_adapter.imaging.base import AnswerOptions, Kind, OutputNames, PictureAnswer, Spacing, Stack
from vlsm_adapter.imaging.masks_out import planned_files, write_answers
from vlsm_adapter.imaging.measures import COLUMNS

PROMPTS = ["polyp", "large tool"]
NAMES = OutputNames("scan", ("scan__polyp", "scan__large-tool"))


class Pictures(Stack):
    """Grey pictures in memory."""

    def __init__(self, kind: Kind, count: int, size: tuple[int, int] = (6, 9), spacing: Spacing | None = None) -> None:
        self.kind, self.count, self.size, self.spacing = kind, count, size, spacing
        self.name = "scan"
        many = kind == "frames"
        self.paths = tuple(Path(f"in/frame{index}.jpg") for index in range(count)) if many else (Path("in/scan.png"),)

    def picture(self, index: int) -> np.ndarray:
        return np.full((*self.size, 3), 40, np.uint8)


def answers(stack: Stack, maps: np.ndarray, skip: tuple[int, ...] = ()) -> Iterator[PictureAnswer]:
    for index in range(stack.count):
        if index not in skip:
            yield PictureAnswer(index, stack.picture(index), list(maps[:, index]))


def maps_of(stack: Stack, prompts: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((prompts, stack.count, *stack.size), np.float32)


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


KINDS = [
    Pictures("picture", 1),
    Pictures("picture", 1, spacing=Spacing(0.5, 0.25)),
    Pictures("pages", 3),
    Pictures("frames", 3),
    Pictures("pages", 4, spacing=Spacing(0.5, 0.25, 2.0)),
]


@pytest.mark.parametrize("stack", KINDS, ids=lambda stack: f"{stack.kind}{stack.count}{'mm' if stack.spacing else ''}")
@pytest.mark.parametrize("compete", [False, True])
@pytest.mark.parametrize("form", ["auto", "png", "tiff", "nifti"])
def test_what_is_planned_is_written(stack: Pictures, compete: bool, form: Any, tmp_path: Path) -> None:
    options = AnswerOptions(form=form, compete=compete, probabilities=True, overlays=True, contours=True)
    rows = write_answers(stack, tmp_path, NAMES, PROMPTS, answers(stack, maps_of(stack)), options)
    assert written(tmp_path) == sorted(planned_files(stack, NAMES, options))
    volume = stack.spacing is not None and stack.spacing.slice is not None
    assert len(rows) == 2 * (1 if volume else stack.count)
    for row in rows:
        assert tuple(row) == COLUMNS
        target = tmp_path / row["mask"]
        assert target.exists()
        assert row["unit"] == ("mm" if stack.spacing else "px")
        assert bool(row["volume_mm3"]) == volume
        assert bool(row["area_mm2"]) == (stack.spacing is not None and not volume)


def test_masks_are_the_maps_above_the_threshold(tmp_path: Path) -> None:
    stack = Pictures("picture", 1, spacing=Spacing(0.5, 2.0))
    maps = maps_of(stack)
    options = AnswerOptions(threshold=0.3, probabilities=True)
    rows = write_answers(stack, tmp_path, NAMES, PROMPTS, answers(stack, maps), options)
    for number, row in enumerate(rows):
        mask = maps[number, 0] > 0.3
        assert np.array_equal(read_mask(tmp_path / row["mask"]), mask)
        assert row["area_px"] == mask.sum()
        assert float(row["area_mm2"]) == pytest.approx(mask.sum() * 1.0)
        assert float(row["mean_probability_in_mask"]) == pytest.approx(maps[number, 0][mask].mean(), rel=1e-5)
        levels = np.asarray(Image.open(tmp_path / f"{NAMES.prompts[number]}_probability.png"))
        assert np.array_equal(levels, np.rint(maps[number, 0] * 65535))
        middle = np.argwhere(mask).mean(axis=0)
        assert (float(row["centroid_row"]), float(row["centroid_column"])) == pytest.approx(tuple(middle), abs=0.006)
    assert rows[0]["image"] == "in/scan.png"


def test_overlays_are_named_as_what_they_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vlsm_adapter.overlays as overlays

    draw, titles = overlays.prediction_overlay, []
    monkeypatch.setattr(
        overlays, "prediction_overlay", lambda *args, title: titles.append(title) or draw(*args, title=title)
    )
    series = Pictures("pages", 2)  # as of DICOM: a file for each slice, and a name for all
    series.name, series.paths = "CT/knee", (Path("in/IM000"), Path("in/IM001"))
    for stack in (Pictures("picture", 1), Pictures("frames", 2), series):
        options = AnswerOptions(overlays=True)
        write_answers(stack, tmp_path / stack.kind, NAMES, PROMPTS, answers(stack, maps_of(stack)), options)
    asked = {title.rpartition(": ")[0] for title in titles}
    assert asked == {"scan", "frame0", "frame1", "knee 0", "knee 1"}


def test_pages_of_a_tiff(tmp_path: Path) -> None:
    stack = Pictures("pages", 3)
    maps = maps_of(stack)
    write_answers(stack, tmp_path, NAMES, PROMPTS, answers(stack, maps), AnswerOptions(probabilities=True))
    with Image.open(tmp_path / "scan__polyp.tif") as file:
        assert file.n_frames == 3  # type: ignore[attr-defined]
        for index in range(3):
            file.seek(index)
            assert np.array_equal(np.asarray(file), (maps[0, index] > 0.5) * 255)
    with Image.open(tmp_path / "scan__polyp_probability.tif") as file:
        file.seek(2)
        assert np.array_equal(np.asarray(file), np.rint(maps[0, 2] * 65535))


def test_frames_keep_their_names_and_may_be_missing(tmp_path: Path) -> None:
    stack = Pictures("frames", 4)
    rows = write_answers(stack, tmp_path, NAMES, PROMPTS, answers(stack, maps_of(stack), skip=(1,)), AnswerOptions())
    assert written(tmp_path / "scan__polyp") == ["frame0.png", "frame2.png", "frame3.png"]
    assert [(row["picture"], row["image"]) for row in rows[:4:2]] == [(0, "in/frame0.jpg"), (2, "in/frame2.jpg")]
    pages = Pictures("pages", 3)
    some = answers(pages, maps_of(pages), skip=(1,))
    with pytest.raises(DataError, match="2 of its 3 pictures"):
        write_answers(pages, tmp_path, NAMES, PROMPTS, some, AnswerOptions())


def test_competition_gives_one_label_map_with_names(tmp_path: Path) -> None:
    stack = Pictures("picture", 1)
    maps = maps_of(stack)
    rows = write_answers(stack, tmp_path, NAMES, PROMPTS, answers(stack, maps), AnswerOptions(compete=True))
    expected = np.where((maps[:, 0] > 0.5).any(axis=0), maps[:, 0].argmax(axis=0) + 1, 0)
    assert np.array_equal(read_labels(tmp_path / "scan_labels.png"), expected)
    names = json.loads((tmp_path / "scan_labels.json").read_text(encoding="utf-8"))
    assert names == {"background": 0, "labels": {"1": "polyp", "2": "large tool"}}
    assert [(row["label"], row["area_px"]) for row in rows] == [(n, (expected == n).sum()) for n in (1, 2)]


def test_many_labels_need_more_than_a_byte(tmp_path: Path) -> None:
    stack = Pictures("picture", 1, size=(20, 20))
    prompts = [f"thing {number}" for number in range(300)]
    maps = np.zeros((300, 1, 20, 20), np.float32)
    maps[299, 0, 5, 7] = 0.9
    names = OutputNames("scan", tuple(f"scan__{number}" for number in range(300)))
    write_answers(stack, tmp_path, names, prompts, answers(stack, maps), AnswerOptions(compete=True))
    assert read_labels(tmp_path / "scan_labels.png")[5, 7] == 300


def test_a_volume_is_cleaned_as_a_whole(tmp_path: Path) -> None:
    stack = Pictures("pages", 3, spacing=Spacing(1.0, 1.0, 2.0))
    maps = np.full((1, 3, *stack.size), 0.2, np.float32)
    maps[0, :, 1, 1] = 0.9  # one voxel in each slice: three in the volume
    maps[0, 0, 4, 4:6] = 0.8
    options = AnswerOptions(largest_component=True, min_size=6, min_size_mm=True)
    names = OutputNames("scan", ("scan",))
    (row,) = write_answers(stack, tmp_path, names, ["polyp"], answers(stack, maps), options)
    assert (row["area_px"], row["components"], row["volume_mm3"], row["picture"]) == (3, 1, "6", "")
    assert (row["first_slice"], row["last_slice"], row["centroid_slice"]) == (0, 2, "1.00")
    assert float(row["mean_probability_in_mask"]) == pytest.approx(0.9, abs=1e-4)
    # The same pictures that are no volume: each is cleaned for itself.
    loose = Pictures("pages", 3)
    (tmp_path / "loose").mkdir()
    rows = write_answers(
        loose, tmp_path / "loose", names, ["polyp"], answers(loose, maps), AnswerOptions(largest_component=True)
    )
    assert [row["area_px"] for row in rows] == [2, 1, 1]


def test_an_error_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Pictures("frames", 3)
    monkeypatch.setattr(kept.tempfile, "tempdir", str(tmp_path))

    def broken() -> Iterator[PictureAnswer]:
        yield from answers(stack, maps_of(stack), skip=(1, 2))
        raise DataError("in/frame1.jpg: cannot be decoded")

    options = AnswerOptions(probabilities=True, contours=True, overlays=True)
    with pytest.raises(DataError, match="frame1"):
        write_answers(stack, tmp_path / "out", NAMES, PROMPTS, broken(), options)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Pictures("frames", 3)
    maps = maps_of(stack)
    write_answers(stack, tmp_path, NAMES, PROMPTS, answers(stack, maps), AnswerOptions())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    real, calls = files.os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:  # a file and its folder, then the second file
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("vlsm_adapter.files.os.fsync", full)
    with pytest.raises(UserError, match="cannot be written"):
        write_answers(stack, tmp_path, NAMES, PROMPTS, answers(stack, 1 - maps), AnswerOptions())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    write_answers(stack, tmp_path, NAMES, PROMPTS, answers(stack, 1 - maps, skip=(0,)), AnswerOptions())
    assert written(tmp_path / "scan__polyp") == ["frame1.png", "frame2.png"], "files of two predictions are mixed"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_forms_that_cannot_be() -> None:
    stack = Pictures("picture", 1)
    with pytest.raises(DataError, match=r"scan\.png: DICOM SEG needs a DICOM source"):
        planned_files(stack, NAMES, AnswerOptions(form="seg"))
    with pytest.raises(ConfigError, match="did you mean 'nifti'"):
        planned_files(stack, NAMES, AnswerOptions(form="nift"))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="does not say its spacing"):
        planned_files(stack, NAMES, AnswerOptions(min_size=3, min_size_mm=True))


def test_empty_masks_have_empty_numbers(tmp_path: Path) -> None:
    stack = Pictures("picture", 1)
    rows = write_answers(
        stack, tmp_path, NAMES, PROMPTS, answers(stack, maps_of(stack) * 0), AnswerOptions(contours=True)
    )
    assert [
        (row["area_px"], row["components"], row["centroid_row"], row["mean_probability_in_mask"]) for row in rows
    ] == [(0, 0, "", "")] * 2
    assert json.loads((tmp_path / "scan_contours.geojson").read_text())["features"] == []
