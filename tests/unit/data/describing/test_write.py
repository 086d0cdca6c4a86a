"""The file of prompts: written beside the data, never into it, and read in the data's place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlsm_adapter.data.describing.classes import Classes
from vlsm_adapter.data.describing.measure import describe
from vlsm_adapter.data.describing.phrases import LEVELS, places_in
from vlsm_adapter.data.describing.prompt_file import PromptFile
from vlsm_adapter.data.describing.write import check_levels, check_out, describe_cases, write_prompts
from vlsm_adapter.data.images import read_mask
from vlsm_adapter.data.prompts import choose_prompt, common_levels, leaks_in
from vlsm_adapter.data.records import load_records, write_manifest
from vlsm_adapter.errors import ConfigError, DataError

SHARED = Path(__file__).parents[4] / ".." / "shared" / "data"


def make_data(root: Path, *, published: bool = True) -> Path:
    """Five cases with a disc each, one of them empty, in the published layout or as a plain folder."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    lists: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
    rows, columns = np.mgrid[:90, :120]
    for number in range(5):
        mask = np.hypot(rows - 15 - 15 * number, columns - 20 - 20 * number) < 12
        if number == 4:
            mask[:] = False
        image = np.full((90, 120, 3), (210, 160, 130), np.uint8)
        image[mask] = (190, 40, 40)
        Image.fromarray(image).save(root / "images" / f"{number}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(root / "masks" / f"{number}.png")
        entry = {"img_name": f"{number}.png", "mask_name": f"{number}.png", "prompts": {"p0": "", "p1": "polyp"}}
        lists[("train", "train", "train", "val", "test")[number]].append(entry)
    if published:
        (root / "anns").mkdir()
        for split, entries in lists.items():
            (root / "anns" / f"{split}.json").write_text(json.dumps(entries))
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "polyps")


def digest(root: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}


def write(data: Path, out: Path, **options: object) -> PromptFile:
    prompt = options.get("prompt")
    records, _ = load_records(data, prompt=prompt)  # type: ignore[arg-type]
    write_prompts(records, out, data=data, classes=Classes.load(), **options)  # type: ignore[arg-type]
    found = PromptFile.open(out)
    assert found is not None
    return found


def test_the_data_is_untouched_and_the_file_stands_for_it(data: Path, tmp_path: Path) -> None:
    before = digest(data)
    plain, _ = load_records(data)
    for out in (data / "prompts.jsonl", tmp_path / "elsewhere" / "p.jsonl"):
        found = write(data, out)
        assert found.data == data.resolve()
        assert found.leak_free == ("p0", "p1", "p7")
        records, skipped = load_records(out)
        assert not skipped
        # Everything but the words is the data's own.
        assert [replace(r, prompts={}, leak_free=None) for r in records] == [replace(r, prompts={}) for r in plain]
        assert common_levels(records) == list(LEVELS)
        assert records[0].prompts["p6"] == ("one medium red round polyp in the top left part of the image",)
        assert records[4].prompts["p5"] == ("no polyp",)
        assert [level for level in LEVELS if not leaks_in(level, records)] == ["p0", "p1", "p7"]
        assert leaks_in("random", records)
    assert {name: value for name, value in digest(data).items() if "prompts.jsonl" not in name} == before
    assert load_records(data)[0] == plain  # a file of prompts in the folder changes nothing about how it is read


def test_the_file_moves_with_its_data(data: Path, tmp_path: Path) -> None:
    write(data, data / "prompts.jsonl")
    moved = Path(shutil.move(str(data), tmp_path / "moved"))
    records, _ = load_records(moved / "prompts.jsonl")
    assert records[0].image.is_relative_to(moved.resolve())


