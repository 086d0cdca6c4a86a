"""What is wrong with a study is told at once, and what is damaged in its folder is mended by the same command."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlsm_adapter.data.phantoms import write_phantoms
from vlsm_adapter.errors import ConfigError, UserError
from vlsm_adapter.study.checks import Facts
from vlsm_adapter.study.estimate import Estimator
from vlsm_adapter.study.folder import CellFolder
from vlsm_adapter.study.grid import expand
from vlsm_adapter.study.plan import absolute
from vlsm_adapter.study.ranges import parse_range
from vlsm_adapter.study.reader import load_study
from vlsm_adapter.study.runner import compare
from vlsm_adapter.study_report.run import Run


def study_file(folder: Path, **values: Any) -> Path:
    file = folder / "study.yaml"
    file.write_text(
        yaml.safe_dump({"data": {"a": {"path": "a"}}, "methods": {"bitfit": {}}, **values}, sort_keys=False)
    )
    return file


@pytest.fixture
def wrong(tmp_path: Path) -> Callable[..., list[str]]:
    """The lines that a study is refused with."""

    def refused(**values: Any) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            compare(study_file(tmp_path, **values), tmp_path / "out", local=True, dry_run=values.pop("dry", False))
        assert not (tmp_path / "out").exists()
        lines = str(caught.value).splitlines()
        assert all(line.startswith(f"{tmp_path / 'study.yaml'}: ") for line in lines), lines
        assert len(set(lines)) == len(lines)
        return lines

    return refused


@pytest.fixture
def data(tmp_path: Path) -> str:
    write_phantoms(tmp_path / "data", cases_per_modality=10, seed=1, modalities=("endoscopy",), splits=(0.6, 0.2, 0.2))
    return str(tmp_path / "data")


def test_file_grid_data_and_models_are_told_together(wrong: Callable[..., list[str]], data: str) -> None:
    lines = wrong(
        data={"here": {"path": data}, "gone": {"path": "no/such"}},
        models=["tiny", "tinny"],
        methods={
            "bitfit": {"train": {"lrr": 1}},
            "dense": {},
            "again": {"method": "dense"},
            "coop": {"settings": {"depth": 99}},
            "unet": {"method": "dense", "model": "unet"},
        },
    )
    for part in (
        "'methods.bitfit.train.lrr'",
        "data.gone.path",
        "model 'tinny'",
        "coop",
        "'dense' and 'again'",
        "'unet'",
    ):
        assert any(part in line for line in lines), (part, lines)


def test_what_was_left_out_makes_no_false_problems(wrong: Callable[..., list[str]], data: str) -> None:
    (line,) = wrong(
        data={"here": {"path": data, "levl": "p1"}, "other": {"path": data}},
        methods={"dense": {"on": {"data": ["here"]}}, "bitfit": {}},
    )
    assert "'data.here.levl'" in line


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"methods": {"full": {"method": "lora"}}}, "methods.full: is the name of another method than 'lora'"),
        ({"methods": {"lora": {"data": {"fold": "1/5"}}}}, "methods.lora.data.fold: is said by 'data' or 'protocols'"),
        ({"data": {"isic": {"path": "a"}, "ISIC": {"path": "b"}}}, "'isic' and 'ISIC' are one folder"),
        ({"data": {"a": {"path": "a\0b"}}}, "data.a.path: 'a\\x00b'"),
        ({"data": {"a" * 65: {"path": "a"}}}, "at most 64 letters"),
        ({"data": {"a": {"path": ["x" * 5000]}}}, "..."),
        (
            {"search": {"space": {"train.epochs": [1, 2]}, "train": {"epochs": 3}}},
            "search.space.train.epochs: is set in search.train as well",
        ),
        ({"search": {"space": {"train.workers": [1, 2]}}}, "search.space.train.workers: changes no result"),
    ],
)
def test_contradictions(wrong: Callable[..., list[str]], values: dict[str, Any], says: str) -> None:
    lines = wrong(**values)
    assert any(says in line for line in lines), lines
    assert all(len(line) < 600 for line in lines)


def test_fractions_that_are_the_same_cases(wrong: Callable[..., list[str]], data: str) -> None:
    lines = wrong(data={"a": {"path": data}}, fractions=["10%", "20%", 6, "100%"], methods={"dense": {}})
    assert [line.rpartition("fractions, ")[2].partition(" of")[0] for line in lines] == [
        "data.a: '10%' and '20%' are both 1",
        "data.a: '6' and '100%' are both 6",
    ]


def test_levels_are_told_beside_fractions(wrong: Callable[..., list[str]], data: str) -> None:
    lines = wrong(data={"a": {"path": data}}, fractions=[1000], protocols={"x": {"level": "p8", "eval_level": "p1"}})
    assert any("fractions, data.a" in line for line in lines), lines
    assert any("p8" in line for line in lines), lines


def test_a_path_that_no_disk_can_hold_is_not_there(wrong: Callable[..., list[str]]) -> None:
    (line,) = wrong(data={"a": {"path": "x" * 5000}})
    assert "is not there" in line
    assert len(line) < 500


def test_steps_end_at_the_last_value_that_is_reached() -> None:
    assert parse_range({"low": 4, "high": 9, "step": 4}).to_plain() == {"low": 4, "high": 8, "step": 4}
    assert parse_range({"low": 0.1, "high": 0.45, "step": 0.1}).high == pytest.approx(0.4)
    assert parse_range({"low": 0.1, "high": 0.4, "step": 0.1}).high == 0.4
    with pytest.raises(ConfigError, match=r"no second value; at most 0\.8"):
        parse_range({"low": 0.1, "high": 0.9, "step": 4})


def test_the_resolved_study_depends_on_no_folder_it_was_run_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    file = study_file(
        tmp_path,
        models={"mine": {"name": "m"}, "tiny": {"name": "tiny"}, "hub": {"name": "OWNER/NAME"}},
        protocols={"p": {"split_file": "s.json"}},
        methods={"bitfit": {}, "own": {"method": "full", "model": {"label": "other", "name": "./m", "image_size": 64}}},
    )
    study = absolute(load_study(file))
    assert [entry["name"] for entry in study.models.values()] == [str(tmp_path / "m"), "tiny", "OWNER/NAME"]
    assert study.protocols["p"]["split_file"] == str(tmp_path / "s.json")
    assert study.methods["own"].model == ("other", {"name": str(tmp_path / "m"), "image_size": 64})


def test_memory_of_a_model_that_is_not_here_is_said_to_be_a_guess(tmp_path: Path) -> None:
    (cell,) = expand(load_study(study_file(tmp_path, models=["OWNER/NAME"], train={"batch_size": 32})))
    gigabytes, source = Estimator(Facts()).memory_gb([cell])
    assert gigabytes > 15
    assert source.startswith("a guess: a model is not here")


def test_damaged_files_of_a_run_are_written_anew(tmp_path: Path, data: str, base_folder: Path) -> None:
    file = study_file(
        tmp_path,
        data={"a": {"path": data}},
        models={"small": {"name": str(base_folder)}},
        train={"epochs": 1, "batch_size": 3},
    )
    out = tmp_path / "out"
    assert compare(file, out, local=True) == 0
    (run,) = (path.parent for path in out.rglob("cell.json"))
    folder, evaluation = CellFolder(run), next((run / "evaluation").iterdir())
    weights = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    before = {path: path.read_bytes() for path in (folder.cell_file, evaluation / "cases.csv")}

    folder.cell_file.write_text("")
    with pytest.raises(UserError, match=r"cell\.json is damaged"):
        Run(run, "").cell()
    lines = (evaluation / "cases.csv").read_text().splitlines(keepends=True)
    (evaluation / "cases.csv").write_text("".join(lines[:-1]))
    assert compare(file, out, local=True) == 0
    assert {path: path.read_bytes() for path in before}.keys() == before.keys()
    assert folder.cell_file.read_bytes() == before[folder.cell_file]
    with (evaluation / "cases.csv").open(newline="") as handle:
        assert len(list(csv.reader(handle))) == len(lines)
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == weights, "not trained again"

    folder.run.config_file.unlink()
    assert compare(file, out, local=True) == 0
    assert folder.run.config_file.is_file()

    folder.resources_file.write_text(
        json.dumps({"train": {"finished": "yes", "seconds": "abc", "cases": -1}, "evaluate": 7})
    )
    assert folder.resources() == {"train": {"finished": "yes"}, "evaluate": None}
    assert (
        compare(
            study_file(tmp_path, **{**yaml.safe_load(file.read_text()), "seeds": [42, 43]}),
            out,
            local=True,
            dry_run=True,
        )
        == 0
    )
