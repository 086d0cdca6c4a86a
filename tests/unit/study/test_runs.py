"""A run's own files, how its process ended, and the loop that keeps an executor busy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vlsm_adapter.config import RunConfig
from vlsm_adapter.console import Console
from vlsm_adapter.errors import UserError
from vlsm_adapter.study import processes
from vlsm_adapter.study.cell import _alone
from vlsm_adapter.study.config import Evaluation
from vlsm_adapter.study.drive import Task, drive
from vlsm_adapter.study.folder import CellFolder, Status, best_validation
from vlsm_adapter.study.processes import LocalExecutor, Outcome, outcome_of

CONFIG = RunConfig.load(overrides={"data.path": "/data", "train.epochs": 2})


def evaluated(folder: CellFolder, split: str, level: str, **changes: object) -> None:
    place = folder.path / "evaluation" / f"{split}-{level}"
    place.mkdir(parents=True)
    summary = {"format": "vlsm-evaluation", "format_version": 1, "nsd_tolerance": 2.0, "threshold": 0.5, **changes}
    (place / "summary.json").write_text(json.dumps(summary))


def test_prepared_files_are_written_once(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path / "run")
    folder.prepare({"method": "dense"}, CONFIG, Evaluation())
    assert folder.run.config() == CONFIG
    assert folder.cell()["evaluate"]["splits"] == ["test"]
    times = [file.stat().st_mtime_ns for file in (folder.cell_file, folder.run.config_file)]
    folder.prepare({"method": "dense"}, CONFIG, Evaluation())
    assert times == [file.stat().st_mtime_ns for file in (folder.cell_file, folder.run.config_file)]
    folder.prepare({"method": "dense"}, CONFIG, None)
    assert folder.cell()["evaluate"] is None


def test_finished_is_what_is_on_disk(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path / "run")
    assert not folder.finished(CONFIG, Evaluation(), trains=True)
    folder.prepare({}, CONFIG, Evaluation())
    assert folder.pending(CONFIG, Evaluation(levels=("p2", "p1"))) == [("test", "p1"), ("test", "p2")]
    evaluated(folder, "test", "p1")
    assert not folder.finished(CONFIG, Evaluation(), trains=True)
    assert folder.finished(CONFIG, Evaluation(), trains=False)
    folder.resources_file.write_text('{"train": {"finished": "yes"}}')
    assert folder.finished(CONFIG, Evaluation(), trains=True)
    # Another evaluation is asked for: that alone is missing.
    for wanted in (
        Evaluation(nsd_tolerance=3.0),
        Evaluation(threshold=0.3),
        Evaluation(probes=True),
        Evaluation(splits=("val",)),
    ):
        assert len(folder.pending(CONFIG, wanted)) == 1
    (folder.path / "evaluation" / "test-p1" / "summary.json").write_text("{")
    assert not folder.finished(CONFIG, Evaluation(), trains=True)


def test_what_a_killed_evaluation_left_is_cleared_away(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path)
    evaluated(folder, "test", "p1")
    left = tmp_path / "evaluation" / "test-p1" / ".new-abc" / "images"
    left.mkdir(parents=True)
    (left / ".example.png.tmp").write_text("half")
    with _alone(folder):
        assert [file.name for file in (tmp_path / "evaluation" / "test-p1").iterdir()] == ["summary.json"]
    # Killed while its files took their places: the summary is the last.
    left.mkdir(parents=True)
    (tmp_path / "evaluation" / "test-p1" / "summary.json").rename(left.parent / "summary.json")
    (tmp_path / "evaluation" / "test-p1" / "cases.csv").write_text("")
    with _alone(folder):
        assert not (tmp_path / "evaluation" / "test-p1").exists()


def test_without_a_threshold_the_adapters_own_is_wanted(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path)
    evaluated(folder, "test", "p1")  # at 0.5
    assert not folder.pending(CONFIG, Evaluation())
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"info": {"threshold": 0.0}}')
    assert folder.pending(CONFIG, Evaluation()) == [("test", "p1")]
    assert not folder.pending(CONFIG, Evaluation(threshold=0.5))


def test_damaged_files_of_a_run_are_as_none(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path)
    for text in ("", "[]", "{", '{"state": "finished", "odd": 1}'):
        folder.status_file.write_text(text)
        folder.resources_file.write_text(text)
        folder.cell_file.write_text(text)
        assert folder.status().state == "waiting"
        assert not folder.trained()
        with pytest.raises(UserError, match="not a run of a study"):
            folder.cell()


def test_best_validation_is_read_from_the_table(tmp_path: Path) -> None:
    assert best_validation(tmp_path) is None
    (tmp_path / "metrics.csv").write_text("epoch,val_dice\n1,0.5\n2,0.75\n3,0.75\n")
    assert best_validation(tmp_path) == (0.75, 2)
    (tmp_path / "metrics.csv").write_text("epoch,val_dice\n1,\n2,0.5\n3,\n4,0.75\n5,0.7\n")
    assert best_validation(tmp_path) == (0.75, 4)
    (tmp_path / "metrics.csv").write_text("epoch,val_dice\n1,\n")
    assert best_validation(tmp_path) is None


@pytest.mark.parametrize(
    ("code", "before", "output", "outcome", "state"),
    [
        (0, "finished", "", Outcome("finished"), "finished"),
        (130, "stopped", "", Outcome("stopped"), "stopped"),
        (-9, "running", "", Outcome("killed", "killed by signal 9 (out of memory?)"), "killed"),
        (-11, "running", "", Outcome("killed", "killed by signal 11"), "killed"),
        (2, "failed", "", Outcome("failed", "why"), "failed"),
        (1, "running", "a\nlast words\n", Outcome("failed", "exit code 1: last words"), "failed"),
    ],
)
def test_how_a_process_ended(tmp_path: Path, code: int, before: str, output: str, outcome: Outcome, state: str) -> None:
    folder = CellFolder(tmp_path)
    folder.write_status(Status().now(before, error="why" if before == "failed" else None, attempts=1))
    folder.output_file.write_text(output)
    assert outcome_of(tmp_path, code) == outcome
    assert folder.status().state == state
    assert folder.status().attempts == 1


class Fake:
    """An executor whose runs end as ``plan`` says: run name to outcomes, one per attempt."""

    def __init__(
        self, capacity: int, plan: dict[str, list[str]], on_submit: Callable[[str], None] = lambda _: None
    ) -> None:
        self.capacity, self.plan, self.on_submit = capacity, plan, on_submit
        self.under_way: list[Path] = []
        self.started: list[str] = []
        self.most = 0

    def submit(self, run: Path) -> None:
        assert (run / "cell.json").is_file()
        self.under_way.append(run)
        self.started.append(run.name)
        self.most = max(self.most, len(self.under_way))
        self.on_submit(run.name)

    def wait(self, seconds: float) -> list[tuple[Path, Outcome]]:
        run = self.under_way.pop(0)
        state = self.plan.get(run.name, ["finished"]).pop(0)
        return [(run, Outcome(state, None if state == "finished" else "because"))]

    def close(self) -> None:
        pass


class Stop:
    requested = False


def run_all(
    folder: Path, executor: Fake, stop: Stop, names: str = "abcd", retries: int = 1, more: str = ""
) -> dict[str, str]:
    def task(name: str) -> Task:
        return Task(CellFolder(folder / name), name, {}, CONFIG, None)

    ends: dict[str, str] = {}
    left = list(more)

    def ended(one: Task, outcome: Outcome) -> list[Task]:
        ends[one.label] = outcome.state
        return [task(left.pop())] if left else []

    drive(
        [task(name) for name in names],
        executor,
        retries=retries,
        stop=stop,
        stop_file=folder / ".stop",
        console=Console(quiet=True),
        ended=ended,
    )
    return ends


def test_the_loop_tries_again_and_then_lets_be(tmp_path: Path) -> None:
    executor = Fake(2, {"b": ["killed", "finished"], "c": ["failed", "failed"], "d": ["stopped", "finished"]})
    ends = run_all(tmp_path, executor, Stop(), more="e")
    assert ends == {"a": "finished", "b": "finished", "c": "failed", "d": "finished", "e": "finished"}
    assert sorted(executor.started) == list("abbccdde")
    assert executor.most == 2
    assert run_all(tmp_path, Fake(1, {"c": ["failed"]}), Stop(), retries=0)["c"] == "failed"


def test_a_stop_ends_the_loop_and_asks_the_runs(tmp_path: Path) -> None:
    stop, seen = Stop(), []

    def submitted(name: str) -> None:
        if name == "b":
            stop.requested = True

    executor = Fake(1, {"b": ["stopped"]}, submitted)
    wait = executor.wait
    executor.wait = lambda seconds: (seen.append((tmp_path / ".stop").exists()), wait(seconds))[1]  # type: ignore[method-assign]
    assert run_all(tmp_path, executor, stop) == {"a": "finished", "b": "stopped"}
    assert executor.started == ["a", "b"]
    assert not (tmp_path / ".stop").exists()
    assert seen[0] is False


def test_local_processes_run_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the process of a run: each one's end is told, and a kill is written down."""
    import subprocess

    codes = {"good": "0", "bad": "3", "killed": "__import__('os').kill(__import__('os').getpid(), 9)"}

    def start(run: Path, stop_file: Path, threads: int, gpus: object) -> subprocess.Popen[bytes]:
        assert gpus is None
        return subprocess.Popen([sys.executable, "-S", "-c", f"raise SystemExit({codes[run.name]})"])

    monkeypatch.setattr(processes, "start", start)
    executor = LocalExecutor(3, tmp_path / ".stop", 1)
    for name in codes:
        (tmp_path / name).mkdir()
        executor.submit(tmp_path / name)
    ended: dict[str, str] = {}
    for _ in range(200):
        ended |= {run.name: outcome.state for run, outcome in executor.wait(0.2)}
        if len(ended) == 3:
            break
    assert ended == {"good": "finished", "bad": "failed", "killed": "killed"}
    assert CellFolder(tmp_path / "killed").status().state == "killed"
    assert executor.wait(0.01) == []
    executor.close()