def test_prompts_from_a_file_of_prompts_are_of_its_data(data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write(data, first)
    assert write(first, second).data == data.resolve()
    assert load_records(second)[0] == load_records(first)[0]


def test_words_are_the_same_each_time_and_chosen_by_case_level_and_seed(data: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write(data, one)
    write(data, other)
    assert one.read_bytes() == other.read_bytes()
    records, _ = load_records(one)
    chosen = [choose_prompt(record, "p7", seed=1) for record in records]
    assert chosen == [choose_prompt(record, "p7", seed=1) for record in reversed(records)][::-1]
    assert len({choose_prompt(records[0], "p7", seed=seed) for seed in range(30)}) == 3


def test_a_plain_folder_brings_its_class(tmp_path: Path) -> None:
    data = make_data(tmp_path / "plain", published=False)
    out = tmp_path / "p.jsonl"
    assert write(data, out, prompt="widget").prompt == "widget"
    records, _ = load_records(out)
    assert records[0].prompts["p2"] == ("round widget",)
    assert common_levels(records) == list(LEVELS[:7])  # nothing is known of widgets in general
    with pytest.raises(DataError, match="leave --prompt out"):
        load_records(out, prompt="polyp")
    with pytest.raises(DataError, match="no description"):
        write(data, tmp_path / "q.jsonl", prompt="widget", levels=["p7,p8"])
    assert not (tmp_path / "q.jsonl").exists()


def test_chosen_levels_keep_their_flags(data: Path, tmp_path: Path) -> None:
    write(data, tmp_path / "p.jsonl", levels=["p7", "p2"])
    records, _ = load_records(tmp_path / "p.jsonl")
    assert common_levels(records) == ["p0", "p2", "p7"]
    assert not leaks_in("p7", records)  # by the rule for data that declares nothing it would
    assert leaks_in("p2", records)
    assert check_levels(["p9, p1", "p0"]) == ("p1", "p9")
    with pytest.raises(ConfigError, match="level 'p11' is unknown"):
        check_levels(["p11"])
    with pytest.raises(ConfigError, match="no level"):
        check_levels(["p0"])


def test_a_manifest_declares_leak_free_levels_too(data: Path) -> None:
    records, _ = load_records(data)
    mine = [
        replace(r, prompts={"p1": ("polyp",), "view": ("polyp, close",)}, leak_free=("p1", "view")) for r in records
    ]
    write_manifest(mine, data / "records.jsonl")
    again, _ = load_records(data)
    assert [record.leak_free for record in again] == [("p1", "view")] * 5
    assert not leaks_in("view", again)
    assert leaks_in("view", [*again, records[0]])  # not all declare it
    (data / "records.jsonl").write_text('{"image": "images/0.png", "text": "x", "leak_free": "p1"}\n')
    with pytest.raises(DataError, match=r"leak_free.*give a list"):
        load_records(data)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("prompts.json", "ends in .jsonl"),
        ("records.jsonl", "own manifest"),
        ("taken.jsonl", "no file of prompts"),
        ("folder.jsonl", "is a folder"),
    ],
)
def test_what_is_not_ours_is_not_written_over(data: Path, name: str, message: str) -> None:
    (data / "taken.jsonl").write_text('{"image": "images/0.png", "text": "x"}\n')
    (data / "folder.jsonl").mkdir()
    before = digest(data)
    with pytest.raises(DataError, match=message):
        write(data, data / name)
    assert digest(data) == before
    with pytest.raises(DataError, match="data set itself"):
        check_out(data / "taken.jsonl", data / "taken.jsonl")


