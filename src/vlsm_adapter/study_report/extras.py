"""What a study tells beside its scores: time and memory of training, prompt levels, sensitivity to words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlsm_adapter.metrics import METRICS
from vlsm_adapter.study_report.results import Result
from vlsm_adapter.study_report.tables import Row, RowKey, Table


@dataclass
class Cost:
    """Time and memory of a row's runs in one table; None where nothing is known.

    Attributes:
        row: the method.
        seconds: data to mean seconds of training a run.
        total: mean seconds over data sets and seeds.
        peak_memory: the largest of a run's process, in bytes.
        peak_gpu_memory: the largest that a run held on its GPU, in bytes; None where it had none.
        machines: where it was measured, in words; numbers of several are not comparable.
    """

    row: Row
    seconds: dict[str, float] = field(default_factory=dict)
    total: float | None = None
    peak_memory: float | None = None
    peak_gpu_memory: float | None = None
    machines: set[str] = field(default_factory=set)

    @property
    def peak(self) -> float | None:
        """What limits a training: the GPU's memory where there is one, else the process's."""
        return self.peak_memory if self.peak_gpu_memory is None else self.peak_gpu_memory

    @property
    def peak_of(self) -> str:
        """Whose memory `peak` is."""
        return "process" if self.peak_gpu_memory is None else "GPU"


def peak_kinds(costs: Sequence[Cost]) -> set[str]:
    """Whose memory is in a column of peaks: ``{"GPU"}``, ``{"process"}``, both, or none of them."""
    return {cost.peak_of for cost in costs if cost.peak is not None}


def peak_title(costs: Sequence[Cost]) -> str:
    """The column of peaks in a word or three; with both kinds, every number says itself which it is."""
    return "peak GPU memory" if peak_kinds(costs) == {"GPU"} else "peak memory"


def costs_of(table: Table) -> list[Cost]:
    """Costs of every trained row, of those that say something of them."""
    found = []
    for row in table.rows:
        cost, means = Cost(row), []
        for data in table.data:
            runs = [run for run in table.cells.get((row.key, data), ()) if not run.is_zero_shot]
            seconds = [run.resources["seconds"] for run in runs if "seconds" in run.resources]
            if seconds:
                cost.seconds[data] = float(np.mean(seconds))
                means.append(cost.seconds[data])
            for name in ("peak_memory", "peak_gpu_memory"):
                before = getattr(cost, name)
                peaks = [run.resources[name] for run in runs if name in run.resources]
                setattr(cost, name, max([*peaks, *([before] if before else [])], default=None))
            cost.machines |= {run.machine for run in runs if run.machine}
        cost.total = float(np.mean(means)) if means else None
        if cost.total is not None or cost.peak is not None:
            found.append(cost)
    return found


@dataclass
class Curve:
    """Validation Dice of a row on one data set.

    Attributes:
        epochs: those that were validated, from 1 on; (n,).
        mean, low, high: over the seeds that reached the epoch, (n,); low and high are the smallest and the largest.
        seeds: how many there are.
    """

    epochs: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int


def curves_of(table: Table) -> dict[tuple[RowKey, str], Curve]:
    """Learning curves: (row key, data) to mean and band over seeds."""
    found: dict[tuple[RowKey, str], Curve] = {}
    for place, runs in table.cells.items():
        at: dict[int, list[float]] = defaultdict(list)
        for run in runs:
            for epoch, dice in zip(run.curve.get("epoch", ()), run.curve.get("val_dice", ()), strict=False):
                if epoch is not None and dice is not None:
                    at[int(epoch)].append(dice)
        if at:
            epochs = sorted(at)
            found[place] = Curve(
                epochs,
                [float(np.mean(at[epoch])) for epoch in epochs],
                [min(at[epoch]) for epoch in epochs],
                [max(at[epoch]) for epoch in epochs],
                sum(bool(run.curve.get("epoch")) for run in runs),
            )
    return found


@dataclass
class Heard:
    """Whether a row's models listen to words, on one data set; means over seeds.

    Attributes:
        value, std: prompt sensitivity from 0 to 1; None where it could not be measured.
        seeds: with a value.
        levels: prompt level to mean Dice.
    """

    value: float | None
    std: float | None
    seeds: int
    levels: dict[str, float]


def heard_of(table: Table) -> tuple[dict[tuple[RowKey, str], Heard], dict[str, dict[str, bool]]]:
    """(row key, data) to what the probes found; and data to its prompt levels, with whether they leak."""
    found: dict[tuple[RowKey, str], Heard] = {}
    leaking: dict[str, dict[str, bool]] = defaultdict(dict)
    for (key, data), runs in table.cells.items():
        told = [run.sensitivity for run in runs if run.sensitivity is not None]
        if not told:
            continue
        values = [about["value"] for about in told if about.get("value") is not None]
        levels: dict[str, list[float]] = defaultdict(list)
        for about in told:
            for level in about.get("levels", ()):
                leaking[data][level["level"]] = bool(level["leaks"])
                if level["dice"] is not None:
                    levels[level["level"]].append(level["dice"])
        found[key, data] = Heard(
            float(np.mean(values)) if values else None,
            float(np.std(values, ddof=1)) if len(values) > 1 else None,
            len(values),
            {level: float(np.mean(dice)) for level, dice in levels.items()},
        )
    ordered = {
        data: dict(sorted(of_data.items(), key=lambda item: (item[1], item[0]))) for data, of_data in leaking.items()
    }
    return found, ordered


def run_rows(results: Sequence[Result], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row per result and metric, the long form: what it is and the mean over its cases.

    Args:
        results: all of them, of every split.
        labels: result key to the label of its row in tables; empty where it stands in none.
    """
    rows = []
    # A column that no run has says nothing.
    gpu = ["peak_gpu_memory"] if any("peak_gpu_memory" in result.resources for result in results) else []
    for result in results:
        head = {
            "data": result.data,
            "method": result.name or result.method,
            "label": labels.get(result.key, ""),
            "model": result.model,
            "adapter": result.method,
            "settings": "; ".join(f"{key}={value}" for key, value in sorted(result.settings.items())),
            "protocol": result.protocol or "",
            "train_level": result.train_level or "",
            "level": result.level,
            "leaks": int(result.leaks),
            "split": result.split,
            "threshold": result.threshold,
            "trained_on": result.trained_on or "",
            "fraction": result.fraction or "",
            "seed": "" if result.seed is None else result.seed,
            "trainable_parameters": "" if result.trainable is None else result.trainable,
            "train_seconds": result.resources.get("seconds", ""),
            "epochs": result.resources.get("epochs", ""),
            **{name: result.resources.get(name, "") for name in ("peak_memory", *gpu)},
            "prompt_sensitivity": (result.sensitivity or {}).get("value", ""),
        }
        for metric, values in result.values.items():
            numbers = np.array(values, dtype=np.float64)
            defined = numbers[np.isfinite(numbers)]
            units = {case.unit for case in result.cases}
            distance = METRICS.get(metric).unit == "distance"
            mixed = distance and len(units) > 1
            rows.append(
                {
                    **head,
                    "metric": metric,
                    "unit": ("mixed" if mixed else units.pop()) if distance else "ratio",
                    "n_cases": len(defined),
                    "n_undefined": len(numbers) - len(defined),
                    "mean": "" if mixed or not len(defined) else float(np.mean(defined)),
                    "key": result.key,
                }
            )
    return rows
