"""The search: proposals that depend on nothing but what came before, and a choice by validation alone."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlsm_adapter.errors import ConfigError
from vlsm_adapter.run_folder import RunFolder
from vlsm_adapter.study.config import Study
from vlsm_adapter.study.folder import CellFolder, Status
from vlsm_adapter.study.grid import expand
from vlsm_adapter.study.ranges import Range
from vlsm_adapter.study.reader import load_study
from vlsm_adapter.study.search import GroupSearch, groups_of, propose, write_report

pytest.importorskip("optuna", reason="needs the extra 'study'")

SPACE = {
    "train.lr": Range(low=1e-5, high=1e-1, log=True),
    "settings.bottleneck_dim": Range(low=8, high=64, step=8),
    "train.schedule": Range(choices=("cosine", "constant")),
}
VALUES: dict[str, Any] = {
    "data": {"polyps": {"path": "data"}},
    "methods": {
        "zero_shot": {},
        "full": {"search": False},
        "dense": {"search": {"settings.bottleneck_dim": {"low": 8, "high": 64, "step": 8}}},
    },
    "fractions": ["100%", "10%"],
    "search": {
        "trials": 5, "parallel": 2, "fraction": "10%", "seed": 3, "train": {"epochs": 2},
        "space": {"train.lr": {"low": 1e-5, "high": 1e-1, "log": True}},
    },
}  # fmt: skip


def study_of(folder: Path, values: Any = VALUES) -> Study:
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    return load_study(file)


def search_of(folder: Path, values: Any = VALUES) -> GroupSearch:
    study = study_of(folder, values)
    (group,) = groups_of(study, expand(study))
    return GroupSearch(study, group, folder / "search")


def finish(search: GroupSearch, number: int, dice: float | None) -> None:
    """A trial that ended with this validation Dice; None for one that failed."""
    folder = CellFolder(search.run_of(number))
    trial = search.trials[number]
    folder.prepare(search.about(trial), search.config_of(trial.params), None)
    if dice is None:
        folder.write_status(Status().now("failed", error="loss is nan"))
        return
    (folder.path / "metrics.csv").write_text(f"epoch,val_dice\n1,0.1\n2,{dice}\n")
    folder.resources_file.write_text('{"train": {"finished": "yes"}}')


def test_proposals_are_a_function_of_the_arguments() -> None:
    past = [({"train.lr": 0.01, "settings.bottleneck_dim": 8, "train.schedule": "cosine"}, 0.5)] * 12
    for sampler in ("tpe", "random"):
        first = propose(SPACE, past, 3, sampler, "seed")
        assert first == propose(SPACE, past, 3, sampler, "seed")
        assert first != propose(SPACE, past, 3, sampler, "other")
        for one in first:
            assert one.keys() == SPACE.keys()
            assert 1e-5 <= one["train.lr"] <= 1e-1
            assert one["settings.bottleneck_dim"] % 8 == 0
            assert one["train.schedule"] in ("cosine", "constant")


def test_tpe_goes_where_it_was_good() -> None:
    past: list[tuple[dict[str, Any], float | None]] = []
    space = {"train.lr": SPACE["train.lr"]}
    for _ in range(10):
        for params in propose(space, past, 3, "tpe", "seed"):
            from math import log10

            past.append((params, -abs(log10(params["train.lr"]) + 3)))  # best at 1e-3
    early, late = ([value for _, value in part if value is not None] for part in (past[:10], past[-10:]))
    assert sum(late) / 10 > sum(early) / 10


def test_rounds_follow_each_other_and_the_best_validation_wins(tmp_path: Path) -> None:
    search = search_of(tmp_path)
    first = search.round()
    assert [trial.number for trial in first] == [0, 1]
    config = search.config_of(first[0].params)
    assert (config.train.epochs, config.train.seed, config.data.subset) == (2, 3, "10%")
    assert config.train.lr == first[0].params["train.lr"]
    assert config.adapter.settings["bottleneck_dim"] == first[0].params["settings.bottleneck_dim"]

    finish(search, 0, 0.5)
    assert [trial.number for trial in search.round()] == [1]
    finish(search, 1, None)
    assert [trial.number for trial in search.round()] == [2, 3]
    assert search.best() is not None
    finish(search, 2, 0.7)
    finish(search, 3, 0.7)
    assert [trial.number for trial in search.round()] == [4]
    finish(search, 4, 0.2)
    assert search.round() == []
    best = search.best()
    assert best is not None
    assert (best.number, best.value, best.epoch) == (2, 0.7, 2)

    # Another process reads the same from disk.
    again = search_of(tmp_path)
    assert again.round() == []
    assert again.best() == best
    write_report(tmp_path / "search", [again])
    told = json.loads((tmp_path / "search" / "search.json").read_text())
    (group,) = told["groups"]
    assert group["chosen"] == {"trial": 2, "validation_dice": 0.7, "params": dict(best.params)}
    assert (group["trials"], group["failed"], told["chosen_by"]) == (5, 1, "best validation Dice")
    with (tmp_path / "search" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["chosen"] for row in rows] == ["False", "False", "True", "False", "False"]
    assert rows[1]["state"] == "failed"
    assert not [name for name in rows[0] if "test" in name]


def test_a_trial_that_has_not_changed_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = search_of(tmp_path)
    search.round()
    for number in range(2):
        finish(search, number, 0.5)
    read: list[Path] = []
    config = RunFolder.config
    monkeypatch.setattr(RunFolder, "config", lambda self: read.append(self.path) or config(self))  # type: ignore[func-returns-value]
    for _ in range(3):
        assert [trial.number for trial in search.round()] == [2, 3]
    assert read == [search.run_of(0), search.run_of(1)]
    file = search.run_of(1) / "config.yaml"
    file.write_text(file.read_text().replace("epochs: 2", "epochs: 21"))
    with pytest.raises(ConfigError, match=r"train\.epochs=2, was 21"):
        search.round()


def test_a_killed_trial_is_taken_up_again_and_a_begun_one_keeps_its_values(tmp_path: Path) -> None:
    search = search_of(tmp_path)
    proposals = [trial.params for trial in search.round()]
    folder = CellFolder(search.run_of(0))
    begun = {**search.about(search.trials[0]), "params": {**proposals[0], "train.lr": 0.0625}}
    folder.prepare(begun, search.config_of(begun["params"]), None)
    folder.write_status(Status().now("killed", error="killed by signal 9"))
    again = search.round()
    assert [trial.number for trial in again] == [0, 1]
    assert again[0].params["train.lr"] == 0.0625
    assert again[1].params == proposals[1]


def test_a_grid_proposes_every_combination_once_in_order() -> None:
    space = {"train.lr": Range(choices=(1e-4, 1e-3)), "settings.parts": Range(choices=("v", "vl", "vlc"))}
    first = propose(space, [], 4, "grid", "any")
    assert [(one["train.lr"], one["settings.parts"]) for one in first] == [
        (1e-4, "v"), (1e-4, "vl"), (1e-4, "vlc"), (1e-3, "v"),
    ]  # fmt: skip
    rest = propose(space, [(one, None) for one in first], 4, "grid", "other")
    assert [one["settings.parts"] for one in rest] == ["vl", "vlc"]


def test_a_search_over_other_keys_than_before_is_refused(tmp_path: Path) -> None:
    search = search_of(tmp_path)
    search.round()
    finish(search, 0, 0.5)
    values = {**VALUES, "methods": {"dense": {}}}
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path / 'study.yaml'}: search: ") + ".*was begun with"):
        search_of(tmp_path, values).round()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train": {"epochs": 5}}, "train.epochs=5, was 2"),
        ({"space": {"train.lr": {"low": 1e-6, "high": 2e-6}}}, "does not give it now"),
        ({"fraction": "20%"}, "data.subset='20%', was '10%'"),
    ],
)
def test_trials_of_another_search_are_not_taken_for_this_one(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    search = search_of(tmp_path)
    search.round()
    finish(search, 0, 0.5)
    search_of(tmp_path).round()
    values = {**VALUES, "search": {**VALUES["search"], **change}}
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        search_of(tmp_path, values).round()
    assert str(caught.value).startswith(f"{tmp_path / 'study.yaml'}: search: ")
    assert "\n" not in str(caught.value)


def test_a_grid_whose_choices_moved_is_refused(tmp_path: Path) -> None:
    def grid(*rates: float) -> GroupSearch:
        values = {**VALUES, "methods": {"dense": {}}}
        values["search"] = {"sampler": "grid", "trials": 4, "space": {"train.lr": list(rates)}}
        return search_of(tmp_path, values)

    search = grid(0.1, 0.2)
    search.round()
    finish(search, 0, 0.5)
    finish(search, 1, 0.6)
    assert grid(0.1, 0.2, 0.3).round()[0].number == 2
    with pytest.raises(ConfigError, match="does not give it now"):
        grid(0.1, 0.3).round()


@pytest.mark.parametrize(
    ("choice", "inside", "outside"),
    [
        (Range(choices=(1e-3, "v", True)), (0.001, "v", True), (1, "l", 1e-2)),
        (Range(low=8, high=64, step=8), (8, 16, 64), (12, 72, 0, 8.5, "8", True)),
        (Range(low=1e-5, high=1e-1, log=True), (1e-5, 0.03), (0.2,)),
        (Range(low=0.0, high=1.0, step=0.1), (0.0, 0.3, 1.0), (0.25,)),
    ],
)
def test_what_a_range_holds(choice: Range, inside: tuple[Any, ...], outside: tuple[Any, ...]) -> None:
    assert all(choice.holds(value) for value in inside)
    assert not any(choice.holds(value) for value in outside)


def test_a_search_without_any_result_has_no_best(tmp_path: Path) -> None:
    search = search_of(tmp_path)
    while trials := search.round():
        for trial in trials:
            finish(search, trial.number, None)
    assert search.best() is None