def test_a_bad_case_stops_or_is_left_out_and_nothing_half_written_remains(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    records, _ = load_records(data)
    content = (data / "images" / "2.png").read_bytes()
    (data / "images" / "2.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"2\.png"):
        write_prompts(records, out, data=data, classes=Classes.load())
    assert not list(tmp_path.glob("*p.jsonl*"))
    tally = write_prompts(records, out, data=data, classes=Classes.load(), skip_bad=True)
    assert (tally.cases, tally.empty, [case.case_id for case in tally.skipped]) == (4, 1, ["2"])
    (data / "images" / "2.png").write_bytes(content)
    with pytest.raises(DataError, match=r"no prompts for case 2 .*vlsm prompts"):
        load_records(out)
    kept, skipped = load_records(out, skip_bad=True)
    assert [record.case_id for record in kept] == ["0", "1", "3", "4"]
    assert skipped[0].case_id == "2"
    for image in (data / "images").iterdir():
        image.write_bytes(b"x")
    before = out.read_bytes()
    with pytest.raises(DataError, match="no usable case"):
        write_prompts(records, out, data=data, classes=Classes.load(), skip_bad=True)
    assert out.read_bytes() == before


def test_damaged_files_of_prompts_are_refused_in_one_line(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    write(data, out)
    head, first, *rest = out.read_text().split("\n")
    values = json.loads(head)
    for changed, message in (
        ({**values, "format_version": 2}, "format_version 2"),
        ({**values, "data": "nowhere"}, "is not there"),
        ({**values, "data": 3}, "names the data set"),
        ({**values, "data": "p.jsonl"}, "names this very file"),
        ({**values, "levels": []}, "not a table of levels"),
        ({**values, "levels": {"p1": {"leaks": "no"}}}, "must be true or false"),
        ({**values, "prompt": ["x"]}, "not a text"),
    ):
        out.write_text("\n".join([json.dumps(changed), first, *rest]))
        with pytest.raises(DataError) as error:
            load_records(out)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    for lines, message in (
        ([head, first, first, *rest], "stands twice"),
        ([head, '{"case_id": "0"}'], "needs case_id and prompts"),
        ([head, "{"], "not valid JSON"),
        ([head, '{"case_id": "../x", "prompts": {"p1": "x"}}'], "cannot name a file"),
        ([head], "no prompts for case"),
    ):
        out.write_text("\n".join(lines))
        with pytest.raises(DataError, match=message):
            load_records(out)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_refused_or_another_file(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes, ours: bool
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    file.write_bytes((b'{"format": "vlsm-prompts", ' if ours else b"") + tail)
    problem = ""
    try:
        PromptFile.open(file)
    except DataError as error:
        problem = str(error)
    assert "\n" not in problem


@pytest.mark.parametrize("name", ["kvasir_polyp", "busi", "isic"])
def test_on_real_masks_the_place_said_is_that_of_the_centroid(name: str) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip("needs ../shared/data (real images, not part of the repository)")
    records, _ = load_records(SHARED / name, skip_bad=True)
    said: Counter[bool] = Counter()
    for record in records[:: max(1, len(records) // 12)]:
        mask = read_mask(record.mask, record.mask_value)  # type: ignore[arg-type]
        words = describe(mask)
        assert words.empty == (not mask.any())
        if len(words.findings) == 1 and words.positions:
            rows, columns = np.nonzero(mask)  # specks and all: they are too small to move the centre much
            row, column = int(3 * (rows.mean() + 0.5) / mask.shape[0]), int(3 * (columns.mean() + 0.5) / mask.shape[1])
            place = f"{('top', '', 'bottom')[row]} {('left', '', 'right')[column]}".strip() or "center"
            said[words.positions == (place,)] += 1
    assert said[True] >= 5
    assert not said[False]


def test_measuring_reads_pixels_in_order(data: Path) -> None:
    records, _ = load_records(data)
    cases = list(describe_cases(records, Classes.load()))
    assert [case.record.case_id for case in cases] == ["0", "1", "2", "3", "4"]
    # Cases 1 and 3 lie next to a line of the grid, case 4 is empty.
    assert [places_in(case.prompts["p6"][0]) for case in cases] == [("top left",), (), ("center",), (), ()]
    with pytest.raises(DataError, match="no p1"):
        list(describe_cases([replace(records[0], prompts={"p2": ("x",)})], Classes.load()))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom a read-only folder stops")
def test_a_read_only_place_is_named(data: Path) -> None:
    data.chmod(0o500)
    try:
        with pytest.raises(Exception, match="cannot be written"):
            write(data, data / "prompts.jsonl")
    finally:
        data.chmod(0o700)
