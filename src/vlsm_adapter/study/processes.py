"""Starting the process of a run and saying how it ended; and doing so on this machine alone, without Ray."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vlsm_adapter.study.folder import CellFolder

#: Environment variable with the id of the process that started a run's.
PARENT = "VLSM_STUDY_PARENT"
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Outcome:
    """How one attempt at a run ended.

    Attributes:
        state: ``finished``, ``failed``, ``killed`` or ``stopped``.
        error: one line, None where there is none.
    """

    state: str
    error: str | None = None


class Executor(Protocol):
    """Runs processes of runs, as many at once as it has room for."""

    @property
    def capacity(self) -> int:
        """Runs at once."""

    def submit(self, run: Path) -> None:
        """Start a run, or have it started as soon as there is room."""

    def wait(self, seconds: float) -> list[tuple[Path, Outcome]]:
        """Runs that ended; after ``seconds`` an empty list."""

    def close(self) -> None:
        """Let go of everything; runs that go on notice, save their state and stop."""


def start(run: Path, stop_file: Path, threads: int, gpus: Sequence[str] | None = None) -> subprocess.Popen[bytes]:
    """Start the process of ``run``; what it prints goes to its ``output.txt``.

    Args:
        stop_file: the process stops, its state saved, when this file appears.
        threads: of the numerical libraries.
        gpus: names of those that it may use, in the form of ``CUDA_VISIBLE_DEVICES``; by default what this process may.
    """
    environment = {
        **os.environ,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)),
        PARENT: str(os.getpid()),
        **({} if gpus is None else {_VISIBLE: ",".join(gpus)}),
    }
    command = [sys.executable, "-m", "vlsm_adapter.study.cell", str(run), "--stop", str(stop_file)]
    with CellFolder(run).output_file.open("ab") as output:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in a terminal is for the study, which asks its runs to stop
        )


def outcome_of(run: Path, code: int) -> Outcome:
    """What exit code ``code`` of the process of ``run`` means; a kill is written into the run's status."""
    folder = CellFolder(run)
    status = folder.status()
    if code == 0:
        return Outcome("finished")
    if code == 130:
        return Outcome("stopped")
    if code < 0:
        error = f"killed by signal {-code}" + (" (out of memory?)" if code == -9 else "")
        return mark_killed(run, error)
    if status.state == "failed" and status.error:
        return Outcome("failed", status.error)
    error = f"exit code {code}: {_last_line(folder.output_file)}"
    folder.write_status(status.now("failed", error=error))
    return Outcome("failed", error)


def mark_killed(run: Path, error: str) -> Outcome:
    """Note in the run's status that its process was killed."""
    folder = CellFolder(run)
    folder.write_status(folder.status().now("killed", error=error))
    return Outcome("killed", error)


def run_to_end(run: Path, stop_file: Path, threads: int) -> Outcome:
    """Start the process of ``run`` and wait for it; when all are asked to stop, none is started."""
    if stop_file.exists():
        return Outcome("stopped")
    return outcome_of(run, start(run, stop_file, threads).wait())


class LocalExecutor:
    """Processes of this machine.

    Args:
        jobs: runs at once.
        stop_file, threads: as in :func:`start`.
        gpus: of one run, as ``resources.gpus`` of a study: parts of one or whole ones, 0 for none; ``None`` is ``devices``.
        devices: processes of one run.
        there: GPUs that this process may use; runs are spread over them, the least used first.
    """

    def __init__(
        self,
        jobs: int,
        stop_file: Path,
        threads: int,
        *,
        gpus: float | None = None,
        devices: int = 1,
        there: int = 0,
    ) -> None:
        self.capacity = jobs
        self._stop_file = stop_file
        self._threads = threads
        self._each = math.ceil(devices if gpus is None else gpus)
        self._gpus = _visible(there)
        self._running: dict[Path, subprocess.Popen[bytes]] = {}
        self._held: dict[Path, Sequence[str]] = {}

    def submit(self, run: Path) -> None:
        used = Counter(name for names in self._held.values() for name in names)
        given = sorted(self._gpus, key=lambda name: used[name])[: self._each]
        self._held[run] = [name for name in self._gpus if name in given]
        self._running[run] = start(run, self._stop_file, self._threads, self._held[run] if self._gpus else None)

    def wait(self, seconds: float) -> list[tuple[Path, Outcome]]:
        deadline = time.monotonic() + seconds
        while True:
            codes = {run: process.poll() for run, process in self._running.items()}
            ended = [(run, outcome_of(run, code)) for run, code in codes.items() if code is not None]
            for run, _ in ended:
                del self._running[run], self._held[run]
            if ended or time.monotonic() >= deadline:
                return ended
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        for process in self._running.values():
            with contextlib.suppress(OSError):
                process.terminate()


def _visible(count: int) -> list[str]:
    """Names of the ``count`` GPUs that this process may use."""
    names = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
    return names[:count] if len(names) >= count else [str(number) for number in range(count)]


def _last_line(file: Path) -> str:
    try:
        lines: Sequence[str] = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = ()
    return lines[-1][:300] if lines else "it said nothing"
