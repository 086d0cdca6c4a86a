"""Every public data set keeps the same promises. A new one is one file, one builder of a miniature, and a row in the docs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vlsm_adapter.data.archives import open_tree
from vlsm_adapter.data.images import read_image, read_mask
from vlsm_adapter.data.prepared import RawCase
from vlsm_adapter.data.records import load_records
from vlsm_adapter.data.sources import SOURCES
from vlsm_adapter.data.sources.prepare import information, listing, prepare
from vlsm_adapter.errors import DataError

every_source = pytest.mark.parametrize("name", SOURCES.names())


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    both = one.sum() + other.sum()
    return 1.0 if both == 0 else 2 * (one & other).sum() / both


@every_source
def test_its_facts_are_stated(name: str) -> None:
    source = SOURCES.get(name)
    assert source.name == name
    assert source.cases >= source.images > 0
    assert source.licence
    assert source.title
    assert source.about
    assert source.layout
    assert re.search(r"doi:10\.|arXiv:", source.citation), "a citation that can be followed"
    assert re.match(r"https?://[\w.-]+/", source.homepage)
    text = "\n".join(information(name))
    for fact in (source.licence, source.citation, source.homepage, str(source.cases), f"vlsm data prepare {name}"):
        assert fact in text
    assert sum(line.startswith(f"{name} ") for line in listing()) == 1


@every_source
def test_it_has_a_row_in_the_docs(name: str) -> None:
    source = SOURCES.get(name)
    docs = (Path(__file__).parents[2] / "docs" / "data-sources.md").read_text(encoding="utf-8")
    row = next(line for line in docs.splitlines() if line.startswith(f"| `{name}` "))
    assert str(source.cases) in row
    assert source.homepage in row


@every_source
def test_a_folder_becomes_the_cases_it_shows(name: str, miniatures: ModuleType, tmp_path: Path) -> None:
    made = miniatures.build(name, tmp_path)
    out = tmp_path / "out"
    done: list[int] = []
    summary = prepare(name, made.raw, out, progress=done.append, jobs=2)
    rows = rows_of(out)
    assert {row["case_id"] for row in rows} == set(made.truth)
    assert done == list(range(1, len(rows) + 1))
    assert summary.cases == len(rows)
    assert summary.skipped == ()

    # The count differs from the owners' own and says so, with both numbers.
    expected = json.loads((out / "dataset.json").read_text())["origin"]["cases_of_release"]
    assert any(f"{len(rows)} cases found, {expected} expected" in line for line in summary.warnings)

    for row in rows:
        mask = read_mask(out / row["mask"])
        truth = made.truth[row["case_id"]]
        image = read_image(out / row["image"])
        assert image.shape[:2] == mask.shape == truth.shape
        assert agreement(mask, truth) >= (0.97 if made.lossy else 1.0), row["case_id"]
        assert row["prompts"]["p0"] == ""
        assert row["prompts"]["p1"]
        assert row["attributes"]["class"] == made.classes[row["case_id"]]
        assert row.get("group") == made.groups.get(row["case_id"])
        # The picture is the one of the mask, not turned or swapped: it is brighter where the mask is.
        if truth.any() and name != "camus":
            assert image[truth].mean() > image[~truth].mean() + 20
    images = {row["image"] for row in rows}
    assert {f"images/{path.name}" for path in (out / "images").iterdir()} == images, "each image once, none over"
    assert {path.name for path in (out / "masks").iterdir()} == {Path(row["mask"]).name for row in rows}

    records, left_out = load_records(out)
    assert len(records) == len(rows)
    assert left_out == []
    card = (out / "README.md").read_text()
    assert SOURCES.get(name).homepage in card
    assert f"vlsm data prepare {name}" in card


@every_source
@pytest.mark.parametrize("ending", [".zip", ".tar.gz"])
def test_an_archive_gives_the_same_as_its_folder(
    name: str, ending: str, miniatures: ModuleType, tmp_path: Path
) -> None:
    made = miniatures.build(name, tmp_path)
    archive = miniatures.pack(made.raw, tmp_path / f"archive{ending}")
    prepare(name, made.raw, tmp_path / "of-folder")
    prepare(name, archive, tmp_path / "of-archive")
    assert (tmp_path / "of-folder/records.jsonl").read_bytes() == (tmp_path / "of-archive/records.jsonl").read_bytes()
    for row in rows_of(tmp_path / "of-folder"):
        for key in ("image", "mask"):
            assert (tmp_path / "of-folder" / row[key]).read_bytes() == (tmp_path / "of-archive" / row[key]).read_bytes()


@every_source
def test_another_archive_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    other = tmp_path / "holiday"
    (other / "beach").mkdir(parents=True)
    (other / "beach" / "notes.txt").write_text("sun")
    (other / "list.csv").write_text("a,b\n")
    with pytest.raises(DataError, match="looked for") as caught:
        prepare(name, other, tmp_path / "out")
    message = str(caught.value)
    assert "\n" not in message
    assert "'beach/'" in message, "it says what was found"
    assert not (tmp_path / "out").exists(), "nothing is left"


@every_source
def test_published_split_and_prompts_are_joined(name: str, miniatures: ModuleType, tmp_path: Path) -> None:
    made = miniatures.build(name, tmp_path)
    source = SOURCES.get(name)
    with open_tree(made.raw) as tree:
        cases: list[RawCase] = list(source.read(tree, next(iter(source.variants), "")).cases)
    lists: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
    wanted: dict[str, str] = {}
    for number, case in enumerate(cases):
        mask, splits = source.published(case)
        split = splits[number % len(splits)]
        lists[split].append(
            {"img_name": "x.jpg", "mask_name": f"{mask}.png", "prompts": {"p0": "", "p1": f"text {number}"}}
        )
        wanted[case.case_id] = split
    folder = tmp_path / "lists" / name
    folder.mkdir(parents=True)
    for split, entries in lists.items():
        (folder / f"{split}.json").write_text(json.dumps(entries))
    prepare(name, made.raw, tmp_path / "out", annotations=tmp_path / "lists")
    rows = rows_of(tmp_path / "out")
    assert {row["case_id"]: row["split"] for row in rows} == wanted
    assert all(row["prompts"]["p1"].startswith("text ") for row in rows)
    declared = None if source.leak_free is None else list(source.leak_free)
    assert all(row.get("leak_free") == declared for row in rows)


def test_camus_words_of_the_patient_record_do_not_leak() -> None:
    assert SOURCES.get("camus").leak_free == ("p1", "p2", "p3", "p4", "p5", "p6")  # p7 adds the shape of the mask


@every_source
def test_a_damaged_image_is_one_line_and_can_be_skipped(name: str, miniatures: ModuleType, tmp_path: Path) -> None:
    made = miniatures.build(name, tmp_path)
    prepare(name, made.raw, tmp_path / "whole")
    first = rows_of(tmp_path / "whole")[0]["case_id"]
    with open_tree(made.raw) as tree:
        case = next(iter(SOURCES.get(name).read(tree, next(iter(SOURCES.get(name).variants), "")).cases))
    assert case.case_id == first
    victim = Path(case.shown) if Path(case.shown).is_file() else next(made.raw.rglob("*.jpg"))
    if name == "camus":
        victim = next(victim.parent.glob(f"{victim.stem}.*raw"))
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    with pytest.raises(DataError) as caught:
        prepare(name, made.raw, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert "--skip-bad" in str(caught.value)
    assert not (tmp_path / "out" / "records.jsonl").exists()
    summary = prepare(name, made.raw, tmp_path / "out", skip_bad=True)
    assert summary.skipped
    assert summary.cases + len(summary.skipped) == len(made.truth)
    assert all(case.reason for case in summary.skipped)
    assert {row["image"] for row in rows_of(tmp_path / "out")} == {
        f"images/{path.name}" for path in (tmp_path / "out" / "images").iterdir()
    }
