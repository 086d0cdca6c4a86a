"""Layouts as people have them, and lists of cases as nobody should have them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlsm_adapter.data import entries
from vlsm_adapter.data.division import Division
from vlsm_adapter.data.images import FORMATS, read_pair
from vlsm_adapter.data.layouts import IMAGE_SUFFIXES, natural_key
from vlsm_adapter.data.records import list_images, load_records, write_manifest
from vlsm_adapter.data.sources.prepare import prepare
from vlsm_adapter.errors import ConfigError, DataError
from vlsm_adapter.types import Record

SHARED = Path(__file__).parents[3] / ".." / "shared" / "data"
PROMPTS = {"p0": "", "p1": "polyp", "p7": ["polyp which grows", "polyp which is a lump"]}


def put(path: Path, size: tuple[int, int] = (12, 8), mask: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[2:5, 3:7] = 255
    Image.fromarray(pixels if mask else np.repeat(pixels[..., None] // 2, 3, axis=2)).save(path)
    return path


def published(root: Path, counts: dict[str, int] | None = None, images: str = "images", masks: str = "masks") -> Path:
    for split, count in (counts or {"train": 4, "val": 1, "test": 2}).items():
        rows = []
        for i in range(count):
            put(root / images / f"{split}{i}.jpg")
            put(root / masks / f"{split}{i}.png", mask=True)
            rows.append({"img_name": f"{split}{i}.jpg", "mask_name": f"{split}{i}.png", "prompts": PROMPTS, "cat": 0})
        (root / "anns").mkdir(exist_ok=True)
        (root / "anns" / f"{split}.json").write_text(json.dumps(rows))
    return root


def manifest(root: Path, *rows: Any, name: str = "records.jsonl") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (root / name).write_text(text, encoding="utf-8")
    return root / name


def refused(path: Path, *parts: str, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        load_records(path, **options)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return message


# The published layout


def test_published_layout(tmp_path: Path) -> None:
    records, skipped = load_records(published(tmp_path / "kvasir"))
    assert skipped == []
    assert [record.case_id for record in records] == ["train0", "train1", "train2", "train3", "val0", "test0", "test1"]
    first = records[0]
    assert first.image == tmp_path / "kvasir" / "images" / "train0.jpg"
    assert first.mask == tmp_path / "kvasir" / "masks" / "train0.png"
    assert first.prompts == {"p0": ("",), "p1": ("polyp",), "p7": tuple(PROMPTS["p7"])}
    assert (first.split, first.group, first.spacing, first.dataset) == ("train", None, None, "kvasir")
    assert {record.split for record in records} == {"train", "val", "test"}


def test_published_without_val_takes_it_from_train(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records, _ = load_records(published(tmp_path, {"train": 16, "test": 3}))
    assert sum(record.split == "val" for record in records) == 2
    assert "no val split" in caplog.text
    again, _ = load_records(tmp_path, split_seed=0)
    assert again == records
    other, _ = load_records(tmp_path, split_seed=1)
    assert other != records


def test_published_with_one_split(tmp_path: Path) -> None:
    assert {record.split for record in load_records(published(tmp_path, {"test": 2}))[0]} == {"test"}


def test_camus_like_sub_folders(tmp_path: Path) -> None:
    names = ["patient1_2CH_ED.png", "patient2_2CH_ED.png"]
    for split, sub in (("train", "train"), ("test", "test")):
        for name in names:
            put(tmp_path / "images" / sub / name)
            for label in (1, 2):
                put(tmp_path / "masks" / sub / f"mask_{label}" / name, mask=True)
        rows = [{"img_name": n, "mask_name": f"mask_{k}/{n}", "prompts": PROMPTS} for n in names for k in (1, 2)]
        (tmp_path / "anns").mkdir(exist_ok=True)
        (tmp_path / "anns" / f"{split}.json").write_text(json.dumps(rows[:2] if split == "train" else rows))
    # The published validation cases of CAMUS come from the training folder and share their names with test cases.
    (tmp_path / "anns" / "val.json").write_text(json.dumps(rows[2:]))
    records, skipped = load_records(tmp_path)
    assert skipped == []
    assert len({record.case_id for record in records}) == 8
    assert records[0].case_id == "train__patient1_2CH_ED__train__mask_1__patient1_2CH_ED"
    assert [record.image.parent.name for record in records] == ["train"] * 4 + ["test"] * 4
    # One image with two masks is one group.
    assert records[0].group == records[1].group is not None
    assert len({record.group for record in records}) == 4


def test_a_case_in_two_splits_is_kept_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    published(tmp_path, {"train": 2, "test": 1})
    rows = json.loads((tmp_path / "anns" / "train.json").read_text())
    (tmp_path / "anns" / "test.json").write_text(json.dumps([rows[0]]))
    records, _ = load_records(tmp_path, fractions=(0.8, 0, 0.2))
    assert [record.case_id for record in records] == ["train0", "train1", "train0__test"]
    assert "more than one split" in caplog.text


def test_a_case_listed_twice_is_used_once_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    published(tmp_path, {"train": 2, "val": 1})
    rows = json.loads((tmp_path / "anns" / "train.json").read_text())
    (tmp_path / "anns" / "train.json").write_text(json.dumps([*rows, rows[0]]))
    records, skipped = load_records(tmp_path)
    assert len(records) == 3
    assert [case.case_id for case in skipped] == ["train0"]
    assert "entry 2" in skipped[0].reason
    assert "listed twice" in caplog.text


@pytest.mark.parametrize(
    "kind",
    [{"mask_value": (1, 2)}, {"text": ("cyst", "dark cyst")}, {"mask_value": (1, 2), "text": ("liver", "spleen")}],
)
def test_cases_of_one_image_are_never_divided(tmp_path: Path, kind: dict[str, tuple[object, object]]) -> None:
    rows = []
    for number in range(20):
        put(tmp_path / f"c{number}.png")
        put(tmp_path / f"c{number}_m.png", mask=True)
        files_of = {"image": f"c{number}.png", "mask": f"c{number}_m.png", "text": "organ"}
        rows += [{**files_of, **{key: values[which] for key, values in kind.items()}} for which in (0, 1)]
    (tmp_path / "m.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    records, skipped = load_records(tmp_path / "m.jsonl", fractions=(0.4, 0.3, 0.3))
    assert (len(records), skipped) == (40, [])
    assert {record.group for record in records} == {f"image:c{number}" for number in range(20)}
    splits: dict[Path, set[str | None]] = {}
    for record in records:
        splits.setdefault(record.image, set()).add(record.split)
    assert all(len(held) == 1 for held in splits.values())
    assert {split for held in splits.values() for split in held} == {"train", "val", "test"}


def test_labels_of_one_mask_with_the_same_words_are_cases_of_their_own(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    put(tmp_path / "m.png", mask=True)
    rows = [{"image": "a.png", "mask": "m.png", "mask_value": label, "text": f"kidney {label}"} for label in (1, 2, 3)]
    (tmp_path / "m.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, rows[1]]))
    records, skipped = load_records(tmp_path / "m.jsonl", prompt="kidney")
    assert [record.case_id for record in records] == ["a", "a__label-2", "a__label-3"]
    assert [record.mask_value for record in records] == [1, 2, 3]
    assert [case.case_id for case in skipped] == ["a__label-2"]
    # With their own words they are told apart by these, as ever.
    own, _ = load_records(tmp_path / "m.jsonl")
    assert [record.case_id.partition("__")[0] for record in own] == ["a"] * 3
    assert not any("label" in record.case_id for record in own)


# Plain folders


@pytest.mark.parametrize(
    ("images", "masks", "ending"),
    [
        ("images", "masks", ""),
        ("img", "labels", "_mask"),
        ("imgs", "mask", "_Segmentation"),
        ("image", "label", "-seg"),
    ],
)
def test_plain_folder(tmp_path: Path, images: str, masks: str, ending: str) -> None:
    for i in (1, 2, 10):
        put(tmp_path / images / f"x{i}.jpg")
        put(tmp_path / masks / f"x{i}{ending}.png", mask=True)
    refused(tmp_path, '--prompt "polyp"')
    records, _ = load_records(tmp_path, prompt=" cell ")
    assert [record.case_id for record in records] == ["x1", "x2", "x10"]
    assert records[0].prompts == {"p0": ("",), "p1": ("cell",)}
    assert {record.split for record in records} == {"train", "val", "test"}


def test_flat_folder_of_pairs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path / f"{name}.png")
        put(tmp_path / f"{name}_mask.png", mask=True)
    records, _ = load_records(tmp_path, prompt="cell")
    assert [(record.case_id, record.mask.name) for record in records if record.mask] == [
        ("a", "a_mask.png"),
        ("b", "b_mask.png"),
    ]


def test_split_folders_of_both_kinds(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("valid", "b"), ("test", "a")):
        put(tmp_path / "one" / split / "images" / f"{name}.png")
        put(tmp_path / "one" / split / "masks" / f"{name}.png", mask=True)
        put(tmp_path / "two" / "images" / split / f"{name}.png")
        put(tmp_path / "two" / "masks" / split / f"{name}.png", mask=True)
    for root in ("one", "two"):
        records, _ = load_records(tmp_path / root, prompt="cell")
        assert sorted(str(record.split) for record in records) == ["test", "train", "val"]
        assert len({record.case_id for record in records}) == 3


def test_two_images_of_one_stem_get_two_ids(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        put(tmp_path / "images" / name)
    put(tmp_path / "masks" / "a.png", mask=True)
    records, _ = load_records(tmp_path, prompt="cell")
    assert sorted(record.case_id for record in records) == ["a.jpg", "a.png"]


def test_a_missing_and_a_second_mask(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b", "c"):
        put(tmp_path / "images" / f"{name}.png")
    for name in ("a", "b", "b_mask", "left_over"):
        put(tmp_path / "masks" / f"{name}.png", mask=True)
    refused(tmp_path, "b.png", "several masks", prompt="cell")
    records, skipped = load_records(tmp_path, prompt="cell", skip_bad=True)
    assert [record.case_id for record in records] == ["a"]
    assert [case.case_id for case in skipped] == ["b", "c", "left_over"]
    assert "has no mask" in skipped[1].reason
    assert "left_over" in caplog.text


@pytest.mark.parametrize("sub", [("images", "masks"), ("", "")], ids=["folders", "flat"])
def test_several_masks_of_one_image_are_said_to_be_parts(tmp_path: Path, sub: tuple[str, str]) -> None:
    """As BUSI has them: the first alone would be half of the truth."""
    root = tmp_path / "busi data"
    for number in (1, 2):
        put(root / sub[0] / f"benign ({number}).png")
        put(root / sub[1] / f"benign ({number})_mask.png", mask=True)
    second = root / sub[1] / "benign (2)_mask_1.png"
    second.parent.mkdir(exist_ok=True)
    pixels = np.zeros((8, 12), np.uint8)
    pixels[6:, 9:] = 255
    Image.fromarray(pixels).save(second)
    command = f"vlsm data prepare busi --raw '{root}' --out DIR"
    refused(root, "benign (2).png: has the masks benign (2)_mask.png, benign (2)_mask_1.png", command, prompt="tumor")
    records, skipped = load_records(root, prompt="tumor", skip_bad=True)
    assert ([record.case_id for record in records], [case.case_id for case in skipped]) == (
        ["benign (1)"],
        ["benign (2)"],
    )
    prepare("busi", root, tmp_path / "out")
    joined = {record.case_id: record for record in load_records(tmp_path / "out")[0]}
    assert read_pair(joined["2_benign"])[1].sum() == 12 + 6


def test_a_number_after_the_ending_of_a_mask_may_be_the_image_s_own(tmp_path: Path) -> None:
    for name in ("a", "a_seg_1"):
        put(tmp_path / "images" / f"{name}.png")
        put(tmp_path / "masks" / f"{name}.png", mask=True)
    assert len(load_records(tmp_path, prompt="cell")[0]) == 2


def test_an_image_called_like_a_further_mask_has_its_own(tmp_path: Path) -> None:
    for name in ("a", "a_seg_1", "a_seg_2"):
        put(tmp_path / f"{name}.png")
        put(tmp_path / f"{name}_mask.png", mask=True)
    records, _ = load_records(tmp_path, prompt="cell")
    assert [record.case_id for record in records] == ["a", "a_seg_1", "a_seg_2"]


@pytest.mark.parametrize(("one", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("sub", [("images", "masks"), ("", "")], ids=["folders", "flat"])
def test_names_pair_however_accents_are_written(tmp_path: Path, one: Any, other: Any, sub: tuple[str, str]) -> None:
    """macOS writes an umlaut as two characters; the id, of which splits are drawn, is the same everywhere."""
    name = "M\u00fcller"
    put(tmp_path / sub[0] / f"{unicodedata.normalize(one, name)}.png")
    put(tmp_path / sub[1] / f"{unicodedata.normalize(other, name)}_mask.png", mask=True)
    records, _ = load_records(tmp_path, prompt="cell")
    assert [record.case_id for record in records] == [name]


FORMS = [("NFC", "NFD"), ("NFD", "NFC")]


def form(name: Any, text: str) -> str:
    return unicodedata.normalize(name, text)


def unicode_matters(folder: Path) -> None:
    (folder / form("NFC", "\u00e9")).mkdir(parents=True)
    if (folder / form("NFD", "\u00e9")).exists():
        pytest.skip("forms of Unicode do not matter on this disc")


@pytest.mark.parametrize(("listed", "stored"), FORMS)
def test_a_manifest_finds_files_however_accents_are_written(tmp_path: Path, listed: str, stored: str) -> None:
    names = ["Klinik K\u00f6ln/M\u00fcller.png", "masks/M\u00fcller.png"]
    put(tmp_path / form(stored, names[0]))
    put(tmp_path / form(stored, names[1]), mask=True)
    row = {"image": form(listed, names[0]), "mask": form(listed, names[1]), "text": "cell"}
    (record,) = load_records(manifest(tmp_path, row))[0]
    assert record.case_id == "Klinik K\u00f6ln__M\u00fcller"
    assert record.image == (tmp_path / form(stored, names[0])).resolve()
    assert record.mask == (tmp_path / form(stored, names[1])).resolve()


@pytest.mark.parametrize(("listed", "stored"), FORMS)
@pytest.mark.parametrize("sub", ["", "train/"])
def test_the_published_layout_finds_files_however_accents_are_written(
    tmp_path: Path, listed: str, stored: str, sub: str
) -> None:
    put(tmp_path / "images" / sub / form(stored, "M\u00fcller.png"))
    put(tmp_path / "masks" / sub / form(stored, "M\u00fcller.png"), mask=True)
    name = form(listed, "M\u00fcller.png")
    (tmp_path / "anns").mkdir()
    (tmp_path / "anns" / "train.json").write_text(
        json.dumps([{"img_name": name, "mask_name": name, "prompts": PROMPTS}])
    )
    (record,) = load_records(tmp_path)[0]
    assert record.case_id == f"{sub.replace('/', '__')}M\u00fcller"
    assert record.image.is_file()
    assert record.mask is not None
    assert record.mask.is_file()


def test_a_name_as_it_is_listed_comes_before_its_other_form(tmp_path: Path) -> None:
    unicode_matters(tmp_path / "try")
    for name, size in (("NFC", (12, 8)), ("NFD", (14, 9))):
        put(tmp_path / form(name, "\u00e9.png"), size)
        put(tmp_path / form(name, "\u00e9_mask.png"), size, mask=True)
    rows = [
        {"image": form(name, "\u00e9.png"), "mask": form(name, "\u00e9_mask.png"), "text": "cell", "case_id": name}
        for name in ("NFC", "NFD")
    ]
    for record in load_records(manifest(tmp_path, *rows))[0]:
        assert record.image.name == form(record.case_id, "\u00e9.png")
        assert record.mask is not None
        assert record.mask.name == form(record.case_id, "\u00e9_mask.png")


def test_two_files_that_a_name_may_mean_are_told(tmp_path: Path) -> None:
    unicode_matters(tmp_path / "try")
    for name in ("NFC", "NFD"):
        put(tmp_path / form(name, "\u00e9\u00e9.png"))
    row = {"image": "e\u0301\u00e9.png", "text": "cell"}  # in neither form
    said = refused(manifest(tmp_path, row), "line 1, 'image'", r"'\xe9\xe9.png'", r"'e\u0301e\u0301.png'", "rename one")
    assert str(tmp_path) in said


@pytest.mark.parametrize("folders", [("Images", "Masks", "anns"), ("IMAGES", "MASKS", "ANNS")])
@pytest.mark.parametrize("sub", ["", "Train"])
def test_published_layout_in_capitals(tmp_path: Path, folders: tuple[str, str, str], sub: str) -> None:
    published(tmp_path, {"train": 3}, images=f"{folders[0]}/{sub}", masks=f"{folders[1]}/{sub}")
    (tmp_path / "anns").rename(tmp_path / folders[2])
    records, _ = load_records(tmp_path)
    assert sorted(record.case_id for record in records) == [
        f"{'train__' if sub else ''}train{number}" for number in range(3)
    ]
    assert all(record.image.is_file() and record.mask and record.mask.is_file() for record in records)


def test_published_folders_that_differ_in_capitals(tmp_path: Path) -> None:
    published(tmp_path, {"train": 2}, images="Images")
    (tmp_path / "IMAGES").mkdir(exist_ok=True)
    if len(list(tmp_path.iterdir())) < 4:
        pytest.skip("capitals do not matter on this disc")
    refused(tmp_path, "holds IMAGES/ and Images/", "rename one of them")
    published(tmp_path, {"train": 2})  # as it is called, it is meant
    assert all(record.image.parent.name == "images" for record in load_records(tmp_path)[0])


def capitals_matter(folder: Path) -> None:
    folder.mkdir(parents=True)
    if folder.with_name(folder.name.upper()).exists():
        pytest.skip("capitals do not matter on this disc")


@pytest.mark.parametrize("left", [(), ("README.txt",), (".DS_Store",)], ids=["empty", "a note", "a hidden file"])
def test_an_empty_anns_hides_no_other(tmp_path: Path, left: tuple[str, ...]) -> None:
    capitals_matter(tmp_path / "try" / "a")
    root = published(tmp_path / "set", {"train": 2, "test": 1})
    (root / "anns").rename(root / "Anns")
    (root / "anns").mkdir()
    for name in left:
        (root / "anns" / name).write_text("")
    assert sorted(record.case_id for record in load_records(root)[0]) == ["test0", "train0", "train1"]
    shutil.copytree(root / "Anns", root / "ANNS")
    refused(root, "holds ANNS/ and Anns/", "rename one of them")
    for name in ("ANNS", "Anns"):
        shutil.rmtree(root / name)
    refused(root, "anns: holds none of train.json, val.json, test.json")


@pytest.mark.parametrize(("key", "folder"), [("img_name", "images"), ("mask_name", "masks")])
@pytest.mark.parametrize("sub", ["", "/train"])
def test_an_empty_folder_beside_one_in_capitals_is_told(tmp_path: Path, key: str, folder: str, sub: str) -> None:
    capitals_matter(tmp_path / "try" / "a")
    root = published(tmp_path / "set", {"train": 2}, images=f"images{sub}", masks=f"masks{sub}")
    place = root / f"{folder}{sub}"
    other = place.rename(place.with_name(place.name.capitalize()))
    place.mkdir()
    file = "train0.jpg" if key == "img_name" else "train0.png"
    refused(root, f"entry 0, '{key}': '{file}' is not in {place}/", f"lies {other.name}/: join or rename one of them")
    # Where the files are there, what else is called so is nobody's business; nor is a link to the folder itself.
    for one in list(other.iterdir()):
        one.rename(place / one.name)
    assert len(load_records(root)[0]) == 2
    other.rmdir()
    other.symlink_to(place)
    (place / file).unlink()
    refused(root, f"{file}: no such file")


@pytest.mark.parametrize("base", ["", "Train"])
def test_folders_in_capitals(tmp_path: Path, base: str) -> None:
    put(tmp_path / base / "Images" / "a.png")
    put(tmp_path / base / "MASKS" / "a.png", mask=True)
    (record,) = load_records(tmp_path, prompt="cell", labelled=False)[0]
    assert record.case_id == ("train__a" if base else "a")
    assert record.split == "train"
    if (tmp_path / base / "images").exists():
        pytest.skip("capitals do not matter on this disc")
    (tmp_path / base / "images").mkdir()
    refused(tmp_path, "holds Images/ and images/", "rename", prompt="cell")


def test_capitals_of_folders_that_are_not_read_do_not_matter(tmp_path: Path) -> None:
    for name in ("img/a.png", "masks/a.png"):
        put(tmp_path / name, mask=name.startswith("masks"))
    for name in ("labels", "Labels"):
        (tmp_path / name).mkdir(exist_ok=True)
    assert [record.case_id for record in load_records(tmp_path, prompt="cell")[0]] == ["a"]


def test_manifests_keep_the_ids_that_they_gave_to_tga_files(tmp_path: Path) -> None:
    put(tmp_path / "i" / "x.png").rename(tmp_path / "i" / "x.tga")
    put(tmp_path / "i" / "y.png")
    path = manifest(tmp_path, *({"image": f"i/{name}", "prompts": {"p1": "cell"}} for name in ("x.tga", "y.png")))
    assert [record.case_id for record in load_records(path, labelled=False)[0]] == ["i__x.tga", "i__y"]


# Manifests


def test_manifest_with_everything(tmp_path: Path) -> None:
    put(tmp_path / "i" / "x.png")
    put(tmp_path / "m" / "x.png", mask=True)
    row = {"case_id": "c1", "image": "i/x.png", "mask": "m/x.png", "prompts": {"p1": "polyp"}, "split": "validation"}
    more = {"group": "patient 1", "spacing": [0.5, 0.25], "mask_value": 255, "unknown": [1, {"deep": None}]}
    path = manifest(tmp_path, "\ufeff" + json.dumps({**row, **more}), "", "  ")
    for given_path in (path, tmp_path):
        (record,) = load_records(given_path)[0]
        assert (record.case_id, record.split, record.group) == ("c1", "val", "patient 1")
        assert (record.spacing, record.mask_value, record.dataset) == ((0.5, 0.25), 255, tmp_path.name)
        assert record.prompts == {"p1": ("polyp",)}


def test_a_group_is_one_however_its_accents_are_written(tmp_path: Path) -> None:
    rows = []
    for form in ("NFC", "NFD"):
        put(tmp_path / f"{form}.png")
        rows.append({"image": f"{form}.png", "text": "cell", "group": unicodedata.normalize(form, "Müller")})
    assert {record.group for record in load_records(manifest(tmp_path, *rows), labelled=False)[0]} == {"Müller"}


def test_text_is_short_for_p1_and_shared_images_are_a_group(tmp_path: Path) -> None:
    put(tmp_path / "images" / "a" / "x.png")
    for word in ("cat", "dog"):
        put(tmp_path / "masks" / "a" / f"x__{word}.png", mask=True)
    rows = [
        {"image": "images/a/x.png", "mask": f"masks/a/x__{word}.png", "text": word, "split": "train"}
        for word in ("cat", "dog")
    ]
    records, _ = load_records(manifest(tmp_path, *rows))
    assert [record.case_id for record in records] == ["a__x__cat", "a__x__dog"]
    assert records[0].prompts == {"p1": ("cat",)}
    assert records[0].group == records[1].group is not None


def test_one_case_with_other_words_is_another_case(tmp_path: Path) -> None:
    put(tmp_path / "x.png")
    put(tmp_path / "m.png", mask=True)
    row = {"image": "x.png", "mask": "m.png", "split": "train"}
    records, skipped = load_records(manifest(tmp_path, *({**row, "text": text} for text in ("a", "b", "a", "b"))))
    assert [record.prompts["p1"] for record in records] == [("a",), ("b",)]
    assert records[1].case_id.startswith("x__")
    assert len(skipped) == 2


def test_names_that_are_not_utf8_are_refused_or_listed(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for name in (b"good.png", "Müller.png".encode("latin1")):
            try:
                put(tmp_path / folder / os.fsdecode(name), mask=folder == "masks")
            except OSError:
                pytest.skip("this file system takes UTF-8 names alone")
    with pytest.raises(DataError, match=r"M\\udcfcller.png: the name is not UTF-8; rename"):
        load_records(tmp_path, prompt="polyp")
    records, skipped = load_records(tmp_path, prompt="polyp", skip_bad=True)
    assert [record.case_id for record in records] == ["good"]
    f"{skipped[0].case_id}{skipped[0].path}{skipped[0].reason}".encode()


def test_very_long_names_make_short_ids(tmp_path: Path) -> None:
    for name in ("a" * 60 + "/" + "b" * 200, "a" * 60 + "/" + "b" * 201):
        put(tmp_path / "images" / f"{name}.png")
        put(tmp_path / "masks" / f"{name}.png", mask=True)
    records, _ = load_records(tmp_path, prompt="x")
    assert len({record.case_id for record in records}) == 2
    assert all(len(record.case_id.encode()) <= 200 for record in records)


def test_prompt_takes_the_place_of_the_data_s_own(tmp_path: Path) -> None:
    records, _ = load_records(published(tmp_path), prompt="lump")
    assert all(record.prompts == {"p0": ("",), "p1": ("lump",)} for record in records)
    refused(tmp_path, "empty", prompt="  ")


def test_write_and_read_back(tmp_path: Path) -> None:
    records, _ = load_records(published(tmp_path / "d", {"train": 30, "val": 2, "test": 3}))
    records = [
        Record(
            r.case_id,
            r.image,
            r.mask,
            r.prompts,
            r.split,
            f"g{i}",
            (0.1 + i / 7, 2.0),
            255 if i % 2 else None,
            r.dataset,
        )
        for i, r in enumerate(records)
    ]
    write_manifest(records, tmp_path / "d" / "manifest.jsonl")
    assert load_records(tmp_path / "d", checks=False)[0] == records
    os.rename(tmp_path / "d", tmp_path / "e")  # noqa: PTH104
    moved, _ = load_records(tmp_path / "e")
    assert [record.case_id for record in moved] == [record.case_id for record in records]
    with pytest.raises(DataError, match="lies outside"):
        write_manifest(moved, tmp_path / "other" / "m.jsonl")
    with pytest.raises(DataError, match="stands twice"):
        write_manifest([moved[0], moved[0]], tmp_path / "e" / "m.jsonl")
    assert not (tmp_path / "e" / "m.jsonl").exists()


def test_unlabelled_cases(tmp_path: Path) -> None:
    put(tmp_path / "x.png")
    path = manifest(tmp_path, {"image": "x.png", "text": "polyp", "split": "test"})
    refused(path, "x.png", "has no mask")
    (record,) = load_records(path, labelled=False)[0]
    assert record.mask is None


# Unknown and bad


def test_unknown_layouts(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such folder")
    message = refused(tmp_path, "no known layout")
    for looked_for in ("records.jsonl", "manifest.jsonl", "anns/train.json", "images", "X_mask.png"):
        assert looked_for in message
    (tmp_path / "x.csv").write_text("a,b")
    refused(tmp_path / "x.csv", ".jsonl")
    (tmp_path / "anns").mkdir()
    refused(tmp_path, "holds none of train.json, val.json, test.json")
    manifest(tmp_path)
    refused(tmp_path, "holds no usable case")
    with pytest.raises(ConfigError):
        load_records(published(tmp_path / "p"), fractions=(1, 1, 1))


BAD_ROWS: list[tuple[Any, list[str]]] = [
    ("{", ["line 1", "not valid JSON"]),
    ("[]", ["line 1", "a list, not an object"]),
    ("17", ["a number, not an object"]),
    ('{"image": "a.png", "image": "b.png"}', ["'image'", "twice"]),
    ('{"image": "x.png", "score": NaN}', ["NaN is not JSON"]),
    ('{"image": "x.png", "n": ' + "9" * 5000 + "}", ["thousands of digits"]),
    ('{"image": ' + "[" * 100_000 + "]" * 100_000 + "}", ["nested too deep"]),
    ({}, ["'image'", "missing"]),
    ({"image": 5}, ["'image'", "a number, not a text"]),
    ({"image": ""}, ["'image'", "empty"]),
    ({"image": "../x.png"}, ["'image'", "'../x.png'", "climbs out"]),
    ({"image": "a/../../x.png"}, ["climbs out"]),
    ({"image": "/etc/passwd"}, ["'/etc/passwd'", "not relative"]),
    ({"image": "~/x.png"}, ["not relative"]),
    ({"image": "C:/x.png"}, ["not relative"]),
    ({"image": "a\\..\\x.png"}, ["backslash"]),
    ({"image": "x.png\0.jpg"}, ["NUL"]),
    ({"image": "x\n.png"}, ["control character"]),
    ('{"image": "\\ud800.png"}', ["surrogate"]),
    ({"image": "x" * 5000}, ["5000 characters"]),
    ({"image": "y" * 300 + ".png", "mask": "m.png", "text": "a", "split": "test"}, ["y" * 300]),
    ({"image": "x.png", "mask": "../m.png"}, ["'mask'", "climbs out"]),
    ({"image": "x.png", "mask": ["m.png"]}, ["'mask'", "a list"]),
    ({"image": "out.png", "mask": "m.png"}, ["'image'", "link that leads out"]),
    ({"image": "loop.png", "mask": "m.png", "text": "a", "split": "test"}, ["loop.png"]),
    ({"image": "gone.png", "mask": "m.png", "text": "a", "split": "test"}, ["gone.png", "no such file"]),
    ({"image": "x.png", "mask": "m.png"}, ["line 1", "says no prompt"]),
    ({"image": "x.png", "mask": "m.png", "prompts": {"p1": ""}}, ["says no prompt"]),
    ({"image": "x.png", "prompts": {"p1": 5}}, ["'prompts.p1'", "a number"]),
    ({"image": "x.png", "prompts": {"p1": [None]}}, ["'prompts.p1'", "null"]),
    ({"image": "x.png", "prompts": 7}, ["'prompts'", "a number"]),
    ({"image": "x.png", "prompts": {"p 1": "a"}}, ["'p 1'"]),
    ({"image": "x.png", "text": "a" * 20_000}, ["20000 characters"]),
    ('{"image": "x.png", "text": "a\\udc00"}', ["'text'", "surrogate"]),
    ({"image": "x.png", "text": " "}, ["'text'", "empty"]),
    ({"image": "x.png", "text": "a", "split": "all"}, ["'split'", "'all'", "train, val, test"]),
    ({"image": "x.png", "text": "a", "spacing": [1]}, ["'spacing'", "[row, column]"]),
    ({"image": "x.png", "text": "a", "spacing": [1, -1]}, ["'spacing'", "out of range"]),
    ('{"image": "x.png", "text": "a", "spacing": [1, 1e999]}', ["'spacing'", "out of range"]),
    ('{"image": "x.png", "text": "a", "spacing": [1, 1' + "0" * 400 + "]}", ["'spacing'", "out of range"]),
    ({"image": "x.png", "text": "a", "spacing": [True, 1]}, ["'spacing'", "not a number"]),
    ({"image": "x.png", "text": "a", "mask_value": 1.5}, ["'mask_value'", "whole number"]),
    ({"image": "x.png", "text": "a", "mask_value": -1}, ["'mask_value'"]),
    ({"image": "x.png", "text": "a", "case_id": "a/b"}, ["'case_id'", "cannot name a file"]),
    ({"image": "x.png", "text": "a", "case_id": "."}, ["'case_id'"]),
    ({"image": "x.png", "text": "a", "group": 5}, ["'group'"]),
]


@pytest.mark.parametrize(("row", "parts"), BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_a_bad_line_is_refused_or_listed(tmp_path: Path, row: Any, parts: list[str]) -> None:
    put(tmp_path / "secret.png")
    root = tmp_path / "data"
    put(root / "x.png")
    put(root / "m.png", mask=True)
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    path = manifest(root, row)
    message = refused(path, *parts)
    assert len(message) < 900
    fine = {"image": "x.png", "mask": "m.png", "text": "polyp", "split": "train", "case_id": "fine"}
    manifest(root, row, fine)
    records, skipped = load_records(path, skip_bad=True)
    assert [record.case_id for record in records] == ["fine"]
    assert len(skipped) == 1
    assert skipped[0].reason in message or parts[0] in skipped[0].reason


def test_the_same_refusals_in_the_published_layout(tmp_path: Path) -> None:
    published(tmp_path)
    file = tmp_path / "anns" / "train.json"
    rows = json.loads(file.read_text())
    for key, value, part in [
        ("img_name", "../../x.png", "climbs out"),
        ("mask_name", "/abs.png", "not relative"),
        ("img_name", None, "missing"),
        ("prompts", ["a", 3], "a number"),
        ("prompts", {}, "says no prompt"),
    ]:
        file.write_text(json.dumps([rows[0], {**rows[1], key: value}, *rows[2:]]))
        refused(tmp_path, "train.json: entry 1", part)
    for text, part in [("{}", "list of entries"), ("[", "line 1"), ("\xff\xfe", "UTF-8"), ("", "not valid JSON")]:
        file.write_bytes(text.encode("latin-1"))
        refused(tmp_path, "train.json", part)


def test_two_cases_of_one_id(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path / f"{name}.png")
        put(tmp_path / f"{name}_m.png", mask=True)
    rows = [{"case_id": "same", "image": f"{n}.png", "mask": f"{n}_m.png", "text": "x", "split": "train"} for n in "ab"]
    refused(manifest(tmp_path, *rows), "line 2", "'same'", "line 1")


def test_bad_files_are_counted(tmp_path: Path) -> None:
    published(tmp_path)
    (tmp_path / "images" / "train1.jpg").unlink()
    (tmp_path / "masks" / "train2.png").write_bytes(b"")
    put(tmp_path / "masks" / "test0.png", (99, 8), mask=True)
    refused(tmp_path, "train1.jpg", "no such file", "3 of 7 cases are bad", "--skip-bad")
    records, skipped = load_records(tmp_path, skip_bad=True)
    assert len(records) == 4
    assert [case.case_id for case in skipped] == ["train1", "train2", "test0"]
    assert len(load_records(tmp_path, checks=False)[0]) == 7
    for file in (tmp_path / "images").iterdir():
        file.write_bytes(b"")
    refused(tmp_path, "no usable case: all 7 are bad", "0 bytes", skip_bad=True)


def test_bad_cases_do_not_move_the_splits_of_others(tmp_path: Path) -> None:
    for i in range(40):
        put(tmp_path / "images" / f"{i}.png")
        put(tmp_path / "masks" / f"{i}.png", mask=True)
    before = {record.case_id: record.split for record in load_records(tmp_path, prompt="x")[0]}
    (tmp_path / "masks" / "7.png").write_bytes(b"")
    after = {record.case_id: record.split for record in load_records(tmp_path, prompt="x", skip_bad=True)[0]}
    assert after == {name: split for name, split in before.items() if name != "7"}


def splits(path: Path, **options: Any) -> dict[str, tuple[str | None, str | None]]:
    """Case id to split and group, bad cases left out."""
    records, _ = load_records(path, skip_bad=True, **options)
    return {record.case_id: (record.split, record.group) for record in records}


@pytest.mark.parametrize(
    "damage",
    [
        {"mask_value": -1},
        {"text": 3},
        {"text": None},
        {"split": "tset"},
        {"spacing": "wide"},
        {"mask": "../m.png"},
        {"group": 3},
        {"case_id": "a/b"},
    ],
    ids=str,
)
@pytest.mark.parametrize("named", [False, True])
def test_bad_lines_do_not_move_the_splits_of_others(tmp_path: Path, damage: dict[str, Any], named: bool) -> None:
    """Neither where the data names no split, nor where val is taken from its train."""
    put(tmp_path / "m.png", mask=True)
    rows: list[dict[str, Any]] = []
    for i in range(40):
        put(tmp_path / f"{i}.png")
        split = {"split": "test" if i % 5 == 0 else "train"} if named else {}
        rows.append({"image": f"{i}.png", "mask": "m.png", "text": "x", **split})
    before = splits(manifest(tmp_path, *rows))
    assert len({split for split, _ in before.values()}) == 3
    for at in (5, 10, 20, 35) if named and "split" in damage else range(0, 40, 3):
        bad = [{**row, **damage} if i == at else row for i, row in enumerate(rows)]
        after = splits(manifest(tmp_path, *bad))
        assert after == {name: place for name, place in before.items() if name != str(at)}


def test_entries_without_a_mask_do_not_move_the_splits_of_others(tmp_path: Path) -> None:
    for i in range(30):
        put(tmp_path / "images" / f"{i}.png")
        put(tmp_path / "masks" / f"{i}_mask.png", mask=True)
    before = splits(tmp_path, prompt="x")
    for i in range(0, 30, 3):
        for file in (tmp_path / "masks" / f"{i}_mask.png", tmp_path / "images" / f"{i}.png"):
            content = file.read_bytes()
            file.unlink()
            assert splits(tmp_path, prompt="x") == {name: place for name, place in before.items() if name != str(i)}
            file.write_bytes(content)


def test_a_bad_entry_of_a_shared_image_changes_neither_id_nor_group_of_the_other(tmp_path: Path) -> None:
    published(tmp_path, {"train": 20, "test": 3})
    file = tmp_path / "anns" / "train.json"
    rows = json.loads(file.read_text())
    rows[1]["img_name"] = "train0.jpg"
    file.write_text(json.dumps(rows))
    before = splits(tmp_path)
    assert before["train0__train1"][1] == "image:train0"
    for key, value in (("prompts", {}), ("prompts", 3), ("spacing", 0)):
        file.write_text(json.dumps([{**row, key: value} if i == 1 else row for i, row in enumerate(rows)]))
        assert splits(tmp_path) == {name: place for name, place in before.items() if name != "train0__train1"}


def test_a_file_of_prompts_that_lacks_a_case_does_not_move_the_splits_of_others(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for i in range(30):
        put(data / "images" / f"{i}.png")
        put(data / "masks" / f"{i}.png", mask=True)
    before = splits(data, prompt="x")
    head = {
        "format": "vlsm-prompts",
        "format_version": 1,
        "data": "data",
        "prompt": "x",
        "levels": {"p1": {"leaks": False}},
    }
    for at in range(0, 30, 3):
        rows = [{"case_id": str(i), "prompts": {"p1": ["x"]}} for i in range(30) if i != at]
        words = manifest(tmp_path, head, *rows, name="prompts.jsonl")
        assert splits(words) == {name: place for name, place in before.items() if name != str(at)}


def test_a_split_file_may_name_a_bad_entry(tmp_path: Path) -> None:
    put(tmp_path / "m.png", mask=True)
    rows = [{"image": f"{put(tmp_path / f'{i}.png').name}", "mask": "m.png", "text": "x"} for i in range(4)]
    named = {"train": ["0", "1"], "val": ["2"], "test": ["3"]}
    (tmp_path / "split.json").write_text(json.dumps({"format": "vlsm-split", "format_version": 1, **named}))
    path = manifest(tmp_path, rows[0], {**rows[1], "mask_value": -1}, *rows[2:])
    division = Division(split_file=str(tmp_path / "split.json"))
    found = splits(path, divide=division.split)
    assert {name: split for name, (split, _) in found.items()} == {"0": "train", "2": "val", "3": "test"}


def test_a_huge_list_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "MAX_JSON_BYTES", 1000)
    refused(manifest(tmp_path, " " * 2000), "MiB")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from(["x.png", "m.png", "../x.png", "/x", "", "loop.png", "x.png/y", ".", "images", "a" * 300])
near_entries = st.dictionaries(
    st.sampled_from(
        [
            "img_name",
            "mask_name",
            "image",
            "mask",
            "prompts",
            "text",
            "split",
            "case_id",
            "spacing",
            "mask_value",
            "group",
        ]
    ),
    names | json_values | st.dictionaries(st.sampled_from(["p0", "p1", "p9", "x"]), st.text() | st.lists(st.text())),
)


@pytest.fixture(scope="module")
def fuzz_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    for folder in ("images", "masks", "."):
        for name in ("x.png", "m.png"):
            put(root / folder / name, mask=folder == "masks" or name == "m.png")
        (root / folder / "loop.png").symlink_to("loop.png")
    (root / "anns").mkdir()
    return root


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(near_entries, min_size=1, max_size=3) | json_values, st.booleans())
@example([{"img_name": "x.png", "mask_name": "x.png", "prompts": {"p1": "a"}}], False)
@example([{"img_name": "x.png"}], True)
def test_any_json_is_a_data_error_or_cases(fuzz_root: Path, value: Any, skip_bad: bool) -> None:
    (fuzz_root / "anns" / "train.json").write_text(json.dumps(value))
    rows = value if isinstance(value, list) else [value]
    path = manifest(fuzz_root, *(json.dumps(row) for row in rows), name="fuzz.jsonl")
    for target in (fuzz_root, path):
        with contextlib.suppress(DataError):
            records, _ = load_records(target, skip_bad=skip_bad)
            for record in records:
                assert record.image.is_relative_to(fuzz_root.resolve())
                assert record.mask is not None
                assert record.mask.is_relative_to(fuzz_root.resolve())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_are_a_data_error(fuzz_root: Path, content: bytes) -> None:
    (fuzz_root / "anns" / "train.json").write_bytes(content)
    (fuzz_root / "fuzz.jsonl").write_bytes(content)
    for target in (fuzz_root, fuzz_root / "fuzz.jsonl"):
        with pytest.raises(DataError):
            load_records(target)


# Listing images


def test_the_documented_endings_are_those_that_are_searched_for() -> None:
    """And each is of a format that is decoded, each format having one."""
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    sentence = re.search(r"Folders are searched for files that end in ([^;]*);", text)
    assert sentence is not None
    assert set(re.findall(r"`(\.[a-z0-9]+)`", sentence[1])) == IMAGE_SUFFIXES
    known = Image.registered_extensions()
    assert {known[suffix] for suffix in IMAGE_SUFFIXES} == set(FORMATS) - {"DIB"}  # a BMP by another name
    named = re.search(r"## Images\n\n(.*) of any mode", text)
    assert named is not None
    documented = {name.upper().replace(" ", "") for name in re.split(r", | and ", named[1])}
    assert documented == set(FORMATS) - {"DIB"}


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_a_plain_folder_of_every_ending(tmp_path: Path, suffix: str) -> None:
    put(tmp_path / "images" / f"a{suffix.upper()}")
    put(tmp_path / "masks" / "a.png", mask=True)
    (record,) = load_records(tmp_path, prompt="cell")[0]
    assert read_pair(record)[0].shape == (8, 12, 3)


def test_list_images(tmp_path: Path) -> None:
    for name in ("x10.png", "x2.png", "sub/x1.JPG", ".hidden.png", ".cache/x.png"):
        put(tmp_path / name)
    (tmp_path / "note.txt").write_text("no image")
    names_of = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names_of == ["sub/x1.JPG", "x2.png", "x10.png"]
    assert list_images(tmp_path / "x2.png") == [tmp_path / "x2.png"]
    assert [path.name for path in list_images(f"{tmp_path}/*.png")] == ["x2.png", "x10.png"]
    assert len(list_images(f"{tmp_path}/**/*")) == 3
    for bad, part in [
        ("none", "no such file"),
        ("*.tif", "matches no file"),
        ("*.txt", "matches no image"),
        ("a\0b", "NUL"),
    ]:
        with pytest.raises(DataError, match=part):
            list_images(f"{tmp_path}/{bad}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no image.*\.png"):
        list_images(tmp_path / "empty")
    with pytest.raises(DataError):
        list_images("x" * 5000)


def test_a_file_called_like_a_pattern(tmp_path: Path) -> None:
    put(tmp_path / "scan [1].png")
    assert list_images(tmp_path / "scan [1].png") == [tmp_path / "scan [1].png"]


@given(st.lists(st.text(max_size=12)))
def test_natural_order_is_total(names: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)


# Real data


@pytest.mark.parametrize(
    ("name", "prompt", "counts"),
    [
        ("kvasir_polyp", None, (800, 100, 100)),
        ("busi", None, (220, 60, 78)),
        ("isic", None, (81, 7, 42)),
        ("nuclei", "cell nucleus", (56, 8, 16)),
    ],
)
def test_real_folders(name: str, prompt: str | None, counts: tuple[int, int, int]) -> None:
    if not SHARED.is_dir():
        pytest.skip("the real images are not beside this checkout")
    records, skipped = load_records(SHARED / name, prompt=prompt)
    assert skipped == []
    assert tuple(sum(record.split == split for record in records) for split in ("train", "val", "test")) == counts
