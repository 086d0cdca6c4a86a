"""Split files: written and read back, refused when they do not fit the data; and the division of a run."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlsm_adapter.config import RunConfig
from vlsm_adapter.data.cases import load_cases, load_undivided
from vlsm_adapter.data.division import Division
from vlsm_adapter.data.records import load_records
from vlsm_adapter.data.split_files import SplitFile, read_split_file, write_split_file, write_splits
from vlsm_adapter.data.splits import assign_splits
from vlsm_adapter.errors import ConfigError, DataError, UserError
from vlsm_adapter.types import Record


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Thirty cases of fifteen patients without splits; the masks grow, the first six are empty."""
    root = tmp_path / "polyps"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    lines = []
    for number in range(30):
        mask = np.zeros((20, 20), np.uint8)
        mask[: max(0, number - 5) // 2] = 255
        Image.fromarray(np.full((20, 20, 3), number, np.uint8)).save(root / f"images/{number}.png")
        Image.fromarray(mask).save(root / f"masks/{number}.png")
        case = {"case_id": f"c{number}", "image": f"images/{number}.png", "mask": f"masks/{number}.png"}
        lines.append(json.dumps({**case, "text": "polyp", "group": f"p{number // 2}"}))
    (root / "records.jsonl").write_text("\n".join(lines))
    return root


def splits(records: list[Record]) -> dict[str, str | None]:
    return {record.case_id: record.split for record in records}


def some(count: int, split: str | None = "train") -> list[Record]:
    return [Record(f"c{i}", Path(f"/d/{i}.png"), split=split, dataset="polyps") for i in range(count)]


# Files


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=6), st.sampled_from(["train", "val", "test"]), min_size=1))
def test_what_is_written_reads_back(tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, str]) -> None:
    wanted = {name.encode("utf-8", "replace").decode(): split for name, split in wanted.items()}
    records = [Record(name, Path("/x"), split=split) for name, split in wanted.items()]
    path = tmp_path_factory.mktemp("split") / "split.json"
    write_split_file(path, records, {"seed": 1})
    read = read_split_file(path)
    assert (read.split_of, read.about) == (wanted, {"seed": 1})
    stripped = [replace(record, split=None) for record in records]
    assert read.apply(stripped, "DIR") == records
    before = path.read_bytes()
    write_split_file(path, records[::-1], {"seed": 1})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ("[]", "not a split file"),
        ('{"train": ["a"]}', "not a split file"),
        ('{"format": "vlsm-split", "format_version": 2}', "format_version 2 is not known"),
        ('{"format": "vlsm-split", "format_version": 1}', "names no case"),
        ('{"format": "vlsm-split", "format_version": 1, "train": "a"}', "'train' is a text"),
        ('{"format": "vlsm-split", "format_version": 1, "val": [1]}', "'val' holds a number"),
        (
            '{"format": "vlsm-split", "format_version": 1, "train": ["a"], "test": ["a"]}',
            "'a' stands in train and in test",
        ),
        ('{"format": "vlsm-split", "format_version": 1, "train": ["a", "a"]}', "'a' stands in train and in train"),
        ('{"format": "vlsm-split", "train": ["a"], "train": []}', "stands twice"),
    ],
)
def test_what_is_no_split_file_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(DataError, match=says) as error:
        read_split_file(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_file_of_other_data_is_refused(tmp_path: Path) -> None:
    given_file = SplitFile(tmp_path / "s.json", {"c1": "train", "x": "test", "y": "val"}, {})
    with pytest.raises(DataError, match=r"names 2 of 3 cases that DIR does not have, the first is 'x'"):
        given_file.apply(some(5), "DIR")
    with pytest.raises(DataError, match="no such file"):
        read_split_file(tmp_path / "absent.json")


def test_writing_refuses_what_would_be_lost(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    with pytest.raises(DataError, match="'c0' has no split"):
        write_split_file(path, some(2, split=None), {})
    with pytest.raises(DataError, match="stands twice"):
        write_split_file(path, [*some(2), *some(1)], {})
    assert not path.exists()
    write_split_file(path, some(2), {})
    with pytest.raises(DataError, match="holds another split; choose another --out"):
        write_split_file(path, some(3), {})
    assert len(read_split_file(path).split_of) == 2


def test_no_fold_is_written_beside_those_of_another_division(data: Path, tmp_path: Path) -> None:
    records, _ = load_undivided(data)
    write_splits(records, tmp_path / "out", folds=3, seed=0)
    (tmp_path / "out/fold-1-of-3.json").unlink()
    with pytest.raises(DataError, match=r"fold-2-of-3\.json: holds another split"):
        write_splits(records, tmp_path / "out", folds=3, seed=7)
    assert not (tmp_path / "out/fold-1-of-3.json").exists()
    write_splits(records, tmp_path / "out", folds=3, seed=0)
    assert len(list((tmp_path / "out").iterdir())) == 3


# Divisions of a data set


def test_folds_and_subsets_are_written_and_the_data_is_only_read(data: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in data.rglob("*") if file.is_file()}
    records, _ = load_records(data)
    written = write_splits(records, tmp_path / "out", folds=3, subsets=["10%", 4], seed=2)
    assert [file.path.name for file in written] == [
        f"fold-{number}-of-3{part}.json" for number in (1, 2, 3) for part in ("", "_train-10pct", "_train-4-cases")
    ]
    tested = Counter(
        name
        for number in (1, 2, 3)
        for name, split in read_split_file(tmp_path / "out" / f"fold-{number}-of-3.json").split_of.items()
        if split == "test"
    )
    assert tested == Counter(record.case_id for record in records)
    few = read_split_file(tmp_path / "out" / "fold-1-of-3_train-4-cases.json")
    whole = read_split_file(tmp_path / "out" / "fold-1-of-3.json")
    assert Counter(few.split_of.values())["train"] == 4
    assert few.split_of.items() < whole.split_of.items()
    assert few.about == {"stratify": "size", "seed": 2, "fold": "1/3", "subset": "4"}
    assert json.loads(few.path.read_text())["data"] == "polyps"
    assert "mean foreground" in str(written[0])
    assert {file: file.read_bytes() for file in data.rglob("*") if file.is_file()} == before


def test_the_datas_own_splits_and_those_by_fraction(data: Path, tmp_path: Path) -> None:
    records, _ = load_records(data)
    (own,) = write_splits(records, tmp_path / "own", stratify=False)
    assert read_split_file(own.path).split_of == splits(records)
    assert str(own) == "21 train, 3 val, 6 test" or "mean" not in str(own)
    (made,) = write_splits(records, tmp_path / "made", fractions=(0.5, 0.2, 0.3))
    assert made.counts["train"] == pytest.approx(15, abs=1)
    assert (read_split_file(made.path).split_of != splits(records)) or made.counts == own.counts
    with pytest.raises(ConfigError, match="give at most"):
        write_splits(records, tmp_path / "none", subsets=[4, 25])
    with pytest.raises(ConfigError, match="at least 2"):
        write_splits(records, tmp_path / "none", folds=0)
    assert not (tmp_path / "none").exists()


def test_a_division_takes_the_place_of_the_datas_splits(data: Path, tmp_path: Path) -> None:
    plain = load_cases(data)
    assert plain.division == ""
    fold = load_cases(data, division=Division(fold="2/3", seed=2))
    assert fold.division == "fold 2 of 3, split seed 2"
    write_splits(load_records(data)[0], tmp_path / "out", folds=3, seed=2, subsets=["20%"])
    by_file = load_cases(data, division=Division(split_file=str(tmp_path / "out" / "fold-2-of-3.json")))
    assert splits(by_file.all) == splits(fold.all)
    assert by_file.division == "splits of fold-2-of-3.json"
    few = load_cases(data, division=Division(fold="2/3", seed=2, subset="20%"))
    assert few.division == "fold 2 of 3, 20 % of train, split seed 2"
    by_file = load_cases(data, division=Division(split_file=str(tmp_path / "out" / "fold-2-of-3_train-20pct.json")))
    assert splits(by_file.all) == splits(few.all)
    assert len(few.records("train")) == round(0.2 * len(fold.records("train")))
    assert few.records("test") == fold.records("test")
    assert Division(subset=3).of("test") == Division()
    assert Division(subset=3).of("train") == Division(subset=3).of(None) == Division(subset=3)
    assert str(Division(subset=3, stratify="none")) == "3 cases of train, split seed 0, not stratified"
    unread = load_cases(data, division=Division(fold="1/3", stratify="none"))
    assert len(unread.all) == 30


def test_a_bad_mask_is_told_by_the_checks_and_may_be_left_out(data: Path) -> None:
    (data / "masks" / "3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"3\.png: is empty"):
        load_cases(data, division=Division(fold="1/3"))
    cases = load_cases(data, division=Division(fold="1/3"), skip_bad=True)
    assert len(cases.all) == 29
    assert [case.case_id for case in cases.skipped] == ["c3"]


def test_a_split_file_that_divides_patients_is_told(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records, _ = load_records(data)
    half = [replace(record, split=("train", "test")[number % 2]) for number, record in enumerate(records)]
    write_split_file(tmp_path / "split.json", half, {})
    caplog.clear()
    load_cases(data, division=Division(split_file=str(tmp_path / "split.json")))
    assert "15 group(s) stand in more than one split" in caplog.text
    assert "split.json" in caplog.text
    write_split_file(tmp_path / "whole.json", records, {})
    caplog.clear()
    load_cases(data, division=Division(split_file=str(tmp_path / "whole.json")))
    assert caplog.text == ""


def test_data_without_splits_is_divided_as_asked(data: Path, tmp_path: Path) -> None:
    records, left_out = load_undivided(data)
    assert {record.split for record in records} == {None}
    assert left_out == set()
    read = []
    for seed in (0, 5):
        (made,) = write_splits(records, tmp_path / str(seed), seed=seed)
        (same,) = write_splits(records, tmp_path / f"{seed}-again", seed=seed, fractions=(0.7, 0.1, 0.2))
        assert made.path.read_bytes() == same.path.read_bytes()
        read.append(read_split_file(made.path))
        assert read[-1].about == {"stratify": "size", "seed": seed, "fractions": [0.7, 0.1, 0.2]}
    assert read[0].split_of != read[1].split_of
    (plain,) = write_splits(records, tmp_path / "plain", seed=5, stratify=False)
    assert read_split_file(plain.path).about["stratify"] == "none"
    assert read_split_file(plain.path).split_of == splits(assign_splits(records, seed=5))


def test_the_datas_own_splits_are_recorded_as_such(data: Path, tmp_path: Path) -> None:
    records = [replace(record, split="train" if number < 20 else "test") for number, record in enumerate(some_of(data))]
    (made,) = write_splits(records, tmp_path / "val", seed=3)
    assert made.counts["val"] > 0
    about = read_split_file(made.path).about
    assert about == {"splits": "the data's own", "val": "taken from train, not stratified", "seed": 3}
    records[1] = replace(records[1], split="val")
    (made,) = write_splits(records, tmp_path / "own", seed=3)
    assert read_split_file(made.path).about == {"splits": "the data's own"}
    with pytest.raises(DataError, match="1 of 30 cases have no split"):
        write_splits([replace(records[0], split=None), *records[1:]], tmp_path / "some")


def some_of(data: Path) -> list[Record]:
    return load_undivided(data)[0]


@pytest.mark.parametrize("stratify", ["size", "none"])
def test_a_bad_case_changes_no_other_member_of_a_subset(data: Path, tmp_path: Path, stratify: str) -> None:
    division = Division(subset=10, stratify=stratify)
    before = {record.case_id for record in load_cases(data, division=division).records("train")}
    records, _ = load_undivided(data)
    options = {"subsets": [10], "folds": 3, "stratify": stratify == "size"}
    write_splits(records, tmp_path / "before", **options)  # type: ignore[arg-type]
    for name in sorted(before)[:2]:
        (data / "images" / f"{name[1:]}.png").write_bytes(b"")
        cases = load_cases(data, division=division, skip_bad=True)
        before.remove(name)
        assert {record.case_id for record in cases.records("train")} == before
    records, left_out = load_undivided(data, skip_bad=True)
    assert len(left_out) == 2
    for file in write_splits(records, tmp_path / "after", left_out=left_out, **options):  # type: ignore[arg-type]
        whole = read_split_file(tmp_path / "before" / file.path.name).split_of
        assert read_split_file(file.path).split_of == {
            name: split for name, split in whole.items() if name not in left_out
        }


def test_a_case_listed_twice_is_not_left_out(data: Path) -> None:
    lines = (data / "records.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    del row["case_id"]
    (data / "records.jsonl").write_text("\n".join([json.dumps(row), json.dumps(row), *lines[1:]]))
    records, left_out = load_undivided(data, skip_bad=True)
    assert len(records) == 30
    assert not left_out & {record.case_id for record in records}


# Configuration


def test_keys_of_a_recipe(tmp_path: Path) -> None:
    config = RunConfig.load(None, {"data.path": "x"}, ["data.subset=5%", "data.fold=2/5", "data.stratify=none"])
    assert config.data.division() == Division(fold="2/5", subset="5%", stratify="none")
    assert config.data.division("test") == Division(fold="2/5", stratify="none")
    count = RunConfig.load(None, {"data.path": "x"}, ["data.subset=20"])
    assert count.data.subset == 20
    file = tmp_path / "recipe.yaml"
    for one in (config, count):
        file.write_text(one.to_yaml())
        assert RunConfig.load(file) == one


@pytest.mark.parametrize(
    ("assign", "says"),
    [
        ("data.subset=0.05", "data.subset=0.05"),
        ("data.subset=true", "data.subset=True"),
        ("data.subset=0", "data: subset '0'.*such as 5%"),
        ("data.fold=9/5", "data: fold '9/5'"),
        ("data.fold=2", "data.fold=2: must be of type str"),
        ("data.stratify=sise", "did you mean 'size'"),
    ],
)
def test_wrong_values_are_told(assign: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RunConfig.load(None, {"data.path": "x"}, [assign])


def test_fold_and_file_exclude_each_other() -> None:
    with pytest.raises(UserError, match="give one of them"):
        Division(fold="1/2", split_file="x.json")
    with pytest.raises(ConfigError, match="stratify 'by size'"):
        Division(stratify="by size")
