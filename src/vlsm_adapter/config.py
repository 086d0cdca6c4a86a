"""The configuration of a run: typed, frozen, checked as a whole; only the verbs and the CLI see it.

A recipe is YAML with the sections ``data``, ``model``, ``adapter``, ``train``, ``log``; every key has a default but
``data.path``. Unknown keys and wrong values are all reported at once, each on its own line.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import yaml

from vlsm_adapter.errors import ConfigError, nearest, short
from vlsm_adapter.plain_values import check_size

if TYPE_CHECKING:
    from vlsm_adapter.data.division import Division

LEVELS = tuple(f"p{number}" for number in range(10))
PRECISIONS = ("auto", "32-true", "16-mixed", "bf16-mixed", "int8")
SCHEDULES = ("cosine", "plateau", "constant")
LOSS_NAMES = ("dice_bce", "published")
STRATIFY = ("size", "none")
AUGMENTATIONS = ("none", "light", "medium")
FEATURE_CACHE = ("auto", "off")
# How a run divided data, in adapter.divided.
DIVISION_KEYS = ("split_seed", "fractions", "split_file", "fold", "stratify")


def _between(low: float, high: float) -> dict[str, Any]:
    return {"low": low, "high": high}


def _one_of(*names: str) -> dict[str, Any]:
    return {"choices": names}


@dataclass(frozen=True)
class DataConfig:
    """Which cases, and how they are asked about.

    Attributes:
        path: folder or manifest; docs/data.md lists the layouts.
        prompt: the class name, for data without prompts; it then stands as level p1.
        level: prompt level of training: p0 .. p9, or ``random`` (one of p1 .. p9 per case and epoch, as published).
        eval_level: the one level of validation and evaluation; ``random`` fixes one of p1 .. p9 per case.
        split_seed: of the split by case, where the data has none, and of folds and subsets.
        fractions: train, validation and test part of that split.
        split_file: which case is in which split, in place of the data's own; ``vlsm data split`` writes such files.
        fold: ``2/5``: the second of five folds is the test part, in place of the data's own splits.
        subset: few-shot: a part of the training cases, such as ``5%``, or how many, such as ``20``.
        subset_seed: of the subset alone, in place of ``split_seed``: other training cases beside the same test cases.
        stratify: ``size`` makes folds and subsets alike in foreground size; ``none`` does not.
        skip_bad: leave bad cases out, listed and counted, instead of stopping.
        cache_mb: memory for decoded, resized images.
        cache_dir: folder that keeps them for later runs: ``off``, a path, or ``auto`` (in ``~/.cache``, or where
            XDG_CACHE_HOME or VLSM_CACHE_DIR say). Off unless asked for: it holds copies of the images.
        cache_gb: bound of that folder.
        augment: ``none``, ``light`` or ``medium`` random changes of training samples; never of validation and test.
        val_path: validate on the val split of this other data; all cases of ``path`` without a split of their own train.
    """

    path: str = ""
    prompt: str | None = None
    level: str = field(default="p1", metadata=_one_of(*LEVELS, "random"))
    eval_level: str = field(default="p1", metadata=_one_of(*LEVELS, "random"))
    split_seed: int = 0
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    split_file: str | None = None
    fold: str | None = None
    subset: str | int | None = field(
        default=None, metadata={"form": "a part of the training cases such as 5%, or how many, such as 20"}
    )
    subset_seed: int | None = None
    stratify: str = field(default="size", metadata=_one_of(*STRATIFY))
    skip_bad: bool = False
    cache_mb: int = field(default=1024, metadata=_between(0, 1 << 20))
    cache_dir: str = "off"
    cache_gb: float = field(default=10.0, metadata=_between(0, 1e6))
    augment: str = field(default="none", metadata=_one_of(*AUGMENTATIONS))
    val_path: str | None = None

    def division(self, split: str | None = None) -> Division:
        """Which case is in which split; for a ``split`` other than train and all, without the subset of train.

        Raises:
            ConfigError: a fold or subset is not of its form, or there is a seed of a subset without one.
        """
        from vlsm_adapter.data.division import Division

        return Division(
            seed=self.split_seed,
            fractions=self.fractions if self.val_path is None else (1.0, 0.0, 0.0),
            split_file=self.split_file,
            fold=self.fold,
            subset=self.subset,
            subset_seed=self.subset_seed,
            stratify=self.stratify,
        ).of(split)


@dataclass(frozen=True)
class ModelConfig:
    """The frozen base.

    Attributes:
        name: ``tiny``, a folder, a hub id, or a text-free network such as ``unet``.
        image_size: side in pixels of the network's input, instead of the model's own.
    """

    name: str = "tiny"
    image_size: int | None = field(default=None, metadata=_between(16, 4096))


@dataclass(frozen=True)
class AdapterSection:
    """The method and its settings, e.g. ``method: dense``, ``settings: {parts: vlc, bottleneck_dim: 64}``.

    Attributes:
        method, settings: as ``vlsm adapters`` lists them.
        resume_from: adapter folder, or hub id at a commit, whose weights training begins from; method, settings and base
            must be its own (``--resume-from`` takes them over).
        parent: what that adapter is: ``sha256`` of its weights file, ``data`` it was trained on, ``id`` on a hub.
        divided: data folder to the keys that its run, and those before it, divided it by: what was a test case stays one.
    """

    method: str = "dense"
    settings: Mapping[str, Any] = field(default_factory=dict)
    resume_from: str | None = None
    parent: Mapping[str, Any] = field(default_factory=dict)
    divided: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainConfig:
    """How the trainable part is fitted.

    Attributes:
        epochs: passes over the training cases.
        batch_size: cases per step and process; times ``accumulate`` and ``devices`` is the batch of one update.
        accumulate: steps whose gradients are summed before an update.
        lr: peak learning rate of AdamW.
        weight_decay: on weights; never on biases and norms.
        schedule: ``cosine`` (after warm-up), ``plateau`` (factor 0.3 after 5 epochs without a lower validation
            loss, as published; seen at the next validation), ``constant``.
        warmup: part of all updates over which ``cosine`` rises linearly to ``lr``.
        clip_norm: global norm of the gradient; 0 turns it off.
        loss: ``dice_bce`` (1.5 Dice + 1.0 cross-entropy on logits) or ``published`` (cross-entropy on probabilities).
        validate_every: epochs from one validation to the next; after the last epoch there is one anyway.
        patience: epochs without a better validation Dice before training stops, at a validation; 0 never stops early.
        min_delta: a smaller gain of Dice does not count.
        precision: ``auto`` (16 bits where the hardware multiplies them fast, else 32), ``32-true``, ``16-mixed``,
            ``bf16-mixed``; ``int8`` computes the encoders' frozen linear maps, and gradients through them, in 8-bit integers
            on a CPU; what trains stays in 32 bits.
        seed: of initialisation, order and prompts.
        devices: processes that train the run together, each on a GPU of its own where there are any.
        workers: loader processes; 0 loads in the training process.
        save_seconds: least time between two states saved within an epoch; every epoch's end is saved anyway.
        feature_cache: ``auto`` computes what frozen encoders give once and keeps it; ``off`` for every batch. The
            weights are the same, on a GPU but for rounding.
        feature_cache_mb: memory for that, of each GPU where there are any, else of all processes of the run together; by
            default a quarter of what is free.
        feature_cache_gb: disk for what memory does not hold: in the run's folder while it runs, or, where
            ``data.cache_dir`` is on, kept there for other runs.
        checkpointing: compute the inside of image blocks again in the backward pass instead of keeping it, and give memory
            back to the system at once: less than half of it, about a third more time, the same gradients.
    """

    epochs: int = field(default=30, metadata=_between(1, 100_000))
    batch_size: int = field(default=16, metadata=_between(1, 65536))
    accumulate: int = field(default=1, metadata=_between(1, 65536))
    lr: float = field(default=1e-3, metadata=_between(1e-12, 10))
    weight_decay: float = field(default=1e-3, metadata=_between(0, 10))
    schedule: str = field(default="cosine", metadata=_one_of(*SCHEDULES))
    warmup: float = field(default=0.05, metadata=_between(0, 1))
    clip_norm: float = field(default=0.5, metadata=_between(0, 1e6))
    loss: str = field(default="dice_bce", metadata=_one_of(*LOSS_NAMES))
    validate_every: int = field(default=1, metadata=_between(1, 100_000))
    patience: int = field(default=20, metadata=_between(0, 100_000))
    min_delta: float = field(default=1e-4, metadata=_between(0, 1))
    precision: str = field(default="auto", metadata=_one_of(*PRECISIONS))
    seed: int = field(default=42, metadata=_between(0, 2**32 - 1))
    devices: int = field(default=1, metadata=_between(1, 1024))
    workers: int = field(default=0, metadata=_between(0, 256))
    save_seconds: float = field(default=60.0, metadata=_between(0, 1e6))
    feature_cache: str = field(default="auto", metadata=_one_of(*FEATURE_CACHE))
    feature_cache_mb: int | None = field(default=None, metadata=_between(0, 1 << 24))
    feature_cache_gb: float = field(default=20.0, metadata=_between(0, 1e6))
    checkpointing: bool = False


@dataclass(frozen=True)
class LogConfig:
    """Where progress is written beside the run folder's own ``metrics.csv``.

    Attributes:
        tensorboard: event files in the run folder.
        wandb, mlflow: need the extra of that name.
        project: their project or experiment name.
    """

    tensorboard: bool = True
    wandb: bool = False
    mlflow: bool = False
    project: str = "vlsm-adapter"


@dataclass(frozen=True)
class RunConfig:
    """Everything a run needs; ``RunConfig.load`` builds it from a file and overrides."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterSection = field(default_factory=AdapterSection)
    train: TrainConfig = field(default_factory=TrainConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @classmethod
    def load(
        cls,
        file: str | Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        assign: Sequence[str] = (),
        defaults: Mapping[str, Any] | None = None,
    ) -> RunConfig:
        """Read ``file`` (YAML), then apply ``overrides`` (dotted key to value) and ``assign`` (``"train.lr=1e-4"``).

        ``defaults`` (dotted key to value) take the place of the keys' own.

        Raises:
            ConfigError: unreadable file, unknown keys, wrong types or values; all of them, a line each.
        """
        values = {} if file is None else _read_yaml(Path(file))
        problems: list[str] = []
        if defaults:
            values = _over(_nested(defaults), values)
        for text in assign:
            key, equals, value = text.partition("=")
            if not equals or not key:
                problems.append(f"--set {text!r}: write section.key=value, e.g. train.lr=1e-4")
                continue
            try:
                _put(values, key.strip(), yaml.safe_load(value))
            except (yaml.YAMLError, TypeError) as error:
                problems.append(f"--set {text!r}: {str(error).splitlines()[0]}")
        for key, value in (overrides or {}).items():
            if value is not None:
                try:
                    _put(values, key, value)
                except TypeError as error:
                    problems.append(f"{key}: {error}")
        where = f"{file}: " if file else ""
        built = build_section(cls, values, "", problems)
        if not problems:
            problems += _check_whole(built)
        if problems:
            raise ConfigError("\n".join(f"{where}{problem}" for problem in problems))
        return built

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to ``config.yaml``."""
        return _plain(dataclasses.asdict(self))

    def to_yaml(self) -> str:
        """YAML that :meth:`load` reads back to an equal configuration."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def _check_whole(config: RunConfig) -> list[str]:
    """What no single value shows."""
    from vlsm_adapter.adapters.config import adapter_config

    problems: list[str] = []
    if not config.data.path:
        problems.append("data.path is missing: give the data folder (--data DIR)")
    if abs(sum(config.data.fractions) - 1) > 1e-6 or min(config.data.fractions) < 0:
        problems.append(f"data.fractions={list(config.data.fractions)}: three parts of 0 to 1 that sum to 1")
    try:
        config.data.division()
    except ConfigError as error:
        problems.append(f"data: {error}")
    try:
        adapter_config(config.adapter.method, **dict(config.adapter.settings))
    except ConfigError as error:
        problems.append(f"adapter: {error}")
    for folder, entry in config.adapter.divided.items():
        where = f"adapter.divided['{folder}']"
        if not isinstance(entry, Mapping) or not set(DIVISION_KEYS) <= entry.keys():
            problems.append(
                f"{where}={entry!r}: must hold {', '.join(DIVISION_KEYS)}; write what the run said that training began from"
            )
        else:
            build_section(DataConfig, {key: entry[key] for key in DIVISION_KEYS}, f"{where}.", problems)
    return problems


def _in_section(name: Any, hints: Mapping[str, Any]) -> str:
    """What to say of a key that one of the sections has, or nothing."""
    for section, kind in hints.items():
        if dataclasses.is_dataclass(kind) and name in {item.name for item in dataclasses.fields(kind)}:
            return f"did you mean '{section}.{name}'"
    return ""


def build_section(kind: Any, values: Any, prefix: str, problems: list[str]) -> Any:
    """An instance of dataclass ``kind`` from plain ``values``; problems are collected, not raised."""
    if values is None:  # a section whose keys are all commented out
        return kind()
    if not isinstance(values, Mapping):
        problems.append(
            f"{prefix.rstrip('.') or 'configuration'}: must be a section of keys, not {short(repr(values))}"
        )
        return kind()
    hints = typing.get_type_hints(kind)
    known = {item.name: item for item in dataclasses.fields(kind)}
    chosen: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            problems.append(f"unknown key '{prefix}{name}': {_in_section(name, hints) or nearest(str(name), known)}")
        elif dataclasses.is_dataclass(hints[name]):
            chosen[name] = build_section(hints[name], value, f"{prefix}{name}.", problems)
        else:
            if value is False and "off" in known[name].metadata.get("choices", ()):
                value = "off"  # as YAML reads it
            try:
                chosen[name] = _convert(value, hints[name])
                _check_value(chosen[name], known[name].metadata)
            except (TypeError, ValueError) as error:
                form, choices = known[name].metadata.get("form"), known[name].metadata.get("choices")
                told = f"write {form}" if form else error
                if choices and isinstance(error, TypeError):  # such as train.precision=32
                    told = f"{error}; {nearest(str(value), choices)}"
                problems.append(f"{prefix}{name}={short(repr(value))}: {short(told, 400)}")
                chosen.pop(name, None)
    return kind(**chosen)


def _convert(value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        kinds = [argument for argument in arguments if argument is not type(None)]
        # Of several kinds the one that the value is already; else the first.
        return _convert(value, next((kind for kind in kinds if type(value) is kind), kinds[0]))
    if origin is tuple and arguments[1:] == (...,):  # of any length
        if not isinstance(value, (list, tuple)):
            raise TypeError("must be a list in brackets")
        return tuple(_convert(part, arguments[0]) for part in value)
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(arguments):
            raise TypeError(f"must be {len(arguments)} values in brackets")
        return tuple(_convert(part, argument) for part, argument in zip(value, arguments, strict=True))
    if origin is not None:  # Mapping[str, Any]
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise TypeError("must be a section of keys")
        return dict(value)
    if hint is float and isinstance(value, str):
        value = float(value)  # YAML reads 1e-4 (no dot) as text
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise TypeError(f"must be of type {hint.__name__}")
    return value


def _check_value(value: Any, metadata: Mapping[str, Any]) -> None:
    if value is None:
        return
    if "choices" in metadata and value not in metadata["choices"]:
        raise ValueError(nearest(str(value), metadata["choices"]))
    if "low" in metadata and not (math.isfinite(value) and metadata["low"] <= value <= metadata["high"]):
        raise ValueError(f"must be from {metadata['low']} to {metadata['high']}")


def _put(values: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, last = dotted.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        inner = values[section]
        if not isinstance(inner, dict):
            raise TypeError(f"'{section}' is not a section")
        values = inner
    values[last] = value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in flat.items():
        _put(values, key, value)
    return values


def _over(below: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values``, and what they do not say from ``below``; sections are merged."""
    made = dict(below)
    for key, value in values.items():
        inner = below.get(key)
        made[key] = _over(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return made


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); give a YAML recipe, see configs/") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: not YAML ({' '.join(str(error).split())})") from error
    if values is None:
        return {}
    check_size(values, file)
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: must hold sections data, model, adapter, train, log")
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value
