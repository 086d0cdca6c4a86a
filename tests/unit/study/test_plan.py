"""What stands on disk against what the study asks; the check on data and models; estimates; a dry run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from vlsm_adapter import files
from vlsm_adapter.console import Console
from vlsm_adapter.data.cases import load_cases
from vlsm_adapter.data.phantoms import write_phantoms
from vlsm_adapter.errors import ConfigError, UserError
from vlsm_adapter.evaluation_folder import EvaluationFolder, write_scores
from vlsm_adapter.models import load_model
from vlsm_adapter.study.checks import check_cells
from vlsm_adapter.study.estimate import Step, side_by_side, spell
from vlsm_adapter.study.folder import CellFolder, StudyFolder
from vlsm_adapter.study.plan import Plan, absolute, check, make_plan, write_status
from vlsm_adapter.study.precision import mixed_precision
from vlsm_adapter.study.preview import preview
from vlsm_adapter.study.reader import load_study
from vlsm_adapter.study.runner import compare
from vlsm_adapter.types import CaseScore

Planned = Callable[..., Plan]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    write_phantoms(folder, cases_per_modality=10, seed=1, modalities=("endoscopy",), splits=(0.6, 0.2, 0.2))
    return folder


@pytest.fixture
def plan_of(tmp_path: Path, phantoms: Path, base_folder: Path) -> Planned:
    def build(only: str | None = None, **changes: Any) -> Plan:
        values: dict[str, Any] = {
            "data": {"polyps": {"path": str(phantoms)}},
            "models": {"small": {"name": str(base_folder)}},
            "methods": {"zero_shot": {}, "dense": {"settings": {"bottleneck_dim": 3}}},
            "seeds": [1, 2],
            "train": {"epochs": 2},
            **changes,
        }
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump(values, sort_keys=False))
        return make_plan(load_study(file), StudyFolder(tmp_path / "study"), only)

    return build


def run_like(plan: Plan, index: int, *, seconds: float = 10.0, data_path: str | None = None) -> CellFolder:
    """What the finished run of a cell leaves, made without running it."""
    cell = plan.cells[index]
    folder = plan.cell_folder(cell)
    folder.prepare(cell.about(), cell.config, plan.study.evaluate)
    train = (
        {"finished": "yes", "seconds": seconds, "epochs": 2, "cases": 6, "peak_memory_mb": 2048}
        if cell.trains
        else None
    )
    folder.resources_file.write_text(json.dumps({"train": train, "evaluate": {"seconds": 1.0, "cases": 2}}))
    place = folder.path / "evaluation" / f"test-{cell.config.data.eval_level}"
    place.mkdir(parents=True)
    summary = {"format": "vlsm-evaluation", "format_version": 1, "nsd_tolerance": 2.0, "threshold": 0.5}
    (place / "summary.json").write_text(json.dumps(summary))
    if data_path is not None:
        text = folder.run.config_file.read_text()
        folder.run.config_file.write_text(text.replace(cell.config.data.path, data_path))
    plan.folder.path.mkdir(exist_ok=True)
    plan.folder.study_file.write_text(absolute(plan.study).to_yaml())
    return folder


def test_finished_runs_are_not_done_again_and_new_cells_are_added(plan_of: Planned) -> None:
    plan = plan_of()
    assert [cell.path for cell in plan.todo] == [cell.path for cell in plan.cells]
    assert len(plan.cells) == 3
    run_like(plan, 1)
    assert [cell.path for cell in plan_of().todo] == [plan.cells[0].path, plan.cells[2].path]
    more = plan_of(seeds=[1, 2, 3], methods={"zero_shot": {}, "dense": {"settings": {"bottleneck_dim": 3}}, "full": {}})
    assert len(more.cells) == 7
    assert len(more.todo) == 6
    assert {cell.method for cell in plan_of(only="zero").todo} == {"zero_shot"}
    write_status(more)
    told = json.loads(more.folder.status_file.read_text())
    assert told["states"] == {"finished": 1, "waiting": 6}
    assert {row["path"] for row in told["runs"]} == {f"runs/{cell.path}" for cell in more.cells}


def test_a_changed_run_is_refused_each_on_a_line(plan_of: Planned, tmp_path: Path) -> None:
    plan = plan_of()
    run_like(plan, 1)
    run_like(plan, 2)
    with pytest.raises(ConfigError) as caught:
        plan_of(train={"epochs": 2, "lr": 0.125})
    told = str(caught.value).splitlines()
    assert len(told) == 2
    assert all("train.lr=0.125, was 0.001" in line and "remove the folder" in line for line in told)
    assert all(line.startswith(f"{tmp_path / 'study.yaml'}: {tmp_path / 'study'}") for line in told), "what to change"
    # What does not change results does not stop it.
    assert len(plan_of(train={"epochs": 2, "workers": 2}, log={"tensorboard": True}).todo) == 1
    CellFolder(plan.cell_folder(plan.cells[1]).path).run.config_file.write_text("train: [")
    with pytest.raises(ConfigError, match="cannot be read"):
        plan_of()


def test_another_arithmetic_by_auto_is_told_with_what_to_write(
    plan_of: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlsm_adapter.optimization._cpu_has_bf16", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    plan = plan_of()
    folder = run_like(plan, 1)
    assert mixed_precision(plan_of()) is None  # what it was is not known
    folder.run.environment_file.write_text('{"precision": "bf16-mixed"}')
    assert mixed_precision(plan_of()) is None
    folder.run.environment_file.write_text('{"precision": "32-true"}')
    told = str(mixed_precision(plan_of()))
    file = tmp_path / "study.yaml"
    assert told.startswith(f"{file}: train.precision: auto is ")
    assert "auto is bf16-mixed on this machine, and was 32-true in 1 run of this study, the first polyps/" in told
    assert "write 'train: {precision: 32-true}' in the study" in told
    assert "\n" not in told
    # What it says to write is no change of the runs that are there, and ends it.
    named = plan_of(train={"epochs": 2, "precision": "32-true"})
    assert len(named.todo) == 2
    assert mixed_precision(named) is None
    with pytest.raises(ConfigError, match=r"train\.precision='bf16-mixed', was '32-true'") as caught:
        plan_of(train={"epochs": 2, "precision": "bf16-mixed"})
    assert str(caught.value).startswith(f"{file}: {folder.path}: train.precision=")
    assert "\n" not in str(caught.value)
    folder.run.environment_file.write_text('{"precision": "16-mixed"}')  # of a GPU, which is not here
    assert "16-mixed in 1 run" in str(mixed_precision(plan_of()))
    assert "on a machine like theirs" in str(mixed_precision(plan_of()))
    other = run_like(plan, 2)
    other.run.environment_file.write_text('{"precision": "bf16-mixed"}')
    assert mixed_precision(plan_of()) is None  # nothing is left to train


def test_a_study_that_goes_on_in_another_arithmetic_says_so(
    plan_of: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlsm_adapter.study.precision.choose_precision", lambda _: "32-true")
    folder = run_like(plan_of(), 1)
    folder.run.environment_file.write_text('{"precision": "bf16-mixed"}')
    warned: list[str] = []
    console = Console(quiet=True)
    monkeypatch.setattr(console, "warn", warned.append)
    compare(tmp_path / "study.yaml", tmp_path / "study", dry_run=True, local=True, console=console)
    assert len(warned) == 1
    assert "write 'train: {precision: bf16-mixed}'" in warned[0]


@pytest.mark.parametrize(
    ("resources", "told"),
    [
        ({"cpus": 4096}, "resources.cpus: 4096, this machine has "),
        ({"gpus": 99}, "resources.gpus: 99, this machine has "),
        ({"cpus": 1}, None),
    ],
)
def test_a_dry_run_sees_what_the_machine_lacks(
    plan_of: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resources: dict[str, int], told: str | None
) -> None:
    monkeypatch.setattr("vlsm_adapter.study.runner.preview", lambda *_, **__: [])
    plan_of(resources=resources)
    warned: list[str] = []
    console = Console(quiet=True)
    monkeypatch.setattr(console, "warn", warned.append)
    compare(tmp_path / "study.yaml", tmp_path / "study", dry_run=True, console=console)
    found = [line for line in warned if "resources." in line]
    assert len(found) == (told is not None)
    if told is not None:
        assert told in found[0]
        assert "--address" in found[0]
    warned.clear()
    compare(tmp_path / "study.yaml", tmp_path / "study", dry_run=True, address="auto", console=console)
    assert not any("resources." in line for line in warned)


@pytest.mark.parametrize("why", ["permission", "file", None])
def test_a_dry_run_sees_a_folder_that_cannot_be_written(
    plan_of: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str | None
) -> None:
    plan_of()
    place = tmp_path / "place"
    if why == "file":
        place.write_text("")
    else:
        place.mkdir()
    if why == "permission":
        allowed = os.access
        monkeypatch.setattr(
            "vlsm_adapter.study.runner.os.access",
            lambda path, mode: Path(path) != place and allowed(path, mode),  # root may write anywhere
        )
    warned: list[str] = []
    console = Console(quiet=True)
    monkeypatch.setattr(console, "warn", warned.append)
    compare(tmp_path / "study.yaml", place / "new" / "study", dry_run=True, local=True, console=console)
    told = [line for line in warned if "cannot be written to; choose another --out" in line]
    assert len(told) == (why is not None)
    assert not (place / "new").exists()


@pytest.mark.parametrize("trains", [True, False])
def test_the_base_of_a_run_is_known_by_its_weights(
    plan_of: Planned, base_folder: Path, tmp_path: Path, trains: bool
) -> None:
    plan = plan_of()
    folder = run_like(plan, 1 if trains else 0)
    file = folder.run.adapter / "adapter_config.json"
    if not trains:
        file = next(folder.run.evaluation.glob("*/summary.json"))
    values = json.loads(file.read_text()) if file.is_file() else {}
    files.write_json(file, {**values, "base": {"sha256": load_model(base_folder).base_hash}})

    def again(model: Path | str) -> Plan:
        return plan_of(models={"small": {"name": str(model)}})

    assert len(again(base_folder).todo) == 2
    assert len(again(shutil.copytree(base_folder, tmp_path / "renamed")).todo) == 2
    other = tmp_path / "other" / base_folder.name  # another model in a folder of the same name
    shutil.copytree(base_folder, other)
    tensors = load_file(other / "model.safetensors")
    first = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    save_file({**tensors, first: tensors[first] + 1}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="has other weights than the run's base had"):
        again(other)
    # Where its files are not here, the name must do.
    assert len(again(f"elsewhere/{base_folder.name}").todo) == 2
    with pytest.raises(ConfigError, match=r"model\.name='another'"):
        again("elsewhere/another")


def test_moved_data_must_hold_the_same_cases(plan_of: Planned, phantoms: Path, tmp_path: Path) -> None:
    plan = plan_of()
    folder = run_like(plan, 1, data_path="/elsewhere/data")
    cases = load_cases(phantoms)
    splits = {split: [record.case_id for record in cases.records(split)] for split in ("train", "val", "test")}
    folder.run.data_file.write_text(json.dumps({"splits": splits, "skipped": []}))
    assert len(plan_of().todo) == 2
    splits["train"].append(splits["test"].pop())
    folder.run.data_file.write_text(json.dumps({"splits": splits, "skipped": []}))
    with pytest.raises(ConfigError, match="made from other cases"):
        plan_of()


def test_cases_that_changed_places_are_noticed_where_the_data_stayed(
    plan_of: Planned, phantoms: Path, tmp_path: Path
) -> None:
    data = {"polyps": {"path": str(shutil.copytree(phantoms, tmp_path / "data"))}}
    plan = plan_of(data=data)
    run_like(plan, 0)
    run_like(plan, 1)
    cases = load_cases(tmp_path / "data")
    splits = {split: [record.case_id for record in cases.records(split)] for split in ("train", "val", "test")}
    trained = plan.cell_folder(plan.cells[1])
    trained.run.data_file.write_text(json.dumps({"splits": splits, "skipped": []}))
    scored = EvaluationFolder(plan.cell_folder(plan.cells[0]).path / "evaluation" / "test-p1")
    summary = {**json.loads(scored.summary_file.read_text()), "split": "test"}
    scored.summary_file.write_text(json.dumps(summary))
    scores = [CaseScore(case, "polyp", {"dice": 0.5}, "px", "none", 1, 1) for case in splits["test"]]
    write_scores(scored.zero_shot_file, scores)
    assert len(plan_of(data=data).todo) == 1
    anns = tmp_path / "data" / "anns"
    train, test = (json.loads((anns / f"{split}.json").read_text()) for split in ("train", "test"))
    (anns / "train.json").write_text(json.dumps([*train[1:], test[0]]))
    (anns / "test.json").write_text(json.dumps([train[0], *test[1:]]))
    with pytest.raises(ConfigError) as caught:
        plan_of(data=data)
    told = str(caught.value).splitlines()
    assert len(told) == 2
    assert all("made from other cases" in line for line in told)


def test_other_data_to_validate_on_is_checked_and_may_move(plan_of: Planned, phantoms: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_phantoms(other, cases_per_modality=10, seed=2, modalities=("endoscopy",), splits=(0.6, 0.2, 0.2))
    entry = {"path": str(phantoms), "val_path": str(other)}
    plan = plan_of(data={"polyps": entry}, methods={"dense": {"settings": {"bottleneck_dim": 3}}})
    check(plan, absent_is_wrong=True)
    assert Path(absolute(plan.study).data["polyps"]["val_path"]) == other
    run_like(plan, 0)
    (tmp_path / "moved").mkdir()
    entry["val_path"] = str(shutil.copytree(other, tmp_path / "moved" / "other"))
    assert len(plan_of(data={"polyps": entry}, methods={"dense": {"settings": {"bottleneck_dim": 3}}}).todo) == 1
    entry["val_path"] = "nowhere"
    with pytest.raises(ConfigError, match=re.escape("data.polyps.val_path: nowhere is not there")):
        check(plan_of(data={"polyps": entry}, seeds=[5]), absent_is_wrong=True)


def test_validation_cases_of_other_data_are_not_asked_of_what_trains_nothing(
    plan_of: Planned, phantoms: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    write_phantoms(other, cases_per_modality=10, seed=2, modalities=("endoscopy",), splits=(0.6, 0.2, 0.2))
    entry = {"path": str(phantoms), "val_path": str(other)}
    given = {"data": {"polyps": entry}, "evaluate": {"splits": ["val", "test"]}}
    told = "'val' of data.polyps is of its val_path, and 'zero_shot' trains nothing"
    with pytest.raises(ConfigError, match=re.escape(told)):
        check(plan_of(**given), absent_is_wrong=True)
    check(plan_of(**given, methods={"dense": {"settings": {"bottleneck_dim": 3}}}), absent_is_wrong=True)


def test_what_would_fail_in_every_run_is_told_before(plan_of: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError) as caught:
        check(
            plan_of(
                log={"mlflow": True},
                methods={"dense": {"settings": {"bottleneck_dim": 3}}},
                search={"trials": 2, "fraction": 4000, "space": {"train.lr": [0.1, 0.2]}},
            ),
            absent_is_wrong=True,
        )
    told = str(caught.value)
    assert "log: " in told
    assert "search.fraction, data.polyps: subset '4000'" in told


def test_a_folder_of_something_else_is_left_alone(plan_of: Planned, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    assert plan_of()
    (tmp_path / "study" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds no study"):
        plan_of()
    shutil.rmtree(tmp_path / "study")
    (tmp_path / "study").write_text("")
    with pytest.raises(UserError, match="is a file"):
        plan_of()


def test_everything_wrong_with_data_and_models_is_told_at_once(
    plan_of: Planned, phantoms: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(phantoms, broken)
    entries = json.loads((broken / "anns" / "train.json").read_text())
    entries[0]["prompts"].pop("p3")
    (broken / "anns" / "train.json").write_text(json.dumps(entries))
    plan = plan_of(
        data={"polyps": {"path": str(phantoms)}, "broken": {"path": str(broken)}, "gone": {"path": "no/such/folder"}},
        models={"small": {"name": plan_of().cells[0].config.model.name}, "typo": {"name": "tiyn"}},
        methods={"dense": {"settings": {"bottleneck_dim": 3}}},
        protocols={"three": {"level": "p3"}},
        fractions=["100%", "5000"],
        seeds=[1],
    )
    told = check_cells(plan.cells, plan.study.evaluate).problems
    for part in (
        "data.gone.path: no/such/folder is not there",
        "fractions, data.polyps: subset '5000'",
        "protocols.three on data.broken:",
        "model 'typo': model 'tiyn' is neither a folder nor a hub id ('owner/name'): did you mean 'tiny'",
    ):
        assert any(part in line for line in told), (part, told)
    assert len(told) == len(set(told))
    # A dry run of a study for another machine lists what is not here; the rest is still wrong.
    facts = check_cells(plan.cells, plan.study.evaluate, absent_is_wrong=False)
    assert any("no/such/folder" in line for line in facts.absent)
    assert not any("no/such/folder" in line for line in facts.problems)
    # What is raised names the file in every line, as the reader of the file does.
    with pytest.raises(ConfigError) as caught:
        check(plan, absent_is_wrong=True)
    assert str(caught.value).splitlines() == [f"{tmp_path / 'study.yaml'}: {line}" for line in told]


def test_a_method_that_cannot_attach_says_which_site_is_missing(
    plan_of: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlsm_adapter.models.clipseg import CLIPSeg

    sites = CLIPSeg.sites
    monkeypatch.setattr(CLIPSeg, "sites", lambda self: [one for one in sites(self) if not one.name.startswith("text.")])
    plan = plan_of(methods={"dense": {}, "decoder_only": {}})
    facts = check_cells(plan.cells, plan.study.evaluate)
    (line,) = facts.problems
    assert "method 'dense' on model 'small'" in line
    assert "text." in line
    report = facts.reports["small", "decoder_only"]
    assert report is not None
    assert report.trainable > 0


def test_estimates_come_from_finished_runs_where_there_are_any(plan_of: Planned) -> None:
    plan = plan_of(fractions=["100%", "50%"])
    run_like(plan, 1, seconds=100.0)
    plan = plan_of(fractions=["100%", "50%"])
    check(plan, absent_is_wrong=True)
    by_path = {cell.path: plan.estimator.seconds(cell) for cell in plan.todo}
    assert by_path["polyps/default/small/dense/100pct/s2"] == (101.0, "finished")
    half = by_path["polyps/default/small/dense/50pct/s1"]
    assert half is not None
    assert half[1] == "scaled"
    assert 50 < half[0] < 101
    assert by_path["polyps/default/small/zero_shot/100pct/s0"] is None
    plan.estimator.steps["small", "zero_shot"] = Step(0.0, 3.0)
    timed = plan.estimator.seconds(plan.todo[0])
    assert timed is not None
    assert timed[1] == "timed"
    assert timed[0] > 2 * 3.0
    gb, source = plan.estimator.memory_gb(plan.todo)
    assert gb == pytest.approx(2.2)
    assert "finished" in source
    assert [spell(value) for value in (5, 600, 7200, 300_000)] == ["5 s", "10 min", "2.0 h", "3.5 days"]


def test_a_finished_run_that_did_not_know_of_validate_every_stays_valid(plan_of: Planned) -> None:
    folder = run_like(plan_of(), 1)
    text = folder.run.config_file.read_text()
    folder.run.config_file.write_text(text.replace("  validate_every: 1\n", ""))
    assert folder.run.config_file.read_text() != text
    assert len(plan_of(train={"epochs": 2, "validate_every": 1}).todo) == 2
    with pytest.raises(ConfigError, match=r"train\.validate_every=5, was 1: change it back"):
        plan_of(train={"epochs": 2, "validate_every": 5})


def test_estimates_count_the_epochs_that_are_validated(plan_of: Planned) -> None:
    dense = {"settings": {"bottleneck_dim": 3}, "train": {"epochs": 40}}
    rare = {**dense, "method": "dense", "train": {"epochs": 40, "validate_every": 20}}
    plan = plan_of(methods={"dense": dense, "rare": rare}, seeds=[1, 2])
    check(plan, absent_is_wrong=True)
    often, rarely = (next(cell for cell in plan.cells if cell.method == name) for name in ("dense", "rare"))
    counts = plan.facts.cases[often.path]
    for name in ("dense", "rare"):
        plan.estimator.steps["small", name] = Step(2.0, 1.0)
    timed = [plan.estimator.seconds(cell) for cell in (often, rarely)]
    assert timed[0] is not None
    assert timed[1] is not None
    assert timed[0][0] - timed[1][0] == pytest.approx((40 - 2) * counts["val"])

    # From a finished run of the method that was validated otherwise: the steps are as many, the rest is less.
    train = {"seconds": 15.0 + 100 + 400, "loop_seconds": 100.0, "epochs": 40, "cases": counts["train"]}
    here = dataclasses.replace(rarely, method="dense")
    plan.estimator.done = [(often, {"train": train, "evaluate": {"seconds": 0.0, "cases": 2}})]
    assert plan.estimator.seconds(often) == (515.0, "finished")
    assert plan.estimator.seconds(here) == (pytest.approx(15 + 100 + 400 * 2 / 40), "scaled")


def test_what_is_evaluated_counts_and_few_runs_take_as_long_as_the_longest(plan_of: Planned) -> None:
    def seconds(**evaluate: Any) -> float:
        plan = plan_of(evaluate=evaluate)
        check(plan, absent_is_wrong=True)
        plan.estimator.steps["small", "zero_shot"] = Step(0.0, 100.0)
        found = plan.estimator.seconds(plan.todo[0])
        assert found is not None
        return found[0]

    one = seconds()  # 2 of 10 cases are for the test
    assert seconds(splits=["all"]) - one == pytest.approx(8 * 100, rel=0.05)
    assert seconds(splits=["val", "test"], levels=["p2"]) - one == pytest.approx(6 * 100, rel=0.05)
    assert side_by_side([40.0, 40.0, 10.0], 100) == 40.0
    assert side_by_side([40.0, 40.0, 10.0], 2) == 45.0
    assert side_by_side([], 2) == 0.0


def test_trials_on_other_labels_than_the_runs_count_in_the_time(
    plan_of: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlsm_adapter.study.preview.time_step", lambda *_: Step(train=10.0, forward=0.0))
    plan = plan_of(
        methods={"dense": {"settings": {"bottleneck_dim": 3}}},
        seeds=[1],
        search={"trials": 4, "fraction": "50%", "space": {"train.lr": [0.1, 0.2]}},
    )
    told = "\n".join(preview(plan, jobs=None, local=True))
    # 6 training cases, 2 epochs: 135 s of the run, and 4 trials of 75 s.
    assert "time: about 7 min for 1 run and 4 trials" in told


def test_a_dry_run_tells_the_grid_and_writes_nothing(plan_of: Planned, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    plan = plan_of(data={"polyps": {"path": str(plan_of().cells[0].config.data.path)}, "gone": {"path": "no/such"}})
    lines = list(preview(plan, jobs=2, local=False))
    told = "\n".join(lines)
    assert "6 runs, 0 finished" in told
    assert "dense      2 on each data set" in told
    assert "its own cases" not in told
    own = plan_of(subsets="per_seed", fractions=["100%", "50%"])
    assert "label fractions 100%, 50% (each seed its own cases); seeds" in next(preview(own, jobs=2, local=False))
    whole = plan_of(subsets="per_seed", fractions=["100%"])
    assert "label fractions 100%; seeds" in next(preview(whole, jobs=2, local=False))
    assert "parameters train" in told
    assert "not on this machine: data.gone.path: no/such" in told
    assert "time: about" in told
    assert "3 runs (3 from a step timed here)" in told
    assert "3 runs without an estimate" in told
    assert [file for file in sorted(tmp_path.rglob("*")) if file.name != "study.yaml"] == [
        file for file in before if file.name != "study.yaml"
    ]
