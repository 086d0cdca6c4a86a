"""The runs of a study: every combination of its axes, each an ordinary RunConfig with a place of its own.

Seeds vary slowest, then label fractions: the first results are one of everything, and make a whole table.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlsm_adapter.config import RunConfig
from vlsm_adapter.data.entries import real_folder
from vlsm_adapter.errors import ConfigError
from vlsm_adapter.study.config import Method, Study

WHOLE = "100%"
# What does not change a result: another machine may set these otherwise and go on.
_IMMATERIAL = {
    "data": ("path", "cache_mb", "cache_dir", "cache_gb"),
    "train": ("workers", "save_seconds", "feature_cache", "feature_cache_mb", "feature_cache_gb"),
    "log": ("tensorboard", "wandb", "mlflow", "project"),
}

# What it means where a key of `_comparable` is not there.
_UNSAID = {"subsets": "shared"}

#: What is said of a method that runs nowhere.
NO_RUN = "its 'on' leaves it no run"

#: data set, protocol, model, method: what hyper-parameters are chosen for.
Group = tuple[str, str, str, str]


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        data, protocol, model, method, fraction, seed: where on the axes.
        config: of the run.
        trains: False for a method that is only evaluated.
    """

    data: str
    protocol: str
    model: str
    method: str
    fraction: str
    seed: int
    config: RunConfig
    trains: bool = True

    @property
    def path(self) -> str:
        """Of the run's folder below ``runs``, with forward slashes."""
        return "/".join((*self.group, folder_of(self.fraction), f"s{self.seed}"))

    @property
    def group(self) -> Group:
        """What hyper-parameters are chosen for."""
        return self.data, self.protocol, self.model, self.method

    def about(self) -> dict[str, Any]:
        """The names, for ``cell.json``."""
        names = ("data", "protocol", "model", "method", "fraction", "seed")
        return {**{name: getattr(self, name) for name in names}, "adapter": self.config.adapter.method}


def folder_of(fraction: str) -> str:
    """``100pct``, ``2.5pct``, ``20cases``."""
    return f"{fraction[:-1]}pct" if fraction.endswith("%") else f"{fraction}cases"


def expand(study: Study, chosen: Mapping[Group, Mapping[str, Any]] | None = None) -> list[Cell]:
    """All runs of the study, in the order in which they are best done.

    Args:
        chosen: what the search found: group to dotted keys (``train.lr``, ``settings.rank``) with values.

    Raises:
        ConfigError: the axes contradict each other, or a run's configuration is wrong as a whole; all of it at once.
    """
    cells, problems = combine(study, chosen)
    if problems:
        raise study.error(problems)
    return cells


def combine(study: Study, chosen: Mapping[Group, Mapping[str, Any]] | None = None) -> tuple[list[Cell], list[str]]:
    """The runs of the study that can be, and what is wrong with the others or with all of them; see :func:`expand`."""
    problems: list[str] = []
    cells: list[Cell] = []
    for seed_index, seed in enumerate(study.seeds):
        for fraction_index, fraction in enumerate(study.fractions):
            for data, protocol, model, method in _combinations(study, seed, fraction):
                if not method.trains and (seed_index or fraction_index):
                    continue
                where = (data, protocol, model, method.name)
                place = (fraction, seed) if method.trains else (WHOLE, 0)
                try:
                    config = config_of(study, where, *place, (chosen or {}).get(where, {}))
                except ConfigError as error:
                    problems += [
                        f"{data}, {protocol}, {model}, {method.name}: {line}" for line in str(error).splitlines()
                    ]
                    continue
                cells.append(Cell(*where, *place, config, method.trains))
    return cells, problems + _contradictions(study, cells, had_problems=bool(problems))


