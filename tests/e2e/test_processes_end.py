"""However one process of a run ends, the others end too, and one of them says why, once."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_FAULTY = """
import os, sys, time
from vlsm_adapter import cli, fit
from vlsm_adapter.errors import DataError, UserError

rank = int(os.environ.get("LOCAL_RANK", "0"))  # of the first process too, as soon as it has started the others

def loss(session, batch, loss_of, real=fit._loss):
    if session.fabric.global_rank == 1 and session.progress.epoch == 1:
        raise {error}
    return real(session, batch, loss_of)

def save(*arguments, real=fit.save_adapter, **options):
    raise UserError("adapter: No space left on device; free some")

if "{where}" == "second":
    fit._loss = loss
elif "{where}" == "first":
    fit.save_adapter = save
cli.main()
"""


def _options(data: Path, model: Path, out: Path) -> list[str]:
    settings = ("devices=2", "batch_size=2", "precision=32-true", "patience=0")
    assigned = [part for setting in settings for part in ("--set", f"train.{setting}")]
    given = ("train", "--data", data, "--model", model, "-o", out, "--epochs", 3, "--set", "log.tensorboard=false")
    return [*map(str, given), *assigned]


class _Told:
    """A command whose error stream is a pipe, which its further processes hold open as long as one of them is there."""

    def __init__(self, start: Callable, folder: Path, *arguments: object, **options: Any) -> None:
        pipe = folder / f"told-{len(list(folder.glob('told-*')))}"
        os.mkfifo(pipe)
        self._reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        self.process = start(*arguments, told=pipe, **options)

    def end(self) -> tuple[int, list[str]]:
        """Exit code and error lines; returns when the last process that writes to the pipe is gone."""
        code, told = self.process.wait(timeout=240), b""
        while True:
            ready, _, _ = select.select([self._reader], [], [], 240)
            assert ready, "another process of the run is still there"
            if not (part := os.read(self._reader, 1 << 16)):
                break
            told += part
        os.close(self._reader)
        assert b"Traceback" not in told
        return code, [line for line in told.decode().splitlines() if "error" in line.lower()]


@pytest.mark.parametrize(
    ("where", "error", "line"),
    [
        ("second", 'DataError("x.png: unreadable; mend it")', "vlsm: error: x.png: unreadable; mend it"),
        ("first", "None", "vlsm: error: adapter: No space left on device; free some"),
    ],
)
def test_an_error_of_one_process_is_told_once(
    start: Callable, phantoms: Path, base_folder: Path, tmp_path: Path, where: str, error: str, line: str
) -> None:
    script = tmp_path / "faulty.py"
    script.write_text(_FAULTY.format(where=where, error=error))
    command = _Told(start, tmp_path, *_options(phantoms, base_folder, tmp_path / "run"), script=script)
    assert command.end() == (2, [line])


@pytest.mark.slow
def test_a_fault_in_a_further_process_is_told_by_it(
    start: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    script, run = tmp_path / "faulty.py", tmp_path / "run"
    script.write_text(_FAULTY.format(where="second", error='RuntimeError("odd")'))
    code, lines = _Told(start, tmp_path, *_options(phantoms, base_folder, run), script=script).end()
    assert code == 2
    assert lines[0].startswith("vlsm: error: unexpected RuntimeError: odd")
    assert lines[1].startswith("vlsm: error: another process of the run stopped")
    assert len(lines) == 2


@pytest.mark.slow
def test_a_run_that_is_busy_is_told_once(start: Callable, phantoms: Path, base_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = _Told(start, tmp_path, *_options(phantoms, base_folder, run), "--epochs", 400)
    deadline = time.monotonic() + 120
    while not (run / "state.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    second = _Told(start, tmp_path, "train", "--resume", run)
    line = f"vlsm: error: {run}: another process is training this run; wait for it or stop it"
    assert second.end() == (2, [line])
    first.process.terminate()
    assert first.end()[0] == 130


@pytest.mark.slow
def test_tasks_of_slurm_train_together(start: Callable, phantoms: Path, base_folder: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_JOB_NAME": "train",
        "SLURM_NODELIST": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    run = tmp_path / "run"
    command = _options(phantoms, base_folder, run)
    tasks = [
        start(*command, environment={**common, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)})
        for task in range(2)
    ]
    told = [task.communicate(timeout=240)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], told
    assert "finished: all 3 epochs" in told[0]
    assert "finished" not in told[1]
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
