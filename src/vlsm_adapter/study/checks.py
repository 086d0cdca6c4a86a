"""The grid tried on the data and models themselves before anything starts; what is wrong is reported all at once."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlsm_adapter.errors import UserError, one_line, short
from vlsm_adapter.logs import check_logs
from vlsm_adapter.study.config import Evaluation
from vlsm_adapter.study.grid import Cell

if TYPE_CHECKING:
    from vlsm_adapter.adapters.attach import AttachReport
    from vlsm_adapter.models.base import PromptSegmenter

#: What a method on a model costs: called with both, the adapter attached.
Probe = Callable[["PromptSegmenter", Cell], None]


@dataclass
class Facts:
    """What the check found.

    Attributes:
        problems: one line each; a study with any does not start.
        absent: data sets and models that are not on this machine, one line each.
        cases: cell path to cases by split, the training cases after the label fraction.
        training: data set to its training cases, all of them.
        reports: model and method (labels of the study) to what was attached; None where nothing trains.
        sides: model label to the side of its input in pixels.
        parameters: model label to its parameters.
    """

    problems: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    cases: dict[str, Counter[str]] = field(default_factory=dict)
    training: dict[str, int] = field(default_factory=dict)
    reports: dict[tuple[str, str], AttachReport | None] = field(default_factory=dict)
    sides: dict[str, int] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)


def check_cells(
    cells: Sequence[Cell], evaluation: Evaluation, *, absent_is_wrong: bool = True, probe: Probe | None = None
) -> Facts:
    """Read every data set, load every model, and attach every method to each model it is to run on.

    Args:
        cells: what is to run.
        evaluation: what is evaluated of each.
        absent_is_wrong: whether data or a model that is not here is a problem; else it is listed, and not downloaded.
        probe: called for each method on each model while it is attached.
    """
    facts = Facts()
    try:
        for cell in cells[:1]:  # they log alike
            check_logs(cell.config)
    except UserError as error:
        facts.problems.append(f"log: {one_line(error)}")
    _check_data(cells, evaluation, facts)
    _check_models(cells, facts, download=absent_is_wrong, probe=probe)
    if absent_is_wrong:
        facts.problems += facts.absent
    facts.problems = list(dict.fromkeys(facts.problems))
    return facts


# -- data ----------------------------------------------------------------------------------------------------------------


def _check_data(cells: Sequence[Cell], evaluation: Evaluation, facts: Facts) -> None:
    from vlsm_adapter.data.cases import Cases
    from vlsm_adapter.data.subsets import subset_size
    from vlsm_adapter.resume_from import cases_for

    read: dict[str, Cases | None] = {}
    asked: set[tuple[Any, ...]] = set()
    sizes: dict[tuple[str, str, str, int], str] = {}
    for cell in cells:
        data = dataclasses.replace(cell.config.data, subset=None, subset_seed=None)
        key = repr((data.path, data.val_path, data.prompt, data.division(), data.skip_bad))
        if key not in read:
            read[key] = None
            places = {"path": data.path} if data.val_path is None else {"path": data.path, "val_path": data.val_path}
            if gone := [name for name, path in places.items() if not _exists(path)]:
                facts.absent += [
                    f"data.{cell.data}.{name}: {short(places[name])} is not there; give the data folder"
                    for name in gone
                ]
                continue
            try:
                read[key] = cases_for(dataclasses.replace(cell.config, data=data))
            except UserError as error:
                facts.problems += [f"data.{cell.data}: {line}" for line in str(error).splitlines()]
                continue
        cases = read[key]
        if cases is None:
            continue
        levels = (key, cell.protocol, cell.config.data.level, cell.config.data.eval_level, cell.trains)
        if levels not in asked:
            asked.add(levels)
            facts.problems += _without_level(cell, cases, evaluation)
        if data.val_path is not None and not cell.trains and "val" in evaluation.splits:
            facts.problems.append(
                f"evaluate.splits: 'val' of data.{cell.data} is of its val_path, and '{cell.method}' trains nothing and knows "
                "its path alone; leave 'val' out, or restrict the method by 'on'"
            )
        counts = Counter(str(record.split) for record in cases.all)
        facts.training[cell.data] = counts["train"]
        if cell.config.data.subset is not None:
            try:
                counts["train"] = subset_size(cell.config.data.subset, counts["train"])
            except UserError as error:
                facts.problems.append(f"fractions, data.{cell.data}: {error}")
                continue
        if cell.trains:
            twin = sizes.setdefault((cell.data, cell.protocol, cell.method, counts["train"]), cell.fraction)
            if twin != cell.fraction:
                facts.problems.append(
                    f"fractions, data.{cell.data}: '{twin}' and '{cell.fraction}' are both {counts['train']} of its training "
                    "cases; leave one of them out, or restrict it by 'on' of the methods"
                )
        facts.cases[cell.path] = counts


def _exists(path: str | Path) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long a name, a null character, a user who is not there
        return False


def _without_level(cell: Cell, cases: Any, evaluation: Evaluation) -> list[str]:
    """A line for each split in which a case lacks a prompt level that the cell asks."""
    from vlsm_adapter.data.prompts import choose_prompt

    data = cell.config.data
    asked = [(split, level) for split in evaluation.splits for level in (data.eval_level, *evaluation.levels)]
    if cell.trains:
        asked += [("train", data.level), ("val", data.eval_level)]
    problems = []
    for split, level in dict.fromkeys(asked):
        try:
            for record in cases.records(split):
                choose_prompt(record, level)
        except UserError as error:
            problems.append(f"protocols.{cell.protocol} on data.{cell.data}: {one_line(error)}")
    return problems


# -- models --------------------------------------------------------------------------------------------------------------


def _check_models(cells: Iterable[Cell], facts: Facts, *, download: bool, probe: Probe | None) -> None:
    by_model: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        by_model.setdefault(cell.model, {}).setdefault(cell.method, cell)
    for label, methods in by_model.items():
        config = next(iter(methods.values())).config
        if not download and not _is_here(config.model.name):
            facts.absent.append(
                f"model '{label}': {config.model.name} is not on this machine; methods were not tried on it"
            )
            continue
        _check_model(label, methods, facts, probe)


def _check_model(label: str, methods: dict[str, Cell], facts: Facts, probe: Probe | None) -> None:
    from vlsm_adapter.adapters import adapter_config
    from vlsm_adapter.adapters.attach import attach, detach
    from vlsm_adapter.train import build_model

    config = next(iter(methods.values())).config
    try:
        model = build_model(config)
    except UserError as error:
        facts.problems += [f"model '{label}': {line}" for line in str(error).splitlines()]
        return
    facts.sides[label] = max(model.preprocessing.size)
    facts.parameters[label] = sum(parameter.numel() for parameter in model.parameters())
    for name, cell in methods.items():
        if not cell.trains:
            if not getattr(model, "pretrained", True):
                facts.problems.append(
                    f"method '{name}' on model '{label}': it starts from random weights, and scores nothing"
                )
            facts.reports[label, name] = None
            if probe is not None:
                probe(model, cell)
            continue
        section = cell.config.adapter
        try:
            report = attach(model, adapter_config(section.method, **dict(section.settings)), "study")
        except UserError as error:
            facts.problems.append(f"method '{name}' on model '{label}': {one_line(error)}")
            continue
        facts.reports[label, name] = report
        if cell.config.train.checkpointing and not model.can_checkpoint:
            facts.problems.append(
                f"method '{name}' on model '{label}': train.checkpointing is for CLIPSeg, this is {model.family}: leave it out, "
                "or give it to the methods on CLIPSeg alone"
            )
        try:
            if probe is not None:
                probe(model, cell)
        finally:
            detach(model, "study")
            model.freeze()


def _is_here(name: str) -> bool:
    """Whether loading ``name`` needs no network."""
    from vlsm_adapter.models import embedded_models

    if "/" not in name or Path(name).expanduser().exists() or name in embedded_models():
        return True  # in the package, a folder, or a name that no hub has
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return False
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)
