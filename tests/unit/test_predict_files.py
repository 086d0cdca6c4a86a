"""Many files: names, tables, nothing lost."""

from __future__ import annotations

import csv
import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlsm_adapter import Predictor, files
from vlsm_adapter.errors import DataError, UserError
from vlsm_adapter.imaging.options import ReadOptions
from vlsm_adapter.models.base import PromptSegmenter
from vlsm_adapter.predict_files import COLUMNS, predict_files


@pytest.fixture
def predictor(model: PromptSegmenter) -> Predictor:
    return Predictor(model)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    generator = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    paths = []
    for name, size in (("a.png", (40, 60)), ("b.jpg", (33, 21)), ("c d.png", (64, 64))):
        Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(folder / name)
        paths.append(folder / name)
    return paths


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def listing(folder: Path) -> list[str]:
    """What is there, without the journal and the list of failures, which always are where something was done."""
    return sorted(path.name for path in folder.iterdir() if path.name not in (".predictions.jsonl", "failures.csv"))


def test_one_prompt_gives_a_mask_beside_the_name_of_its_image(
    predictor: Predictor, images: list[Path], tmp_path: Path
) -> None:
    report = predict_files(predictor, images, ["polyp"], tmp_path / "out")
    assert listing(tmp_path / "out") == ["a.png", "b.png", "c d.png", "predictions.csv"]
    assert (report.images, len(report.masks), report.skipped) == (3, 3, [])
    assert str(report).startswith("3 mask files of 3 inputs in ")
    rows = rows_of(report.table)
    assert tuple(rows[0]) == COLUMNS
    for image, row in zip(images, rows, strict=True):
        predictor.set_image(image)
        expected = predictor.predictions(["polyp"])[0]
        with Image.open(tmp_path / "out" / row["mask"]) as picture:
            assert picture.mode == "L"
            mask = np.asarray(picture)
        assert set(np.unique(mask)) <= {0, 255}
        assert ((mask == 255) == expected.mask).all()
        assert row["image"] == str(image)
        assert int(row["area_px"]) == expected.mask.sum() > 0
        assert (int(row["height"]), int(row["width"])) == mask.shape
        assert float(row["area_fraction"]) == pytest.approx(expected.mask.mean(), rel=1e-4)
        mean = expected.probability[expected.mask].mean()
        assert float(row["mean_probability_in_mask"]) == pytest.approx(mean, rel=1e-4)


