"""What an evaluation leaves on disk, and reading it back without a model.

::

    EVALUATION/cases.csv             a row per case: the adapter's scores
               zero_shot_cases.csv   the base model's on the same cases
               summary.json          statistics, protocol, provenance
               sensitivity.json      with probes: does the model listen to words, and how each level does
               probes.csv            with probes: a row per prompt asked of a case
               report.md             for people; made from the files beside it
               images/               best, median and worst case; the learning curve
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlsm_adapter import files
from vlsm_adapter.errors import UserError
from vlsm_adapter.types import CaseScore

FORMAT = "vlsm-evaluation"
FORMAT_VERSION = 1
SENSITIVITY = ("vlsm-sensitivity", 1)
PICKED = ("best", "median", "worst")
_HEAD = ("case_id", "prompt")
_TAIL = ("unit", "emptiness", "truth_area", "predicted_area")
_GROUP = "group"
_FRESH = ".new-"  # begins the name of a folder of files that are not yet in their places


@dataclass(frozen=True)
class EvaluationFolder:
    """Paths inside an evaluation's folder."""

    path: Path

    @property
    def cases_file(self) -> Path:
        return self.path / "cases.csv"

    @property
    def zero_shot_file(self) -> Path:
        return self.path / "zero_shot_cases.csv"

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    @property
    def sensitivity_file(self) -> Path:
        return self.path / "sensitivity.json"

    @property
    def probes_file(self) -> Path:
        return self.path / "probes.csv"

    @property
    def report_file(self) -> Path:
        return self.path / "report.md"

    @property
    def images(self) -> Path:
        return self.path / "images"

    @property
    def curve_file(self) -> Path:
        return self.images / "learning_curve.svg"

    def scores_file(self, variant: str) -> Path:
        """The table of ``"adapter"`` or of ``"zero_shot"``."""
        return self.cases_file if variant == "adapter" else self.zero_shot_file

    def sensitivity(self) -> dict[str, Any] | None:
        """``sensitivity.json``, or None where the evaluation asked no probes.

        Raises:
            UserError: damaged, or of another format.
        """
        file = self.sensitivity_file
        if not file.is_file():
            return None
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{file}: damaged ({error}); run 'vlsm evaluate --probes' again") from error
        if not isinstance(values, dict) or (values.get("format"), values.get("format_version")) != SENSITIVITY:
            raise UserError(f"{file}: not of the format that this version reads; run 'vlsm evaluate --probes' again")
        return values

    def summary(self) -> dict[str, Any]:
        """``summary.json``.

        Raises:
            UserError: missing, damaged, or of another format.
        """
        file = self.summary_file
        if not file.is_file():
            inside = sorted(place.parent for place in self.path.glob(f"evaluation/*/{file.name}"))
            give = f"'{inside[0]}'" if inside else "a folder of 'vlsm evaluate'"
            raise UserError(f"{self.path}: not an evaluation, it has no {file.name}; give {give}")
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{file}: damaged ({error}); run 'vlsm evaluate' again") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise UserError(f"{file}: not a summary of an evaluation; run 'vlsm evaluate' again")
        if values.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"{file}: format_version {values.get('format_version')!r} is not known to this version, which reads "
                f"{FORMAT_VERSION}; update vlsm-adapter, or run 'vlsm evaluate' again"
            )
        return values

    def holds_scores(self, summary: Mapping[str, Any]) -> bool:
        """Whether the tables of scores have as many rows as ``summary`` speaks of."""
        for variant in ("adapter", "zero_shot"):
            if summary.get(variant) is None:
                continue
            try:
                with self.scores_file(variant).open(encoding="utf-8", newline="") as handle:
                    count = sum(1 for _ in csv.reader(handle)) - 1
                if count != summary[variant]["n"]:
                    return False
            except (OSError, UnicodeDecodeError, csv.Error, TypeError, KeyError):
                return False
        return True


def write_scores(path: Path, scores: Sequence[CaseScore], groups: Mapping[str, str | None] | None = None) -> None:
    """Write a row per case as CSV, atomically; numbers in full, so that they read back equal.

    Args:
        groups: case id to group, for statistics later.
    """
    metrics = list(scores[0].values) if scores else []
    rows = [{**score.row(), _GROUP: (groups or {}).get(score.case_id) or ""} for score in scores]
    files.write_csv(path, [*_HEAD, *metrics, *_TAIL, _GROUP], rows)


