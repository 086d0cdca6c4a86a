"""What a run folder says of itself: configuration, names in its study, state, learning curve, time and memory."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vlsm_adapter.errors import UserError, one_line
from vlsm_adapter.run_folder import RunFolder

_CURVE = ("epoch", "train_loss", "val_loss", "val_dice", "seconds")
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Run:
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
        """The names its study gives it; empty for a run made without a study.

        Raises:
            UserError: it has a damaged one: by other names it would stand in another table.
        """
        if not (self.path / "cell.json").exists():
            return {}
        values = self.json("cell.json")
        names = ("data", "protocol", "model", "method")
        if not all(isinstance(values.get(name), str) and values[name] for name in names):
            raise UserError("cell.json is damaged, which says what the study calls it; run 'vlsm compare' again")
        return values

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

    def precision(self) -> str | None:
        """The arithmetic that training really used: what ``auto`` means depends on the machine."""
        return self._folder.precision()

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
            # Written in mebibytes.
            ("peak_memory", "peak_memory_mb", 1 << 20),
            ("peak_gpu_memory", "peak_gpu_memory_mb", 1 << 20),
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


def run_of(folder: Path, root: Path, runs: Mapping[Path, Run]) -> Run | None:
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
    return Run(path, path.name) if (path / "config.yaml").is_file() else None
