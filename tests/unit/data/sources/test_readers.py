"""What is particular to each public set, on miniatures of its documented layout."""

from __future__ import annotations

import io
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from vlsm_adapter.data.archives import open_tree
from vlsm_adapter.data.images import read_image, read_mask
from vlsm_adapter.data.prepared import Summary
from vlsm_adapter.data.sources import camus
from vlsm_adapter.data.sources.bkai_polyp import classify
from vlsm_adapter.data.sources.clinicdb_polyp import FRAMES, SEQUENCE_STARTS, sequence_of
from vlsm_adapter.data.sources.metaimage import Slice
from vlsm_adapter.data.sources.prepare import prepare
from vlsm_adapter.errors import ConfigError, DataError, UserError


def rows_of(folder: Path) -> dict[str, dict]:
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return {row["case_id"]: row for row in rows}


def mask_of(folder: Path, case_id: str) -> np.ndarray:
    return read_mask(folder / rows_of(folder)[case_id]["mask"])


def said(summary: Summary, text: str) -> bool:
    return any(text in line for line in summary.warnings)


class TestChangedMaterial:
    """A prepared set is never that of other material than the call was given."""

    def test_a_replaced_mask_is_no_silent_resume(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("dfu", tmp_path)
        out = tmp_path / "out"
        first = prepare("dfu", made.raw, out)
        assert prepare("dfu", made.raw, out).resumed == first.cases
        archive = miniatures.pack(made.raw, tmp_path / "same.zip")
        assert prepare("dfu", archive, out).resumed == first.cases, "the same material in another wrapping"

        mask = sorted((made.raw / "DFUC2022_train_masks").iterdir())[0]
        before = (out / "masks" / f"{mask.stem}.png").read_bytes()
        content = mask.read_bytes()
        miniatures.save(mask, ~made.truth[mask.stem])
        changed = miniatures.pack(made.raw, tmp_path / "changed.zip")
        for raw in (made.raw, changed):
            with pytest.raises(DataError, match="the material or the reader has changed since") as caught:
                prepare("dfu", raw, out)
            assert "\n" not in str(caught.value)
        assert (out / "masks" / f"{mask.stem}.png").read_bytes() == before
        mask.write_bytes(content)
        assert prepare("dfu", made.raw, out).resumed == first.cases

    def test_nothing_is_written_into_the_folder_that_is_read(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("dfu", tmp_path)
        before = sorted(made.raw.rglob("*"))
        for out in (made.raw, made.raw / "out"):
            with pytest.raises(UserError, match="choose a folder outside of it"):
                prepare("dfu", made.raw, out)
        assert sorted(made.raw.rglob("*")) == before
        # Beside an archive nothing is in the way.
        prepare("dfu", miniatures.pack(made.raw, tmp_path / "dfu.zip"), tmp_path / "out")

    def test_bad_cases_are_left_out_of_the_same_material_and_repaired_material_is_told(
        self, miniatures: ModuleType, tmp_path: Path
    ) -> None:
        made = miniatures.build("dfu", tmp_path)
        out = tmp_path / "out"
        mask = sorted((made.raw / "DFUC2022_train_masks").iterdir())[-1]
        content = mask.read_bytes()
        mask.write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match="--skip-bad"):
            prepare("dfu", made.raw, out)
        left_out = prepare("dfu", made.raw, out, skip_bad=True)
        assert len(left_out.skipped) == 1
        assert left_out.resumed > 0, "what was done before is kept"
        mask.write_bytes(content)
        with pytest.raises(DataError, match="choose a new folder or delete it"):
            prepare("dfu", made.raw, out, skip_bad=True)

    def test_a_change_while_stopped_is_told(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("dfu", tmp_path)
        out = tmp_path / "out"

        def stop(done: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepare("dfu", made.raw, out, progress=stop)
        mask = sorted((made.raw / "DFUC2022_train_masks").iterdir())[0]
        content = mask.read_bytes()
        miniatures.save(mask, ~made.truth[mask.stem])
        with pytest.raises(DataError, match=r"holds an unfinished set.*delete it or choose another folder"):
            prepare("dfu", made.raw, out)
        mask.write_bytes(content)
        assert prepare("dfu", made.raw, out).resumed == 1


class TestClinicDB:
    def test_the_29_sequences_cover_every_frame_once(self) -> None:
        groups = [sequence_of(str(frame)) for frame in range(1, FRAMES + 1)]
        assert len(set(groups)) == len(SEQUENCE_STARTS) == 29
        assert groups == sorted(groups), "neighbouring frames stay together"
        sizes = [groups.count(f"sequence{number:02d}") for number in range(1, 30)]
        # Length of the runs that start at these frames in an independent list of the sequences.
        known = {
            1: 25,
            51: 17,
            104: 23,
            127: 25,
            178: 22,
            200: 6,
            206: 22,
            318: 25,
            343: 21,
            364: 20,
            448: 19,
            467: 12,
            529: 18,
            592: 21,
        }
        assert {start: sizes[SEQUENCE_STARTS.index(start)] for start in known} == known

    @pytest.mark.parametrize("name", ["0", "613", "-1", "abc", "1a", "²", "", "p1"])
    def test_other_names_have_no_sequence(self, name: str) -> None:
        assert sequence_of(name) is None

    @pytest.mark.parametrize(("kept", "ending"), [("PNG", ".png"), ("TIF", ".tif")])
    def test_either_release(self, miniatures: ModuleType, tmp_path: Path, kept: str, ending: str) -> None:
        made = miniatures.build("clinicdb_polyp", tmp_path)
        shutil.rmtree(made.raw / ("TIF" if kept == "PNG" else "PNG"))
        (made.raw / "metadata.csv").unlink()
        prepare("clinicdb_polyp", made.raw, tmp_path / "out")
        rows = rows_of(tmp_path / "out")
        assert {case: row["group"] for case, row in rows.items()} == made.groups, "by the ranges of frames"
        assert {Path(row["image"]).suffix for row in rows.values()} == {ending}

    def test_of_both_releases_png_is_taken(self, miniatures: ModuleType, tmp_path: Path) -> None:
        prepare("clinicdb_polyp", miniatures.build("clinicdb_polyp", tmp_path).raw, tmp_path / "out")
        assert all(row["image"].endswith(".png") for row in rows_of(tmp_path / "out").values())

    def test_the_table_of_the_release_is_followed(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("clinicdb_polyp", tmp_path)
        table = made.raw / "metadata.csv"
        table.write_text(table.read_text().replace("\n26,2,", "\n26,7,"))
        summary = prepare("clinicdb_polyp", made.raw, tmp_path / "out")
        assert rows_of(tmp_path / "out")["26"]["group"] == "sequence07"
        assert said(summary, "1 frames another sequence than the frame ranges, the first is 26")

    def test_a_table_of_other_columns(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("clinicdb_polyp", tmp_path)
        (made.raw / "metadata.csv").write_text("a,b\n1,2\n")
        assert said(prepare("clinicdb_polyp", made.raw, tmp_path / "out"), "frame numbers tell the sequences")
        assert rows_of(tmp_path / "out")["612"]["group"] == "sequence29"


class TestBKAI:
    @pytest.mark.parametrize("quality", [60, 75, 95])
    @pytest.mark.parametrize("seed", range(6))
    def test_classes_survive_jpeg(self, miniatures: ModuleType, quality: int, seed: int) -> None:
        labels = miniatures.two_polyps(seed, (200, 260))
        buffer = io.BytesIO()
        Image.fromarray(miniatures.red_and_green(labels)).save(buffer, "JPEG", quality=quality)
        found = classify(np.asarray(Image.open(buffer).convert("RGB")), "x")
        for value in (1, 2):
            both = (found == value).sum() + (labels == value).sum()
            assert both == 0 or 2 * ((found == value) & (labels == value)).sum() / both > 0.985
        assert (found == 1).any() == (labels == 1).any(), "no class appears out of noise"
        assert (found == 2).any() == (labels == 2).any()

    def test_touching_polyps_keep_a_clean_border(self) -> None:
        labels = np.zeros((120, 160), np.uint8)
        labels[20:100, 20:80], labels[20:100, 80:140] = 1, 2
        pixels = np.stack([labels == 1, labels == 2, labels == 9], -1).astype(np.uint8) * np.uint8(255)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=75)
        found = classify(np.asarray(Image.open(buffer).convert("RGB")), "x")
        wrong = found != labels
        assert wrong[:, :74].sum() + wrong[:, 86:].sum() == 0
        assert wrong.mean() < 0.02

    def test_a_picture_is_no_mask(self, miniatures: ModuleType) -> None:
        image = miniatures.picture(0, miniatures.blob(0))
        with pytest.raises(DataError, match="check that image and mask are not swapped"):
            classify(image, "x")
        with pytest.raises(DataError, match="not a mask"):
            classify(np.full((9, 9, 3), 255, np.uint8), "x")

    def test_black_is_an_empty_mask(self) -> None:
        assert not classify(np.zeros((9, 9, 3), np.uint8), "x").any()

    def test_a_case_for_each_class(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("bkai_polyp", tmp_path)
        prepare("bkai_polyp", made.raw, tmp_path / "out", variant="classes")
        rows = rows_of(tmp_path / "out")
        ids = [f"{number:032x}" for number in range(3)]
        assert sorted(rows) == sorted(
            [f"{ids[0]}_neoplastic", f"{ids[1]}_non-neoplastic", f"{ids[2]}_neoplastic", f"{ids[2]}_non-neoplastic"]
        )
        both = [rows[f"{ids[2]}_{name}"] for name in ("neoplastic", "non-neoplastic")]
        assert both[0]["image"] == both[1]["image"]
        assert both[0]["group"] == both[1]["group"]
        assert [row["prompts"]["p1"] for row in both] == ["neoplastic polyp", "non-neoplastic polyp"]
        joined = mask_of(tmp_path / "out", f"{ids[2]}_neoplastic") | mask_of(
            tmp_path / "out", f"{ids[2]}_non-neoplastic"
        )
        assert 2 * (joined & made.truth[ids[2]]).sum() / (joined.sum() + made.truth[ids[2]].sum()) > 0.97

    def test_an_unknown_variant_names_the_nearest(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="did you mean 'classes'"):
            prepare("bkai_polyp", tmp_path, tmp_path / "out", variant="clases")
        with pytest.raises(ConfigError, match="has none"):
            prepare("dfu", tmp_path, tmp_path / "out", variant="x")

    def test_binary_copies_are_read_and_grey_pictures_refused(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("bkai_polyp", tmp_path)
        place = made.raw / "train_gt" / "train_gt"
        for name, mask in made.truth.items():
            miniatures.save(place / f"{name}.jpeg", mask)
        prepare("bkai_polyp", made.raw, tmp_path / "out")
        assert all((mask_of(tmp_path / "out", case) == mask).mean() > 0.99 for case, mask in made.truth.items())
        miniatures.save(place / f"{0:032x}.jpeg", miniatures.picture(0, made.truth[f"{0:032x}"], colours=1))
        with pytest.raises(DataError, match="not a mask"):
            prepare("bkai_polyp", made.raw, tmp_path / "other")

    def test_plain_folders(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("bkai_polyp", tmp_path)
        for part in ("train", "train_gt"):
            (made.raw / part / part).rename(made.raw / "x")
            (made.raw / part).rmdir()
            (made.raw / "x").rename(made.raw / part)
        assert prepare("bkai_polyp", made.raw, tmp_path / "out").cases == 3


ISIC_FOLDERS = {
    "2017": ("ISIC-2017_{}_Data", "ISIC-2017_{}_Part1_GroundTruth", ("Training", "Validation", "Test_v2"), 2750),
    "2018": (
        "ISIC2018_Task1-2_{}_Input",
        "ISIC2018_Task1_{}_GroundTruth",
        ("Training", "Validation", "Test"),
        3694,
    ),
}


class TestISIC:
    @pytest.mark.parametrize("year", ["2017", "2018"])
    def test_later_years_with_their_splits(self, miniatures: ModuleType, tmp_path: Path, year: str) -> None:
        images, masks, parts, count = ISIC_FOLDERS[year]
        raw = tmp_path / "raw"
        for number, part in enumerate(parts):
            name, mask = f"ISIC_{number:07d}", miniatures.blob(number)
            miniatures.save(raw / images.format(part) / f"{name}.jpg", miniatures.picture(number, mask))
            miniatures.save(raw / images.format(part) / f"{name}_superpixels.png", miniatures.picture(number, mask))
            (raw / images.format(part) / "ATTRIBUTION.txt").write_text("x")
            miniatures.save(raw / masks.format(part) / f"{name}_segmentation.png", mask)
        summary = prepare("isic", raw, tmp_path / "out")
        assert summary.splits == {"train": 1, "val": 1, "test": 1}
        assert said(summary, f"3 cases found, {count} expected")
        facts = json.loads((tmp_path / "out" / "dataset.json").read_text())
        assert facts["licence"] == ("CC BY-NC 4.0" if year == "2018" else "CC0 1.0")
        assert year in facts["origin"]["release"]

    def test_the_four_archives_side_by_side(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("isic", tmp_path)
        raw = tmp_path / "downloads"
        raw.mkdir()
        for folder in sorted(made.raw.iterdir()):
            miniatures.pack(folder, raw / f"{folder.name}.zip")
        summary = prepare("isic", raw, tmp_path / "out")
        assert summary.splits == {"train": 3, "test": 2}
        assert all((mask_of(tmp_path / "out", case) == mask).all() for case, mask in made.truth.items())

    def test_a_missing_part_is_left_out_with_a_warning(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("isic", tmp_path)
        shutil.rmtree(made.raw / "ISBI2016_ISIC_Part1_Test_GroundTruth")
        summary = prepare("isic", made.raw, tmp_path / "out")
        assert said(summary, "ISBI2016_ISIC_Part1_Test_GroundTruth is not there: test is left out")
        assert summary.splits == {"unassigned": 3}, "one part alone is no split"

    def test_images_alone_are_refused(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("isic", tmp_path)
        archive = miniatures.pack(made.raw / "ISBI2016_ISIC_Part1_Training_Data", tmp_path / "Data.zip")
        with pytest.raises(DataError, match="ISBI2016_ISIC_Part1_Training_GroundTruth"):
            prepare("isic", archive, tmp_path / "out")

    def test_two_years_are_refused(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("isic", tmp_path)
        miniatures.save(
            made.raw / "ISIC-2017_Training_Data" / "ISIC_0000000.jpg", miniatures.picture(0, miniatures.blob(0))
        )
        with pytest.raises(DataError, match="2016 and 2017"):
            prepare("isic", made.raw, tmp_path / "out")


class TestBUSI:
    def test_masks_are_joined_and_words_do_not_tell(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("busi", tmp_path)
        summary = prepare("busi", made.raw, tmp_path / "out")
        rows = rows_of(tmp_path / "out")
        assert summary.empty_masks == 2
        assert summary.classes == {"benign": 2, "malignant": 2, "normal": 2}
        assert {row["prompts"]["p1"] for row in rows.values()} == {"breast tumor"}
        assert rows["2_benign"]["attributes"]["masks_joined"] == 2
        assert "masks_joined" not in rows["1_benign"]["attributes"]

    def test_masks_of_one_image_that_differ_in_size(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("busi", tmp_path)
        miniatures.save(made.raw / "benign" / "benign (2)_mask_1.png", np.zeros((9, 9), bool))
        with pytest.raises(DataError, match=r"9 x 9 pixels, but benign \(2\)_mask.png of the same image has 64 x 48"):
            prepare("busi", made.raw, tmp_path / "out")

    def test_an_image_without_a_mask(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("busi", tmp_path)
        (made.raw / "normal" / "normal (1)_mask.png").unlink()
        with pytest.raises(DataError, match=r"has no mask called normal \(1\)_mask"):
            prepare("busi", made.raw, tmp_path / "out")

    def test_a_class_is_missing(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("busi", tmp_path)
        shutil.rmtree(made.raw / "normal")
        assert said(prepare("busi", made.raw, tmp_path / "out"), "no image of normal")


class TestCAMUS:
    def test_what_is_known_of_a_scan(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("camus", tmp_path)
        summary = prepare("camus", made.raw, tmp_path / "out", jobs=3)
        rows = rows_of(tmp_path / "out")
        row = rows["patient0002_4CH_ES_myocardium"]
        assert row["attributes"] == {
            "class": "myocardium",
            "view": "4CH",
            "phase": "ES",
            "sex": "male",
            "age": 52,
            "image_quality": "good",
            "ejection_fraction": 51.8,
        }
        assert row["spacing"] == [0.154, 0.308], "row first"
        assert (summary.cases, summary.images, summary.groups) == (36, 12, 3)
        assert summary.splits == {"train": 24, "test": 12}, "by folder, as both have masks"
        assert rows["testing_patient0001_2CH_ED_myocardium"]["group"] == "testing_patient0001"
        image = read_image(tmp_path / "out" / row["image"])
        wall = made.truth["patient0002_4CH_ES_left_ventricular_cavity"]
        assert image[wall].mean() > image[~wall].mean() + 20

    def test_test_patients_without_ground_truth(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("camus", tmp_path)
        for file in (made.raw / "testing").rglob("*_gt.*"):
            file.unlink()
        summary = prepare("camus", made.raw, tmp_path / "out")
        assert said(summary, "4 images have no ground truth and are left out")
        assert summary.splits == {"unassigned": 24}

    @pytest.mark.parametrize("name", ["training", "testing"])
    def test_a_folder_or_archive_alone_keeps_its_meaning(
        self, miniatures: ModuleType, tmp_path: Path, name: str
    ) -> None:
        made = miniatures.build("camus", tmp_path)
        archive = miniatures.pack(made.raw / name, tmp_path / f"{name}.zip")
        for number, raw in enumerate((made.raw / name, archive)):
            prepare("camus", raw, tmp_path / f"out{number}")
            starts = {case.startswith("testing_") for case in rows_of(tmp_path / f"out{number}")}
            assert starts == {name == "testing"}

    def test_nifti_release(self, miniatures: ModuleType, tmp_path: Path) -> None:
        nibabel = pytest.importorskip("nibabel")
        raw = tmp_path / "CAMUS_public"
        for number in (1, 2, 451):
            patient = f"patient{number:04d}"
            place = raw / "database_nifti" / patient
            place.mkdir(parents=True)
            for scan in ("2CH_ED", "4CH_ES"):
                labels = miniatures.echo_labels(number)
                for name, pixels in ((scan, miniatures.picture(1, labels == 1, colours=1)), (f"{scan}_gt", labels)):
                    # NIfTI counts columns first.
                    image = nibabel.Nifti1Image(pixels.T, np.eye(4))
                    image.header.set_zooms((0.3, 0.2))
                    nibabel.save(image, place / f"{patient}_{name}.nii.gz")
            nibabel.save(
                nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)),
                place / f"{patient}_2CH_half_sequence.nii.gz",
            )
            (place / "Info_2CH.cfg").write_text(
                "ED: 1\nES: 18\nNbFrame: 18\nSex: F\nAge: 56\nImageQuality: Poor\nEF: 54\nFrameRate: 46.9\n"
            )
        split = raw / "database_split"
        split.mkdir()
        for name, patient in (("training", 1), ("validation", 2), ("testing", 451)):
            (split / f"subgroup_{name}.txt").write_text(f"patient{patient:04d}\n")
        summary = prepare("camus", raw, tmp_path / "out")
        rows = rows_of(tmp_path / "out")
        assert (summary.cases, summary.images, summary.groups) == (18, 6, 3)
        assert summary.splits == {"train": 6, "val": 6, "test": 6}
        row = rows["patient0001_2CH_ED_left_ventricular_cavity"]
        assert row["spacing"] == pytest.approx([0.2, 0.3])
        assert row["attributes"]["ejection_fraction"] == 54.0
        assert (mask_of(tmp_path / "out", row["case_id"]) == (miniatures.echo_labels(1) == 1)).all()
        assert said(summary, "have no Info_2CH.cfg or Info_4CH.cfg")
        assert said(summary, "18 cases found, 6000 expected")

    @pytest.mark.parametrize("archived", [False, True])
    def test_nifti_units_and_damage(self, miniatures: ModuleType, tmp_path: Path, archived: bool) -> None:
        nibabel = pytest.importorskip("nibabel")
        raw = tmp_path / "CAMUS_public"
        place = raw / "database_nifti" / "patient0001"
        place.mkdir(parents=True)
        labels = miniatures.echo_labels(1)
        for scan, ending in (("2CH_ED", "nii"), ("4CH_ED", "nii.gz"), ("2CH_ES", "nii"), ("4CH_ES", "nii.gz")):
            for name, pixels in ((scan, miniatures.picture(1, labels == 1, colours=1)), (f"{scan}_gt", labels)):
                image = nibabel.Nifti1Image(pixels.T, np.diag([3e-4, 2e-4, 1e-3, 1]))
                image.header.set_xyzt_units("meter")
                nibabel.save(image, place / f"patient0001_{name}.{ending}")
        for name in ("2CH_ES.nii", "4CH_ES_gt.nii.gz"):
            file = place / f"patient0001_{name}"
            file.write_bytes(file.read_bytes()[:-200])
        given = miniatures.pack(raw, tmp_path / "camus.zip") if archived else raw
        with pytest.raises(DataError, match=r"patient0001_2CH_ES\.nii: cannot be read as NIfTI"):
            prepare("camus", given, tmp_path / "other", jobs=1)
        summary = prepare("camus", given, tmp_path / "out", skip_bad=True, jobs=3)
        assert (summary.cases, len(summary.skipped)) == (6, 6)
        rows = rows_of(tmp_path / "out")
        assert all(row["spacing"] == pytest.approx([0.2, 0.3]) for row in rows.values()), "metres became millimetres"
        assert (mask_of(tmp_path / "out", "patient0001_4CH_ED_myocardium") == (labels == 2)).all()

    def test_files_are_decoded_once_and_never_by_the_thread_that_lists_cases(
        self, miniatures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = miniatures.build("camus", tmp_path)
        decoded: list[tuple[str, bool]] = []
        plain = camus.read_metaimage

        def watched(content: bytes, where: str, beside: Callable[[str], bytes]) -> Slice:
            decoded.append((where, threading.current_thread() is threading.main_thread()))
            time.sleep(0.005)
            return plain(content, where, beside)

        monkeypatch.setattr(camus, "read_metaimage", watched)

        def stop(done: int) -> None:
            if done == 18:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepare("camus", made.raw, tmp_path / "out", jobs=6, progress=stop)
        first = [where for where, _ in decoded]
        assert len(set(first)) == len(first)
        decoded.clear()
        summary = prepare("camus", made.raw, tmp_path / "out", jobs=6)
        assert summary.resumed >= 17
        assert len(decoded) == len(set(decoded)) <= 2 * 12 - 2 * (summary.resumed // 3)
        assert not any(on_main for _, on_main in decoded)
        assert all(row["spacing"] == [0.154, 0.308] for row in rows_of(tmp_path / "out").values())

    def test_labels_of_something_else(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("camus", tmp_path)
        place = made.raw / "training" / "patient0001"
        miniatures.metaimage(place / "patient0001_2CH_ED_gt.mhd", np.full((60, 40), 7, np.uint8), (1, 1), packed=False)
        with pytest.raises(DataError, match=r"labels \[7\]; a CAMUS ground truth has 0, 1, 2, 3"):
            prepare("camus", made.raw, tmp_path / "out")

    def test_published_test_patients_are_those_of_testing(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("camus", tmp_path)
        entry = {"img_name": "patient0001_2CH_ED.png", "mask_name": "mask_1/patient0001_2CH_ED_gt.png"}
        lists = tmp_path / "camus"
        lists.mkdir()
        for split in ("val", "test"):
            (lists / f"{split}.json").write_text(json.dumps([{**entry, "prompts": {"p1": split}}]))
        summary = prepare("camus", made.raw, tmp_path / "out", annotations=lists)
        rows = rows_of(tmp_path / "out")
        assert rows["patient0001_2CH_ED_left_ventricular_cavity"]["prompts"]["p1"] == "val"
        assert rows["testing_patient0001_2CH_ED_left_ventricular_cavity"]["prompts"]["p1"] == "test"
        assert summary.splits == {"train": 23, "val": 1, "test": 1}
        assert said(summary, "23 cases stand in no list and are used for train")
        assert said(summary, "11 cases stand in no list and are left out")


class TestCheXlocalize:
    def test_image_names_and_groups(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("chexlocalize", tmp_path)
        summary = prepare("chexlocalize", made.raw, tmp_path / "out")
        rows = rows_of(tmp_path / "out")
        row = rows["patient64541_study1_view1_frontal_pleural_effusion"]
        assert row["attributes"] == {"class": "pleural effusion", "view": "frontal", "subset": "val"}
        assert row["prompts"]["p1"] == "pleural effusion"
        assert row["image"] == "images/patient64541_study1_view1_frontal.jpg"
        assert (summary.cases, summary.images, summary.groups, summary.empty_masks) == (9, 6, 3, 0)

    def test_absent_findings_on_request(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("chexlocalize", tmp_path)
        summary = prepare("chexlocalize", made.raw, tmp_path / "out", variant="all")
        assert (summary.cases, summary.images, summary.empty_masks) == (60, 6, 51)
        assert said(summary, "6860 expected")

    def test_one_half_of_the_set(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("chexlocalize", tmp_path)
        (made.raw / "CheXlocalize" / "gt_segmentations_test.json").unlink()
        assert said(prepare("chexlocalize", made.raw, tmp_path / "out"), "only gt_segmentations_val.json is there")

    def test_masks_without_images(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("chexlocalize", tmp_path)
        (made.raw / "CheXpert" / "val" / "patient64541" / "study1" / "view1_frontal.jpg").unlink()
        with pytest.raises(DataError, match=r"its image patient64541/study1/view1_frontal.jpg is not there"):
            prepare("chexlocalize", made.raw, tmp_path / "out")
        assert len(prepare("chexlocalize", made.raw, tmp_path / "out", skip_bad=True).skipped) == 2
        shutil.rmtree(made.raw / "CheXpert")
        with pytest.raises(DataError, match="not CheXlocalize with its images"):
            prepare("chexlocalize", made.raw, tmp_path / "other")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"counts": "00000~"}, "none of a compressed RLE"),
            ({"size": [48]}, "is no size"),
            ({"size": [64, 48]}, "64|48"),
            ({"size": [10**9, 10**9]}, "pixels"),
            ({"counts": [1, 2]}, "3 of 3072"),
            ({"counts": None}, "counts"),
        ],
    )
    def test_a_damaged_mask(self, miniatures: ModuleType, tmp_path: Path, change: dict, message: str) -> None:
        made = miniatures.build("chexlocalize", tmp_path)
        path = made.raw / "CheXlocalize" / "gt_segmentations_val.json"
        content = json.loads(path.read_text())
        content["patient64541_study1_view1_frontal"]["Cardiomegaly"].update(change)
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=message) as caught:
            prepare("chexlocalize", made.raw, tmp_path / "out")
        assert "\n" not in str(caught.value)
        if change.get("counts") is not None or "size" in change:
            assert len(prepare("chexlocalize", made.raw, tmp_path / "out", skip_bad=True).skipped) == 1

    @pytest.mark.parametrize("text", ["", "[]", '{"x": {}}', '{"patient1_study1_view1_frontal": 3}', "{", '{"a": NaN}'])
    def test_json_of_something_else(self, miniatures: ModuleType, tmp_path: Path, text: str) -> None:
        made = miniatures.build("chexlocalize", tmp_path)
        (made.raw / "CheXlocalize" / "gt_segmentations_val.json").write_text(text)
        with pytest.raises(DataError) as caught:
            prepare("chexlocalize", made.raw, tmp_path / "out")
        assert "gt_segmentations_val.json" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_unknown_findings_are_told(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("chexlocalize", tmp_path)
        path = made.raw / "CheXlocalize" / "gt_segmentations_val.json"
        path.write_text(path.read_text().replace('"Airspace Opacity"', '"Lung Opacity"').replace("Edema", "Fracture"))
        summary = prepare("chexlocalize", made.raw, tmp_path / "out")
        assert said(summary, "not among the ten are left out: 'Fracture'")


class TestFolders:
    def test_first_release_of_colondb(self, miniatures: ModuleType, tmp_path: Path) -> None:
        raw = tmp_path / "CVC-ColonDB"
        for number in (1, 2):
            mask = miniatures.blob(number)
            miniatures.save(raw / f"{number}.tiff", miniatures.picture(number, mask))
            for prefix in ("p", "c", "cp"):
                miniatures.save(raw / f"{prefix}{number}.tiff", mask)
        summary = prepare("colondb_polyp", raw, tmp_path / "out")
        assert summary.cases == 2
        assert said(summary, "300 expected")

    def test_the_set_is_told_by_its_folder(self, miniatures: ModuleType, tmp_path: Path) -> None:
        raw = tmp_path / "TestDataset"
        for number, name in enumerate(("CVC-300", "CVC-ClinicDB", "CVC-ColonDB", "ETIS-LaribPolypDB", "Kvasir")):
            mask = miniatures.blob(number)
            miniatures.save(raw / name / "images" / "1.png", miniatures.picture(number, mask))
            miniatures.save(raw / name / "masks" / "1.png", mask)
        for number, name in enumerate(
            ("cvc300_polyp", "clinicdb_polyp", "colondb_polyp", "etis_polyp", "kvasir_polyp")
        ):
            prepare(name, raw, tmp_path / name)
            assert (mask_of(tmp_path / name, "1") == miniatures.blob(number)).all()

    def test_another_set_is_not_taken(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.kvasir_polyp(tmp_path / "Kvasir-SEG")
        with pytest.raises(DataError, match="named as another set"):
            prepare("etis_polyp", made.raw, tmp_path / "out")
        with pytest.raises(DataError, match="named as another set"):
            prepare("dfu", miniatures.pack(made.raw, tmp_path / "archive.zip"), tmp_path / "out")

    def test_several_places_are_not_guessed(self, miniatures: ModuleType, tmp_path: Path) -> None:
        for part in ("one", "two"):
            miniatures.kvasir_polyp(tmp_path / "raw" / part)
        with pytest.raises(DataError, match=r"2 places could be Kvasir-SEG \(one, two\)"):
            prepare("kvasir_polyp", tmp_path / "raw", tmp_path / "out")

    def test_files_without_their_other_half(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("kvasir_polyp", tmp_path)
        (made.raw / "masks" / "cju1abc.jpg").rename(made.raw / "masks" / "other.jpg")
        with pytest.raises(DataError, match="has no mask called cju1abc in"):
            prepare("kvasir_polyp", made.raw, tmp_path / "out")
        summary = prepare("kvasir_polyp", made.raw, tmp_path / "out", skip_bad=True)
        assert said(summary, "1 mask(s) belong to no image, the first is masks/other.jpg")

    def test_absurd_dimensions_in_an_archive(self, miniatures: ModuleType, tmp_path: Path) -> None:
        made = miniatures.build("kvasir_polyp", tmp_path)
        (made.raw / "masks" / "cju0abc.jpg").write_bytes(b"P5\n1000000 1000000\n255\n" + bytes(100))
        archive = miniatures.pack(made.raw, tmp_path / "k.zip")
        with pytest.raises(DataError, match=r"k\.zip: masks/cju0abc\.jpg: .*pixels") as caught:
            prepare("kvasir_polyp", archive, tmp_path / "out")
        assert "\n" not in str(caught.value)


def test_a_tree_is_closed_after_use(miniatures: ModuleType, tmp_path: Path) -> None:
    archive = miniatures.pack(miniatures.build("dfu", tmp_path).raw, tmp_path / "a.zip")
    with open_tree(archive) as tree:
        file = tree.files[0]
    with pytest.raises(DataError, match="cannot be read"):
        file.read_bytes()