def config_of(
    study: Study,
    group: Group,
    fraction: str,
    seed: int,
    chosen: Mapping[str, Any],
    train: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The configuration of one run; of keys said several times, the more special wins.

    Args:
        train: keys of ``train`` above all but ``chosen``: those of a trial.

    Raises:
        ConfigError: as a whole it is wrong; a line each.
    """
    data_name, protocol_name, model_name, method_name = group
    method = study.methods[method_name]
    data, protocol = dict(study.data[data_name]), dict(study.protocols[protocol_name])
    trained = {**study.train, **(data.pop("train", None) or {}), **(protocol.pop("train", None) or {}), **method.train}
    data = {**data, **protocol, **method.data, "subset": None if fraction == WHOLE else fraction}
    if study.subsets == "per_seed" and fraction != WHOLE:
        data["subset_seed"] = seed
    if method.trains:
        trained |= {**(train or {}), **_part(chosen, "train"), "seed": seed}
    else:
        trained = {"seed": seed}
        data["level"] = data.get("eval_level", "p1")
    model = method.model[1] if method.model is not None else study.models[model_name]
    values: dict[str, Any] = {
        "data": data,
        "model": dict(model),
        "adapter": {"method": method.adapter, "settings": {**method.settings, **_part(chosen, "settings")}},
        "train": trained,
        "log": {"tensorboard": False, **study.log},
    }
    return RunConfig.load(overrides=values)


def select(cells: Sequence[Cell], pattern: str | None) -> list[Cell]:
    """The cells whose path holds ``pattern``, or one of several with commas between; ``*`` and ``?`` stand for any characters.

    Where it is whole names of some path (``s1``, ``dense/100pct/s1``), names that only hold it (``s10``) are left out.

    Raises:
        ConfigError: one of them names none.
    """
    if pattern is None:
        return list(cells)
    split = (part.strip().removeprefix("runs/") for part in re.split(r",(?![^\[]*\])", pattern))  # not s4[1,2]
    parts = [part for part in split if part]
    paths = [cell.path for cell in cells]
    wanted: set[str] = set()
    for part in parts or [""]:
        found = [path for path in paths if fnmatch.fnmatchcase(f"/{path}/", f"*/{part.strip('/')}/*")]
        found = found or [path for path in paths if fnmatch.fnmatchcase(path, f"*{part}*")]
        if not found or not part:
            raise ConfigError(f"--only '{part}': names no run; {_like(part, paths)}")
        wanted.update(found)
    return [cell for cell in cells if cell.path in wanted]


def _like(part: str, paths: Sequence[str]) -> str:
    """The first path that would be chosen if a misspelled name of ``part`` were the name on the axis that is nearest to it."""
    names = {name for path in paths for name in path.split("/")}
    meant = []
    for name in part.split("/"):
        known = "*" in name or "?" in name or any(name in other for other in names)
        close = [] if known else difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.5)
        meant.append(close[0] if close else name)
    pattern = "/".join(meant)
    if pattern != part and any(fnmatch.fnmatchcase(path, f"*{pattern}*") for path in paths):
        return f"did you mean '{pattern}'?"
    return f"the first of {len(paths)} is {paths[0]}"


def differences(then: RunConfig, now: RunConfig, *, same_base: bool | None = None) -> list[str]:
    """What differs between two configurations of a run and changes its result, such as ``train.lr=0.1, was 0.2``.

    Places do not count: the study may have moved to another machine.

    Args:
        same_base: whether the weights of their base models are equal; where that is not known (None), the last part of
            their names says it.
    """
    old, new = _comparable(then), _comparable(now)
    found = []
    if same_base is not None:
        old["model.name"] = new["model.name"] = None
        found += [] if same_base else [f"model.name={now.model.name!r} has other weights than the run's base had"]
    return found + [
        f"{key}={new.get(key, _UNSAID.get(key))!r}, was {old.get(key, _UNSAID.get(key))!r}"
        for key in {**new, **old}
        if new.get(key) != old.get(key)
    ]


def _comparable(config: RunConfig) -> dict[str, Any]:
    values = config.to_dict()
    for section, names in _IMMATERIAL.items():
        for name in names:
            values[section].pop(name, None)
    values["model"]["name"] = Path(values["model"]["name"]).name
    for key in ("split_file", "val_path"):  # where they lie does not count; what they hold is compared by the cases
        if values["data"][key] is not None:
            values["data"][key] = Path(values["data"][key]).name
    drawn = values["data"].pop("subset_seed")  # a study says it as a rule for all its seeds
    flat: dict[str, Any] = (
        {} if drawn is None else {"subsets": "per_seed" if drawn == config.train.seed else f"seed {drawn}"}
    )
    flat |= {f"{section}.{name}": value for section, entry in values.items() for name, value in entry.items()}
    settings = flat.pop("adapter.settings")
    # The method's defaults written out or not are the same run.
    from vlsm_adapter.adapters import adapter_config

    full = adapter_config(config.adapter.method, **settings).to_dict()
    return {**flat, **{f"settings.{key}": _jsonable(value) for key, value in full.items() if key != "method"}}


def _written_out(config: RunConfig) -> dict[str, Any]:
    """A configuration that is equal for runs that are: the method's defaults filled in, one spelling of each folder."""
    from vlsm_adapter.adapters import adapter_config

    values = config.to_dict()
    values["data"]["path"] = str(real_folder(values["data"]["path"]))
    values["adapter"]["settings"] = adapter_config(config.adapter.method, **dict(config.adapter.settings)).to_dict()
    return values


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _part(chosen: Mapping[str, Any], section: str) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, value in chosen.items() if key.partition(".")[0] == section}


