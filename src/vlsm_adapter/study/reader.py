"""Reading study.yaml: every problem of the file is reported at once.

What a single section says is checked here, what the axes make together in :mod:`vlsm_adapter.study.grid`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from vlsm_adapter.adapters import ADAPTERS, adapter_config
from vlsm_adapter.config import LEVELS, DataConfig, LogConfig, ModelConfig, TrainConfig, build_section
from vlsm_adapter.data.entries import real_folder
from vlsm_adapter.data.subsets import parse_subset
from vlsm_adapter.errors import ConfigError, DataError, nearest, short
from vlsm_adapter.study.config import AXES, SUBSETS, Evaluation, Method, Resources, Search, Study
from vlsm_adapter.study.ranges import Range, parse_space
from vlsm_adapter.study.yaml_file import read_yaml

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_SPLITS = ("train", "val", "test", "all")
# Keys that belong to one axis alone; set elsewhere they would contradict it.
_OF_DATA = ("path", "prompt")
_OF_PROTOCOLS = ("level", "eval_level")
_OF_CASES = ("val_path", "split_file", "split_seed", "fractions", "fold", "stratify", "skip_bad")
_OF_FRACTIONS = ("subset", "subset_seed")


def load_study(file: str | Path) -> Study:
    """Read and check ``file``.

    Raises:
        ConfigError: unreadable; StudyProblems with one line for each thing that is wrong.
    """
    problems: list[str] = []
    study = dataclasses.replace(_Reader(read_yaml(Path(file)), problems).study(Path(file).stem), file=str(file))
    if problems:
        raise study.error(problems)
    return study


def fraction_label(value: Any) -> str:
    """``"10%"``, ``"100%"`` or ``"20"`` (cases), in one spelling.

    Raises:
        ConfigError: none of these.
    """
    percent, count = parse_subset(value)
    if percent is None:
        return str(count)
    text = f"{percent:f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}%"


class _Reader:
    """Turns plain values into a :class:`Study`, collecting problems."""

    def __init__(self, values: Mapping[str, Any], problems: list[str]) -> None:
        self.values = values
        self.problems = problems

    def study(self, source: str) -> Study:
        known = {item.name for item in dataclasses.fields(Study)} - {"source", "file"}
        self._known(self.values, "", known)
        for key in ("data", "methods"):
            if not self.values.get(key):
                self.problems.append(f"{key} is missing: name at least one")
        search = self._search()
        data = self._named("data", {})
        for name, entry in data.items():
            self._section(DataConfig, entry, f"data.{name}.", (*_OF_PROTOCOLS, *_OF_FRACTIONS), with_train=True)
            self._path(entry.get("path"), f"data.{name}.path")
        protocols = self._named("protocols", {"default": {}})
        for name, entry in protocols.items():
            self._section(DataConfig, entry, f"protocols.{name}.", (*_OF_DATA, *_OF_FRACTIONS), with_train=True)
        models = self._models()
        train = self._mapping("train", self.values.get("train"))
        self._section(TrainConfig, train, "train.", ("seed",))
        log = self._mapping("log", self.values.get("log"))
        self._section(LogConfig, log, "log.", ())
        seeds = self._list("seeds", [42], int)
        if isinstance(number := self.values.get("seeds"), int) and not isinstance(number, bool):
            self.problems.append(
                f"seeds: {number} may be one seed or a number of them; list them: [{number}], or [41, 42]"
            )
        for seed in seeds:
            self._section(TrainConfig, {"seed": seed}, "seeds: ", ())
        axes: dict[str, Iterable[Any]] = {
            "data": data, "models": models, "protocols": protocols, "seeds": seeds, "fractions": self._fractions(),
        }  # fmt: skip
        methods = {method.name: method for method in self._methods(axes, search)}
        if search is not None and methods and not self.problems and not any(one.space for one in methods.values()):
            self.problems.append("search: nothing is searched; give search.space, or a 'search' of methods")
        if not models and any(method.model is None for method in methods.values()):
            self.problems.append("models: is empty; name one, or give every method a model of its own")
        evaluate = self._evaluate()
        resources = build_section(Resources, self.values.get("resources"), "resources.", self.problems)
        if (gpus := resources.gpus or 0) > 1 and gpus != int(gpus):  # Ray would refuse the first run
            self.problems.append(f"resources.gpus={gpus:g}: a part of one GPU such as 0.5, or whole ones")
        return Study(
            data=data, models=models, methods=methods, protocols=protocols, seeds=tuple(seeds),
            fractions=tuple(axes["fractions"]), train=train, log=log, evaluate=evaluate, resources=resources,
            search=search, subsets=self._subsets(), source=source,
        )  # fmt: skip

    def _path(self, given: Any, where: str) -> None:
        if not given:
            self.problems.append(f"{where} is missing: give the data folder")
        elif isinstance(given, str):
            try:
                real_folder(given)
            except DataError as error:
                self.problems.append(f"{where}: {error}; give the data folder")

    # -- axes ------------------------------------------------------------------------------------------------------------

    def _models(self) -> dict[str, dict[str, Any]]:
        given = self.values.get("models", ["tiny"])
        models: dict[str, dict[str, Any]] = {}
        if isinstance(given, Mapping):
            for label, entry in self._named("models", {}).items():
                models[label] = {"name": label, **entry}
        else:
            for name in self._list("models", ["tiny"], str):
                label = Path(name).name
                if label in models:
                    self.problems.append(f"models: two are called '{label}'; name them: {{first: {{name: {name}}}}}")
                self._check_name(label, "models")
                models[label] = {"name": name}
            self._apart("models", models)
        for label, entry in models.items():
            self._section(ModelConfig, entry, f"models.{label}.", ())
        return models

    def _fractions(self) -> list[str]:
        labels: list[str] = []
        for value in self._list("fractions", ["100%"], None):
            try:
                labels.append(fraction_label(value))
            except ConfigError as error:
                self.problems.append(f"fractions: {str(error).removeprefix('subset ')}")
        self._no_doubles("fractions", labels)
        return labels

    def _subsets(self) -> str:
        value = self.values.get("subsets") or SUBSETS[0]
        if value not in SUBSETS:
            self.problems.append(f"subsets: '{value}': {nearest(str(value), SUBSETS)}")
        return str(value)

    def _methods(self, axes: Mapping[str, Iterable[Any]], search: Search | None) -> list[Method]:
        methods: list[Method] = []
        allowed = ("method", "settings", "variants", "train", "data", "model", "on", "search")
        for name, entry in self._named("methods", {}).items():
            where = f"methods.{name}."
            self._known(entry, where, allowed)
            base = Method(
                name=name,
                adapter=str(entry.get("method", name)),
                settings=self._mapping(f"{where}settings", entry.get("settings")),
                train=self._mapping(f"{where}train", entry.get("train")),
                data=self._mapping(f"{where}data", entry.get("data")),
                model=self._own_model(entry.get("model"), where),
                only=self._only(entry.get("on"), where, axes),
            )
            self._section(TrainConfig, base.train, f"{where}train.", ("seed",))
            self._section(DataConfig, base.data, f"{where}data.", (*_OF_DATA, *_OF_PROTOCOLS, *_OF_FRACTIONS))
            self.problems += [
                f"{where}data.{key}: is said by 'data' or 'protocols', so that all methods have the same cases; take it out here"
                for key in _OF_CASES
                if key in base.data
            ]
            variants = self._mapping(f"{where}variants", entry.get("variants"))
            for variant, changes in (variants or {"": {}}).items():
                label = f"{name}_{variant}" if variant else name
                self._check_name(label, "methods")
                settings = {**base.settings, **self._mapping(f"{where}variants.{variant}", changes)}
                method = dataclasses.replace(base, name=label, settings=settings)
                if self._check_adapter(method, bool(variant), where):
                    method = dataclasses.replace(method, space=self._space(entry.get("search"), method, search, where))
                    methods.append(method)
        names = [method.name for method in methods]  # with their variants
        self._no_doubles("methods", names)
        self._apart("methods", names)
        return methods

    def _check_adapter(self, method: Method, is_variant: bool, where: str) -> bool:
        if method.adapter not in ADAPTERS and method.adapter == method.name:
            self.problems.append(
                f"methods: '{method.name}' is no registered method: {nearest(method.name, ADAPTERS)}; "
                "under a name of your own, say 'method: NAME'"
            )
            return False
        own = where.removeprefix("methods.").rstrip(".")
        if own in ADAPTERS and own != method.adapter:
            self.problems.append(
                f"methods.{own}: is the name of another method than '{method.adapter}', and tables would call it so; "
                f"give it a name of its own, such as {method.adapter}_{own}"
            )
        try:
            adapter_config(method.adapter, **method.settings)
        except ConfigError as error:
            variant = f" (variant '{method.name}')" if is_variant else ""
            self.problems.append(f"{where.rstrip('.')}{variant}: {error}")
            return False
        if not method.trains and (method.train or method.data):
            self.problems.append(f"{where.rstrip('.')}: '{method.adapter}' trains nothing: leave out train and data")
        return True

    def _own_model(self, given: Any, where: str) -> tuple[str, dict[str, Any]] | None:
        if given is None:
            return None
        if isinstance(given, str):
            given = {"name": given}
        entry = self._mapping(f"{where}model", given)
        label = str(entry.pop("label", "") or Path(str(entry.get("name", ""))).name)
        if not entry.get("name"):
            self.problems.append(f"{where}model.name is missing")
        self._check_name(label, f"{where}model")
        self._section(ModelConfig, entry, f"{where}model.", ())
        return label, entry

    def _only(self, given: Any, where: str, axes: Mapping[str, Iterable[Any]]) -> dict[str, tuple[Any, ...]]:
        chosen: dict[str, tuple[Any, ...]] = {}
        for axis, names in self._mapping(f"{where}on", given).items():
            if axis not in AXES:
                self.problems.append(f"{where}on: unknown key '{axis}': {nearest(str(axis), AXES)}")
                continue
            there = list(axes[axis])
            spelled = {str(one): one for one in there}
            picked = list(names) if isinstance(names, list | tuple) else [names]
            if axis == "fractions":
                picked = [self._fraction(one, f"{where}on.fractions") for one in picked]
            picked = [spelled.get(str(one), one) for one in picked]
            for one in picked:
                if one not in there:
                    self.problems.append(
                        f"{where}on.{axis}: '{one}' is not of this study: {nearest(str(one), map(str, there))}"
                    )
            chosen[axis] = tuple(picked)
        return chosen

    def _fraction(self, value: Any, where: str) -> str:
        try:
            return fraction_label(value)
        except ConfigError as error:
            self.problems.append(f"{where}: {error}")
            return str(value)

    # -- sections --------------------------------------------------------------------------------------------------------

    def _evaluate(self) -> Evaluation:
        section: Evaluation = build_section(Evaluation, self.values.get("evaluate"), "evaluate.", self.problems)
        if not section.splits:
            self.problems.append("evaluate.splits: is empty; name at least one, such as test")
        for split in section.splits:
            if split not in _SPLITS:
                self.problems.append(f"evaluate.splits: '{split}': {nearest(split, _SPLITS)}")
        for level in section.levels:
            if level not in LEVELS:
                self.problems.append(f"evaluate.levels: '{level}': {nearest(level, LEVELS)}")
        return section

    def _search(self) -> Search | None:
        given = self.values.get("search")
        if not given:
            return None
        values = self._mapping("search", given)
        space = parse_space(self._mapping("search.space", values.pop("space", None)), "search.space.", self.problems)
        if isinstance(values.get("fraction"), int | float) and not isinstance(values["fraction"], bool):
            values["fraction"] = str(values["fraction"])  # cases, as in 'fractions'
        section: Search = build_section(Search, values, "search.", self.problems)
        self._section(TrainConfig, dict(section.train), "search.train.", ("seed",))
        fraction = self._fraction(section.fraction, "search.fraction") if section.fraction is not None else None
        self._grid_of_lists(section, space, "search.space.")
        self.problems += [
            f"search.space.train.{key}: is set in search.train as well; leave one of them out"
            for key in section.train
            if f"train.{key}" in space
        ]
        return dataclasses.replace(section, space=space, fraction=fraction)

    def _grid_of_lists(self, search: Search, space: Mapping[str, Range], where: str) -> None:
        if search.sampler == "grid":
            self.problems += [
                f"{where}{key}: a grid takes lists of choices; write [...], or sampler: tpe"
                for key, choice in space.items()
                if not choice.choices
            ]

    def _space(self, given: Any, method: Method, search: Search | None, where: str) -> Mapping[str, Range]:
        if search is None:
            if given:
                self.problems.append(f"{where}search: the study has no search; add 'search: {{trials: 20}}'")
            return {}
        if given is False or (not method.trains and given is None):
            return {}
        own = parse_space(self._mapping(f"{where}search", given), f"{where}search.", self.problems)
        if own and not method.trains:
            self.problems.append(f"{where}search: '{method.adapter}' trains nothing, there is nothing to search")
        space = {**search.space, **own}
        self._grid_of_lists(search, own, f"{where}search.")
        for key, choice in space.items():
            section, _, last = key.partition(".")
            fixed = {"settings": method.settings, "train": method.train}.get(section, {})
            if last in fixed and key in own:
                self.problems.append(f"{where}search.{key}: is set in {where}{section} as well; leave one of them out")
            if key in own and section == "train" and last in search.train:
                self.problems.append(f"{where}search.{key}: is set in search.train as well; leave one of them out")
            for value in choice.extremes():
                try:
                    if section == "settings":
                        adapter_config(method.adapter, **{**method.settings, last: value})
                except ConfigError as error:
                    source = f"{where}search.{key}" if key in own else f"search.space.{key} for method '{method.name}'"
                    self.problems.append(f"{source}: {error}; give it in the 'search' of the methods that have it")
                    break
        return {
            key: choice
            for key, choice in space.items()
            if not (key in search.space and key not in own and _fixed(method, key))
        }

    def _section(
        self, kind: type, entry: Mapping[str, Any], where: str, elsewhere: Iterable[str], *, with_train: bool = False
    ) -> None:
        """Check keys and values of ``entry`` as those of a section of RunConfig."""
        own = dict(entry)
        if with_train and "train" in own:
            self._section(TrainConfig, self._mapping(f"{where}train", own.pop("train")), f"{where}train.", ("seed",))
        for key in elsewhere:
            if key in own:
                axis = {
                    "seed": "seeds",
                    "subset": "fractions",
                    "subset_seed": "subsets",
                    "path": "data",
                    "prompt": "data",
                }.get(key, "protocols")
                self.problems.append(f"{where}{key}: is said by '{axis}' of the study alone; take it out here")
                del own[key]
        build_section(kind, own, where, self.problems)

    # -- plain values ----------------------------------------------------------------------------------------------------

    def _named(self, key: str, default: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        found = self._mapping(key, self.values.get(key)) or dict(default)
        for name in found:
            self._check_name(name, key)
        self._apart(key, found)
        return {name: self._mapping(f"{key}.{name}", entry) for name, entry in found.items()}

    def _mapping(self, where: str, value: Any) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.problems.append(f"{where}: must be a section of names, 'NAME: ...', not {_shown(value)}")
            return {}
        if odd := [key for key in value if not isinstance(key, str)]:
            self.problems.append(f"{where}: must be a section of names; put quotes around {_shown(odd[0])}")
            return {}
        return dict(value)

    def _list(self, key: str, default: list[Any], kind: type | None) -> list[Any]:
        value = self.values.get(key, default)
        if value is None:
            value = default
        if not isinstance(value, list):
            value = [value]
        wrong = [one for one in value if isinstance(one, bool) or (kind is not None and not isinstance(one, kind))]
        for one in wrong:
            self.problems.append(f"{key}: {one!r} must be of type {kind.__name__ if kind else 'text'}")
        kept = [one for one in value if one not in wrong]
        if not kept and not wrong:
            self.problems.append(f"{key}: is empty; name at least one")
        self._no_doubles(key, kept)
        return kept

    def _known(self, values: Mapping[str, Any], where: str, allowed: Iterable[str]) -> None:
        names = list(allowed)
        for key in values:
            if key not in names:
                self.problems.append(f"unknown key '{where}{key}': {nearest(str(key), names)}")

    def _check_name(self, name: str, where: str) -> None:
        if not _NAME.fullmatch(name):
            self.problems.append(
                f"{where}: the name '{short(name, 80)}' becomes a folder: at most 64 letters, digits and '_.+-', beginning with "
                "one of the first two"
            )

    def _apart(self, key: str, names: Iterable[str]) -> None:
        """Names that are one folder on some file systems."""
        folders: dict[str, str] = {}
        for name in names:
            if (other := folders.setdefault(name.lower(), name)) != name:
                told = f"{key}: '{other}' and '{name}' are one folder where capitals do not count; rename one"
                if told not in self.problems:
                    self.problems.append(told)

    def _no_doubles(self, key: str, values: Iterable[Any]) -> None:
        seen: set[Any] = set()
        for value in values:
            if str(value) in seen:
                self.problems.append(f"{key}: '{value}' is listed twice")
            seen.add(str(value))


def _shown(value: Any) -> str:
    """``value`` as a message names it; what is long, shortened."""
    return short(str(value) if isinstance(value, date) else repr(value), 80)


def _fixed(method: Method, key: str) -> bool:
    """Whether the method itself says what the shared space would search: the more special wins."""
    section, _, last = key.partition(".")
    return last in {"settings": method.settings, "train": method.train}.get(section, {})