def read_scores(path: Path) -> tuple[list[CaseScore], dict[str, str | None]]:
    """Read what :func:`write_scores` wrote: the scores, and case id to group.

    Raises:
        UserError: missing, or not such a table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            reader = csv.DictReader(handle, strict=True)
            columns = list(reader.fieldnames or ())
            lacking = [name for name in (*_HEAD, *_TAIL) if name not in columns]
            if lacking:
                raise UserError(f"{path}: lacks the column '{lacking[0]}'; give a cases.csv of 'vlsm evaluate'")
            metrics = [name for name in columns if name not in (*_HEAD, *_TAIL, _GROUP)]
            scores: list[CaseScore] = []
            groups: dict[str, str | None] = {}
            for row in reader:
                scores.append(
                    CaseScore(
                        case_id=row["case_id"],
                        prompt=row["prompt"],
                        values={name: float(row[name]) for name in metrics},
                        unit=row["unit"],
                        emptiness=row["emptiness"],
                        truth_area=int(row["truth_area"]),
                        predicted_area=int(row["predicted_area"]),
                    )
                )
                groups[row["case_id"]] = row.get(_GROUP) or None
            return scores, groups
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run 'vlsm evaluate' again") from None
    except (OSError, csv.Error, ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a table of scores ({error}); run 'vlsm evaluate' again") from error


def free_folder(path: Path, data: str) -> EvaluationFolder:
    """The folder ``path``, or one beside it with a hash in its name where ``path`` holds an evaluation of other data, as of
    two sites whose folders are called alike."""
    folder = EvaluationFolder(path)
    try:
        there = folder.summary()["data"]["path"]
        if Path(there).resolve() == Path(data).resolve():
            return folder
    except (UserError, KeyError, TypeError):  # none, or a damaged one
        return folder
    place = str(Path(data).resolve()).encode("utf-8", "surrogatepass")
    return EvaluationFolder(path.with_name(f"{path.name}-{hashlib.sha256(place).hexdigest()[:6]}"))


def prepare(folder: EvaluationFolder) -> None:
    """Make the folder before hours of work go into what cannot be written.

    Raises:
        UserError: it cannot be written, is a file, or holds something else.
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise UserError(f"{folder.path}: is a file; give a folder for the evaluation")
    if folder.path.is_dir() and not folder.summary_file.exists() and not _is_empty(folder):
        raise UserError(f"{folder.path}: is not empty and holds no evaluation; choose another --out")
    try:
        folder.images.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder.path}: cannot be written ({error.strerror}); choose another folder") from error


@contextmanager
def replacing(folder: EvaluationFolder) -> Iterator[EvaluationFolder]:
    """A folder inside ``folder`` to write to, whose files then take the place of an earlier evaluation's.

    So a full disk or a stop leaves the earlier one, and files of two are never read as one.
    """
    fresh = EvaluationFolder(Path(tempfile.mkdtemp(prefix=_FRESH, dir=folder.path)))
    try:
        fresh.images.mkdir()
        yield fresh
        names = [file.relative_to(fresh.path) for file in sorted(fresh.path.rglob("*")) if file.is_file()]
        ours = EvaluationFolder(Path())
        stale = [ours.summary_file, ours.report_file, ours.cases_file, ours.zero_shot_file, ours.curve_file]
        stale += [ours.sensitivity_file, ours.probes_file]
        stale += [file.relative_to(folder.path) for file in folder.images.glob("example*")]
        for name in (*stale, *(ours.images / f"{rank}.png" for rank in PICKED)):
            (folder.path / name).unlink(missing_ok=True)
        for name in sorted(names, key=lambda name: name == ours.summary_file):  # the summary last: it says all is there
            (fresh.path / name).replace(folder.path / name)
    except OSError as error:
        raise UserError(f"{folder.path}: cannot be written ({error.strerror}); choose another folder") from error
    finally:
        shutil.rmtree(fresh.path, ignore_errors=True)


def _is_empty(folder: EvaluationFolder) -> bool:
    """Nothing in it but an empty images/, or what an evaluation leaves that was killed while its files took their places."""
    if any(folder.path.glob(f"{_FRESH}*")):
        return True
    held = [file for file in folder.path.iterdir() if not file.name.startswith(".") and file != folder.images]
    return not held and not (folder.images.is_dir() and any(folder.images.iterdir()))
