"""COCO JSON: layouts, classes, empty images, and every way in which a file can be wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlsm_adapter.data import rle
from vlsm_adapter.data.importing import import_data
from vlsm_adapter.errors import DataError

HEIGHT, WIDTH = 20, 30
BOX = [5, 5, 15, 5, 15, 10, 5, 10]  # 5 rows of 10 pixels
RLE = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT, HEIGHT * (WIDTH - 1)]}  # the first column
CONTENT: dict[str, Any] = {
    "images": [{"id": number, "file_name": f"p{number}.png", "width": WIDTH, "height": HEIGHT} for number in (1, 2, 3)],
    "categories": [{"id": 1, "name": "polyp"}, {"id": 7, "name": "surgical tool"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [BOX]},
        {"id": 2, "image_id": 1, "category_id": 1, "segmentation": RLE, "iscrowd": 1},
        {"id": 3, "image_id": 1, "category_id": 7, "segmentation": [BOX, [20, 1, 22, 1, 22, 3, 20, 3]]},
        {"id": 4, "image_id": 2, "category_id": 7, "segmentation": {**RLE, "counts": rle.compress(RLE["counts"])}},
    ],
}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """``make(change)``: the file of CONTENT after ``change(content)``, with its images beside it."""

    def write(change: Callable[[dict[str, Any]], Any] = lambda content: None, folder: str = "set/images") -> Path:
        content = copy.deepcopy(CONTENT)
        change(content)
        for needed in (folder, "set"):
            (tmp_path / needed).mkdir(parents=True, exist_ok=True)
        for number in (1, 2, 3):
            Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(tmp_path / folder / f"p{number}.png")
        file = tmp_path / "set" / "list.json"
        file.write_text(json.dumps(content), encoding="utf-8")
        return file

    return write


def test_a_case_for_each_image_and_category(make: Callable, imported: Callable, tmp_path: Path) -> None:
    summary = import_data(make(), tmp_path / "out")
    cases = imported(tmp_path / "out")
    assert {name: int(mask.sum()) for name, (_, mask) in cases.items()} == {
        "p1__polyp": 50 + HEIGHT,
        "p1__surgical_tool": 50 + 4,
        "p2__surgical_tool": HEIGHT,
    }
    record, mask = cases["p1__polyp"]
    assert record.prompts == {"p0": ("",), "p1": ("polyp",)}
    assert mask[:, 0].all()
    assert mask[5:10, 5:15].all()
    assert summary.images == 2, "one image serves its cases; the image without annotation is left out"
    assert summary.warnings == ("3 case(s) with an empty mask are left out (--empty keep keeps them)",)
    assert (tmp_path / "out/images/p1.png").read_bytes() == (tmp_path / "set/images/p1.png").read_bytes()


def test_one_prompt_unites_all_and_empty_images_are_kept_on_demand(
    make: Callable, imported: Callable, tmp_path: Path
) -> None:
    import_data(make(), tmp_path / "out", options={"prompt": "anything", "empty": "keep", "spacing": "0.5"})
    cases = imported(tmp_path / "out")
    assert {name: int(mask.sum()) for name, (_, mask) in cases.items()} == {"p1": 74, "p2": 20, "p3": 0}
    assert all(record.spacing == (0.5, 0.5) for record, _ in cases.values())


@pytest.mark.parametrize("table", ["7=instrument", "surgical tool=instrument"])
def test_a_class_table_chooses_and_renames(make: Callable, imported: Callable, tmp_path: Path, table: str) -> None:
    import_data(make(), tmp_path / "out", options={"classes": table})
    assert {name: record.prompts["p1"] for name, (record, _) in imported(tmp_path / "out").items()} == {
        "p1": ("instrument",),
        "p2": ("instrument",),
    }
    with pytest.raises(DataError, match=r"has no category 'knife'.*it has 1=polyp, 7=surgical tool"):
        import_data(make(), tmp_path / "other", options={"classes": "knife=instrument"})


def test_groups_and_splits_of_the_entries(make: Callable, imported: Callable, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for image, patient, split in zip(content["images"], (7, 7, "b"), ("train", "train", "valid"), strict=True):
            image.update(patient_id=patient, split=split)

    import_data(make(change), tmp_path / "out", options={"empty": "keep"})
    records = {name: record for name, (record, _) in imported(tmp_path / "out").items()}
    assert {records[f"p{n}__polyp"].group for n in (1, 2)} == {"7"}
    assert records["p3__polyp"].split == "val"


def test_folders_of_several_splits(make: Callable, imported: Callable, tmp_path: Path) -> None:
    """train/_annotations.coco.json beside its images, as an annotation service exports them."""
    content = json.loads(make().read_text())
    for split in ("train", "valid", "test"):
        make(folder=f"export/{split}")
        (tmp_path / f"export/{split}/_annotations.coco.json").write_text(json.dumps(content))
    summary = import_data(tmp_path / "export", tmp_path / "out")
    assert summary.splits == {"train": 3, "val": 3, "test": 3}
    assert "train__p1__polyp" in imported(tmp_path / "out")


def test_the_layout_of_coco_itself(make: Callable, tmp_path: Path) -> None:
    content = make().read_text()
    make(folder="coco/train2017")
    make(folder="coco/val2017")
    (tmp_path / "coco/annotations").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / f"coco/annotations/instances_{split}.json").write_text(content)
        (tmp_path / f"coco/annotations/captions_{split}.json").write_text(content)
    summary = import_data(tmp_path / "coco", tmp_path / "out")
    assert summary.splits == {"train": 3, "val": 3}


def test_images_are_found_where_the_user_says(make: Callable, tmp_path: Path) -> None:
    file = make(folder="far/away")
    with pytest.raises(
        DataError, match=r"none of its first images \('p1.png', ...\) is found in .*: pass --images DIR"
    ):
        import_data(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert import_data(file, tmp_path / "out", options={"images": str(tmp_path / "far/away")}).cases == 3


@pytest.mark.parametrize("folder", ["set", "set/images", "set/list", "images", "far"])
def test_images_are_found_however_accents_are_written(
    make: Callable, forms: tuple, imported: Callable, tmp_path: Path, folder: str
) -> None:
    listed, stored = forms

    def change(content: dict[str, Any]) -> None:
        for number, image in enumerate(content["images"], start=1):
            image["file_name"] = listed(f"Köln/Müller {number}.png")

    file = make(change, folder=folder)
    file = file.rename(file.with_name("instances_list.json"))
    (tmp_path / folder / stored("Köln")).mkdir()
    for number in (1, 2, 3):
        (tmp_path / folder / f"p{number}.png").rename(tmp_path / folder / stored(f"Köln/Müller {number}.png"))
    options = {"images": str(tmp_path / "far")} if folder == "far" else {}
    import_data(file, tmp_path / "out", options=options)
    assert sorted(imported(tmp_path / "out")) == [
        f"Köln__Müller_{name}" for name in ("1__polyp", "1__surgical_tool", "2__surgical_tool")
    ], "the ids are the same, whoever wrote the file"


@pytest.mark.usefixtures("unicode_matters")
def test_a_folder_with_the_names_as_listed_comes_before_one_with_the_other_form(
    make: Callable, forms: tuple, tmp_path: Path
) -> None:
    listed, stored = forms
    file = make(lambda content: [one.update(file_name=listed(f"é{one['id']}.png")) for one in content["images"]])
    for number in (1, 2, 3):
        image = tmp_path / f"set/images/p{number}.png"
        image.rename(image.with_name(listed(f"é{number}.png")))
        Image.new("RGB", (3, 3)).save(tmp_path / "set" / stored(f"é{number}.png"))  # looked into first
    assert import_data(file, tmp_path / "out").cases == 3


@pytest.mark.usefixtures("unicode_matters")
def test_names_that_differ_in_the_form_of_accents_alone_are_told(make: Callable, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"][0]["file_name"] = "é.png"
        content["images"][1]["file_name"] = "e\u0301.png"

    file, folder = make(change), tmp_path / "set/images"
    (folder / "p1.png").rename(folder / "é.png")
    with pytest.raises(DataError, match=r"image 1, 'file_name': .* is listed twice: keep one entry"):
        import_data(file, tmp_path / "out")
    (folder / "p2.png").rename(folder / "e\u0301.png")
    with pytest.raises(
        DataError,
        match=r"image 1, 'file_name': 'e\\u0301.png' and '\\xe9.png' are one name .*: rename one of the files",
    ) as caught:
        import_data(file, tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("unicode_matters")
def test_two_files_that_a_name_may_mean_are_told(make: Callable, tmp_path: Path) -> None:
    file, folder = make(_put("images", 0, "file_name", value="e\u0301é.png")), tmp_path / "set/images"
    file.write_text(file.read_text().replace("p2.png", "gone.png").replace("p3.png", "gone too.png"))
    (folder / "p1.png").rename(folder / "éé.png")
    (folder / "p2.png").rename(folder / "e\u0301e\u0301.png")
    with pytest.raises(DataError, match=r"image 0, 'file_name': .*images: holds .* and .*: rename one of them"):
        import_data(file, tmp_path / "out")


def _put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        target: Any = content
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return change


BAD = {
    "no such category": (_put("annotations", 0, "category_id", value=9), "9 is no category of this file; it has 1, 7"),
    "category missing": (lambda c: c["annotations"][0].pop("category_id"), "None is no category"),
    "no such image": (_put("annotations", 0, "image_id", value=99), "99 is that of no usable image"),
    "image id is a list": (_put("annotations", 0, "image_id", value=[1]), "is that of no usable image"),
    "annotation is no object": (_put("annotations", 0, value=3), "a number, not an object"),
    "box alone": (_put("annotations", 0, "segmentation", value=[]), "a box alone is no mask"),
    "segmentation is a text": (_put("annotations", 0, "segmentation", value="x"), "a box alone is no mask"),
    "not a number": (_put("annotations", 0, "segmentation", value=[[1, 2, "a", 4, 5, 6]]), "holds a text"),
    "absurd point": (_put("annotations", 0, "segmentation", value=[[1, 2, 1e30, 4, 5, 6]]), "far outside"),
    "infinite point": (_put("annotations", 0, "segmentation", value=[[1, 2, "INF", 4, 5, 6]]), "far outside"),
    "two points": (_put("annotations", 0, "segmentation", value=[[1, 2, 3, 4]]), "at least three points"),
    "rle too long": (
        _put("annotations", 1, "segmentation", value={"size": [20, 30], "counts": [0, 601]}),
        "more than 600 of 600",
    ),
    "rle of another size": (
        _put("annotations", 1, "segmentation", value={"size": [30, 20], "counts": [600]}),
        "swapped",
    ),
    "climbs out": (_put("images", 0, "file_name", value="../p1.png"), "climbs out"),
    "absolute": (_put("images", 0, "file_name", value="/etc/passwd"), "is not relative"),
    "windows": (_put("images", 0, "file_name", value="images\\p1.png"), "has a backslash"),
    "name missing": (lambda c: c["images"][0].pop("file_name"), "'file_name': missing"),
    "name is a number": (_put("images", 0, "file_name", value=3), "not a text"),
    "image absent": (_put("images", 0, "file_name", value="gone.png"), "gone.png: no such file"),
    "image id missing": (lambda c: c["images"][0].pop("id"), "'id': missing"),
    "image id twice": (_put("images", 2, "id", value=1), "is already that of 'p1.png'"),
    "image listed twice": (_put("images", 1, "file_name", value="p1.png"), "'p1.png' is listed twice"),
    "another size": (_put("images", 0, "width", value=31), "says 31 x 20 pixels but .* has 30 x 20"),
    "turned": (lambda c: c["images"][0].update(width=20, height=30), "EXIF orientation"),
    "huge": (lambda c: c["images"][0].update(width=10**9, height=10**9), "the annotations do not fit"),
    "size is a text": (_put("images", 0, "width", value="30"), "says '30' x 20"),
    "absurd spacing": (_put("images", 0, "spacing", value=[0, 1]), "out of range"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_bad_entry_stops_or_is_left_out(make: Callable, imported: Callable, tmp_path: Path, name: str) -> None:
    change, says = BAD[name]
    file = make(change)
    if name == "infinite point":
        file.write_text(file.read_text().replace('"INF"', "1e999"))
    with pytest.raises(DataError, match=says) as caught:
        import_data(file, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert "--skip-bad" in str(caught.value)
    assert not (tmp_path / "out").exists(), "refused at its first case, it leaves nothing"
    summary = import_data(file, tmp_path / "skipping", skip_bad=True)
    assert summary.skipped
    assert "p2__surgical_tool" in imported(tmp_path / "skipping") or "listed" in name


BROKEN = {
    "not an object": ("[]", "a list, not a COCO object"),
    "no annotations": ('{"images": [], "categories": []}', "'annotations' is null"),
    "not JSON": ("{", "not valid JSON"),
    "NaN": ('{"images": [NaN]}', "NaN is not JSON"),
    "a key twice": ('{"images": [], "images": []}', "stands twice"),
    "no image": ('{"images": [], "annotations": [], "categories": []}', "lists no image"),
    "a category twice": (
        '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
        "is already that of 'a'",
    ),
    "a category without name": ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "needs id and name"),
    "a name of control characters": (
        '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "\\u001b[31m"}]}',
        "cannot name a class",
    ),
    "panoptic": ('{"images": [], "annotations": [{"segments_info": []}], "categories": []}', "panoptic"),
    "deep": ("[" * 100_000, "nested too deep"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(tmp_path: Path, name: str) -> None:
    content, says = BROKEN[name]
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=says) as caught:
        import_data(tmp_path / "a.json", tmp_path / "out", skip_bad=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_link_out_of_the_folder_is_refused(make: Callable, tmp_path: Path) -> None:
    file = make()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "secret.png")
    (tmp_path / "set/images/p1.png").unlink()
    (tmp_path / "set/images/p1.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match="is a link that leads out of"):
        import_data(file, tmp_path / "out")


def test_a_truncated_image_is_found_now(make: Callable, tmp_path: Path) -> None:
    file = make()
    image = tmp_path / "set/images/p1.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(image)
    image.write_bytes(image.read_bytes()[:-200])
    with pytest.raises(DataError, match="damaged or truncated"):
        import_data(file, tmp_path / "out")
    image.write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        import_data(file, tmp_path / "other")
