"""``vlsm compare`` as a user runs it: a small study, its failures, what it says is wrong; on Ray, killed and continued."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlsm_adapter.study.folder import CellFolder

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray (the extra 'study')")
needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="needs Optuna (the extra 'study')")
needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes by /proc")


def _study(folder: Path, data: Path, model: Path, /, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "data": {"polyps": {"path": str(data)}},
        "models": {"small": {"name": str(model)}},
        "methods": {"zero_shot": {}, "dense": {"settings": {"bottleneck_dim": 3}}},
        "seeds": [1],
        "train": {"epochs": 1, "batch_size": 4},
        **changes,
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    return file


def _status(run: Path) -> dict[str, Any]:
    try:
        return json.loads((run / "status.json").read_text())
    except (OSError, ValueError):
        return {}


def _broken_copy(data: Path, copy: Path) -> Path:
    """Data whose headers are sound and of whose images one is not: found when a run decodes it."""
    shutil.copytree(data, copy)
    entry = json.loads((copy / "anns" / "train.json").read_text())[0]
    image = copy / "images" / entry["img_name"]
    image.write_bytes(image.read_bytes()[:-500])
    return copy


@pytest.fixture
def runs_at_once(start: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of runs that need not import anything first; on Ray they are started as they always are."""

    def begin(run: Path, stop_file: Path, threads: int, gpus: Any) -> Any:
        assert (threads, gpus) == (1, None)
        return start(run, "--stop", stop_file, script="study.cell", told=CellFolder(run).output_file)

    monkeypatch.setattr("vlsm_adapter.study.processes.start", begin)