def test_several_prompts_maps_and_overlays(predictor: Predictor, images: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    prompts = ["polyp", "skin lesion", "polyp"]
    predict_files(predictor, images[:1], prompts, out, probabilities=True, overlays=True)
    assert listing(out) == [
        "a__polyp.png",
        "a__polyp_overlay.png",
        "a__polyp_probability.png",
        "a__skin-lesion.png",
        "a__skin-lesion_overlay.png",
        "a__skin-lesion_probability.png",
        "predictions.csv",
    ]
    predictor.set_image(images[0])
    expected = predictor.probabilities(["skin lesion"])[0]
    with Image.open(out / "a__skin-lesion_probability.png") as picture:
        assert picture.mode == "I;16"
        np.testing.assert_allclose(np.asarray(picture) / 65535, expected, atol=1e-5)
    with Image.open(out / "a__skin-lesion_overlay.png") as picture:
        assert picture.size == (384, 256 + 20)


def test_an_empty_mask_has_no_mean_probability(predictor: Predictor, images: list[Path], tmp_path: Path) -> None:
    report = predict_files(predictor, images[:1], ["polyp"], tmp_path / "out", threshold=1.0, overlays=True)
    row = rows_of(report.table)[0]
    assert (row["area_px"], row["area_fraction"], row["mean_probability_in_mask"]) == ("0", "0", "")


def test_equal_stems_do_not_overwrite_each_other(predictor: Predictor, images: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(np.zeros((10, 12, 3), np.uint8)).save(other / "a.png")
    report = predict_files(predictor, [*images, other / "a.png", images[0]], ["polyp"], tmp_path / "out")
    assert [mask.name for mask in report.masks] == ["images__a.png", "b.png", "c d.png", "other__a.png"]
    with Image.open(tmp_path / "out" / "other__a.png") as picture:
        assert picture.size == (12, 10)


def test_names_stay_when_others_of_that_name_are_added(predictor: Predictor, tmp_path: Path) -> None:
    """Names depend on all inputs; masks that are there must neither be made twice nor stand for another input."""

    def picture(place: str) -> Path:
        path = tmp_path / "in" / place / "frame.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), 7 * len(place), np.uint8)).save(path)
        return path

    given, out = [picture("p1")], tmp_path / "out"
    predict_files(predictor, given, ["polyp"], out)
    assert listing(out) == ["frame.png", "predictions.csv"]
    given.append(picture("p2"))
    report = predict_files(predictor, given, ["polyp"], out)
    assert (report.before, [mask.name for mask in report.masks]) == (1, ["frame.png", "p2__frame.png"])
    given.append(picture("."))  # would be 'frame' now
    report = predict_files(predictor, given, ["polyp"], out)
    rows = rows_of(out / "predictions.csv")
    assert [row["image"] for row in rows] == [str(path) for path in given]
    assert [row["mask"] for row in rows[:2]] == ["frame.png", "p2__frame.png"]
    assert rows[2]["mask"].startswith("frame_")
    assert listing(out) == sorted([*(row["mask"] for row in rows), "predictions.csv"])
    # A mask that was deleted is made anew under its name, and a change is noticed.
    (out / "frame.png").unlink()
    assert predict_files(predictor, given, ["polyp"], out).before == 2
    assert (out / "frame.png").exists()
    Image.new("RGB", (30, 20)).save(given[0])
    with pytest.raises(UserError, match=r"p1/frame\.png: has changed since its mask"):
        predict_files(predictor, given, ["polyp"], out)
    other = tmp_path / "elsewhere" / "frame.png"
    other.parent.mkdir()
    given[1].rename(other)
    with pytest.raises(UserError, match=r"elsewhere/frame\.png: .* is the mask of another input of that name"):
        predict_files(predictor, [other], ["polyp"], out)


def test_nothing_is_overwritten_unasked(predictor: Predictor, images: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"b\.png: exists already.*--overwrite"):
        predict_files(predictor, images, ["polyp"], out)
    assert listing(out) == ["b.png"]
    assert (out / "b.png").read_bytes() == b"mine"
    (out / "c d.png").write_bytes(b"mine, too")
    with pytest.raises(UserError, match="and 1 more"):
        predict_files(predictor, images, ["polyp"], out)
    predict_files(predictor, images, ["polyp"], out, overwrite=True)
    assert (out / "b.png").read_bytes() != b"mine"


def test_an_input_is_never_replaced(predictor: Predictor, images: list[Path]) -> None:
    before = images[0].read_bytes()
    with pytest.raises(UserError, match="would replace an input image"):
        predict_files(predictor, images, ["polyp"], images[0].parent, overwrite=True)
    assert images[0].read_bytes() == before


def test_a_bad_file_is_listed_and_the_rest_is_done(predictor: Predictor, images: list[Path], tmp_path: Path) -> None:
    images[1].write_bytes(images[1].read_bytes()[:200])
    images.insert(0, tmp_path / "absent.png")
    out = tmp_path / "out"
    report = predict_files(predictor, images, ["polyp"], out, skip_bad=True)
    assert listing(out) == ["a.png", "c d.png", "predictions.csv"]
    assert (report.images, len(report.skipped)) == (2, 2)
    assert "2 inputs left out" in str(report)
    failures = rows_of(out / "failures.csv")
    assert [row["image"] for row in failures] == [str(images[0]), str(images[2])]
    assert all(row["image"] in row["reason"] for row in failures)
    # Mended, and asked again: the list of failures is empty.
    predict_files(predictor, [images[1]], ["polyp"], out, overwrite=True)
    assert rows_of(out / "failures.csv") == []


def test_without_skip_bad_the_file_is_named_and_what_was_done_is_listed(
    predictor: Predictor, images: list[Path], tmp_path: Path
) -> None:
    images[1].write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"b\.jpg"):
        predict_files(predictor, images, ["polyp"], tmp_path / "out", skip_bad=False)
    assert listing(tmp_path / "out") == ["a.png", "predictions.csv"]
    assert len(rows_of(tmp_path / "out" / "predictions.csv")) == 1
    with pytest.raises(DataError):  # nothing done, nothing written: the next try needs no --overwrite
        predict_files(predictor, images[1:], ["polyp"], tmp_path / "new", skip_bad=False)
    with pytest.raises(DataError, match=r"b\.jpg"):  # a single one
        predict_files(predictor, images[1:2], ["polyp"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_no_half_mask(
    predictor: Predictor, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = Image.Image.save, []

    def full(self: Image.Image, file: Path, **options: object) -> None:
        calls.append(file)
        if len(calls) == 2:
            Path(file).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, file, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match=r"b\.png: cannot be written \(No space left"):
        predict_files(predictor, images, ["polyp"], tmp_path / "out", skip_bad=True)
    assert listing(tmp_path / "out") == ["a.png", "predictions.csv"]


def test_what_cannot_be_asked(predictor: Predictor, images: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image"):
        predict_files(predictor, [], ["polyp"], tmp_path / "out")
    with pytest.raises(UserError, match="list of files"):
        predict_files(predictor, images[0], ["polyp"], tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no prompt"):
        predict_files(predictor, images, [], tmp_path / "out")
    with pytest.raises(UserError, match="from 0 to 1"):
        predict_files(predictor, images, ["polyp"], tmp_path / "out", threshold=5)
    files.write_text(tmp_path / "file", "")
    with pytest.raises(UserError, match="is a file"):
        predict_files(predictor, images, ["polyp"], tmp_path / "file")
    assert not (tmp_path / "out").exists()


def test_strange_names_and_prompts_stand_in_the_table(predictor: Predictor, images: list[Path], tmp_path: Path) -> None:
    strange = images[0].rename(images[0].with_name('ä,"\n.png'))
    report = predict_files(predictor, [strange], ['=a,"b"\n', "息肉"], tmp_path / "out")
    rows = rows_of(report.table)
    assert [row["prompt"] for row in rows] == ['=a,"b"\n', "息肉"]
    assert all((tmp_path / "out" / row["mask"]).is_file() for row in rows)


def test_frames_that_an_earlier_call_could_not_read_stay_listed(predictor: Predictor, tmp_path: Path) -> None:
    video = tmp_path / "video"
    video.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    for number in range(3):
        Image.fromarray(pixels).save(video / f"f{number}.png")
    broken = video / "f1.png"
    broken.write_bytes(broken.read_bytes()[:300])
    read = ReadOptions(frames=True)
    told = []
    for _ in range(2):
        report = predict_files(predictor, sorted(video.iterdir()), ["polyp"], tmp_path / "out", read=read)
        told.append((str(report).partition(" in ")[0], [case.path for case in report.skipped]))
        (row,) = rows_of(tmp_path / "out" / "failures.csv")
        assert row["image"] == str(broken)
    assert told[0][1] == told[1][1] == [str(broken)]
