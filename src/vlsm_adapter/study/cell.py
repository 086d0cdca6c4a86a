"""One run of a study in a process of its own: train, or go on, then evaluate.

``python -m vlsm_adapter.study.cell RUN [--stop FILE]``. The folder RUN holds ``config.yaml`` and ``cell.json``. The
process stops, with its state saved, on SIGINT and SIGTERM, when FILE appears, and when the process that started it dies.
Exit codes are those of ``vlsm``.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from vlsm_adapter import files
from vlsm_adapter.config import build_section
from vlsm_adapter.errors import UserError, one_line
from vlsm_adapter.study.config import Evaluation
from vlsm_adapter.study.folder import CellFolder, best_validation
from vlsm_adapter.study.processes import PARENT

_POLL_SECONDS = 0.5
_AGAIN_SECONDS = 5.0
# How long to wait for an earlier process of the same run: it stops after an update when the process that started it dies.
_LOCK_SECONDS = 300.0


def main(arguments: list[str]) -> int:
    """Run the cell; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="vlsm_adapter.study.cell")
    parser.add_argument("run", type=Path)
    parser.add_argument("--stop", type=Path)
    options = parser.parse_args(arguments)
    folder = CellFolder(options.run)
    _stop_on_signals()
    _watch(options.stop)
    from vlsm_adapter.console import show_log

    show_log(quiet=True)
    if int(os.environ.get("LOCAL_RANK", "0")):  # a further process of a run of several: the first one keeps the books
        from vlsm_adapter.train import resume

        resume(folder.path)
        return 0
    with _alone(folder):
        began = time.perf_counter()
        status = folder.status().now("running", attempts=folder.status().attempts + 1, error=None)
        folder.write_status(status)
        code, state, error = 0, "finished", None
        try:
            run_cell(folder)
        except KeyboardInterrupt:
            code, state = 130, "stopped"
        except UserError as problem:
            code, error = problem.exit_code, one_line(problem)
            state = "stopped" if code == 130 else "failed"
            error = None if code == 130 else error
        except Exception as problem:
            code, state, error = 1, "failed", f"{type(problem).__name__}: {one_line(problem)}"
            import traceback

            traceback.print_exc()  # into output.txt
        seconds = round(status.seconds + time.perf_counter() - began, 3)
        folder.write_status(status.now(state, error=error, seconds=seconds))
    if error is not None:
        print(error, file=sys.stderr)
    return code


def run_cell(folder: CellFolder) -> None:
    """Train what is not trained, evaluate what is not evaluated, and write ``resources.json``.

    Raises:
        UserError: of training or evaluation.
        KeyboardInterrupt: asked to stop outside the training loop.
    """
    problems: list[str] = []
    about = folder.cell()
    wanted = about.get("evaluate")
    evaluation = None if wanted is None else build_section(Evaluation, wanted, "evaluate.", problems)
    if problems:
        raise UserError(f"{folder.cell_file}: {problems[0]}")
    config = folder.run.config()
    from vlsm_adapter.adapters import ADAPTERS
    from vlsm_adapter.adapters.folder import FILES

    resources = {**folder.resources(), **_machine()}
    trains = ADAPTERS.get(config.adapter.method).trains
    if trains and not folder.trained():
        _train(folder, resources)
    todo = folder.pending(config, evaluation)
    if todo and trains and not all((folder.run.adapter / name).is_file() for name in FILES):
        raise UserError(
            f"{folder.path}: trained, but its adapter is not here to be evaluated: copy {folder.run.adapter}, "
            "or remove the run's folder to train again"
        )
    began, seen = time.perf_counter(), 0
    _forget_peak()
    for split, level in todo:
        assert evaluation is not None
        summary = _evaluate(folder, config, evaluation, split, level, trains)
        seen += summary["adapter" if trains else "zero_shot"]["n_cases"]
        resources |= _parameters(folder, summary)
    if todo:
        resources["evaluate"] = {
            "seconds": round(time.perf_counter() - began, 3),
            "cases": seen,
            "evaluations": len(todo),
            "peak_memory_mb": _peak_mb(),
        }
    files.write_json(folder.resources_file, {"train": None, **resources})


def _train(folder: CellFolder, resources: dict[str, Any]) -> None:
    from vlsm_adapter.train import resume

    before = dict(resources.get("train") or {})
    began = time.perf_counter()
    _forget_peak()
    finished = None
    try:
        resume(folder.path)
        finished = "yes"
    finally:
        rows = _rows(folder.run.metrics_file)
        best = best_validation(folder.path)
        loop = sum(float(row["seconds"]) for row in rows)
        resources["train"] = {
            # Beside the loop: reading data and model, validation, saving. Of attempts that were killed, the loop alone is known.
            "seconds": round(max(loop, before.get("seconds", 0.0) + time.perf_counter() - began), 3),
            "loop_seconds": round(loop, 3),
            "epochs": len(rows),
            "cases": len(folder.run.data().get("splits", {}).get("train", ())),
            "peak_memory_mb": max(before.get("peak_memory_mb") or 0.0, _peak_mb()),
            "peak_gpu_memory_mb": max(filter(None, (before.get("peak_gpu_memory_mb"), _gpu_peak_mb())), default=None),
            "best_val_dice": None if best is None else best[0],
            "best_epoch": None if best is None else best[1],
            "finished": finished,
        }
        with contextlib.suppress(UserError):
            files.write_json(folder.resources_file, resources)


