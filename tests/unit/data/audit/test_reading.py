"""Everything is read, also what training would refuse; annotations without images too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlsm_adapter.data.audit.findings import Finding
from vlsm_adapter.data.audit.reading import read_data
from vlsm_adapter.errors import DataError

POLYP = {"p1": "polyp", "p2": "round polyp"}


def lists(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, entries in splits.items():
        (folder / f"{split}.json").write_text(json.dumps(entries))
    return folder


def entry(name: str, **more: Any) -> dict[str, Any]:
    return {"img_name": name, "mask_name": name, "prompts": {"p0": "", **POLYP}, **more}


def codes(findings: list[Finding]) -> list[str]:
    return [finding.code for finding in findings]


def test_published_folder_keeps_its_splits(folder: Callable[..., Path], picture: Any, round_mask: Any) -> None:
    root = folder({"train": [("a", picture(1), round_mask(), POLYP)], "test": [("b", picture(2), round_mask(), POLYP)]})
    (data,) = read_data(root)
    assert [(case.id, case.split, case.name) for case in data.cases] == [
        ("a", "train", "a.png"),
        ("b", "test", "b.png"),
    ]
    assert data.with_images
    assert data.with_words
    assert data.findings == []


def test_published_folders_in_capitals_have_their_images(
    folder: Callable[..., Path], picture: Any, round_mask: Any
) -> None:
    root = folder({"train": [("a", picture(1), round_mask(), POLYP)]})
    for name in ("images", "masks", "anns"):
        (root / name).rename(root / name.capitalize())
    (data,) = read_data(root)
    assert data.with_images
    assert [case.record.image.is_file() for case in data.cases] == [True]


def test_annotations_alone(tmp_path: Path) -> None:
    root = lists(
        tmp_path / "set", train=[entry("a.png", bbox=[1, 2, 30, 40])], test=[entry("b.png", bbox=[1, 2, True, 4])]
    )
    (data,) = read_data(root)
    assert not data.with_images
    assert [case.box for case in data.cases] == [(1.0, 2.0, 30.0, 40.0), None]
    below = tmp_path / "sets"
    for name in ("one", "two"):
        lists(below / name, test=[entry("a.png")])
    assert [data.name for data in read_data(below)] == ["one", "two"]


def test_annotations_in_anns_without_images(tmp_path: Path) -> None:
    lists(tmp_path / "set" / "anns", train=[entry("a.png")])
    (data,) = read_data(tmp_path / "set")
    assert not data.with_images
    assert data.name == "set"


def test_listed_across_splits_and_twice(tmp_path: Path) -> None:
    root = lists(
        tmp_path, train=[entry("a.png"), entry("b.png"), entry("b.png")], test=[entry("a.png"), entry("c.png")]
    )
    (data,) = read_data(root)
    assert codes(data.findings) == ["listed-across-splits", "listed-twice"]
    assert data.findings[0].severity == "error"
    assert "1 in train and test" in data.findings[0].message
    assert data.findings[0].cases == ("a",)
    assert data.findings[1].evidence[0].why == "b.png: 2 times in train"
    assert [case.split for case in data.cases] == ["train", "train", "test", "test"]


def test_equal_names_with_other_words_are_other_files(tmp_path: Path) -> None:
    def numbered(words: str) -> list[dict[str, Any]]:
        made = [entry(f"patient{i:04}.png") for i in range(4)]
        for row in made[:3]:
            row["prompts"] = {"p1": f"{words} heart"}
        return made

    (data,) = read_data(lists(tmp_path, val=numbered("left"), test=numbered("right")))
    assert codes(data.findings) == ["name-across-splits"]
    assert data.findings[0].severity == "warning"
    assert len(data.findings[0].evidence) == 4


def test_bad_entries_are_all_reported(tmp_path: Path) -> None:
    rows = [entry("a.png"), {"mask_name": "x.png"}, 7, entry("../../etc/passwd"), {"img_name": "n.png", "prompts": {}}]
    (data,) = read_data(lists(tmp_path, train=rows))
    assert codes(data.findings) == ["bad-entry", "no-prompt"]
    assert len(data.findings[0].evidence) == 3
    assert [case.name for case in data.cases] == ["a.png"]


def test_plain_folder_needs_no_prompt(tmp_path: Path, picture: Any, round_mask: Any) -> None:
    from PIL import Image

    for sub in ("images", "masks"):
        (tmp_path / sub).mkdir()
    Image.fromarray(picture(0)).save(tmp_path / "images" / "a.png")
    Image.fromarray(round_mask().astype(np.uint8) * 255).save(tmp_path / "masks" / "a.png")
    (data,) = read_data(tmp_path)
    assert not data.with_words
    assert data.cases[0].split == "no split"
    (data,) = read_data(tmp_path, prompt="polyp")
    assert data.with_words
    assert data.cases[0].record.prompts["p1"] == ("polyp",)


def test_file_of_prompts(folder: Callable[..., Path], picture: Any, round_mask: Any, tmp_path: Path) -> None:
    root = folder({"train": [(name, picture(i), round_mask(), POLYP) for i, name in enumerate("ab")]})
    head = {"format": "vlsm-prompts", "format_version": 1, "data": root.name, "levels": {"p1": {"leaks": False}}}
    rows = [head, {"case_id": "a", "prompts": {"p1": ["lesion"]}}]
    file = tmp_path / "words.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data,) = read_data(file)
    assert [case.record.prompts for case in data.cases] == [{"p1": ("lesion",)}]
    assert codes(data.findings) == ["no-prompt"]
    assert data.findings[0].cases == ("b",)


@pytest.mark.parametrize("content", ["{}", "[1, 2]", "[]", "not json", '[{"img_name": "a.png", "img_name": "b.png"}]'])
def test_unusable_lists_are_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(DataError) as error:
        read_data(tmp_path)
    assert "\n" not in str(error.value)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no known layout"):
        read_data(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_data(tmp_path / "missing")
    with pytest.raises(DataError, match="prompt is empty"):
        read_data(tmp_path, prompt=" ")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"img_name": st.sampled_from(["a.png", "b.png", "../x", ""]) | json_values},
            optional={"mask_name": json_values, "prompts": json_values, "bbox": json_values, "group": json_values},
        ),
        max_size=4,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_is_read_or_refused(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    root = lists(tmp_path, train=rows)
    message = ""
    try:
        (data,) = read_data(root)
    except DataError as error:
        message = str(error)
    else:
        assert data.cases
    assert "\n" not in message
