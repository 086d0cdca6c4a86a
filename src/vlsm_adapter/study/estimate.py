"""How long runs will take, and how much memory: from finished runs where there are any, else from timed steps."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from vlsm_adapter.config import RunConfig, TrainConfig
from vlsm_adapter.study.checks import Facts
from vlsm_adapter.study.grid import Cell

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter

# The stated model, for what was neither run nor timed.
_START_SECONDS = 15.0  # of the process: imports, model, headers
_SCORING_SECONDS = 0.08  # of the metrics of one case at native size
_PROBE_FACTOR = 12  # forward passes of probes for one without
_PROCESS_GB = 1.0  # of Python with torch and transformers
# Activations of one image of CLIPSeg rd64 (150 million parameters, 352 pixels) in float32, kept for the way back.
_IMAGE_GB, _IMAGE_SIDE, _IMAGE_PARAMETERS = 0.6, 352, 150e6


@dataclass(frozen=True)
class Step:
    """Seconds of one case: ``train`` forward and back, ``forward`` alone."""

    train: float
    forward: float


@dataclass
class Estimator:
    """Estimates of runs.

    Attributes:
        facts: cases and parameters of the study.
        splits: that each run is evaluated on; ``levels`` at how many prompt levels, ``probes`` whether with probes.
        done: cells that have finished, with their ``resources.json``.
        steps: model and method to timed steps.
    """

    facts: Facts
    splits: tuple[str, ...] = ("test",)
    levels: int = 1
    probes: bool = False
    done: list[tuple[Cell, Mapping[str, Any]]] = field(default_factory=list)
    steps: dict[tuple[str, str], Step] = field(default_factory=dict)

    def seconds(self, cell: Cell) -> tuple[float, str] | None:
        """Seconds of a run and where the number comes from: ``finished``, ``scaled`` or ``timed``; None where unknown."""
        passes = epochs, validations = _passes(cell.config.train)
        same = [
            (other, found) for other, found in self.done if (other.model, other.method) == (cell.model, cell.method)
        ]
        exact = [
            found
            for other, found in same
            if (other.data, other.fraction, _passes(other.config.train)) == (cell.data, cell.fraction, passes)
        ]
        if exact:
            return median(_total(found) for found in exact), "finished"
        counts = self.facts.cases.get(cell.path)
        if counts is None:
            return None
        tested = self.levels * sum(counts.total() if split == "all" else counts[split] for split in self.splits)
        if same:
            rates = [_rates(other.config.train, found) for other, found in same]
            work = counts["train"] * median(epochs * r[0] + validations * r[1] for r in rates) if cell.trains else 0.0
            return _START_SECONDS + work + tested * median(r[2] for r in rates), "scaled"
        step = self.steps.get((cell.model, cell.method))
        if step is None:
            return None
        work = (
            epochs * counts["train"] * step.train + validations * counts["val"] * step.forward if cell.trains else 0.0
        )
        asked = step.forward * (_PROBE_FACTOR if self.probes else 1) + _SCORING_SECONDS
        return _START_SECONDS + work + tested * asked, "timed"

    def memory_gb(self, cells: Iterable[Cell]) -> tuple[float, str]:
        """Memory of the largest of these runs in GiB, and where the number comes from."""
        peaks: dict[str, float] = {}
        for cell, found in self.done:
            for part in ("train", "evaluate"):
                peak = ((found.get(part) or {}).get("peak_memory_mb") or 0.0) / 1024
                peaks[cell.model] = max(peaks.get(cell.model, 0.0), 1.1 * peak)
        needs, source, unknown = [_PROCESS_GB], "measured on finished runs", False
        for cell in cells:
            if peaks.get(cell.model):
                needs.append(peaks[cell.model])
            else:
                source = "estimated from parameters, batch and input size"
                unknown = unknown or cell.model not in self.facts.parameters
                needs.append(self._modelled_gb(cell))
        if unknown:
            source = f"a guess: a model is not here, and taken to have {_IMAGE_PARAMETERS / 1e6:.0f} million parameters"
        return max(needs), source

    def _modelled_gb(self, cell: Cell) -> float:
        parameters = self.facts.parameters.get(cell.model, int(_IMAGE_PARAMETERS))
        report = self.facts.reports.get((cell.model, cell.method))
        trainable = 0 if report is None else report.trainable
        side = cell.config.model.image_size or self.facts.sides.get(cell.model, _IMAGE_SIDE)
        image = _IMAGE_GB * (side / _IMAGE_SIDE) ** 2 * (parameters / _IMAGE_PARAMETERS) ** (2 / 3)
        counts = self.facts.cases.get(cell.path, Counter())
        # Resized images kept in memory: three bytes a pixel, and the mask.
        cached = min(cell.config.data.cache_mb / 1024, 4 * side**2 * (counts["train"] + counts["val"]) / (1 << 30))
        weights = (4 * parameters + 20 * trainable) / (1 << 30)  # the copy, its gradient, two moments of AdamW, a state
        return _PROCESS_GB + weights + cached + image * cell.config.train.batch_size


def time_step(model: PromptSegmenter, config: RunConfig, threads: int) -> Step:
    """Time one step of what is attached, on noise; seconds of one case."""
    import torch

    from vlsm_adapter.inference import choose_device

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    device = choose_device(None)
    count = min(2, config.train.batch_size)
    trains = any(parameter.requires_grad for parameter in model.parameters())
    try:
        model.to(device)
        height, width = model.preprocessing.size
        tokens = model.tokenize(["a prompt"] * count)
        inputs = {
            "pixel_values": torch.randn(count, 3, height, width, device=device),
            "input_ids": tokens.input_ids.to(device),
            "attention_mask": tokens.attention_mask.to(device),
        }

        def run(*, back: bool) -> float:
            began = time.perf_counter()
            with torch.set_grad_enabled(back):
                logits = model(**inputs)
                if back:
                    logits.sigmoid().mean().backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            return (time.perf_counter() - began) / count

        def least(*, back: bool) -> float:
            first = run(back=back)
            return first if first > 1.0 else min(run(back=back) for _ in range(2))  # the first one also sets up

        forward = least(back=False)
        return Step(least(back=True) if trains else 0.0, forward)
    finally:
        model.zero_grad(set_to_none=True)
        model.to("cpu")
        torch.set_num_threads(before)


def side_by_side(seconds: Sequence[float], at_once: int) -> float:
    """Seconds that runs of these lengths take, ``at_once`` of them beside each other."""
    return max(max(seconds, default=0.0), sum(seconds) / max(1, at_once))


def free_memory_gb() -> float:
    """Memory that new processes may take, in GiB: of the machine, or of the container this runs in where that is less."""
    import torch

    from vlsm_adapter.feature_store import free_memory

    return free_memory(torch.device("cpu")) / (1 << 30)


def gpus() -> int:
    """GPUs that this process may use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spell(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _total(found: Mapping[str, Any]) -> float:
    return sum((found.get(part) or {}).get("seconds", 0.0) for part in ("train", "evaluate"))


def _passes(config: TrainConfig, epochs: int | None = None) -> tuple[int, int]:
    """Epochs, by default all, and how many of them are validated."""
    epochs = config.epochs if epochs is None else epochs
    return epochs, math.ceil(epochs / config.validate_every)


def _rates(config: TrainConfig, found: Mapping[str, Any]) -> tuple[float, float, float]:
    """Of a finished run: seconds per training case and epoch of steps, per training case and validation of what is beside them,
    and per case and evaluation. Validation cases are taken to be in proportion to training cases."""
    train, evaluate = found.get("train") or {}, found.get("evaluate") or {}
    epochs, validations = _passes(config, train.get("epochs", 0))
    seconds, cases = train.get("seconds", 0.0), train.get("cases", 0)
    steps = min(seconds, train.get("loop_seconds", seconds))
    return (
        steps / max(1, epochs * cases),
        max(0.0, seconds - steps - _START_SECONDS) / max(1, validations * cases),
        evaluate.get("seconds", 0.0) / max(1, evaluate.get("cases", 0)),
    )