def _evaluate(
    folder: CellFolder, config: Any, evaluation: Evaluation, split: str, level: str, trains: bool
) -> dict[str, Any]:
    """Evaluate one split at one level; the summary."""
    from vlsm_adapter.evaluate import evaluate_model, evaluate_run
    from vlsm_adapter.evaluation_folder import EvaluationFolder

    common: dict[str, Any] = {
        "split": split,
        "level": level,
        "threshold": evaluation.threshold,
        "nsd_tolerance": evaluation.nsd_tolerance,
        "probes": evaluation.probes,
        "out": folder.run.evaluation / f"{split}-{level}",
    }
    if trains:
        # Where the base model is: the run's configuration knows, should the study have moved.
        path = evaluate_run(folder.path, zero_shot=False, base=config.model.name, **common)
    else:
        from vlsm_adapter.inference import choose_device
        from vlsm_adapter.train import build_model

        data = config.data
        path = evaluate_model(
            build_model(config).to(choose_device(None)),
            data.path,
            prompt=data.prompt,
            split_seed=data.split_seed,
            fractions=data.fractions,
            split_file=data.split_file,
            fold=data.fold,
            stratify=data.stratify,
            skip_bad=data.skip_bad,
            **common,
        )
    return EvaluationFolder(path).summary()


# -- stopping ------------------------------------------------------------------------------------------------------------


def _stop_on_signals() -> None:
    # Ray's processes block Ctrl-C, and what they start inherits that.
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # While the loop trains, its own handlers take the place of these: it stops after the update, the state saved.
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


def _watch(stop_file: Path | None) -> None:
    """Ask this process to stop when ``stop_file`` appears or its starter dies."""
    parent = int(os.environ.get(PARENT, "0"))

    def look() -> None:
        while True:
            orphan = parent > 0 and os.getppid() != parent
            if orphan or (stop_file is not None and stop_file.exists()):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(_AGAIN_SECONDS)  # a loop that was just about to end goes on to the evaluation
            time.sleep(_POLL_SECONDS)

    if "LOCAL_RANK" not in os.environ:  # started by another process of the run, which watches
        threading.Thread(target=look, daemon=True, name="study-watch").start()


@contextlib.contextmanager
def _alone(folder: CellFolder) -> Iterator[None]:
    """The only process of this run; an earlier one that is about to stop is waited for, what it left is cleared away."""
    busy = f"{folder.path}: another process works on this run; wait for it or stop it"
    deadline = time.monotonic() + _LOCK_SECONDS
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(files.locked(folder.lock_file, busy))
                break
            except UserError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)
        for leftover in list(folder.path.glob("evaluation/*/.new-*")):  # of an evaluation that was killed
            place = leftover.parent
            shutil.rmtree(leftover if (place / "summary.json").is_file() else place, ignore_errors=True)
        yield


# -- resources -----------------------------------------------------------------------------------------------------------


def _machine() -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "host": socket.gethostname(),
    }


def _parameters(folder: CellFolder, summary: dict[str, Any]) -> dict[str, int]:
    """Trainable and all parameters; a copy stands in place of what it copies and is counted once."""
    base = int(summary["base"]["parameters"])
    if summary["trained_adapter"] is None:
        return {"trainable_parameters": 0, "total_parameters": base}
    from math import prod

    from safetensors import safe_open

    added = 0
    with safe_open(folder.run.adapter / "adapter_model.safetensors", framework="pt") as handle:
        for key in handle.keys():  # noqa: SIM118
            if ".adapter_copy." not in key:
                added += prod(handle.get_slice(key).get_shape())
    trainable = int(summary["trained_adapter"]["trainable_parameters"])
    return {"trainable_parameters": trainable, "total_parameters": base + added}


def _forget_peak() -> None:
    # Linux counts the peak of resident memory anew after this; elsewhere it stays that of the whole process.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    """Peak of resident memory in MB since :func:`_forget_peak`, or of the process."""
    with contextlib.suppress(OSError):
        # Not getrusage: its peak counts what stood in memory before exec, that of the process which started this one.
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return round(int(found[1]) / 1024, 1)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


def _gpu_peak_mb() -> float | None:
    import torch

    return round(torch.cuda.max_memory_allocated() / (1 << 20), 1) if torch.cuda.is_available() else None


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        with file.open(encoding="utf-8", newline="") as handle:
            return list(csv.DictReader(handle))
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
