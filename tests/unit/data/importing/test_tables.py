"""Tables: delimiters, columns by name and by mapping, label maps, and rows that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlsm_adapter.data.importing import import_data
from vlsm_adapter.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """data/scans/{a,b,c}.png, data/segs/{a,b,c}.png with 1, 2, 3 rows of value 1 and one row of value 2."""
    for number, name in enumerate("abc", start=1):
        mask = np.zeros((9, 8), np.uint8)
        mask[:number] = 1
        labels = mask.copy()
        labels[8] = 2
        for folder, pixels in (("scans", mask * 9), ("segs", mask), ("maps", labels)):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "data" / folder / f"{name}.png")
    return tmp_path / "data"


def table(root: Path, content: str, name: str = "cases.csv") -> Path:
    (root / name).write_text(content, encoding="utf-8")
    return root / name


def test_usual_names_are_known(root: Path, imported: Callable, tmp_path: Path) -> None:
    file = table(
        root,
        "\ufeffImage_Path,mask,class,split,patient_id,spacing,p7\n"
        'scans/a.png,segs/a.png,polyp,train,7,"0.5,0.25",a red polyp\n'
        "scans/b.png,segs/b.png,polyp,validation,8,0.5,\n"
        "\n"
        "scans/c.png,segs/c.png,tool,test,9,,\n",
    )
    summary = import_data(file, tmp_path / "out")
    assert summary.splits == {"train": 1, "val": 1, "test": 1}
    cases = imported(tmp_path / "out")
    record, mask = cases["scans__a"]
    assert (record.group, record.spacing, record.prompts["p7"]) == ("7", (0.5, 0.25), ("a red polyp",))
    assert mask.sum() == 8
    assert cases["scans__c"][0].prompts == {"p0": ("",), "p1": ("tool",)}


def test_each_row_keeps_its_own_columns_also_where_rows_share_image_and_mask(root: Path, tmp_path: Path) -> None:
    file = table(
        root,
        "image,mask,mask_value,text,grade\n"
        "scans/a.png,maps/a.png,1,polyp,low\n"
        "scans/a.png,maps/a.png,2,tool,high\n"
        "scans/b.png,maps/b.png,1,polyp,high\n"
        "scans/b.png,maps/b.png,2,tool,\n",
    )
    import_data(file, tmp_path / "out", options={"keep": "grade"})
    rows = [json.loads(line) for line in (tmp_path / "out/records.jsonl").read_text().splitlines()]
    kept = [(row["case_id"][:8], row["prompts"]["p1"], row.get("attributes", {}).get("grade")) for row in rows]
    assert kept == [
        ("scans__a", "polyp", "low"),
        ("scans__a", "tool", "high"),
        ("scans__b", "polyp", "high"),
        ("scans__b", "tool", None),
    ]


@pytest.mark.parametrize(("name", "sign"), [("t.csv", ";"), ("t.csv", "\t"), ("t.tsv", "\t")])
def test_delimiters_and_mapping(root: Path, imported: Callable, tmp_path: Path, name: str, sign: str) -> None:
    rows = [["fichier", "masque", "classe", "age", "nom"], ["a.png", "a.png", "polype", "61", "Dupont"]]
    file = table(root, "\n".join(sign.join(row) for row in rows), name)
    options = {
        "columns": "image=fichier,mask=masque,text=classe",
        "images": str(root / "scans"),
        "masks": str(root / "segs"),
        "keep": "age",
    }
    import_data(file, tmp_path / "out", options=options)
    assert imported(tmp_path / "out")["a"][0].prompts["p1"] == ("polype",)
    (line,) = (tmp_path / "out/records.jsonl").read_text().splitlines()
    assert json.loads(line)["attributes"] == {"age": "61"}
    assert "Dupont" not in (tmp_path / "out/records.jsonl").read_text(), "what is not asked for is not copied"


def test_jsonl_with_other_keys(root: Path, imported: Callable, tmp_path: Path) -> None:
    lines = [
        {"img": "scans/a.png", "seg": "segs/a.png", "prompts": {"p1": ["polyp", "lesion"]}, "extra": [1]},
        {"img": "scans/b.png", "seg": "segs/b.png", "text": "polyp", "spacing": [1, 2]},
    ]
    file = table(root, "\n".join(map(json.dumps, lines)), "x.jsonl")
    import_data(file, tmp_path / "out", options={"columns": "mask=seg"})
    cases = imported(tmp_path / "out")
    assert cases["scans__a"][0].prompts["p1"] == ("polyp", "lesion")
    assert cases["scans__b"][0].spacing == (1, 2)


def test_label_maps_and_mask_values(root: Path, imported: Callable, tmp_path: Path) -> None:
    file = table(root, "image,mask\n" + "".join(f"scans/{name}.png,maps/{name}.png\n" for name in "ab"))
    import_data(file, tmp_path / "out", options={"classes": "1=polyp,2=tool"})
    assert {name: int(mask.sum()) for name, (_, mask) in imported(tmp_path / "out").items()} == {
        "scans__a__polyp": 8,
        "scans__a__tool": 8,
        "scans__b__polyp": 16,
        "scans__b__tool": 8,
    }
    file = table(root, "image,mask,text,mask_value\nscans/a.png,maps/a.png,tool,2\nscans/b.png,maps/b.png,tool,0x1\n")
    import_data(file, tmp_path / "values")
    assert [int(mask.sum()) for _, mask in imported(tmp_path / "values").values()] == [8, 16]


def test_absolute_names_inside_of_the_folder_are_taken(root: Path, tmp_path: Path) -> None:
    file = table(root, f"image,mask,text\n{root}/scans/a.png,{root}/segs/a.png,polyp\n")
    assert import_data(file, tmp_path / "out").cases == 1


@pytest.mark.parametrize("options", [{}, {"classes": "1=polyp"}], ids=["masks", "label maps"])
@pytest.mark.parametrize("places", [False, True], ids=["beside", "elsewhere"])
def test_files_are_found_however_accents_are_written(
    root: Path, forms: tuple, imported: Callable, tmp_path: Path, options: dict, places: bool
) -> None:
    listed, stored = forms
    for folder in ("scans", "segs"):
        (root / folder / stored("Köln")).mkdir()
        (root / folder / "a.png").rename(root / folder / stored("Köln/Müller.png"))
    name = listed("Köln/Müller.png")
    image, mask = (name, name) if places else (f"scans/{name}", f"segs/{name}")
    file = table(root, f"image,mask,text,patient\n{image},{mask},polyp,Ö\n")
    where = {"images": str(root / "scans"), "masks": str(root / "segs")} if places else {}
    import_data(file, tmp_path / "out", options={**options, **where})
    ((case_id, (_, mask_pixels)),) = imported(tmp_path / "out").items()
    assert case_id == ("Köln__Müller" if places else "scans__Köln__Müller"), (
        "the id is the same, whoever wrote the table"
    )
    assert mask_pixels.sum() == 8


def test_jsonl_finds_files_however_accents_are_written(
    root: Path, forms: tuple, imported: Callable, tmp_path: Path
) -> None:
    listed, stored = forms
    for folder in ("scans", "segs"):
        (root / folder / "a.png").rename(root / folder / stored("é.png"))
    row = {"image": listed("scans/é.png"), "mask": listed("segs/é.png"), "text": "polyp", "case_id": listed("é")}
    import_data(table(root, json.dumps(row), "x.jsonl"), tmp_path / "out")
    assert list(imported(tmp_path / "out")) == [listed("é")], "a case id is taken as it is given"


@pytest.mark.usefixtures("unicode_matters")
def test_of_two_files_of_one_name_the_listed_one_is_taken_or_both_are_told(
    root: Path, imported: Callable, tmp_path: Path
) -> None:
    for one, name in (("b", "éé"), ("c", "e\u0301e\u0301")):
        (root / "scans" / f"{one}.png").rename(root / "scans" / f"{name}.png")
        (root / "segs" / f"{one}.png").rename(root / "segs" / f"{name}.png")
    rows = "".join(f"scans/{name}.png,segs/{name}.png,polyp,{name}\n" for name in ("éé", "e\u0301e\u0301"))
    import_data(table(root, f"image,mask,text,case_id\n{rows}"), tmp_path / "out")
    assert [int(mask.sum()) for _, mask in imported(tmp_path / "out").values()] == [16, 24]
    file = table(root, "image,mask,text\nscans/e\u0301é.png,segs/a.png,polyp\nscans/a.png,segs/a.png,polyp\n")
    with pytest.raises(DataError, match=r"line 2, 'image': .*scans: holds .* and .*: rename one of them") as caught:
        import_data(file, tmp_path / "neither")
    assert "\n" not in str(caught.value)
    summary = import_data(file, tmp_path / "skipping", skip_bad=True)
    assert (summary.cases, len(summary.skipped)) == (1, 1)


def test_a_folder_with_one_table_is_that_table(root: Path, tmp_path: Path) -> None:
    table(root, "image,mask,text\nscans/a.png,segs/a.png,polyp\n")
    assert import_data(root, tmp_path / "out").cases == 1
    table(root, "image,mask,text\nscans/a.png,segs/a.png,polyp\n", "other.csv")
    with pytest.raises(DataError, match="no known format"):
        import_data(root, tmp_path / "two")


GOOD = "scans/b.png,segs/b.png,polyp"
BAD_ROWS = {
    "no image": (",segs/a.png,polyp", "'image': missing"),
    "no mask": ("scans/a.png,,polyp", "'mask': missing"),
    "no text": ("scans/a.png,segs/a.png,", "says no prompt"),
    "cells": ("scans/a.png,segs/a.png", "has 2 cells, the first line 3"),
    "more cells": ("scans/a.png,segs/a.png,polyp,x", "has 4 cells"),
    "climbs out": ("../secret.png,segs/a.png,polyp", "climbs out"),
    "absolute": ("/etc/passwd,segs/a.png,polyp", "is not relative"),
    "absolute and out": ("{root}/../secret.png,segs/a.png,polyp", "is not relative"),
    "absent": ("scans/z.png,segs/a.png,polyp", "z.png: no such file"),
    "mask absent": ("scans/a.png,segs/z.png,polyp", "z.png: no such file"),
    "not an image": ("cases.csv,segs/a.png,polyp", "is not that of an image|ending '.csv'"),
    "a link out": ("scans/link.png,segs/a.png,polyp", "a link that leads out of"),
    "another size": ("scans/big.png,segs/a.png,polyp", "a mask must have the size of its image"),
    "empty file": ("scans/empty.png,segs/a.png,polyp", "is empty"),
    "picture as mask": ("scans/a.png,segs/noise.png,polyp", "different values"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_stop_or_are_left_out(root: Path, imported: Callable, tmp_path: Path, name: str) -> None:
    row, says = BAD_ROWS[name]
    secret = tmp_path / "secret.png"
    Image.new("L", (8, 9)).save(secret)
    (root / "scans/link.png").symlink_to(secret)
    Image.new("L", (80, 90)).save(root / "scans/big.png")
    (root / "scans/empty.png").touch()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 8), np.uint8)).save(root / "segs/noise.png")
    file = table(root, f"image,mask,text\n{row.format(root=root)}\n{GOOD}\n")
    with pytest.raises(DataError, match=says) as caught:
        import_data(file, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out/records.jsonl").exists()
    summary = import_data(file, tmp_path / "skipping", skip_bad=True)
    assert len(summary.skipped) == 1
    assert list(imported(tmp_path / "skipping")) == ["scans__b"]


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("", {}, "must name the columns"),
        ("a,b\n1,2\n", {}, "no column is known to be the image .it has 'a', 'b'"),
        ("image,image\n", {}, "'image' stands twice"),
        ("img,filename,mask\n", {}, "may both be the image: say --columns image=img"),
        ("image,mask\n", {"columns": "mask=maks"}, "did you mean 'mask'"),
        ("image,mask\n", {"keep": "age"}, "has no column 'age' to keep"),
        ('image,mask\n"a,b\n', {}, "not a table"),
        ("image,mask,text\n", {}, "no case was found"),
        ("image,mask,text,mask_value\nscans/a.png,segs/a.png,x,one\n", {}, "'one' is no whole number"),
        ("image,mask,text,spacing\nscans/a.png,segs/a.png,x,wide\n", {}, "mm per pixel"),
        ("image,mask,text,split\nscans/a.png,segs/a.png,x,pretest\n", {}, "unknown split 'pretest'"),
        ("image,mask,text,case_id\nscans/a.png,segs/a.png,x,q\nscans/b.png,segs/b.png,x,q\n", {}, "is already that of"),
        ("image,mask,text,case_id\nscans/a.png,segs/a.png,x,a/b\n", {}, "cannot name a file"),
    ],
)
def test_bad_tables_are_refused(root: Path, tmp_path: Path, content: str, options: dict, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        import_data(table(root, content), tmp_path / "out", options=options, format="table")
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet='abimgesk,;\t"\n/.\0', max_size=80))
def test_any_table_is_read_or_refused_in_one_line(root: Path, text: str) -> None:
    from vlsm_adapter.data.importing.options import Options
    from vlsm_adapter.data.importing.tables import plan_table

    file = table(root, "image,mask,text\n" + text)
    said = ""
    try:
        plan = plan_table(file, Options(), True)
    except DataError as error:
        said = str(error)
    else:
        assert all(item.name for item in plan.items)
    assert "\n" not in said
