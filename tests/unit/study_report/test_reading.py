"""Run folders are found in any arrangement; what cannot be read is left out with its reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vlsm_adapter.errors import UserError
from vlsm_adapter.study_report.reading import find_results, is_study
from vlsm_adapter.study_report.results import Result


def only(results: list[Result], **wanted: object) -> Result:
    found = [one for one in results if all(getattr(one, key) == value for key, value in wanted.items())]
    assert len(found) == 1, found
    return found[0]


def test_a_run_of_a_study(fake: ModuleType, tmp_path: Path) -> None:
    cell = {
        "data": "polyps",
        "protocol": "leak_free",
        "model": "small",
        "method": "dense_wide",
        "fraction": "10%",
        "seed": 7,
    }
    run = fake.FakeRun(
        tmp_path / "study/runs/polyps/leak_free/small/dense_wide/10pct/s7", [0.5, 0.75], seed=7, cell=cell, subset="10%",
        settings={"parts": "vlc"}, zero_shot=[0.1, 0.2],
    ).write()  # fmt: skip
    fake.write_curve(run, 0.6, epochs=5)
    resources = {
        "train": {"seconds": 99.5, "epochs": 5, "cases": 80, "peak_memory_mb": 1500, "peak_gpu_memory_mb": 250.5}
    }
    (run / "resources.json").write_text(json.dumps(resources))
    found = find_results([tmp_path / "study"])
    assert (found.problems, found.unfinished) == ([], [])
    result = only(found.results, method="dense")
    assert (result.name, result.protocol, result.model, result.data) == ("dense_wide", "leak_free", "small", "polyps")
    assert (result.fraction, result.seed, result.train_level, result.level) == ("10%", 7, "p1", "p1")
    assert result.resources == {
        "seconds": 99.5, "epochs": 5, "train_cases": 80, "peak_memory": 1500 * 2**20, "peak_gpu_memory": 250.5 * 2**20
    }  # fmt: skip
    assert result.curve["epoch"] == [1, 2, 3, 4, 5]
    assert result.values["dice"] == (0.5, 0.75)
    zero = only(found.results, method="zero_shot")
    assert (zero.model, zero.data, zero.seed, zero.trainable, zero.fraction) == ("small", "polyps", None, 0, None)
    assert str(tmp_path) not in json.dumps([one.source for one in found.results])


def test_a_subset_of_its_own_for_each_seed(fake: ModuleType, tmp_path: Path) -> None:
    for seed, drawn in ((1, 1), (2, 2), (3, 7), (4, None)):
        fake.FakeRun(tmp_path / f"r{seed}", [0.5, 0.6], seed=seed, subset="10%", subset_seed=drawn).write()
    found = {one.seed: one for one in find_results([tmp_path]).results}
    said = {seed: one.recipe.get("data.subset_seed") for seed, one in found.items()}
    assert said == {1: "train.seed", 2: "train.seed", 3: 7, 4: None}
    assert found[4].full_recipe["data.subset_seed"] == "data.split_seed"
    assert "data.subset_seed" not in found[4].identity["recipe"]  # results of before have the keys that they had


def test_plain_runs_in_any_place_and_evaluations_outside_of_their_run(fake: ModuleType, tmp_path: Path) -> None:
    one = fake.FakeRun(tmp_path / "deep/er/one", [0.5, 0.6], seed=1).write()
    two = fake.FakeRun(tmp_path / "two", [0.5, 0.7], seed=2, subset=20).write()
    shutil.move(two / "evaluation/test-p1", tmp_path / "elsewhere")
    found = find_results([tmp_path])
    assert {(result.seed, result.fraction) for result in found.results} == {(1, "100%"), (2, "20 cases")}
    assert found.problems == []
    # The run has moved with all of its folder: what its evaluation lies in counts, not the path of then.
    shutil.move(one, tmp_path / "moved")
    assert {result.seed for result in find_results([tmp_path / "moved" / ".."]).results} == {1, 2}
    shutil.rmtree(two)
    found = find_results([tmp_path])
    assert [place for place, _ in found.problems] == [f"{tmp_path.name}/elsewhere"]
    assert "config.yaml of its run is not there" in found.problems[0][1]


def test_evaluations_on_other_data_and_a_base_model_alone(fake: ModuleType, tmp_path: Path) -> None:
    fake.FakeRun(tmp_path / "run", [0.5, 0.6], data="clinic", data_path="/d/kvasir", evaluated_on="/d/clinic").write()
    fake.FakeRun(tmp_path / "base", [], seed=None, zero_shot=[0.2, 0.3], config=False).write()
    found = find_results([tmp_path])
    assert only(found.results, method="dense").trained_on == "kvasir"
    assert only(found.results, method="zero_shot").values["dice"] == (0.2, 0.3)


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "summary is no JSON": (lambda e: (e / "summary.json").write_text("{"), "damaged"),
    "summary is deep": (lambda e: (e / "summary.json").write_text("[" * 100_000), "damaged"),
    "summary of a later version": (
        lambda e: (e / "summary.json").write_text('{"format": "vlsm-evaluation", "format_version": 99}'),
        "99",
    ),
    "summary lacks nearly all": (
        lambda e: (e / "summary.json").write_text('{"format": "vlsm-evaluation", "format_version": 1}'),
        "incomplete",
    ),
    "no scores": (lambda e: (e / "cases.csv").unlink(), "no such file"),
    "scores cut off": (lambda e: (e / "cases.csv").write_text((e / "cases.csv").read_text()[:150]), "cases.csv"),
    "scores without a row": (
        lambda e: (e / "cases.csv").write_text("\n".join((e / "cases.csv").read_text().splitlines()[:-1]) + "\n"),
        "3 rows, summary.json speaks of 4",
    ),
    "a case twice": (
        lambda e: (e / "cases.csv").write_text((e / "cases.csv").read_text().replace("case_0001", "case_0000")),
        "scored twice",
    ),
    "scores of another evaluation": (
        lambda e: (e / "cases.csv").write_text((e / "cases.csv").read_text().replace("polyp,0.5,", "polyp,0.9,")),
        "disagree",
    ),
    "no configuration": (lambda e: (e.parents[1] / "config.yaml").write_text(": : :"), "config.yaml"),
    "half a configuration": (lambda e: (e.parents[1] / "config.yaml").write_text("data: {path: x}"), "lacks one of"),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILED)
def test_damage_is_told_and_the_others_are_read(fake: ModuleType, tmp_path: Path, what: str) -> None:
    spoil, says = SPOILED[what]
    fake.FakeRun(tmp_path / "good", [0.5, 0.6, 0.7, 0.8], seed=1).write()
    bad = fake.FakeRun(tmp_path / "bad", [0.5, 0.6, 0.7, 0.8], seed=2).write()
    spoil(bad / "evaluation/test-p1")
    found = find_results([tmp_path])
    assert [result.seed for result in found.results] == [1]
    assert len(found.problems) == 1
    place, reason = found.problems[0]
    assert place == f"{tmp_path.name}/bad/evaluation/test-p1"
    assert says in reason
    assert str(tmp_path) not in reason
    assert "\n" not in reason


def test_files_that_only_add_may_be_damaged(fake: ModuleType, tmp_path: Path) -> None:
    run = fake.FakeRun(tmp_path / "run", [0.5, 0.6], sensitivity=0.4).write()
    for name in ("resources.json", "metrics.csv", "data.json"):
        (run / name).write_bytes(b"\xff{not it")
    (run / "evaluation/test-p1/sensitivity.json").write_text("{")
    found = find_results([tmp_path])
    assert len(found.results) == 1
    assert found.results[0].sensitivity is None
    assert "sensitivity.json: damaged" in found.problems[0][1]


def test_a_run_whose_names_are_damaged_is_left_out(fake: ModuleType, tmp_path: Path) -> None:
    run = fake.FakeRun(tmp_path / "run", [0.5, 0.6]).write()
    for text in ("", "[]", '{"data": "polyps", "protocol": 7}'):
        (run / "cell.json").write_text(text)
        found = find_results([tmp_path])
        assert not found.results
        assert "cell.json is damaged" in found.problems[0][1]


def test_runs_that_are_not_finished(fake: ModuleType, tmp_path: Path) -> None:
    for name in ("failed", "stopped", "quiet"):
        run = fake.FakeRun(tmp_path / name, [0.5, 0.6]).write()
        shutil.rmtree(run / "evaluation")
    (tmp_path / "failed/status.json").write_text('{"state": "failed", "error": "loss is\\nnan"}')
    (tmp_path / "stopped/status.json").write_text('{"state": "stopped", "error": null}')
    fake.write_curve(tmp_path / "quiet", 0.5, epochs=3)
    states = {place.rpartition("/")[2]: state for place, state in find_results([tmp_path]).unfinished}
    assert states == {"failed": "failed: loss is nan", "stopped": "stopped", "quiet": "not evaluated, 3 epochs trained"}


def test_trials_reports_and_hidden_folders_are_not_looked_into(fake: ModuleType, tmp_path: Path) -> None:
    fake.write_study(tmp_path / "study", methods=("lora",), data=("isic",), seeds=(41,))
    for place in ("search/trial0", ".new-xyz", "report/copy"):
        fake.FakeRun(tmp_path / "study" / place, [0.5, 0.6]).write()
    (tmp_path / "study/report/report.json").write_text('{"format": "vlsm-study-report"}')
    assert {result.method for result in find_results([tmp_path / "study"]).results} == {"lora", "zero_shot"}


def test_data_sets_and_methods_may_be_called_as_parts_of_a_run(fake: ModuleType, tmp_path: Path) -> None:
    names = ("adapter", "images", "tensorboard")
    for data in names:
        for method in names:
            own = {"data": data, "protocol": data, "model": "tiny", "method": method}
            run = fake.FakeRun(
                tmp_path / f"study/runs/{data}/{data}/tiny/{method}/s1", [0.5], data=data, cell=own
            ).write()
            # What lies in a run's own parts is no run, whatever it is called.
            for part in (run / "adapter", run / "tensorboard", run / "evaluation/test-p1/images"):
                fake.FakeRun(part, [0.9], data="inner").write()
    found = find_results([tmp_path / "study"])
    assert {(one.data, one.name) for one in found.results} == {(data, method) for data in names for method in names}
    assert (found.problems, found.unfinished) == ([], [])


def test_a_text_free_network_has_no_zero_shot(fake: ModuleType, tmp_path: Path) -> None:
    run = fake.FakeRun(tmp_path / "run", [0.5, 0.6], method="full", zero_shot=[0.0, 0.1]).write()
    file = run / "evaluation/test-p1/summary.json"
    values = json.loads(file.read_text())
    values["base"]["family"] = "text_free"
    file.write_text(json.dumps(values))
    assert [result.method for result in find_results([tmp_path]).results] == ["full"]


def test_what_is_a_study(fake: ModuleType, tmp_path: Path) -> None:
    run = fake.FakeRun(tmp_path / "a/b/run", [0.5, 0.6]).write()
    assert is_study(tmp_path)
    assert not is_study(run)
    assert not is_study(run / "evaluation/test-p1")
    (tmp_path / "empty").mkdir()
    assert not is_study(tmp_path / "empty")
    assert not is_study(tmp_path / "none")
    with pytest.raises(UserError, match="no such folder"):
        find_results([tmp_path / "none"])


def test_what_is_not_a_number_stays_so(fake: ModuleType, tmp_path: Path) -> None:
    fake.FakeRun(tmp_path / "run", [0.5, float("nan"), float("inf")]).write()
    values = find_results([tmp_path]).results[0].values["dice"]
    assert values[0] == 0.5
    assert np.isnan(values[1:]).all()


@pytest.mark.parametrize("content", [None, "{", "[]", '{"runs": 3}', '{"runs": [{"state": "waiting"}]}'])
def test_runs_that_never_began_are_told(tmp_path: Path, content: str | None) -> None:
    rows = [{"path": f"runs/a/s{number}", "state": "waiting" if number else "finished"} for number in range(3)]
    (tmp_path / "study.yaml").write_text("")
    (tmp_path / "status.json").write_text(json.dumps({"runs": rows}) if content is None else content)
    (tmp_path / "runs/a/s2").mkdir(parents=True)
    (tmp_path / "runs/a/s2/config.yaml").write_text("data: {path: x}")  # begun since
    unfinished = find_results([tmp_path]).unfinished
    begun = [entry for entry in unfinished if entry[1] != "never begun"]
    assert len(begun) == 1
    never = [place for place, state in unfinished if state == "never begun"]
    assert len(never) == (content is None)
    assert all(place.endswith("runs/a/s1") for place in never)
