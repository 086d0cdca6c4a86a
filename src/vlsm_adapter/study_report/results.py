"""One result of a study: a run asked in one way of one split, with its score of every case.

Everything a report says is made from these. Metrics count to six significant digits, as the small form keeps them, so
that a table from run folders and one from the small form are equal to the last digit.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from vlsm_adapter.types import CaseScore

#: What a study's tables can show, in their order.
METRIC_NAMES = ("dice", "iou", "hd95", "nsd")
ZERO_SHOT = "zero_shot"
ALL_LABELS = "100%"
PRECISION = "train.precision"
# What the configuration asked for, where nothing tells which arithmetic it became on its machine.
UNKNOWN_PRECISION = "auto"
# Of a part of the labels: from which seed it was drawn, ``OWN_SUBSET`` where each seed of training has its own.
SUBSET_SEED, OWN_SUBSET = "data.subset_seed", "train.seed"
# What a recipe means that does not say it: keys of the configuration that came after the first small forms. A recipe never
# says them with these values, so that a result has the same key whenever it was read.
IMPLIED: Mapping[str, Any] = {"train.validate_every": 1, SUBSET_SEED: "data.split_seed"}


@dataclass(frozen=True, slots=True)
class Case:
    """What a case is, whoever segments it; two results are of the same cases where these are equal.

    Attributes:
        case_id, group: as in ``cases.csv``.
        unit: of its distances.
        truth_area: foreground of the truth in pixels.
    """

    case_id: str
    group: str | None
    unit: str
    truth_area: int


@dataclass(frozen=True)
class Result:
    """A trained run, or a base model as it came (``method`` is ``"zero_shot"``), on the cases of one split.

    Attributes:
        source: where it was read, for messages; relative to the folder that was given.
        name: of the method in its study (``"dense_vlc"``); empty for a run made without a study.
        protocol: name of the study's protocol; None without a study or training.
        model, model_hash: the base model's name and the SHA-256 of its weights.
        method, settings: the adaptation method and all of its settings.
        recipe: how it was trained: dotted key of the configuration to value; ``train.precision`` is the one really used, and
            ``auto`` where that is not known (files of the small form written before it was kept). What is as in ``IMPLIED`` is
            not there.
        data: name of the data set, with its fold or split file if there is one.
        trained_on: name of the data it was trained on where that is another, else None.
        split, level, threshold, nsd_tolerance: how it was evaluated.
        leaks: the words asked may be drawn from the true masks.
        train_level: prompt level of training; None without training.
        fraction: the labels used, ``"100%"``, ``"10%"`` or a number of cases; None without training.
        seed: of training; None without.
        trainable: trainable parameters; ``parameters`` those of the base.
        cases: in the order of ``values``.
        values: metric to a value per case; NaN where it is not defined.
        emptiness: per case, as in `CaseScore`.
        reveal_emptiness: cases whose words say that there is nothing to find.
        curve: column of ``metrics.csv`` to its values, one per epoch.
        resources: ``seconds`` and ``epochs`` of training, ``peak_memory`` and ``peak_gpu_memory`` in bytes, ``train_cases``
            and ``val_cases``, as far as known.
        sensitivity: what the probes found, in short; see `reading`.
        machine: device, processor and versions, in words.
        examples: folder of pictures that the evaluation kept, or None; never part of the small form.
        file: of the small form that it was read from, else empty; ``source`` is then where it was once.
    """

    source: str
    name: str
    protocol: str | None
    model: str
    model_hash: str
    method: str
    settings: Mapping[str, Any]
    recipe: Mapping[str, Any]
    data: str
    trained_on: str | None
    split: str
    level: str
    threshold: float
    nsd_tolerance: float
    leaks: bool
    train_level: str | None
    fraction: str | None
    seed: int | None
    trainable: int | None
    parameters: int | None
    cases: tuple[Case, ...]
    values: Mapping[str, tuple[float, ...]]
    emptiness: tuple[str, ...]
    reveal_emptiness: int = 0
    curve: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)
    sensitivity: Mapping[str, Any] | None = None
    machine: str = ""
    examples: Path | None = None
    file: str = ""

    @property
    def place(self) -> str:
        """Where it stands now, for messages."""
        return self.file or self.source

    @property
    def identity(self) -> dict[str, Any]:
        """What makes it this result and no other; results of equal identity must have equal numbers."""
        names = (
            "name",
            "protocol",
            "model",
            "model_hash",
            "method",
            "settings",
            "recipe",
            "data",
            "trained_on",
            "split",
            "level",
            "threshold",
            "nsd_tolerance",
            "train_level",
            "fraction",
            "seed",
        )
        return {name: getattr(self, name) for name in names}

    @property
    def key(self) -> str:
        """Digest of the identity, 16 hexadecimal digits."""
        return hashlib.blake2b(canonical(self.identity).encode(), digest_size=8).hexdigest()

    @property
    def is_zero_shot(self) -> bool:
        return self.method == ZERO_SHOT

    @property
    def known_recipe(self) -> dict[str, Any]:
        """The recipe without a precision that is not known: with that no two results differ; and with what is implied."""
        said = self.full_recipe
        return {name: value for name, value in said.items() if (name, value) != (PRECISION, UNKNOWN_PRECISION)}

    @property
    def full_recipe(self) -> dict[str, Any]:
        """The recipe with what it implies; that of a base model as it came is empty of it."""
        return dict(self.recipe) if self.is_zero_shot else {**IMPLIED, **self.recipe}

    def __str__(self) -> str:
        """For messages: data, method and seed."""
        parts = [self.data, self.name or self.method, f"level {self.level}"]
        parts += [] if self.fraction in (None, ALL_LABELS) else [f"{self.fraction} of labels"]
        parts += [] if self.seed is None else [f"seed {self.seed}"]
        return ", ".join(parts)


def same_numbers(one: Result, other: Result) -> str | None:
    """What differs between two results of equal identity, in words; None where they agree."""
    if one.cases != other.cases:
        return "their cases differ"
    for name in sorted(one.values.keys() | other.values.keys()):
        if name not in one.values or name not in other.values:
            continue  # a table written before the metric was added
        pairs = zip(one.cases, one.values[name], other.values[name], strict=True)
        for case, a, b in pairs:
            if a != b and not (math.isnan(a) and math.isnan(b)):
                return f"{name} of case '{case.case_id}' is {a:g} in one and {b:g} in the other"
    return None


def cases_of(
    scores: Sequence[CaseScore], groups: Mapping[str, str | None]
) -> tuple[tuple[Case, ...], dict[str, tuple[float, ...]], tuple[str, ...]]:
    """Cases by case id, their metrics and their emptiness, from a table of scores.

    Raises:
        ValueError: a case is scored twice.
    """
    ordered = sorted(scores, key=lambda score: score.case_id)
    for before, after in pairwise(ordered):
        if before.case_id == after.case_id:
            raise ValueError(f"case '{after.case_id}' is scored twice")
    cases = tuple(Case(score.case_id, groups.get(score.case_id), score.unit, score.truth_area) for score in ordered)
    names = [name for name in METRIC_NAMES if ordered and all(name in score.values for score in ordered)]
    values = {name: tuple(six_digits(score.values[name]) for score in ordered) for name in names}
    return cases, values, tuple(score.emptiness for score in ordered)


def six_digits(value: float) -> float:
    """``value`` to six significant digits; NaN for what is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else math.nan


def canonical(value: Any) -> str:
    """JSON with sorted keys: equal text for equal values; 1 and 1.0 are one."""
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=True, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value
