"""Writes run folders as ``vlsm train``, ``vlsm evaluate`` and ``vlsm compare`` leave them, with generated scores."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vlsm_adapter import files
from vlsm_adapter.evaluation_folder import EvaluationFolder, write_scores
from vlsm_adapter.metrics import summarise
from vlsm_adapter.types import CaseScore

TINY = "a3133648ec484eeb0accd6a6cda63af8897a6209c5f591860b8f9dc2e619edc3"
#: name in the study: (registered method, settings, trainable parameters, skill from 0 to 1)
METHODS: dict[str, tuple[str, dict[str, Any], int, float]] = {
    "decoder_only": ("decoder_only", {}, 261_121, 0.55),
    "full": ("full", {}, 5_189_346, 0.83),
    "lora": ("lora", {"rank": 8}, 147_456, 0.74),
    "ia3": ("ia3", {}, 12_288, 0.6),
    "coop": ("coop", {"tokens": 8}, 2_048, 0.57),
    "vpt_deep": ("vpt_deep", {"tokens": 10}, 61_440, 0.66),
    "dense_v": ("dense", {"parts": "v", "variant": "residual", "bottleneck_dim": 64}, 492_000, 0.76),
    "dense_vl": ("dense", {"parts": "vl", "variant": "residual", "bottleneck_dim": 64}, 820_000, 0.79),
    "dense_vlc": ("dense", {"parts": "vlc", "variant": "residual", "bottleneck_dim": 64}, 894_080, 0.8),
    "shallow_v": ("shallow", {"parts": "v", "variant": "residual", "bottleneck_dim": 512}, 590_000, 0.68),
    "shallow_vl": ("shallow", {"parts": "vl", "variant": "residual", "bottleneck_dim": 512}, 980_000, 0.7),
    "shallow_vlc": ("shallow", {"parts": "vlc", "variant": "residual", "bottleneck_dim": 512}, 1_052_992, 0.71),
}
DATA = {"kvasir_polyp": (0.62, 100, 0), "busi": (0.5, 78, 13), "isic": (0.9, 42, 0)}


@dataclass
class FakeRun:
    """What one run folder says; ``scores`` are Dice values per case."""

    path: Path
    dice: Sequence[float]
    data: str = "kvasir_polyp"
    method: str = "dense"
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = 41
    level: str = "p1"
    train_level: str = "p1"
    leaks: bool = False
    subset: str | None = None
    subset_seed: int | None = None
    trainable: int | None = 1000
    train: Mapping[str, Any] = field(default_factory=dict)
    cell: Mapping[str, Any] | None = None
    zero_shot: Sequence[float] | None = None
    split: str = "test"
    groups: Mapping[str, str | None] | None = None
    unit: str = "px"
    empty: int = 0
    model: str = "tiny"
    sha256: str = TINY
    threshold: float = 0.5
    data_path: str | None = None
    evaluated_on: str | None = None
    sensitivity: float | None = None
    config: bool = True

    def write(self) -> Path:
        """The run folder, with one evaluation."""
        path = self.path
        home = self.data_path or f"/data/{self.data}"
        if self.config:
            files.write_text(path / "config.yaml", yaml.safe_dump(self._config(home), sort_keys=False))
            files.write_json(path / "environment.json", {"device": "cpu"})
            files.write_json(path / "data.json", {"path": home, "splits": {"train": [f"t{i}" for i in range(80)]}})
        if self.cell is not None:
            files.write_json(path / "cell.json", {"format": "vlsm-cell", "format_version": 1, **self.cell})
        folder = EvaluationFolder(path / "evaluation" / f"{self.split}-{self.level}")
        summary = self._summary(home)
        if self.seed is not None:
            summary["adapter"] = self._scores(folder, "adapter", self.dice)
        if self.zero_shot is not None:
            summary["zero_shot"] = self._scores(folder, "zero_shot", self.zero_shot)
        if self.sensitivity is not None:
            files.write_json(folder.sensitivity_file, self._heard())
        files.write_json(folder.summary_file, summary)
        return path

    def case_scores(self, dice: Sequence[float]) -> list[CaseScore]:
        found = []
        for number, value in enumerate(map(float, dice)):
            empty = number < self.empty
            kind = ("both" if value == 1 else "false_alarm") if empty else ("missed" if value == 0 else "none")
            found.append(
                CaseScore(
                    f"case_{number:04}",
                    "polyp",
                    {
                        "dice": value,
                        "iou": value / (2 - value),
                        "hd95": 250 * (1 - value),
                        "nsd": value / 3,
                        "precision": value,
                        "recall": value,
                        "ece": 0.1,
                        "brier": 0.05,
                    },
                    self.unit,
                    kind,
                    0 if empty else 500 + number,
                    0 if kind in ("both", "missed") else 480,
                )
            )
        return found

    def _scores(self, folder: EvaluationFolder, variant: str, dice: Sequence[float]) -> dict[str, Any]:
        scores = self.case_scores(dice)
        write_scores(folder.scores_file(variant), scores, self.groups)
        return summarise(scores, n_boot=10)

    def _config(self, home: str) -> dict[str, Any]:
        return {
            "data": {"path": home, "level": self.train_level, "eval_level": self.level, "subset": self.subset, "subset_seed": self.subset_seed,
                     "fold": None, "split_file": None, "augment": "none"},
            "model": {"name": self.model, "image_size": None},
            "adapter": {"method": self.method, "settings": dict(self.settings)},
            "train": {"epochs": 30, "lr": 0.001, "workers": 0, **self.train,
                      "seed": 42 if self.seed is None else self.seed},
            "log": {"tensorboard": False},
        }  # fmt: skip

    def _summary(self, home: str) -> dict[str, Any]:
        adapter = {
            "method": self.method,
            "settings": dict(self.settings),
            "trainable_parameters": self.trainable,
        }
        trained = self.seed is not None
        return {
            "format": "vlsm-evaluation",
            "format_version": 1,
            "split": self.split,
            "level": self.level,
            "threshold": self.threshold,
            "nsd_tolerance": 2.0,
            "data": {"path": self.evaluated_on or home, "name": self.data, "division": ""},
            "prompts": {"level": self.level, "leaks": self.leaks, "reveal_emptiness": self.empty},
            "base": {"id": self.model, "family": "clipseg", "sha256": self.sha256, "parameters": 5_189_346},
            "run": str(self.path) if trained else None,
            "trained_adapter": adapter if trained else None,
            "training_cases": {"seen_in_training": 0} if trained and not self.evaluated_on else None,
            "skipped": [],
            "pictures": [],
            "seconds": 1.0,
            "device": "cpu",
            "processor": "x86_64",
            "versions": {"torch": "2.13.0"},
        }

    def _heard(self) -> dict[str, Any]:
        assert self.sensitivity is not None
        value = self.sensitivity
        dice = {"n": 10, "dice": float(np.nanmean(self.dice)), "ci_low": 0.1, "ci_high": 0.9}
        about = {
            "score": {"value": value, "ci_low": value - 0.1, "ci_high": value + 0.1, "kinds": ["contradictory"]},
            "components": {"contradictory": {"value": value}, "swapped_class": {"value": None}},
        }
        levels = [
            {"level": level, "leaks": leaks, "example": "polyp", "adapter": {**dice, "dice": dice["dice"] - drop}}
            for level, leaks, drop in (("p0", False, 0.3), ("p1", False, 0.0), ("p6", True, 0.1))
        ]
        return {
            "format": "vlsm-sensitivity",
            "format_version": 1,
            "levels": levels,
            "variants": {"adapter": about},
        }


def write_curve(path: Path, best: float, epochs: int = 20, seed: int = 0, every: int = 1) -> None:
    """``metrics.csv`` of a run that rises to ``best``; ``every``: as ``train.validate_every``."""
    noise = np.random.default_rng(seed).normal(0, 0.01, epochs)
    with (path / "metrics.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["epoch", "updates", "train_loss", "val_loss", "val_dice", "learning_rate", "seconds"])
        for epoch in range(1, epochs + 1):
            dice = best * (1 - np.exp(-epoch / 4)) + noise[epoch - 1]
            scores = [1.6 - dice, max(dice, 0.0)] if epoch % every == 0 or epoch == epochs else [None, None]
            writer.writerow([epoch, 10 * epoch, 1.5 - dice, *scores, 1e-3, 12.5])


def write_study(
    root: Path,
    *,
    methods: Sequence[str] = tuple(METHODS),
    data: Sequence[str] = tuple(DATA),
    seeds: Sequence[int] = (41, 42, 43),
    protocols: Mapping[str, tuple[str, str, bool]] | None = None,
    fractions: Sequence[str] = ("100%",),
    sensitivity: bool = False,
) -> Path:
    """A study's folder as ``vlsm compare`` leaves it; scores have case, method and seed effects like real ones."""
    protocols = protocols or {"leak_free": ("p1", "p1", False)}
    files.write_text(root / "study.yaml", "data: {}\n")
    for data_name in data:
        level_of_data, count, empty = DATA.get(data_name, (0.7, 30, 0))
        hardness = np.random.default_rng(len(data_name)).normal(0, 0.12, count)
        for protocol, (train_level, level, leaks) in protocols.items():
            for method in methods:
                base, settings, trainable, skill = METHODS[method]
                for fraction in fractions:
                    for seed in seeds:
                        key = [ord(letter) for letter in data_name + method + protocol + fraction] + [seed]
                        random = np.random.default_rng(key)
                        few = 0.0 if fraction == "100%" else -0.14
                        dice = level_of_data + 0.35 * (skill - 0.7) + few + 0.05 * leaks + hardness
                        dice = np.clip(dice + random.normal(0, 0.05, count) + random.normal(0, 0.01), 0, 0.98)
                        dice[:empty] = random.random(empty) < 0.3
                        path = (
                            root / "runs" / data_name / protocol / "tiny" / method
                            / fraction.replace("%", "pct") / f"s{seed}"
                        )  # fmt: skip
                        zero_shot = np.clip(0.12 + hardness, 0, 1)
                        zero_shot[:empty] = 0
                        FakeRun(
                            path, dice, data=data_name, method=base, settings=settings, seed=seed, level=level,
                            train_level=train_level, leaks=leaks, trainable=trainable, empty=empty,
                            subset=None if fraction == "100%" else fraction,
                            cell={"data": data_name, "protocol": protocol, "model": "tiny", "method": method,
                                  "fraction": fraction, "seed": seed},
                            zero_shot=zero_shot, sensitivity=0.2 + 0.5 * skill if sensitivity else None,
                        ).write()  # fmt: skip
                        write_curve(path, float(dice.mean()), seed=seed)
                        seconds = 200 + trainable / 5000 + 10 * random.random()
                        files.write_json(
                            path / "resources.json",
                            {"trainable_parameters": trainable, "device": "cpu",
                             "train": {"seconds": seconds, "epochs": 20, "cases": 80,
                                       "peak_memory_mb": 900 + trainable / 4000}},
                        )  # fmt: skip
                        files.write_json(path / "status.json", {"state": "finished", "error": None})
    return root


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_examples(
    evaluation: Path, skill: float, *, seed: int = 0, count: int = 4, size: tuple[int, int] = (170, 224)
) -> None:
    """Pictures as an evaluation keeps them: a generated lesion, and a prediction that is off by less with more skill."""
    from PIL import Image

    from vlsm_adapter.examples import EXAMPLES_FILE, FORMAT

    images = evaluation / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[: size[0], : size[1]]
    kept = []
    for number in range(1, count + 1):
        random = np.random.default_rng([seed, number])
        centre = size[0] * random.uniform(0.35, 0.65), size[1] * random.uniform(0.35, 0.65)
        radii = size[0] * random.uniform(0.15, 0.3), size[1] * random.uniform(0.12, 0.25)
        place = (rows - centre[0], columns - centre[1], *radii)
        off = (1 - skill) * random.normal(0, 40)
        truth = _ellipse(*place)
        masks = {"adapter": _ellipse(*place, off, 1 + 0.8 * (1 - skill)), "zero_shot": _ellipse(*place, 60.0, 0.5)}
        light = 90 + 60 * np.cos(rows / size[0] * 2) + random.normal(0, 6, size)
        colours = np.stack([light + 70, light - 10 + 60 * truth, light - 20 + 25 * truth], axis=-1)
        Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8)).save(images / f"example-{number}.jpg")
        for kind, mask in {"truth": truth, **masks}.items():
            Image.fromarray(mask).save(images / f"example-{number}-{kind}.png")
        dice = {kind: float(2 * (mask & truth).sum() / (mask.sum() + truth.sum())) for kind, mask in masks.items()}
        kept.append(
            {"case_id": f"case_{number:04}", "prompt": "polyp", "image": f"example-{number}.jpg",
             "truth": f"example-{number}-truth.png", "masks": {kind: f"example-{number}-{kind}.png" for kind in masks},
             "dice": dice}
        )  # fmt: skip
    values = {"format": FORMAT[0], "format_version": FORMAT[1], "cases": kept}
    files.write_json(images / EXAMPLES_FILE, values)


def _ellipse(
    down: np.ndarray, right: np.ndarray, height: float, width: float, shift: float = 0.0, grow: float = 1.0
) -> np.ndarray:
    return ((down - shift) / (height * grow)) ** 2 + ((right - shift) / (width * grow)) ** 2 < 1
