"""Class tables: every way to write one, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsm_adapter.data.importing.classes import ClassTable, read_class_table, table_of
from vlsm_adapter.errors import DataError


def plain(table: ClassTable) -> dict[str, tuple]:
    return {one.name: one.keys for one in table.classes}


@pytest.mark.parametrize(
    "given", ["1=liver,2=tumor", " 1 = liver , 2=tumor", "liver=1,tumor=2", "0=background,1=liver,2=tumor"]
)
def test_inline(given: str) -> None:
    assert plain(read_class_table(given)) == {"liver": (1,), "tumor": (2,)}


def test_one_name_unites_values() -> None:
    table = read_class_table("1=tumor,2=oedema,4=tumor,7=-")
    assert plain(table) == {"tumor": (1, 4), "oedema": (2,)}
    assert table.ignored == {7}
    assert not table.ignores_rest
    assert read_class_table("1=tumor,*=-").ignores_rest


def test_colours_and_categories() -> None:
    assert plain(read_class_table("#ff0000=neoplastic polyp,#00FF00=other")) == {
        "neoplastic polyp": (0xFF0000,),
        "other": (0x00FF00,),
    }
    assert plain(read_class_table("polyp=colon polyp,tool=instrument")) == {
        "colon polyp": ("polyp",),
        "instrument": ("tool",),
    }
    with pytest.raises(DataError, match="'polyp' is no value of a label file"):
        read_class_table("polyp=colon polyp").values("--classes")


FILES = {
    "a.yaml": "1: liver\n2: [tumor, liver tumor]\n",
    "b.yml": "liver: 1\ntumor: 2\nbackground: 0\n",
    "c.json": '{"labels": {"0": "background", "1": "liver", "2": "tumor"}}',
    "d.json": '{"labels": {"background": 0, "liver": 1, "tumor": 2}, "file_ending": ".nii.gz"}',
    "e.csv": "value,name\n1,liver\n2,tumor\n",
    "f.tsv": "1\tliver\n\n2\ttumor\n",
    "g.txt": "1,liver\n2,tumor",
}


@pytest.mark.parametrize("name", FILES)
def test_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    table = read_class_table(str(tmp_path / name))
    assert plain(table) == {"liver": (1,), "tumor": (2,)}
    if name == "a.yaml":
        assert table.classes[1].texts == ("tumor", "liver tumor")


def test_regions_of_several_values(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("whole tumour: [1, 2, 4]\nvoid: 255\n")
    assert plain(read_class_table(str(tmp_path / "t.yaml"))) == {"whole tumour": (1, 2, 4), "void": (255,)}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("liver", "is not VALUE=NAME"),
        ("1=", "is not VALUE=NAME"),
        ("", "is not VALUE=NAME"),
        ("1=liver,1=tumor", "1 stands twice"),
        ("1=-", "holds no class"),
        ("0=background", "holds no class"),
        ("*=rest", "can only be background"),
        ("1=Liver,2=liver", "equal file names"),
        ("1=a b,2=a_b", "equal file names"),
        ("/nowhere/t.yaml", "no such file"),
        ("1=" + "x" * 501, "cannot name a class"),
        ("1=a\tb\x00", "cannot name a class"),
    ],
)
def test_bad_inline_tables_are_refused(given: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read_class_table(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.yaml", "1: liver\n1: tumor\n", "stands twice"),
        ("t.yaml", "- 1\n- 2\n", "not a table"),
        ("t.yaml", "1: {a: b}\n", "is an object, not a text"),
        ("t.yaml", "1: []\n", "has no name"),
        ("t.yaml", "2.5: liver\n", "no value of a class"),
        ("t.yaml", "true: liver\n", "no value of a class"),
        ("t.yaml", "1: !!python/object/apply:os.system [echo]\n", "not a YAML file"),
        ("t.yaml", "{[", "not a YAML file"),
        ("t.yaml", "whole: [0, 1]\n", "0 is background"),
        ("t.yaml", "a: [1, 2]\nb: [2, 3]\n", "2 stands twice"),
        ("t.csv", "1,liver,x\n", "has 3 columns"),
        ("t.csv", '1,"liver\n', "not a CSV file"),
        ("t.json", "[]", "not a table"),
        ("t.yaml", "", "not a table"),
        ("t.yaml", "#" * (1024 * 1024 + 1), "has at most"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=says) as caught:
        read_class_table(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.integers(-5, 300) | st.text(max_size=4),
        st.text(max_size=6) | st.lists(st.integers(0, 9), max_size=3),
        max_size=5,
    )
)
def test_any_table_is_read_or_refused_in_one_line(pairs: dict) -> None:
    said = ""
    try:
        table = table_of(pairs.items(), "t")
    except DataError as error:
        said = str(error)
    else:
        assert json.loads(json.dumps(table.as_json()))["classes"]
        assert all(0 not in one.keys for one in table.classes)
    assert "\n" not in said