@pytest.mark.usefixtures("runs_at_once")
def test_a_study_runs_says_what_failed_and_does_not_repeat_itself(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    broken = _broken_copy(phantoms, tmp_path / "broken")
    data = {"polyps": {"path": str(phantoms)}, "broken": {"path": str(broken)}}
    methods = {"zero_shot": {"on": {"data": "polyps"}}, "dense": {"settings": {"bottleneck_dim": 3}}}
    study = _study(tmp_path, phantoms, base_folder, data=data, methods=methods)
    out = tmp_path / "out"
    answer = vlsm("compare", study, "--out", out, "--local", "--jobs", 2, "--retries", 0)
    assert answer.code == 1, answer.err
    failed = "broken/default/small/dense/100pct/s1"
    assert f"warning: {failed}: failed" in answer.err
    assert "2 of 3 runs finished, 1 failed" in answer.err
    assert "Traceback" not in answer.err

    run = out / "runs" / "polyps/default/small/dense/100pct/s1"
    assert _status(run)["state"] == "finished"
    summary = json.loads((run / "evaluation" / "test-p1" / "summary.json").read_text())
    assert "zero_shot" not in summary
    resources = json.loads((run / "resources.json").read_text())
    assert resources["trainable_parameters"] == summary["trained_adapter"]["trainable_parameters"] > 0
    assert resources["total_parameters"] == summary["base"]["parameters"] + resources["trainable_parameters"]
    assert resources["train"]["epochs"] == 1
    assert resources["train"]["peak_memory_mb"] > 50
    assert resources["threads"] == 1
    zero = out / "runs" / "polyps/default/small/zero_shot/100pct/s0"
    assert (zero / "evaluation" / "test-p1" / "zero_shot_cases.csv").is_file()
    assert json.loads((zero / "resources.json").read_text())["train"] is None
    told = json.loads((out / "status.json").read_text())
    assert told["states"] == {"finished": 2, "failed": 1}
    error = next(row["error"] for row in told["runs"] if row["state"] == "failed")
    assert "broken" in error

    # The data is mended: what failed is done, what finished is not done again.
    shutil.rmtree(broken)
    shutil.copytree(phantoms, broken)
    before = (run / "status.json").stat().st_mtime_ns
    answer = vlsm("compare", out / "study.yaml", "--out", out, "--local")
    assert answer.code == 0, answer.err
    assert "3 of 3 runs finished" in answer.err
    assert _status(out / "runs" / failed)["attempts"] == 2
    assert (run / "status.json").stat().st_mtime_ns == before
    answer = vlsm("compare", study, "--out", out, "--local")
    assert answer.code == 0
    assert "3 of 3 runs finished" in answer.err

    # A run whose configuration has changed is not mixed with the others.
    changed = _study(tmp_path, phantoms, base_folder, data=data, methods=methods, train={"epochs": 2, "batch_size": 4})
    answer = vlsm("compare", changed, "--out", out, "--local")
    assert answer.code == 2
    assert len(answer.error.splitlines()) == 2
    assert "train.epochs=2, was 1" in answer.error


def test_whatever_is_wrong_is_said_before_anything_starts(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    study = _study(
        tmp_path, phantoms, base_folder, methods={"dens": {}, "dense": {"train": {"lrr": 1}}}, fractions=["0%"]
    )
    answer = vlsm("compare", study, "--out", out)
    assert answer.code == 2
    for part in ("did you mean 'dense'", "did you mean 'lr'", "fractions: '0%'"):
        assert part in answer.error
    for arguments, says in (
        (["--only", "nothing"], "names no run"),
        (["--local", "--address", "x"], "give one of them"),
        (["--jobs", "0"], "--jobs"),
    ):
        answer = vlsm("compare", _study(tmp_path, phantoms, base_folder), "--out", out, *arguments)
        assert answer.code == 2, answer.err
        assert says in answer.error
    answer = vlsm("compare", _study(tmp_path, tmp_path / "gone", base_folder), "--out", out)
    assert answer.code == 2
    assert "gone is not there" in answer.error
    assert not out.exists()


def test_a_folder_that_cannot_be_made_is_named(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    study = _study(tmp_path, phantoms, base_folder)
    answer = vlsm("compare", study, "--out", study / "below-a-file")
    assert answer.code == 2
    assert f"{study / 'below-a-file'}: cannot be made" in answer.error


def test_zero_shot_is_not_trained(vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path) -> None:
    answer = vlsm("train", "--data", phantoms, "--model", base_folder, "--adapter", "zero_shot", "-o", tmp_path / "run")
    assert answer.code == 2
    assert len(answer.error.splitlines()) == 1
    assert "vlsm evaluate --model" in answer.error
    assert not (tmp_path / "run").exists()


def test_without_ray_it_says_what_to_install(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    answer = vlsm("compare", _study(tmp_path, phantoms, base_folder), "--out", tmp_path / "out")
    assert answer.code == 2
    assert "pip install 'vlsm-adapter[study]'" in answer.error
    assert "--local" in answer.error


def test_a_cluster_that_is_not_there(vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path) -> None:
    study = _study(tmp_path, phantoms, base_folder)
    answer = vlsm("compare", study, "--out", tmp_path / "out", "--address", "127.0.0.1:9")
    assert answer.code == 2
    assert "no cluster answers at '127.0.0.1:9'" in answer.error
    assert "--local" in answer.error


# -- on Ray, as processes of their own -----------------------------------------------------------------------------------


Start = Callable[..., subprocess.Popen]


@pytest.fixture
def compare() -> Iterator[Start]:
    """``compare("study.yaml", "--out", out)`` gives the process of the command, which does not outlive the test."""
    started: list[subprocess.Popen] = []

    def run(*arguments: object) -> subprocess.Popen:
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "vlsm_adapter", "compare", *map(str, arguments)],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _processes_of(run: Path) -> list[int]:
    """Ids of the processes that work on ``run``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if "vlsm_adapter.study.cell" in words and str(run) in words:
                found.append(int(entry.name))
    return found


def _parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def _until(
    condition: Callable[[], Any], what: str, driver: subprocess.Popen | None = None, seconds: float = 400
) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        if driver is not None and driver.poll() is not None:
            pytest.fail(f"ended before {what}: {driver.communicate()[1]}")
        time.sleep(0.1)
    pytest.fail(f"waited in vain for {what}")


def _epochs(run: Path) -> list[int]:
    try:
        with (run / "metrics.csv").open() as file:
            return [int(row["epoch"]) for row in csv.DictReader(file)]
    except OSError:
        return []


@needs_ray
def test_a_study_on_ray(compare: Start, phantoms: Path, base_folder: Path, tmp_path: Path) -> None:
    study = _study(tmp_path, phantoms, base_folder, methods={"zero_shot": {}})
    driver = compare(study, "--out", tmp_path / "out", "--jobs", 1)
    _, errors = driver.communicate(timeout=300)
    assert driver.returncode == 0, errors
    assert "Ray on this machine" in errors
    assert "1 of 1 runs finished" in errors
    assert len(errors.splitlines()) == 3, errors  # nothing of Ray's own


@needs_ray
@needs_proc
@pytest.mark.slow
def test_kills_of_runs_workers_and_the_driver_cost_an_epoch_at_most(
    compare: Start, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    epochs = 150
    train = {"epochs": epochs, "batch_size": 2, "patience": 0, "save_seconds": 0.0}
    study = _study(tmp_path, phantoms, base_folder, train=train)
    out = tmp_path / "out"
    run = out / "runs" / "polyps/default/small/dense/100pct/s1"
    command = (study, "--out", out, "--jobs", 1, "--retries", 2)

    def progressed(than: int, driver: subprocess.Popen) -> int:
        return _until(lambda: len(_epochs(run)) > than and _processes_of(run), "an epoch", driver)[0]

    driver = compare(*command)
    os.kill(progressed(1, driver), signal.SIGKILL)  # the run itself
    done = len(_epochs(run))
    _until(lambda: _status(run).get("attempts") == 2, "a second attempt", driver)
    cell = progressed(done, driver)
    os.kill(_parent_of(cell), signal.SIGKILL)  # Ray's worker; the run notices that it is alone
    done = len(_epochs(run))
    _until(lambda: _status(run).get("attempts") == 3, "a third attempt", driver)
    progressed(done, driver)
    driver.kill()  # the driver; what it had started ends by itself
    driver.communicate()
    _until(lambda: not _processes_of(run), "the run to notice")
    assert len(_epochs(run)) < epochs

    driver = compare(*command)
    progressed(len(_epochs(run)), driver)
    driver.send_signal(signal.SIGINT)  # Ctrl-C
    _, errors = driver.communicate(timeout=120)
    assert driver.returncode == 130, errors
    assert f"the same command continues: vlsm compare {study} --out {out}" in errors
    assert "Traceback" not in errors
    assert _status(run)["state"] == "stopped"
    assert not _processes_of(run)
    assert not (out / ".stop").exists()

    driver = compare(*command)
    _, errors = driver.communicate(timeout=300)
    assert driver.returncode == 0, errors
    assert "2 of 2 runs finished" in errors
    assert _epochs(run) == list(range(1, epochs + 1))
    log = (run / "log.txt").read_text()
    assert log.count("resumed at") >= 4
    finished = [row for row in json.loads((out / "status.json").read_text())["runs"] if row["state"] == "finished"]
    # What had finished before the first kill ran once.
    assert [row["attempts"] for row in finished] == [1, 5]


@needs_optuna
@pytest.mark.usefixtures("runs_at_once")
def test_a_search_chooses_by_validation_and_its_trials_see_no_test_case(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    search = {"trials": 3, "parallel": 2, "space": {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}}}
    study = _study(tmp_path, phantoms, base_folder, search=search)
    out = tmp_path / "out"
    answer = vlsm("compare", study, "--out", out, "--local", "--jobs", 2)
    assert answer.code == 0, answer.err
    with (out / "search" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["finished"] * 3
    best = max(rows, key=lambda row: (float(row["validation_dice"]), -int(row["trial"])))
    assert [row["chosen"] for row in rows] == [str(row is best) for row in rows]
    assert not list((out / "search").rglob("evaluation"))
    config = yaml.safe_load((out / "runs/polyps/default/small/dense/100pct/s1/config.yaml").read_text())
    assert config["train"]["lr"] == float(best["train.lr"])
    answer = vlsm("compare", study, "--out", out, "--local")
    assert answer.code == 0
    assert "2 of 2 runs finished" in answer.err
