"""Finding run folders and evaluations under a folder, in any arrangement, and reading them; never a model.

What cannot be read is left out with its reason and never stops the report: a study is reported while it runs.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlsm_adapter.errors import UserError, one_line
from vlsm_adapter.evaluation_folder import EvaluationFolder, read_scores
from vlsm_adapter.study_report.results import (
    ALL_LABELS,
    IMPLIED,
    OWN_SUBSET,
    PRECISION,
    SUBSET_SEED,
    ZERO_SHOT,
    Result,
    cases_of,
)
from vlsm_adapter.study_report.run import Run, run_of

SMALL_SUFFIX = ".result.json.gz"
REPORT_FILE = "report.json"
REPORT_FORMAT = "vlsm-study-report"
# Families of networks that start from random weights: what they answer untrained is nobody's result.
_UNTRAINED = frozenset({"text_free"})
# Directly inside a run or an evaluation alone: elsewhere a data set or a method may be called so.
_NOT_LOOKED_INTO = frozenset({"adapter", "tensorboard", "images"})
# Of the configuration's ``train`` section: what does not change what is learnt.
_NOT_RECIPE = frozenset({"seed", "workers", "save_seconds", "feature_cache", "feature_cache_mb", "feature_cache_gb"})


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
        runs: dict[Path, Run] = {}
        evaluations: list[Path] = []
        for folder, names in _folders(root):
            if "config.yaml" in names:
                runs[folder] = Run(folder, _shown(folder, root))
            if "summary.json" in names:
                evaluations.append(folder)
            if {"study.yaml", "status.json"} <= set(names):
                found.unfinished += [(_shown(run, root), "never begun") for run in _never_begun(folder)]
            found.small_files += [folder / name for name in names if name.endswith(SMALL_SUFFIX)]
        evaluated: set[Path] = set()
        for folder in evaluations:
            run = run_of(folder, root, runs)
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
        parts = _NOT_LOOKED_INTO if {"config.yaml", "summary.json"} & set(names) else set()
        folders[:] = sorted(set(folders) - hidden - trials - parts)
        yield Path(place), sorted(names)


def _never_begun(study: Path) -> list[Path]:
    """Folders of the runs of a study that wait for their first start, by its ``status.json``."""
    try:
        rows = json.loads((study / "status.json").read_text(encoding="utf-8"))["runs"]
        waiting = [study / str(row["path"]) for row in rows if row["state"] == "waiting"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return []
    return [run for run in waiting if not (run / "config.yaml").is_file()]


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


# -- an evaluation -------------------------------------------------------------------------------------------------------


def _read_evaluation(path: Path, place: str, run: Run | None, problems: list[tuple[str, str]]) -> list[Result]:
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
            raise UserError(
                "config.yaml of its run is not there, so that its seed and training are not known; bring it back ('vlsm "
                "compare' writes that of a study's run anew)"
            )
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
    run: Run,
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
    recipe = {key: value for key, value in recipe.items() if key not in IMPLIED or value != IMPLIED[key]}
    if (used := run.precision()) is not None:
        recipe[PRECISION] = used
    recipe["data.augment"] = config["data"].get("augment", "none")
    if (drawn := config["data"].get("subset_seed")) is not None:
        recipe[SUBSET_SEED] = OWN_SUBSET if drawn == config["train"]["seed"] else drawn
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


def _is_elsewhere(run: Run, summary: Mapping[str, Any]) -> bool:
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
