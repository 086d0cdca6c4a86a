"""How the benchmarks measure: both ways in turn, fresh processes where memory or start is measured, medians and spreads."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Setting:
    """What all rows share.

    Attributes:
        model: folder of the base model, the same weights for both ways.
        folder: where to write; of a row alone.
        repeats: how often both ways are measured in turn, after a first time that does not count.
        quick: small sizes, to see that all runs; the ratios then say nothing.
        precision: of our training in the row of the fastest precision; ``auto`` as the package chooses.
        clock: ``wall``, or ``processor``: the time that the process itself computed, to compare both ways on a busy
            machine (with one thread: threads that wait for each other count).
    """

    model: str
    folder: str
    repeats: int = 5
    quick: bool = False
    precision: str = "auto"
    clock: str = "wall"

    def now(self) -> float:
        """Seconds on the clock."""
        return time.process_time() if self.clock == "processor" else time.perf_counter()

    def seconds_of(self, call: Callable[[], Any]) -> float:
        start = self.now()
        call()
        return self.now() - start

    def seconds_of_process(self, command: Sequence[str]) -> float:
        """Seconds from the start of a command to its end.

        Raises:
            RuntimeError: it failed; the message ends with what it said last.
        """
        with tempfile.TemporaryFile() as said:
            start = time.perf_counter()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                said.seek(0)
                text = said.read().decode(errors="replace")
                raise RuntimeError(f"{' '.join(command[:4])}: exit code {process.returncode}: {_last_line(text)}")
        return usage.ru_utime + usage.ru_stime if self.clock == "processor" else seconds

    def new_folder(self, name: str) -> Path:
        """A folder of ours that is not there yet."""
        parent = Path(self.folder)
        parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
        made.rmdir()
        return made


@dataclass
class Measured:
    """What a row has measured.

    Attributes:
        ours, usual: values in the row's unit, a pair per repetition.
        equal: whether both ways computed the same, as far as the row can tell; None where it cannot.
        notes: what else there is to know.
    """

    ours: list[float]
    usual: list[float]
    equal: bool | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: for ``--only``.
        title: what is measured.
        unit: of the values.
        bound: of the ratio ours / usual.
        least: whether the ratio must be at least ``bound``, else at most.
        run: measures; None where the row is only shown.
        scale: the values are divided by it to be shown in ``unit``.
    """

    name: str
    title: str
    unit: str
    bound: float
    least: bool
    run: Callable[[Setting], Measured] | None = None
    scale: float = 1.0


def alternate(ours: Callable[[], float], usual: Callable[[], float], repeats: int) -> tuple[list[float], list[float]]:
    """Values of both ways, measured in turn; who is first changes, so that what comes before meets both alike."""
    found: dict[int, list[float]] = {0: [], 1: []}
    for repeat in range(repeats):
        for way in (0, 1) if repeat % 2 == 0 else (1, 0):
            found[way].append((ours, usual)[way]())
    return found[0], found[1]


def summary(row: Row, measured: Measured) -> dict[str, Any]:
    """The row as plain values: medians, the ratio with its spread, and whether the bound holds."""
    ratios = [ours / usual for ours, usual in zip(measured.ours, measured.usual, strict=True)]
    ratio = statistics.median(ratios)
    return {
        "row": row.name,
        "title": row.title,
        "unit": row.unit,
        "bound": row.bound,
        "least": row.least,
        "ours": statistics.median(measured.ours) / row.scale,
        "usual": statistics.median(measured.usual) / row.scale,
        "ratio": ratio,
        "lowest": min(ratios),
        "highest": max(ratios),
        "holds": ratio >= row.bound if row.least else ratio <= row.bound,
        "measured": asdict(measured),
    }


def in_new_process(script: str, task: str, setting: Setting, **options: Any) -> Any:
    """What the task ``task`` of ``script`` returns, run in a process of its own.

    Raises:
        RuntimeError: it failed; the message ends with what it said last.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, str(HERE / script), "--task", task, "--answer", str(answer)]
        given = {**asdict(setting), "options": options}
        done = subprocess.run(
            [*command, "--setting", json.dumps(given)], capture_output=True, text=True, check=False, errors="replace"
        )
        if done.returncode or not answer.is_file():
            raise RuntimeError(f"{task}: exit code {done.returncode}: {_last_line(done.stderr)}")
        return json.loads(answer.read_text())


def answer_task(tasks: dict[str, Callable[..., Any]], name: str, given: str, answer: Path) -> None:
    """The other end of :func:`in_new_process`."""
    values = json.loads(given)
    options = values.pop("options")
    found = tasks[name](Setting(**values), **options)
    answer.write_text(json.dumps(asdict(found) if isinstance(found, Measured) else found))


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "said nothing"


def peak_memory() -> int:
    """The most bytes of main memory this process has held (resident), or of a GPU where the work is there."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    try:
        # Not getrusage: a child's count there begins with its parent's.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
