"""A study: its axes and settings, as :mod:`vlsm_adapter.study.reader` reads them from study.yaml.

The axes are data sets, models, methods with variants, protocols, seeds and label fractions; docs/compare.md describes the
file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vlsm_adapter.adapters import ADAPTERS
from vlsm_adapter.errors import ConfigError
from vlsm_adapter.study.ranges import SAMPLERS, Range

AXES = ("data", "models", "protocols", "fractions", "seeds")

#: Whose the subset of a label fraction is: the same cases for all seeds, or each seed's own.
SUBSETS = ("shared", "per_seed")


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated of every run.

    Attributes:
        splits: each gives an evaluation folder.
        levels: prompt levels beside the protocol's own.
        probes: ask probes too (docs/prompts.md).
        nsd_tolerance: in mm where the spacing is known, else in pixels.
        threshold: by default the adapter's.
    """

    splits: tuple[str, ...] = ("test",)
    levels: tuple[str, ...] = ()
    probes: bool = False
    nsd_tolerance: float = field(default=2.0, metadata={"low": 0, "high": 1e6})
    threshold: float | None = field(default=None, metadata={"low": 0, "high": 1})


@dataclass(frozen=True)
class Resources:
    """What one run takes.

    Attributes:
        cpus: cores, and threads of the run; by default one per process of the run (``train.devices``).
        gpus: parts of one GPU, or whole ones; by default one where there are GPUs, else none.
        memory_gb: by default estimated.
    """

    cpus: int | None = field(default=None, metadata={"low": 1, "high": 4096})
    gpus: float | None = field(default=None, metadata={"low": 0, "high": 4096})
    memory_gb: float | None = field(default=None, metadata={"low": 0.1, "high": 1e5})


class StudyProblems(ConfigError):
    """What is wrong with a study.

    Args:
        study: as far as it could be read.
        problems: a line each, which is told behind the name of the study's file.
    """

    def __init__(self, study: Study, problems: Iterable[str]) -> None:
        self.study = study
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join(study.line(problem) for problem in self.problems))


@dataclass(frozen=True)
class Search:
    """How hyper-parameters are chosen, by validation alone.

    Attributes:
        space: dotted key (``train.lr``, ``settings.rank``) to its range, for every method that trains.
        trials: runs per data set, protocol, model and method.
        parallel: trials proposed together, from the results of those before.
        sampler: ``tpe`` (tree-structured Parzen estimator, Bergstra et al. 2011), ``random``, or ``grid``: every
            combination of choices once, in their order, up to ``trials``.
        seed: of the proposals, and ``train.seed`` of every trial.
        fraction: of the training cases in trials; by default the first of the study.
        train: keys of ``train`` for trials alone, such as fewer epochs.
    """

    space: Mapping[str, Range] = field(default_factory=dict)
    trials: int = field(default=20, metadata={"low": 1, "high": 100_000})
    parallel: int = field(default=4, metadata={"low": 1, "high": 1000})
    sampler: str = field(default="tpe", metadata={"choices": SAMPLERS})
    seed: int = field(default=0, metadata={"low": 0, "high": 2**32 - 1})
    fraction: str | None = None
    train: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """One method of the study, variants made out.

    Attributes:
        adapter: name in the registry of adapters.
        settings, train, data: what it sets of ``adapter.settings``, ``train``, ``data``.
        model: label and keys of a base model of its own, in place of the study's.
        only: axis to the names on it where the method runs; an axis left out means all.
        space: what is searched; empty for none.
    """

    name: str
    adapter: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    model: tuple[str, Mapping[str, Any]] | None = None
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    space: Mapping[str, Range] = field(default_factory=dict)

    @property
    def trains(self) -> bool:
        """False for a method that has nothing to train, and so one result for all seeds and fractions."""
        return ADAPTERS.get(self.adapter).trains


@dataclass(frozen=True)
class Study:
    """A study, checked. ``data`` and ``protocols`` hold keys of ``data`` beside ``train``, a section of its own.

    ``subsets`` is one of :data:`SUBSETS`; ``source`` is its name, ``file`` what it was read from, as it was given, for messages.
    """

    data: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, Mapping[str, Any]]
    methods: Mapping[str, Method]
    protocols: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    fractions: tuple[str, ...]
    train: Mapping[str, Any]
    log: Mapping[str, Any]
    evaluate: Evaluation
    resources: Resources
    search: Search | None
    subsets: str = SUBSETS[0]
    source: str = "study"
    file: str | None = field(default=None, compare=False)

    @classmethod
    def load(cls, file: str | Path) -> Study:
        """Read and check ``file``, see :func:`vlsm_adapter.study.reader.load_study`."""
        from vlsm_adapter.study.reader import load_study

        return load_study(file)

    def error(self, problems: Iterable[str]) -> ConfigError:
        """To raise for what is wrong with the study: each problem once, on a line that names the file it was read from."""
        return StudyProblems(self, problems)

    def line(self, told: str) -> str:
        """``told`` behind the name of the file that the study was read from, which is where the user mends it."""
        return told if self.file is None else f"{self.file}: {told}"

    def to_yaml(self) -> str:
        """The study with all defaults and variants written out; reads back to an equal one."""
        methods: dict[str, Any] = {}
        for method in self.methods.values():
            entry: dict[str, Any] = {"method": method.adapter}
            for key in ("settings", "train", "data"):
                entry |= {key: _plain(getattr(method, key))} if getattr(method, key) else {}
            if method.model is not None:
                entry["model"] = {"label": method.model[0], **_plain(method.model[1])}
            if method.only:
                entry["on"] = _plain(method.only)
            if self.search is not None and method.trains:
                entry["search"] = _plain(method.space) if method.space else False
            methods[method.name] = entry
        values: dict[str, Any] = {
            "data": _plain(self.data),
            "models": _plain(self.models),
            "methods": methods,
            "protocols": _plain(self.protocols),
            "seeds": list(self.seeds),
            "fractions": list(self.fractions),
            "subsets": self.subsets,
            "train": _plain(self.train),
            "log": _plain(self.log),
            "evaluate": _plain(dataclasses.asdict(self.evaluate)),
            "resources": _plain(dataclasses.asdict(self.resources)),
        }
        if self.search is not None:
            # Every method carries its whole space.
            values["search"] = {**_plain(dataclasses.asdict(self.search)), "space": {}}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Range):
        return value.to_plain()
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