def _combinations(study: Study, seed: int, fraction: str) -> Iterator[tuple[str, str, str, Method]]:
    for protocol in study.protocols:
        for data in study.data:
            for method in study.methods.values():
                for model in (method.model[0],) if method.model is not None else study.models:
                    place = {"data": data, "models": model, "protocols": protocol, "fractions": fraction, "seeds": seed}
                    # What trains nothing knows no seeds and fractions, so none can leave it out.
                    axes = place if method.trains else {key: place[key] for key in ("data", "models", "protocols")}
                    if all(value in method.only.get(axis, (value,)) for axis, value in axes.items()):
                        yield data, protocol, model, method


def _contradictions(study: Study, cells: Sequence[Cell], *, had_problems: bool) -> list[str]:
    """What the axes make together that no one can have meant."""
    problems: list[str] = []
    labels = dict(study.models)
    for method in study.methods.values():
        where = f"methods.{method.name}"
        if method.model is not None:
            if "models" in method.only:
                problems.append(f"{where}: has a model of its own, and 'on.models' too; leave one of them out")
            if labels.setdefault(*method.model) != method.model[1]:
                problems.append(
                    f"{where}.model: '{method.model[0]}' is another model elsewhere in the study; give one of them "
                    "another name, {label: NAME, name: ...}"
                )
        if not method.trains and (axes := [axis for axis in ("seeds", "fractions") if axis in method.only]):
            problems.append(f"{where}: trains nothing and runs once; leave out 'on.{axes[0]}'")
    if had_problems or problems:
        return problems
    used = {cell.method for cell in cells}
    problems += [f"methods.{name}: {NO_RUN}" for name in study.methods if name not in used]
    places: dict[str, Cell] = {}
    for cell in cells:
        # Protocols that differ in training alone are one to a method that does not train.
        # What is searched is no twin of what is set, even where the search comes to the same.
        space = {key: choice.to_plain() for key, choice in study.methods[cell.method].space.items()}
        alike = [_written_out(cell.config), space, None if cell.trains else cell.protocol]
        same = json.dumps(alike, sort_keys=True, default=str)
        twin = places.setdefault(same, cell)
        if twin is not cell:
            axis = next(
                name
                for name in ("data", "protocol", "model", "method", "fraction")
                if getattr(twin, name) != getattr(cell, name)
            )
            problems.append(
                f"{axis}: '{getattr(twin, axis)}' and '{getattr(cell, axis)}' make the same runs; leave one of them out"
            )
    return problems
