"""The small form: what is kept rebuilds the same tables, merges by what it is, and refuses contradictions."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vlsm_adapter.errors import UserError
from vlsm_adapter.study_report.data_forms import table_rows
from vlsm_adapter.study_report.numbers import compute
from vlsm_adapter.study_report.reading import SMALL_SUFFIX, find_results
from vlsm_adapter.study_report.results import Result, same_numbers
from vlsm_adapter.study_report.small import distinct, from_json, read_small, to_json, write_small
from vlsm_adapter.study_report.tables import arrange
from vlsm_adapter.study_report.write import write_study_report


def results_of(root: Path) -> list[Result]:
    return distinct(find_results([root]).results)[0]


def kept_in(folder: Path) -> list[Result]:
    return [read_small(path) for path in find_results([folder]).small_files]


@pytest.fixture
def run(fake: ModuleType, tmp_path: Path) -> Result:
    """One result of a run with everything."""
    path = fake.FakeRun(
        tmp_path / "runs/one", [1 / 3, 0.5, float("nan")], sensitivity=0.4, groups={"case_0001": "p"}
    ).write()
    fake.write_curve(path, 0.5, epochs=4)
    return find_results([tmp_path / "runs"]).results[0]


def test_the_same_tables_to_the_last_digit(study: Path, tmp_path: Path) -> None:
    results = results_of(study)
    write_small(results, tmp_path / "small")
    again = distinct(kept_in(tmp_path / "small"))[0]
    assert len(again) == len(results)

    def rows(found: list[Result]) -> list[dict[str, object]]:
        return table_rows(
            [compute(table, ("dice", "hd95"), n_boot=50, permutations=100) for table in arrange(found)[0]]
        )

    # Files are read in the order of their names: the tables' own order must not depend on it.
    assert rows(again) == rows(results)


def test_everything_comes_back(run: Result) -> None:
    back = from_json(json.loads(json.dumps(to_json(run), allow_nan=False)), "x")
    assert back.key == run.key
    assert same_numbers(back, run) is None
    assert (back.sensitivity, back.leaks, back.trainable, back.resources) == (
        run.sensitivity, run.leaks, run.trainable, run.resources
    )  # fmt: skip
    assert back.curve["val_dice"] == pytest.approx(run.curve["val_dice"], rel=1e-5)
    assert back.cases == run.cases


def test_epochs_that_were_not_validated_come_back(fake: ModuleType, tmp_path: Path) -> None:
    path = fake.FakeRun(tmp_path / "runs/one", [0.5, 0.6], train={"validate_every": 3}).write()
    fake.write_curve(path, 0.5, epochs=7, every=3)
    (rare,) = find_results([tmp_path / "runs"]).results
    (file,) = write_small([rare], tmp_path / "small")
    back = read_small(file)
    assert back.recipe["train.validate_every"] == 3
    assert back.curve["epoch"] == [1, 2, 3, 4, 5, 6, 7]
    for name in ("val_loss", "val_dice"):
        assert [epoch for epoch, value in enumerate(back.curve[name], 1) if value is not None] == [3, 6, 7]
    assert None not in back.curve["train_loss"]


def test_a_result_is_the_same_before_and_after_it_could_be_validated_rarely(fake: ModuleType, tmp_path: Path) -> None:
    made = {}
    for name, train in (("older", {}), ("now", {"validate_every": 1}), ("rare", {"validate_every": 5})):
        cell = {"data": "polyps", "protocol": "p", "model": "tiny", "method": "dense"}
        fake.FakeRun(tmp_path / name, [0.5, 0.6], train=train, cell=cell).write()
        (made[name],) = find_results([tmp_path / name]).results
    older, now, rare = made.values()
    assert now.identity == older.identity
    assert "train.validate_every" not in older.recipe
    (file,) = write_small([older], tmp_path / "small")
    assert write_small([now], tmp_path / "small") == [file]
    assert len(distinct([now, read_small(file)])[0]) == 1
    assert rare.key != now.key
    with pytest.raises(UserError, match=r"train\.validate_every is 1 in one and 5 in the other"):
        distinct([older, rare])
    plain = [replace(one, name="") for one in (older, rare)]
    assert [row.label for row in arrange(plain)[1]] == ["Dense validate_every=1", "Dense validate_every=5"]


def test_equal_results_are_equal_files_and_nothing_of_the_machine(run: Result, tmp_path: Path) -> None:
    (first,) = write_small([run], tmp_path / "a")
    (second,) = write_small([run], tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    stamp = first.stat().st_mtime_ns
    write_small([run], tmp_path / "a")
    assert first.stat().st_mtime_ns == stamp
    text = gzip.decompress(first.read_bytes()).decode()
    assert str(tmp_path) not in text
    assert "/data/" not in text
    assert first.name.endswith(f"{run.key}{SMALL_SUFFIX}")


def test_the_same_twice_is_counted_once_the_fuller_one(run: Result) -> None:
    bare = replace(run, curve={}, sensitivity=None, source="small")
    for order in ([bare, run], [run, bare]):
        (kept,), notes = distinct(order)
        assert kept is run
        assert notes == []


def test_other_numbers_are_refused(run: Result) -> None:
    other = replace(run, source="elsewhere", values={**run.values, "dice": (0.9, 0.5, float("nan"))})
    with pytest.raises(UserError, match=r"dice of case 'case_0000' is 0\.333333 in one and 0\.9 in the other"):
        distinct([run, other])
    fewer = replace(run, cases=run.cases[:2], values={"dice": (0.5, 0.5)}, emptiness=("none", "none"))
    with pytest.raises(UserError, match="their cases differ"):
        distinct([run, fewer])


def test_one_cell_trained_in_two_ways_is_refused(run: Result) -> None:
    one = replace(run, name="dense", protocol="p")
    other = replace(one, recipe={**one.recipe, "train.epochs": 5})
    with pytest.raises(UserError, match=r"train\.epochs is 30 in one and 5 in the other"):
        distinct([one, other])
    assert len(distinct([run, replace(run, recipe={"train.epochs": 5})])[0]) == 2  # without a study: two rows


def with_precision(run: Result, value: str) -> Result:
    return replace(run, source=value, recipe={**run.recipe, "train.precision": value})


@pytest.mark.parametrize("name", ["", "dense"])
def test_an_older_file_that_does_not_know_the_precision_is_the_same_result(
    run: Result, tmp_path: Path, name: str
) -> None:
    run = replace(run, name=name)
    old, now = with_precision(run, "auto"), with_precision(run, "bf16-mixed")
    for order in ([old, now], [now, old]):
        assert distinct(order) == ([now], [])
    bare = replace(now, curve={}, sensitivity=None)
    ((kept,), _) = distinct([old, bare])  # the fuller one, with what is known of the precision
    assert (kept.recipe, kept.curve) == (now.recipe, old.curve)
    write_small([old], tmp_path / "small")
    (file,) = write_small([now], tmp_path / "small")
    assert [*tmp_path.glob("small/runs/*")] == [file]


@pytest.mark.parametrize("name", ["", "dense"])
def test_an_older_file_with_other_numbers_is_refused(run: Result, name: str) -> None:
    run = replace(run, name=name)
    other = replace(with_precision(run, "auto"), values={**run.values, "dice": (0.9, 0.5, float("nan"))})
    with pytest.raises(UserError, match=r"dice of case 'case_0000' is 0\.333333 in one and 0\.9 in the other"):
        distinct([with_precision(run, "bf16-mixed"), other])


def test_two_precisions_of_one_seed(run: Result) -> None:
    both = [with_precision(run, value) for value in ("bf16-mixed", "32-true")]
    assert distinct(both)[0] == both  # without a study: two rows
    named = [replace(one, name="dense") for one in both]
    with pytest.raises(UserError, match=r"train\.precision is 'bf16-mixed' in one and '32-true' in the other"):
        distinct(named)
    labels = [row.label for row in arrange(both)[1]]
    assert labels == ["Dense precision=32-true", "Dense precision=bf16-mixed"]
    unknown = replace(with_precision(run, "auto"), seed=43)
    assert len(arrange([both[0], unknown])[1]) == 1


def test_many_contradictions_are_told_shortly(run: Result) -> None:
    ours = [replace(run, seed=seed) for seed in range(20)]
    theirs = [replace(one, values={**one.values, "dice": (0.9, 0.5, 0.1)}) for one in ours]
    with pytest.raises(UserError, match="and 15 more such pairs"):
        distinct([*ours, *theirs])


def test_zero_shot_measured_anew_is_told_not_refused(run: Result) -> None:
    zero = replace(run, method="zero_shot", seed=None, settings={}, recipe={})
    other = replace(zero, source="other", values={**zero.values, "dice": (0.4, 0.5, 0.6)})
    kept, notes = distinct([zero, other])
    assert kept == [zero]
    assert "differ in 1 of these" in notes[0]


def test_zero_shot_on_another_division_of_the_data_is_told_as_that(run: Result) -> None:
    zero = replace(run, method="zero_shot", seed=None, settings={}, recipe={})
    cases = tuple(replace(case, case_id=f"other {case.case_id}") for case in zero.cases)
    kept, (note,) = distinct([zero, replace(zero, source="other", cases=cases)])
    assert kept == [zero]
    assert "are of several sets of cases" in note
    assert "1 other is left out" in note
    assert "machine" not in note


def packed(content: bytes) -> bytes:
    """Gzip without the time of day: workers that collect these tests must see the same values."""
    return gzip.compress(content, mtime=0)


DAMAGED = {
    "empty": b"",
    "not gzip": b"not gzip",
    "half a JSON": packed(b"{"),
    "a list": packed(b"[]"),
    "another format": packed(b'{"format": "other"}'),
    "a newer version": packed(b'{"format": "vlsm-study-result", "format_version": 9}'),
    "nothing inside": packed(b'{"format": "vlsm-study-result", "format_version": 1}'),
    "too deep": packed(b"[" * 100_000),
    "cut": packed(b"{}" * 5000)[:-20],
    "bad stream": packed(b"{}")[:12] + b"\xff\xff\xff\xff\xff\xff",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / f"bad{SMALL_SUFFIX}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.result\.json\.gz: "):
        read_small(path)


SPOILED: dict[str, tuple[tuple[str, ...], object, str]] = {
    "a seed as text": (("identity", "seed"), "41", "seed is '41': allowed is a whole number"),
    "a seed as truth": (("identity", "seed"), True, "seed is True"),
    "a name as number": (("identity", "name"), 3, "name is 3: allowed is text"),
    "no data": (("identity", "data"), None, "data is None"),
    "a fraction as number": (("identity", "fraction"), 0.1, "fraction is 0.1"),
    "settings as a list": (("identity", "settings"), [1], r"settings is \[1\]"),
    "an endless threshold": (("identity", "threshold"), float("inf"), "threshold is inf"),
    "something else": (("identity", "colour"), "blue", "colour"),
    "parameters below 0": (("trainable",), -5, "trainable is -5"),
    "leaks as text": (("leaks",), "no", "leaks is 'no': allowed is true or false"),
    "a score as text": (("values", "dice"), ["x", 0.5, 0.5], "dice is 'x': allowed is a number or null"),
    "a case twice": (("cases", "case_id"), ["a", "b", "a"], "case 'a' is there twice"),
    "an area that is none": (("cases", "truth_area"), [None, 1, 2], "truth_area is None"),
    "another emptiness": (("cases", "emptiness"), {"all": "half"}, "emptiness is 'half': allowed is one of both"),
    "a curve with words": (("curve",), {"epoch": [1, "a"]}, "curve.epoch is 'a'"),
    "time below 0": (("resources",), {"seconds": -5}, "resources.seconds is -5"),
    "resources as a list": (("resources",), [1], "damaged"),
    "words in sensitivity": (("sensitivity",), {"value": "deaf"}, "sensitivity is 'deaf'"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_values_that_no_result_has_are_told_with_the_name_of_the_file(run: Result, tmp_path: Path, what: str) -> None:
    place, value, says = SPOILED[what]
    values: dict[str, Any] = json.loads(json.dumps(to_json(run)))
    inner = values
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path = tmp_path / f"bad{SMALL_SUFFIX}"
    path.write_bytes(packed(json.dumps(values).encode()))
    with pytest.raises(UserError, match=rf"^bad\.result\.json\.gz: .*{says}"):
        read_small(path)


def test_a_damaged_file_does_not_stop_the_report(run: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlsm_adapter.study_report.figures.draw.drawn", lambda *_: iter(()))
    (good, bad) = write_small([replace(run, seed=seed) for seed in (1, 2)], tmp_path / "small")
    values = json.loads(gzip.decompress(bad.read_bytes()))
    values["identity"]["seed"] = "2"
    bad.write_bytes(packed(json.dumps(values).encode()))
    report = write_study_report([tmp_path / "small"], out=tmp_path / "out", n_boot=20)
    assert (
        f"left out {bad.name}: damaged (seed is '2': allowed is a whole number of at least 0, or null)"
        in (report.notes[1])
    )
    assert good.name not in str(report.notes)


def test_columns_that_do_not_fit(run: Result) -> None:
    values = to_json(run)
    values["values"]["dice"] = [0.5]
    with pytest.raises(ValueError, match="1 values for 3 cases"):
        from_json(values, "x")


def test_names_from_outside_stay_in_the_folder(run: Result, tmp_path: Path) -> None:
    odd = replace(run, data="../../etc", name="a/b\\c\0", protocol="..")
    (path,) = write_small([odd], tmp_path / "small")
    assert path.parent == tmp_path / "small/runs"
    assert read_small(path).data == "../../etc"
    shutil.rmtree(tmp_path / "small")
