"""What a study leaves on disk: its folder, and in each run what belongs to the study beside the ordinary run."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlsm_adapter import files
from vlsm_adapter.errors import UserError
from vlsm_adapter.evaluation_folder import EvaluationFolder
from vlsm_adapter.run_folder import RunFolder
from vlsm_adapter.types import DEFAULT_THRESHOLD

if TYPE_CHECKING:  # Ray's workers read this module too, and stay small
    from vlsm_adapter.config import RunConfig
    from vlsm_adapter.study.config import Evaluation

CELL_FORMAT = ("vlsm-cell", 1)
STATUS_FORMAT = ("vlsm-study-status", 1)
# Sections of resources.json, and what must be numbers in them: estimates are made from these.
_RESOURCES = ("train", "evaluate")
_NUMBERS = ("seconds", "loop_seconds", "epochs", "cases", "peak_memory_mb", "peak_gpu_memory_mb")
STATES = ("running", "finished", "failed", "killed", "stopped")


@dataclass(frozen=True)
class StudyFolder:
    """Paths inside a study's folder."""

    path: Path

    @property
    def study_file(self) -> Path:
        return self.path / "study.yaml"

    @property
    def status_file(self) -> Path:
        return self.path / "status.json"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def search(self) -> Path:
        return self.path / "search"

    @property
    def lock_file(self) -> Path:
        return self.path / ".lock"

    @property
    def stop_file(self) -> Path:
        """While it is there, every run of the study saves its state and stops."""
        return self.path / ".stop"


@dataclass(frozen=True)
class Status:
    """How a run stands.

    Attributes:
        state: one of ``STATES``, or ``"waiting"`` where it never began.
        attempts: times that it was started.
        error: of the last attempt, one line.
        seconds: that all attempts which could say so took.
        host: where the last attempt ran.
        updated: when this was written, ISO 8601 in UTC.
    """

    state: str = "waiting"
    attempts: int = 0
    error: str | None = None
    seconds: float = 0.0
    host: str | None = None
    updated: str | None = None

    def now(self, state: str, **changes: Any) -> Status:
        """The same with another state, here and now."""
        when = datetime.now(UTC).isoformat(timespec="seconds")
        return replace(self, **{"state": state, "host": socket.gethostname(), "updated": when, **changes})


@dataclass(frozen=True)
class CellFolder:
    """A run of a study: an ordinary run folder with three files more."""

    path: Path

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.path)

    @property
    def cell_file(self) -> Path:
        return self.path / "cell.json"

    @property
    def status_file(self) -> Path:
        return self.path / "status.json"

    @property
    def resources_file(self) -> Path:
        return self.path / "resources.json"

    @property
    def output_file(self) -> Path:
        """What the process said that its log does not hold, such as the traceback of a fault."""
        return self.path / "output.txt"

    @property
    def lock_file(self) -> Path:
        return self.path / ".cell.lock"

    def status(self) -> Status:
        """How the run stands; a damaged file counts as none."""
        values = _read_json(self.status_file)
        try:
            return Status(**values) if values else Status()
        except TypeError:
            return Status()

    def write_status(self, status: Status) -> None:
        """Write it."""
        files.write_json(self.status_file, asdict(status))

    def cell(self) -> dict[str, Any]:
        """``cell.json``.

        Raises:
            UserError: it is missing, damaged or of another version.
        """
        values = _read_json(self.cell_file)
        if (values.get("format"), values.get("format_version")) != CELL_FORMAT:
            raise UserError(f"{self.cell_file}: not a run of a study; run 'vlsm compare' again")
        return values

    def resources(self) -> dict[str, Any]:
        """``resources.json`` without what is no number where there has to be one; empty where there is none."""
        values = _read_json(self.resources_file)
        for part in _RESOURCES:
            if part in values:
                values[part] = _measured(values[part])
        return values

    def trained(self) -> bool:
        """Whether training came to its end, by what is on disk."""
        return (self.resources().get("train") or {}).get("finished") is not None

    def prepare(self, about: Mapping[str, Any], config: RunConfig, evaluation: Evaluation | None) -> None:
        """Write what the run's process reads: configuration, and what is evaluated; nothing is touched that is the same.

        Args:
            about: names of the cell, for ``cell.json``.
            config: with absolute paths.
            evaluation: None where nothing is evaluated, as in trials of a search.
        """
        name, version = CELL_FORMAT
        cell = {
            "format": name,
            "format_version": version,
            **about,
            "evaluate": None if evaluation is None else _jsonable(asdict(evaluation)),
        }
        text = config.to_yaml()
        before = _read_text(self.run.config_file)
        if before != text:
            files.write_text(self.run.config_file, text)
        if _read_json(self.cell_file) != cell:
            files.write_json(self.cell_file, cell)

    def pending(self, config: RunConfig, evaluation: Evaluation | None) -> list[tuple[str, str]]:
        """Splits and levels whose evaluation is missing, or was made otherwise than ``evaluation`` says."""
        if evaluation is None:
            return []
        levels = dict.fromkeys((config.data.eval_level, *evaluation.levels))
        wanted = [(split, level) for split in evaluation.splits for level in levels]
        return [one for one in wanted if not self._evaluated(*one, evaluation)]

    def _evaluated(self, split: str, level: str, evaluation: Evaluation) -> bool:
        folder = EvaluationFolder(self.path / "evaluation" / f"{split}-{level}")
        try:
            summary = folder.summary()
        except UserError:
            return False
        return (
            summary.get("nsd_tolerance") == evaluation.nsd_tolerance
            and summary.get("threshold")
            == (self._threshold() if evaluation.threshold is None else evaluation.threshold)
            and (not evaluation.probes or folder.sensitivity_file.is_file())
            and folder.holds_scores(summary)
        )

    def _threshold(self) -> float:
        """The adapter's own, read without its weights."""
        info = _read_json(self.run.adapter / "adapter_config.json").get("info")
        return info.get("threshold", DEFAULT_THRESHOLD) if isinstance(info, dict) else DEFAULT_THRESHOLD

    def finished(self, config: RunConfig, evaluation: Evaluation | None, *, trains: bool) -> bool:
        """Whether nothing is left to do."""
        return (self.trained() or not trains) and self._described() and not self.pending(config, evaluation)

    def _described(self) -> bool:
        """Whether ``cell.json`` can be read and ``config.yaml`` is there: the report takes names and training from them."""
        try:
            return bool(self.cell()) and self.run.config_file.is_file()
        except UserError:
            return False


def best_validation(run: Path) -> tuple[float, int] | None:
    """Best validation Dice of a run and its epoch (1-based), read from its ``metrics.csv``; None where it has none."""
    import csv

    best: tuple[float, int] | None = None
    try:
        with (run / "metrics.csv").open(encoding="utf-8", newline="") as handle:
            for row in csv.DictReader(handle):
                if row["val_dice"] == "":  # not validated after this epoch
                    continue
                value, epoch = float(row["val_dice"]), int(row["epoch"])
                if best is None or value > best[0]:
                    best = value, epoch
    except (OSError, KeyError, ValueError, TypeError):
        return best
    return best


def _measured(values: Any) -> dict[str, Any] | None:
    """A section of ``resources.json``, without numbers that are none; None where it is no section."""
    if not isinstance(values, dict):
        return None
    return {
        key: value
        for key, value in values.items()
        if key not in _NUMBERS or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12)
    }


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _read_text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _read_json(file: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        values = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(values, dict):
            return values
    return {}