@pytest.mark.parametrize(
    ("visible", "asked", "devices", "given"),
    [
        (None, None, 1, ["0", "1", "0", "1"]),
        (None, 0.5, 1, ["0", "1", "0", "1"]),
        (None, None, 2, ["0,1", "0,1", "0,1", "0,1"]),
        (None, 0, 1, ["", "", "", ""]),
        ("3,GPU-5f", None, 1, ["3", "GPU-5f", "3", "GPU-5f"]),
    ],
)
def test_local_processes_are_spread_over_the_gpus(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    asked: float | None,
    devices: int,
    given: list[str],
) -> None:
    """Two runs at once on a machine with two GPUs do not share one of them; ``resources.gpus: 0`` keeps them off both."""
    import subprocess

    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    else:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **options: popen([sys.executable, "-S", "-c", code], **options)
    )
    executor = LocalExecutor(2, tmp_path / ".stop", 1, gpus=asked, devices=devices, there=2)
    said = []
    for pair in ("ab", "cd"):  # the second two have the places of the first two
        for name in pair:
            (tmp_path / name).mkdir()
            executor.submit(tmp_path / name)
        ended = 0
        for _ in range(100):
            ended += len(executor.wait(0.2))
            if ended == 2:
                break
        said += [CellFolder(tmp_path / name).output_file.read_text().strip() for name in pair]
    assert said == given
