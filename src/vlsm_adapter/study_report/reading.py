"""Finding run folders and evaluations under a folder, in any arrangement, and reading them; never a model.

What cannot be read is left out with its reason and never stops the report: a study is reported while it runs.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vlsm_adapter.errors import UserError, one_line
from vlsm_adapter.evaluation_folder import EvaluationFolder, read_scores
from vlsm_adapter.run_folder import RunFolder
from vlsm_adapter.study_report.results import ALL_LABELS, ZERO_SHOT, Result, cases_of

SMALL_SUFFIX = ".result.json.gz"
REPORT_FILE = "report.json"
REPORT_FORMAT = "vlsm-study-report"
# Families of networks that start from random weights: what they answer untrained is nobody's result.
_UNTRAINED = frozenset({"text_free"})
_NOT_LOOKED_INTO = frozenset({"adapter", "tensorboard", "images"})
# Of the configuration's ``train`` section: what does not change what is learnt.
_NOT_RECIPE = frozenset({"seed", "workers", "save_seconds", "feature_cache", "feature_cache_mb", "feature_cache_gb"})
_CURVE = ("epoch", "train_loss", "val_loss", "val_dice", "seconds")
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class Found:
    """What lies under the folders.

    Attributes:
        results: of run folders and of the small form, in the order met.
        problems: (place, reason) of what was left out.
        unfinished: (place, state) of runs without an evaluation.
        small_files: files of the small form, yet to be read.
    """

    results: list[Result] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    unfinished: list[tuple[str, str]] = field(default_factory=list)
    small_files: list[Path] = field(default_factory=list)


def is_study(path: str | Path) -> bool:
    """Whether run folders, evaluations or the small form lie below ``path``, which is none of them itself."""
    root = Path(path)
    if not root.is_dir() or (root / "summary.json").is_file() or (root / "config.yaml").is_file():
        return False
    return any(
        "config.yaml" in names or "summary.json" in names or any(name.endswith(SMALL_SUFFIX) for name in names)
        for _, names in _folders(root)
    )


def find_results(roots: Sequence[str | Path]) -> Found:
    """Read every run folder and evaluation under ``roots``; files of the small form are listed, not read.

    Raises:
        UserError: a root is no folder.
    """
    found = Found()
    for root in map(Path, roots):
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; give a folder that holds run folders, such as a study's --out")
        runs: dict[Path, _Run] = {}
        evaluations: list[Path] = []
        for folder, names in _folders(root):
            if "config.yaml" in names:
                runs[folder] = _Run(folder, _shown(folder, root))
            if "summary.json" in names:
                evaluations.append(folder)
            found.small_files += [folder / name for name in names if name.endswith(SMALL_SUFFIX)]
        evaluated: set[Path] = set()
        for folder in evaluations:
            run = _run_of(folder, root, runs)
            evaluated |= {run.path} if run is not None else set()
            place = _shown(folder, root)
            try:
                found.results += _read_evaluation(folder, place, run, found.problems)
            except (UserError, OSError) as error:
                found.problems.append((place, _without(one_line(error), root)))
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                found.problems.append((place, f"incomplete ({type(error).__name__}: {one_line(error)})"))
        found.unfinished += [(run.place, run.state()) for path, run in runs.items() if path not in evaluated]
    return found


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders from ``root`` down with their files, in order; without hidden ones, reports and trials of a search."""
    for place, folders, names in os.walk(root):
        if REPORT_FILE in names and _is_report(Path(place) / REPORT_FILE):
            folders.clear()
            continue
        hidden = {name for name in folders if name.startswith(".")}
        trials = {"search"} if "study.yaml" in names else set()
        folders[:] = sorted(set(folders) - hidden - trials - _NOT_LOOKED_INTO)
        yield Path(place), sorted(names)


