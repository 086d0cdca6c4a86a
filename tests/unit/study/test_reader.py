"""study.yaml: what is read, and that everything wrong with it is said at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vlsm_adapter.errors import ConfigError
from vlsm_adapter.study.config import Study
from vlsm_adapter.study.ranges import Range, parse_range
from vlsm_adapter.study.reader import fraction_label, load_study

DOCS = Path(__file__).resolve().parents[3] / "docs" / "compare.md"
SMALL: dict[str, Any] = {"data": {"polyps": {"path": "data"}}, "methods": {"dense": {}}}


def read(folder: Path, values: Any) -> Study:
    file = folder / "study.yaml"
    file.write_text(values if isinstance(values, str) else yaml.safe_dump(values, sort_keys=False))
    return load_study(file)


def problems(folder: Path, values: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(folder, values)
    return str(caught.value).splitlines()


def test_little_is_needed(tmp_path: Path) -> None:
    study = read(tmp_path, SMALL)
    assert list(study.models) == ["tiny"]
    assert study.seeds == (42,)
    assert study.fractions == ("100%",)
    assert list(study.protocols) == ["default"]
    assert study.evaluate.splits == ("test",)
    assert study.search is None
    assert study.methods["dense"].trains


def test_the_example_of_the_documentation_is_a_study(tmp_path: Path) -> None:
    (example,) = (
        text for text in re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL) if "protocols:" in text
    )
    study = read(tmp_path, example)
    assert {"dense_v", "dense_vl", "dense_vlc", "zero_shot"} <= study.methods.keys()
    assert study.methods["dense_v"].settings == {"bottleneck_dim": 64, "parts": "v"}
    assert study.methods["unet"].model == ("unet", {"name": "unet"})
    assert not study.methods["zero_shot"].trains


def test_the_resolved_study_reads_back_equal(tmp_path: Path) -> None:
    values = {
        **SMALL,
        "models": {"small": {"name": "tiny", "image_size": 64}},
        "methods": {
            "dense": {"variants": {"v": {"parts": "v"}, "vlc": {}}, "train": {"weight_decay": "1e-2"}},
            "own": {"method": "full", "model": {"label": "other", "name": "somewhere"}, "search": False},
            "zero_shot": {"on": {"data": ["polyps"]}},
        },
        "search": {"trials": 3, "space": {"train.lr": {"low": 1e-4, "high": 1e-2, "log": True}}},
        "evaluate": {"splits": ["test", "val"], "probes": True},
    }
    study = read(tmp_path, values)
    assert study.methods["dense_v"].space == {"train.lr": Range(low=1e-4, high=1e-2, log=True)}
    assert not study.methods["own"].space
    again = read(tmp_path, study.to_yaml())
    for name in ("data", "models", "protocols", "seeds", "fractions", "evaluate", "resources"):
        assert getattr(again, name) == getattr(study, name)
    assert again.methods == study.methods
    assert read(tmp_path, again.to_yaml()) == again


def test_all_problems_are_told_at_once_each_with_the_nearest_name(tmp_path: Path) -> None:
    values = {
        "dta": {},
        "data": {"polyps": {"path": "data", "promt": "x"}, "bad name": {"path": "x"}, "empty": {}},
        "methods": {
            "dens": {},
            "deep": {"method": "dense", "settings": {"bottleneck": 3}},
            "dense": {"train": {"lrr": 1}, "on": {"data": ["polyp"], "seed": [1]}},
            "zero_shot": {"train": {"lr": 1}},
        },
        "protocols": {"one": {"level": "p99"}, "two": {"subset": "5%", "subset_seed": 1}},
        "seeds": [41, 41, "x"],
        "fractions": ["10%", "10.0%", "200%"],
        "subsets": "per_sed",
        "train": {"epochs": 0, "seed": 3},
        "evaluate": {"splits": ["tset"], "levels": ["q1"], "probs": True},
        "models": [],
    }
    told = problems(tmp_path, values)
    for part in (
        "unknown key 'dta': did you mean 'data'",
        "unknown key 'data.polyps.promt': did you mean 'prompt'",
        "'bad name'",
        "data.empty.path is missing",
        "'dens' is no registered method: did you mean 'dense'",
        "adapter 'dense' has no setting 'bottleneck'",
        "unknown key 'methods.dense.train.lrr': did you mean 'lr'",
        "methods.dense.on.data: 'polyp' is not of this study: did you mean 'polyps'",
        "methods.dense.on: unknown key 'seed': did you mean 'seeds'",
        "'zero_shot' trains nothing",
        "protocols.one.level='p99'",
        "protocols.two.subset: is said by 'fractions'",
        "protocols.two.subset_seed: is said by 'subsets'",
        "subsets: 'per_sed': did you mean 'per_seed'",
        "seeds: '41' is listed twice",
        "seeds: 'x' must be of type int",
        "fractions: '10%' is listed twice",
        "fractions: '200%'",
        "train.epochs=0",
        "train.seed: is said by 'seeds'",
        "evaluate.splits: 'tset': did you mean 'test'",
        "evaluate.levels: 'q1'",
        "unknown key 'evaluate.probs': did you mean 'probes'",
        "models: is empty",
    ):
        assert any(part in line for line in told), (part, told)
    assert all(line.startswith(str(tmp_path / "study.yaml")) for line in told)
    assert len(told) == len(set(told))


def test_a_number_is_no_list_of_seeds(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, {**SMALL, "seeds": 2})
    assert line.endswith("seeds: 2 may be one seed or a number of them; list them: [2], or [41, 42]")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data: [", "not YAML"),
        ("- a", "must hold sections"),
        ("", "must hold sections"),
        ("data: {a: {path: x}}\nmethods:\n  dense: {}\n  dense: {train: {lr: 1}}", "'dense' stands twice"),
        ("data: {41: {path: x}}\nmethods: {dense: {}}", "must be a section of names; put quotes around 41"),
        ("data: {2020-01-01: {path: x}}\nmethods: {dense: {}}", "put quotes around 2020-01-01"),
        ("data: [polyps]\nmethods: {dense: {}}", "data: must be a section of names, 'NAME: ...', not ['polyps']"),
        ("data: {a: {path: x}}\nmethods: {dense: {}}\nsearch: {trials: 2}", "search: nothing is searched"),
        ("data: {a: {path: x}}\nmethods: [dense]", "must be a section of names"),
        ("data: {a: {path: x}}\nmethods: {dense: {variants: {v: 3}}}", "must be a section of names"),
        (
            "data: {a: {path: x}}\nmethods: {dense: {variants: {v: {parts: v}, V: {parts: vl}}}}",
            "methods: 'dense_v' and 'dense_V' are one folder where capitals do not count",
        ),
        (
            "data: {a: {path: x}}\nmodels: [tiny, a/Tiny]\nmethods: {dense: {}}",
            "models: 'tiny' and 'Tiny' are one folder where capitals do not count",
        ),
        ("data: {a: {path: x}}\nmethods: {dense: {}}\nresources: {gpus: 1.5}", "resources.gpus=1.5: a part of one GPU"),
    ],
)
def test_what_is_no_study_is_refused(text: str, says: str, tmp_path: Path) -> None:
    assert any(says in line for line in problems(tmp_path, text))


def test_long_values_do_not_fill_the_message(tmp_path: Path) -> None:
    assert len(max(problems(tmp_path, {**SMALL, "train": list(range(9999))}), key=len)) < 300 + len(str(tmp_path))


def test_an_axis_is_restricted_by_numbers_and_by_their_spelling(tmp_path: Path) -> None:
    values = {**SMALL, "seeds": [41, 42], "methods": {"dense": {"on": {"seeds": ["41", 42]}}}}
    assert read(tmp_path, values).methods["dense"].only == {"seeds": (41, 42)}


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_study(tmp_path / "no.yaml")


def test_a_search_may_only_range_over_what_there_is(tmp_path: Path) -> None:
    def searching(space: dict[str, Any], **methods: Any) -> dict[str, Any]:
        return {**SMALL, "methods": methods or {"dense": {}}, "search": {"space": space}}

    cases = {
        "train.lrr": ({"train.lrr": [1, 2]}, {}),
        "search train.KEY": ({"data.path": ["a", "b"]}, {}),
        "not the seed": ({"train.seed": [1, 2]}, {}),
        "low 3 must be below": ({"train.lr": {"low": 3, "high": 1}}, {}),
        "begins above 0": ({"train.lr": {"low": 0, "high": 1, "log": True}}, {}),
        "holds at least two": ({"train.lr": [1]}, {}),
        "batch_size=6.47": ({"train.batch_size": {"low": 4, "high": 8.0}}, {}),
        "has no setting 'rank'": ({"settings.rank": [1, 2]}, {}),
        "the study has no search": ({}, {}),
        "is set in methods.dense.train as well": (
            {"train.lr": [1e-3, 1e-4]},
            {"dense": {"train": {"lr": 1}, "search": {"train.lr": [1e-3, 1e-4]}}},
        ),
    }
    for says, (space, methods) in cases.items():
        values = searching(space, **methods)
        if says == "the study has no search":
            values = {**SMALL, "methods": {"dense": {"search": {"train.lr": [1, 2]}}}}
        assert any(says in line for line in problems(tmp_path, values)), says
    grid = searching({"train.lr": {"low": 1e-4, "high": 1e-2}})
    grid["search"]["sampler"] = "grid"
    assert any("search.space.train.lr: a grid takes lists" in line for line in problems(tmp_path, grid))
    study = read(tmp_path, searching({"train.lr": [1e-3, 1e-4]}, dense={"train": {"lr": 0.01}}, full={}))
    assert study.methods["dense"].space == {}  # what a method says itself is not searched
    assert list(study.methods["full"].space) == ["train.lr"]


def test_cases_of_a_search_and_merged_keys_are_read(tmp_path: Path) -> None:
    values = {**SMALL, "methods": {"dense": {}}, "search": {"fraction": 4, "space": {"train.lr": [1, 2]}}}
    study = read(tmp_path, values)
    assert study.search is not None
    assert study.search.fraction == "4"
    file = tmp_path / "merged.yaml"
    file.write_text(
        "data: {polyps: {path: x}}\nmethods:\n  dense: &common {train: {lr: 0.125}}\n  full: {<<: *common}\n"
    )
    assert load_study(file).methods["full"].train == {"lr": 0.125}


@pytest.mark.parametrize(
    ("value", "label"), [("100%", "100%"), ("10.0%", "10%"), ("2.50%", "2.5%"), (20, "20"), ("20", "20")]
)
def test_fractions_have_one_spelling(value: Any, label: str) -> None:
    assert fraction_label(value) == label


_ENDS = st.sampled_from([None, True, 0, 1, -1, 3, 1e-4, "1e-4", "x", float("nan"), float("inf"), [], {}])


@given(
    st.lists(_ENDS, max_size=3)
    | st.dictionaries(st.sampled_from(["low", "high", "log", "step", "x"]), _ENDS, max_size=5)
    | _ENDS
)
def test_a_range_is_read_or_refused_in_words(value: Any) -> None:
    try:
        found = parse_range(value)
    except ConfigError:
        return
    assert parse_range(found.to_plain()) == found
    assert len(found.extremes()) >= 2
