"""The runs that the axes make."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlsm_adapter.config import RunConfig
from vlsm_adapter.errors import ConfigError
from vlsm_adapter.study.config import Study
from vlsm_adapter.study.grid import Cell, differences, expand, select
from vlsm_adapter.study.reader import load_study

VALUES: dict[str, Any] = {
    "data": {"polyps": {"path": "data/polyps"}, "skin": {"path": "data/skin", "train": {"batch_size": 3}}},
    "methods": {
        "zero_shot": {},
        "dense": {"variants": {"v": {"parts": "v"}, "vlc": {"parts": "vlc"}}, "train": {"lr": 0.01}},
        "own": {"method": "full", "model": "other", "on": {"fractions": ["100%"], "data": ["skin"]}},
    },
    "protocols": {
        "clean": {"level": "p1"},
        "published": {"level": "random", "eval_level": "p5", "train": {"loss": "published"}},
    },
    "seeds": [1, 2, 3],
    "fractions": ["100%", "10%"],
    "train": {"epochs": 5, "lr": 0.5, "loss": "dice_bce"},
}


def study_of(folder: Path, values: Any) -> Study:
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    return load_study(file)


def changed(**changes: Any) -> dict[str, Any]:
    return {**VALUES, **changes}


@pytest.fixture
def cells(tmp_path: Path) -> list[Cell]:
    return expand(study_of(tmp_path, VALUES))


def test_what_the_axes_contradict_names_the_file(tmp_path: Path) -> None:
    wrong = {"dense": {}, "again": {"method": "dense"}, "same": {"method": "dense"}}
    with pytest.raises(ConfigError) as caught:
        expand(study_of(tmp_path, changed(methods=wrong)))
    lines = str(caught.value).splitlines()
    assert lines
    assert all(line.startswith(f"{tmp_path / 'study.yaml'}: method: 'dense' and '") for line in lines)


def test_every_combination_once(cells: list[Cell]) -> None:
    # 2 data sets x 2 protocols: zero-shot once, two variants in 3 x 2, the third method on one data set, 3 seeds.
    assert len(cells) == 4 + 2 * 4 * 6 + 2 * 3
    assert len({cell.path for cell in cells}) == len(cells)
    assert {cell.path for cell in cells if cell.method == "zero_shot"} == {
        f"{data}/{protocol}/tiny/zero_shot/100pct/s0"
        for data in ("polyps", "skin")
        for protocol in ("clean", "published")
    }
    assert {(cell.model, cell.data, cell.fraction) for cell in cells if cell.method == "own"} == {
        ("other", "skin", "100%")
    }
    seeds = [cell.seed for cell in cells if cell.trains]
    assert seeds == sorted(seeds)  # a whole table first, then the next seed


def test_a_cell_is_an_ordinary_configuration_and_the_more_special_wins(cells: list[Cell]) -> None:
    found = {cell.path: cell for cell in cells}
    config = found["skin/published/tiny/dense_v/10pct/s2"].config
    assert config.data.path == "data/skin"
    assert (config.data.level, config.data.eval_level, config.data.subset) == ("random", "p5", "10%")
    assert config.adapter.settings == {"parts": "v"}
    assert (config.train.lr, config.train.batch_size, config.train.epochs) == (0.01, 3, 5)
    assert (config.train.loss, config.train.seed) == ("published", 2)
    assert found["skin/clean/tiny/dense_v/100pct/s2"].config.data.subset is None
    assert found["polyps/published/tiny/zero_shot/100pct/s0"].config.data.eval_level == "p5"
    assert RunConfig.load(overrides=config.to_dict()) == config


def test_a_subset_of_its_own_for_each_seed_where_asked(cells: list[Cell], tmp_path: Path) -> None:
    assert {cell.config.data.subset_seed for cell in cells} == {None}
    own = expand(study_of(tmp_path, changed(subsets="per_seed")))
    assert [cell.path for cell in own] == [cell.path for cell in cells]
    for cell in own:
        assert cell.config.data.subset_seed == (cell.seed if cell.fraction == "10%" else None)
        assert cell.config.data.division("test") == cells[own.index(cell)].config.data.division("test")
    assert expand(study_of(tmp_path, yaml.safe_load(study_of(tmp_path, changed(subsets="per_seed")).to_yaml()))) == own
    shared = next(cell.config for cell in cells if cell.fraction == "10%")
    changed_one = next(cell.config for cell in own if cell.fraction == "10%")
    assert differences(shared, changed_one) == ["subsets='per_seed', was 'shared'"]  # other cases: not mixed


def test_what_a_search_chose_goes_into_its_cells_alone(tmp_path: Path) -> None:
    group = ("skin", "clean", "tiny", "dense_v")
    found = expand(study_of(tmp_path, VALUES), {group: {"train.lr": 0.25, "settings.bottleneck_dim": 7}})
    for cell in found:
        chosen = cell.group == group
        assert (cell.config.train.lr == 0.25) == chosen
        assert (cell.config.adapter.settings.get("bottleneck_dim") == 7) == chosen


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methods": {"dense": {}, "same": {"method": "dense"}}}, "method: 'dense' and 'same' make the same runs"),
        ({"data": {"a": {"path": "x"}, "b": {"path": "x"}}}, "data: 'a' and 'b' make the same runs"),
        ({"data": {"a": {"path": "x"}, "b": {"path": "./x"}}}, "data: 'a' and 'b' make the same runs"),
        (
            {"methods": {"dense": {}, "same": {"method": "dense", "settings": {"parts": "vlc"}}}},
            "method: 'dense' and 'same' make the same runs",
        ),
        ({"protocols": {"a": {}, "b": {"level": "p1"}}}, "protocol: 'a' and 'b' make the same runs"),
        ({"models": {"a": {"name": "tiny"}, "b": {"name": "tiny"}}}, "model: 'a' and 'b' make the same runs"),
        (
            {"methods": {"own": {"method": "full", "model": "x", "on": {"models": ["tiny"]}}}},
            "has a model of its own, and",
        ),
        ({"methods": {"zero_shot": {"on": {"seeds": [1]}}}}, "trains nothing and runs once; leave out 'on.seeds'"),
        ({"methods": {"dense": {}, "full": {"on": {"data": []}}}}, "methods.full: its 'on' leaves it no run"),
        ({"methods": {"full": {"model": {"name": "tiny", "image_size": 64}}}}, "'tiny' is another model elsewhere"),
        ({"data": {"a": {"path": "x", "fold": "9/5"}}, "protocols": {"b": {}}}, "fold '9/5'"),
        ({"data": {"a": {"path": "x", "fractions": [1, 1, 1]}}}, "data.fractions"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    values = changed(**changes)
    values["methods"] = changes.get("methods", {"dense": {}, "zero_shot": {}})
    with pytest.raises(ConfigError) as caught:
        expand(study_of(tmp_path, values))
    told = str(caught.value).splitlines()
    assert any(says in line for line in told), told
    assert len(told) == len(set(told))


def test_protocols_that_differ_in_training_are_fine_for_what_does_not_train(tmp_path: Path) -> None:
    values = changed(protocols={"a": {"level": "p1"}, "b": {"level": "p2"}}, methods={"zero_shot": {}, "dense": {}})
    assert expand(study_of(tmp_path, values))


def test_selection_by_pattern(cells: list[Cell]) -> None:
    assert select(cells, None) == cells
    assert {cell.method for cell in select(cells, "dense")} == {"dense_v", "dense_vlc"}
    assert {cell.path for cell in select(cells, "polyps/*/zero_shot")} == {
        "polyps/clean/tiny/zero_shot/100pct/s0", "polyps/published/tiny/zero_shot/100pct/s0",
    }  # fmt: skip
    assert {cell.method for cell in select(cells, "tiny/dense_v/, zero_shot")} == {"dense_v", "zero_shot"}
    in_order = [cell for cell in cells if cell.path.endswith(("/s0", "/s1"))]
    assert select(cells, "s1,s0") == in_order
    assert select(cells, "/s[1,0]") == in_order
    assert select(cells, "dense,") == select(cells, "dense")
    for wrong in ("nothing", "dense,nothing", ",", ""):
        with pytest.raises(ConfigError, match="names no run"):
            select(cells, wrong)


def test_whole_names_choose_what_is_called_so_alone(tmp_path: Path) -> None:
    cells = expand(
        study_of(
            tmp_path,
            changed(
                seeds=[1, 2, 10, 11], methods={"dense": {}, "dense_v": {"method": "dense", "settings": {"parts": "v"}}}
            ),
        )
    )
    assert {cell.seed for cell in select(cells, "s1")} == {1}
    assert {cell.seed for cell in select(cells, "s1*")} == {1, 10, 11}
    assert {cell.method for cell in select(cells, "dense")} == {"dense"}
    assert {cell.method for cell in select(cells, "dens")} == {"dense", "dense_v"}
    for cell in cells:
        assert select(cells, cell.path) == select(cells, f"runs/{cell.path}") == [cell]


def test_what_is_searched_is_no_twin_of_what_is_set(tmp_path: Path) -> None:
    search = {"space": {"train.lr": [0.03, 0.01]}, "sampler": "grid", "trials": 2}
    methods = {"set": {"method": "bitfit", "train": {"lr": 0.03}}, "searched": {"method": "bitfit"}}
    methods |= {
        "default": {"method": "bitfit", "search": False},
        "more": {"method": "bitfit", "search": {"train.lr": [0.3, 0.1]}},
    }
    study = study_of(tmp_path, changed(methods=methods, search=search))
    cells = expand(study)
    assert {cell.method for cell in cells} == set(methods)
    # A search that comes to what is set is a finding; its trials are not thrown away.
    chosen = {cell.group: {"train.lr": 0.03} for cell in cells if cell.method == "searched"}
    assert {cell.config.train.lr for cell in expand(study, chosen) if cell.method in ("set", "searched")} == {0.03}
    study = study_of(tmp_path, changed(methods={**methods, "again": {"method": "bitfit"}}, search=search))
    with pytest.raises(ConfigError, match="'searched' and 'again' make the same runs"):
        expand(study)


def test_a_pattern_that_names_no_run_shows_the_nearest(cells: list[Cell]) -> None:
    for wrong, said in {
        "skin/claen/*/dense_v": "did you mean 'skin/clean/\\*/dense_v'",
        "dense_vcl": "did you mean 'dense_vlc'",
        "10pc/s4": f"the first of {len(cells)} is polyps/clean/tiny/zero_shot",  # no name is misspelled
        "skin/own": f"the first of {len(cells)} is",
        "100%/s1": "did you mean '100pct/s1'",
        "": "the first of",
    }.items():
        with pytest.raises(ConfigError, match=f"--only '{re.escape(wrong)}': names no run; {said}"):
            select(cells, wrong)


def test_differences_are_those_that_change_results(cells: list[Cell]) -> None:
    config = next(cell.config for cell in cells if cell.method == "dense_v")
    moved = replace(
        config,
        data=replace(config.data, path="/elsewhere/polyps", cache_mb=1),
        model=replace(config.model, name="/models/tiny"),
        train=replace(config.train, workers=4, save_seconds=1.0),
        log=replace(config.log, tensorboard=True),
        adapter=replace(config.adapter, settings={"parts": "v", "bottleneck_dim": 64}),  # a default, written out
    )
    assert differences(config, moved) == []
    other = replace(
        config, train=replace(config.train, lr=0.125), adapter=replace(config.adapter, settings={"parts": "vl"})
    )
    assert differences(config, other) == ["train.lr=0.125, was 0.01", "settings.parts='vl', was 'v'"]
    rarely = replace(config, train=replace(config.train, validate_every=5))
    assert differences(config, rarely) == ["train.validate_every=5, was 1"]  # another adapter may be the best
    assert any(
        "adapter.method" in line
        for line in differences(config, replace(config, adapter=replace(config.adapter, method="full", settings={})))
    )