def _is_report(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8") as handle:
            return REPORT_FORMAT in handle.read(200)
    except (OSError, UnicodeDecodeError):
        return False


def _shown(folder: Path, root: Path) -> str:
    """A folder in messages: from the given root's own name on, so that no machine's paths are published."""
    return "/".join([root.resolve().name, *folder.relative_to(root).parts])


def _without(text: str, root: Path) -> str:
    return text.replace(f"{root}{os.sep}", "").replace(str(root), root.resolve().name)


# -- a run's folder ------------------------------------------------------------------------------------------------------


class _Run:
    """What a run folder says of itself; each file is read once, when it is asked for."""

    def __init__(self, path: Path, place: str) -> None:
        self.path, self.place = path, place
        self._folder = RunFolder(path)
        self._config: Mapping[str, Any] | None = None

    @property
    def config(self) -> Mapping[str, Any]:
        """``config.yaml`` as plain values: a run of a later version, or of a method not known here, is read too."""
        if self._config is None:
            try:
                values = yaml.load(self._folder.config_file.read_text(encoding="utf-8"), Loader=_YAML)
            except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
                raise UserError(f"config.yaml cannot be read: {one_line(error)}") from error
            sections = ("data", "model", "adapter", "train")
            if not isinstance(values, Mapping) or not all(isinstance(values.get(name), Mapping) for name in sections):
                raise UserError("config.yaml lacks one of the sections data, model, adapter, train")
            self._config = values
        return self._config

    def json(self, name: str) -> Mapping[str, Any]:
        """A JSON file of the run, or nothing: these files only add to a result."""
        try:
            values = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return values if isinstance(values, Mapping) else {}

    def cell(self) -> Mapping[str, Any]:
        """The names its study gives it; empty for a run made without a study."""
        values = self.json("cell.json")
        names = ("data", "protocol", "model", "method")
        return values if all(isinstance(values.get(name), str) and values[name] for name in names) else {}

    def state(self) -> str:
        """Why there is no evaluation, as far as it is known."""
        status = self.json("status.json")
        state, error = status.get("state"), status.get("error")
        if isinstance(state, str):
            return f"{state}: {one_line(ValueError(str(error)))}" if error else state
        epochs = len(self.curve().get("epoch", ()))
        return f"not evaluated, {epochs} epoch{'' if epochs == 1 else 's'} trained"

    def curve(self) -> dict[str, list[float | None]]:
        """Columns of ``metrics.csv``; empty where there is none, or a damaged one."""
        try:
            with self._folder.metrics_file.open(encoding="utf-8", newline="") as handle:
                rows = list(csv.DictReader(handle))
            return {name: [_number(row[name]) for row in rows] for name in _CURVE if rows and name in rows[0]}
        except (OSError, ValueError, KeyError, TypeError, csv.Error):
            return {}

    def resources(self, curve: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
        """Time and memory of training: ``resources.json``, else the seconds that ``metrics.csv`` tells."""
        values = self.json("resources.json")
        train = values.get("train")
        train = train if isinstance(train, Mapping) else {}
        found: dict[str, float] = {}
        for name, key, factor in (
            ("seconds", "seconds", 1),
            ("epochs", "epochs", 1),
            ("train_cases", "cases", 1),
            ("peak_memory", "peak_memory_mb", 1e6),
        ):
            value = train.get(key)
            if isinstance(value, int | float) and math.isfinite(value) and value > 0:
                found[name] = float(value * factor)
        seconds = [value for value in curve.get("seconds", ()) if value is not None]
        if "seconds" not in found and seconds:
            found["seconds"] = sum(seconds)
        if "epochs" not in found and curve.get("epoch"):
            found["epochs"] = float(len(curve["epoch"]))
        splits = self.json("data.json").get("splits")
        if "train_cases" not in found and isinstance(splits, Mapping) and isinstance(splits.get("train"), list):
            found["train_cases"] = float(len(splits["train"]))
        if isinstance(splits, Mapping) and isinstance(splits.get("val"), list):
            found["val_cases"] = float(len(splits["val"]))
        return found

    def trainable(self) -> int | None:
        value = self.json("resources.json").get("trainable_parameters")
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _number(text: str | None) -> float | None:
    if not text:
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def _run_of(folder: Path, root: Path, runs: Mapping[Path, _Run]) -> _Run | None:
    """The run that an evaluation is of: the one it lies in, else the one that it names, if that is still there."""
    for parent in folder.parents:
        if parent in runs:
            return runs[parent]
        if parent == root:
            break
    try:
        named = json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("run")
    except (OSError, ValueError, RecursionError, AttributeError):
        return None
    if not isinstance(named, str):
        return None
    path = Path(named)
    same = next((run for place, run in runs.items() if place.resolve() == path), None)
    if same is not None:
        return same
    return _Run(path, path.name) if (path / "config.yaml").is_file() else None


# -- an evaluation -------------------------------------------------------------------------------------------------------


def _read_evaluation(path: Path, place: str, run: _Run | None, problems: list[tuple[str, str]]) -> list[Result]:
    """The results of one evaluation: the adapter's, and zero-shot."""
    folder = EvaluationFolder(path)
    summary = folder.summary()
    try:
        heard = folder.sensitivity()
    except UserError as error:
        heard = None
        problems.append((place, one_line(error).replace(f"{path}{os.sep}", "")))
    examples = folder.images if (folder.images / "examples.json").is_file() else None
    cell = run.cell() if run is not None else {}
    base = summary["base"]
    common: dict[str, Any] = {
        "model": cell.get("model") or _short(str(base["id"])),
        "model_hash": str(base["sha256"]),
        "split": str(summary["split"]),
        "level": str(summary["level"]),
        "threshold": float(summary["threshold"]),
        "nsd_tolerance": float(summary["nsd_tolerance"]),
        "leaks": bool(summary["prompts"]["leaks"]),
        "reveal_emptiness": int(summary["prompts"].get("reveal_emptiness") or 0),
        "parameters": int(base["parameters"]),
        "machine": _machine(summary),
        "examples": examples,
    }
    found: list[Result] = []
    if summary.get("trained_adapter"):
        if run is None:
            raise UserError("its run folder is not there, so that its seed and training are not known")
        found.append(_trained(folder, place, run, cell, summary, common, heard))
    if "zero_shot" in summary and base.get("family") not in _UNTRAINED:
        size = run.config["model"].get("image_size") if run is not None else None
        where = _division(run.config["data"]) if run is not None else _plain_division(summary)
        same_data = run is None or not _is_elsewhere(run, summary)
        values = {
            **common,
            "source": place,
            "name": "",
            "protocol": None,
            "method": ZERO_SHOT,
            "settings": {},
            "recipe": {"model.image_size": size} if size is not None else {},
            "data": (cell.get("data") if same_data else None) or str(summary["data"]["name"]) or "data",
            "trained_on": None,
            "train_level": None,
            "fraction": None,
            "seed": None,
            "trainable": 0,
        }
        values["data"] += where if same_data else ""
        found.append(_scored(folder, "zero_shot", summary, values, heard))
    return found


def _trained(
    folder: EvaluationFolder,
    place: str,
    run: _Run,
    cell: Mapping[str, Any],
    summary: Mapping[str, Any],
    common: Mapping[str, Any],
    heard: Mapping[str, Any] | None,
) -> Result:
    config, adapter = run.config, summary["trained_adapter"]
    home = cell.get("data") or None
    elsewhere = _is_elsewhere(run, summary)
    name = str(summary["data"]["name"]) or "data"
    recipe = {f"train.{key}": value for key, value in config["train"].items() if key not in _NOT_RECIPE}
    recipe["data.augment"] = config["data"].get("augment", "none")
    if config["model"].get("image_size") is not None:
        recipe["model.image_size"] = config["model"]["image_size"]
    subset = config["data"].get("subset")
    curve = run.curve()
    trainable = adapter.get("trainable_parameters")
    values = {
        **common,
        "source": place,
        "name": cell.get("method", ""),
        "protocol": cell.get("protocol"),
        "method": str(adapter["method"]),
        "settings": dict(adapter["settings"]),
        "recipe": recipe,
        "data": name if elsewhere else (home or name) + _division(config["data"]),
        "trained_on": (home or _short(str(config["data"]["path"]))) if elsewhere else None,
        "train_level": str(config["data"].get("level", "p1")),
        "fraction": ALL_LABELS if subset is None else _fraction(subset),
        "seed": int(config["train"]["seed"]),
        "trainable": int(trainable) if trainable is not None else run.trainable(),
        "curve": curve,
        "resources": run.resources(curve),
    }
    return _scored(folder, "adapter", summary, values, heard)


def _scored(
    folder: EvaluationFolder,
    variant: str,
    summary: Mapping[str, Any],
    values: Mapping[str, Any],
    heard: Mapping[str, Any] | None,
) -> Result:
    """A result with its scores, which must be those that the summary was made of."""
    file = folder.scores_file(variant)
    scores, groups = read_scores(file)
    if len(scores) != summary[variant]["n"]:
        raise UserError(f"{file.name} has {len(scores)} rows, summary.json speaks of {summary[variant]['n']}")
    if not scores:
        raise UserError(f"{file.name} has no case")
    cases, metrics, emptiness = cases_of(scores, groups)
    stated = summary[variant]["metrics"].get("dice", {}).get("mean")
    dice = [value for value in metrics.get("dice", ()) if not math.isnan(value)]
    if stated is not None and dice and abs(sum(dice) / len(dice) - stated) > 1e-4:
        raise UserError(f"{file.name} and summary.json disagree on the mean Dice: of different evaluations?")
    short = _heard(heard, variant) if heard is not None else None
    return Result(**values, cases=cases, values=metrics, emptiness=emptiness, sensitivity=short)


def _heard(values: Mapping[str, Any], variant: str) -> dict[str, Any] | None:
    """``{"value", "ci_low", "ci_high", "kinds": {kind: value}, "levels": [{"level", "leaks", "dice"}]}`` of one variant."""
    try:
        about = values["variants"][variant]
        return {
            **{name: about["score"][name] for name in ("value", "ci_low", "ci_high")},
            "kinds": {kind: part["value"] for kind, part in about["components"].items()},
            "levels": [
                {"level": level["level"], "leaks": bool(level["leaks"]), "dice": level[variant]["dice"]}
                for level in values["levels"]
                if variant in level
            ],
        }
    except (KeyError, TypeError, AttributeError):
        return None


def _is_elsewhere(run: _Run, summary: Mapping[str, Any]) -> bool:
    """Whether it was evaluated on other data than the run's own (``vlsm evaluate --data``)."""
    if summary.get("training_cases") is not None or run.config["adapter"].get("method") == ZERO_SHOT:
        return False
    return str(summary["data"]["path"]) != str(run.config["data"].get("path"))


def _division(data: Mapping[str, Any]) -> str:
    """Fold or split file, as a part of the data's name: other test cases are other data."""
    parts = [f"fold {data['fold']}"] if data.get("fold") else []
    parts += [f"splits of {Path(str(data['split_file'])).name}"] if data.get("split_file") else []
    return f" ({', '.join(parts)})" if parts else ""


def _plain_division(summary: Mapping[str, Any]) -> str:
    division = summary["data"].get("division")
    return f" ({division})" if division else ""


def _fraction(subset: object) -> str:
    text = str(subset).strip()
    return text if text.endswith("%") else f"{text} cases"


def _short(name: str) -> str:
    """The last part of a folder or hub id."""
    return Path(name.rstrip("/\\")).name or name


def _machine(summary: Mapping[str, Any]) -> str:
    versions = summary.get("versions")
    torch = versions.get("torch") if isinstance(versions, Mapping) else None
    parts = [summary.get("device"), summary.get("processor"), f"torch {torch}" if torch else None]
    return ", ".join(str(part) for part in parts if part)
