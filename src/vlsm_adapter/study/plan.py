"""What a study asks for and how it stands on disk: the part of ``vlsm compare`` that starts nothing."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlsm_adapter import files
from vlsm_adapter.data.entries import real_folder
from vlsm_adapter.data.subsets import subset_size
from vlsm_adapter.errors import UserError
from vlsm_adapter.study.checks import Facts, Probe, check_cells
from vlsm_adapter.study.config import Study
from vlsm_adapter.study.drift import Comparison, drift
from vlsm_adapter.study.estimate import Estimator
from vlsm_adapter.study.folder import STATUS_FORMAT, CellFolder, StudyFolder
from vlsm_adapter.study.grid import Cell, Group, expand, select
from vlsm_adapter.study.search import GroupSearch, groups_of, need_optuna


@dataclass
class Plan:
    """A study, and how it stands.

    Attributes:
        only: the pattern that selects runs, or None.
        cells: all runs; ``selected`` those of the pattern; ``todo`` of those the ones that are not finished.
        searches: of the selected runs.
        undecided: groups whose search is not over, or found nothing: their cells are not final.
        facts, estimator: see :mod:`checks` and :mod:`estimate`.
        comparison: of the cases and base models of runs on disk with those of now.
    """

    study: Study
    folder: StudyFolder
    only: str | None = None
    cells: list[Cell] = field(default_factory=list)
    selected: list[Cell] = field(default_factory=list)
    todo: list[Cell] = field(default_factory=list)
    searches: list[GroupSearch] = field(default_factory=list)
    undecided: set[Group] = field(default_factory=set)
    facts: Facts = field(default_factory=Facts)
    estimator: Estimator = field(default_factory=lambda: Estimator(Facts()))
    comparison: Comparison = field(default_factory=Comparison)

    def cell_folder(self, cell: Cell) -> CellFolder:
        """Where the run of ``cell`` lies."""
        return CellFolder(self.folder.runs / cell.path)

    def finished(self, cell: Cell) -> bool:
        """Whether nothing is left to do for ``cell``."""
        return self.cell_folder(cell).finished(cell.config, self.study.evaluate, trains=cell.trains)

    @property
    def searching(self) -> bool:
        """Whether a search is not over."""
        return any(search.round() for search in self.searches)

    @property
    def devices(self) -> int:
        """Processes of one run, at most."""
        return max((cell.config.train.devices for cell in self.selected), default=1)

    @property
    def cpus(self) -> int:
        """Cores of one run."""
        return self.study.resources.cpus or self.devices

    @property
    def threads(self) -> int:
        """Threads of each of its processes."""
        return max(1, self.cpus // self.devices)

    def memory_gb(self) -> tuple[float, str]:
        """Memory of one run in GiB, and where the number comes from."""
        if self.study.resources.memory_gb is not None:
            return self.study.resources.memory_gb, "as the study says"
        one, source = self.estimator.memory_gb(self.todo)
        return one * self.devices, source


def make_plan(study: Study, folder: StudyFolder, only: str | None = None) -> Plan:
    """Cells, searches and what is finished, from the study and the folder alone.

    Raises:
        UserError: the folder is another's, runs on disk are not those of the study, ``only`` names none, ...
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise UserError(f"{folder.path}: is a file; give a folder for the study")
    if folder.path.is_dir() and not folder.study_file.is_file():
        held = [one.name for one in folder.path.iterdir() if not one.name.startswith(".")]
        if held:
            raise UserError(f"{folder.path}: is not empty and holds no study ({held[0]}); choose another --out")
    plan = Plan(study, folder, only)
    groups = groups_of(study, select(expand(study), only))
    if groups:
        need_optuna()
    plan.searches = [GroupSearch(study, group, folder.search.joinpath(*group), plan.comparison) for group in groups]
    settle(plan)
    return plan


def settle(plan: Plan) -> None:
    """Fill in the cells, with what the searches that are over have chosen, and which of them are to be run.

    Raises:
        ConfigError: a run is on disk with another configuration; a line for each, which names the study's file.
    """
    chosen: dict[Group, Mapping[str, Any]] = {}
    for search in plan.searches:
        best = None if search.round() else search.best()
        if best is not None:
            chosen[search.group] = best.params
    plan.undecided = {search.group for search in plan.searches} - chosen.keys()
    plan.cells = expand(plan.study, chosen)
    plan.selected = select(plan.cells, plan.only)
    # Without the search's choice a cell outside --only is not what it will be either.
    decided = [cell for cell in plan.cells if not plan.study.methods[cell.method].space or cell.group in chosen]
    drifts = [drift(plan.cell_folder(cell), cell.config, plan.comparison, trains=cell.trains) for cell in decided]
    if problems := [found for found in drifts if found is not None]:
        raise plan.study.error(problems)
    plan.todo = [cell for cell in plan.selected if cell.group in plan.undecided or not plan.finished(cell)]
    plan.estimator.done = [
        (cell, found) for cell in decided if plan.finished(cell) and (found := plan.cell_folder(cell).resources())
    ]


def check(plan: Plan, *, absent_is_wrong: bool, probe: Probe | None = None) -> None:
    """Try the grid on data and models.

    Raises:
        ConfigError: everything that is wrong, a line each that names the study's file.
    """
    cells = plan.selected if probe is not None else plan.todo
    plan.facts = check_cells(cells, plan.study.evaluate, absent_is_wrong=absent_is_wrong, probe=probe)
    for search in plan.searches:
        data = search.group[0]
        try:
            if data in plan.facts.training:
                subset_size(search.fraction, plan.facts.training[data])
        except UserError as error:
            plan.facts.problems.append(f"search.fraction, data.{data}: {error}")
    plan.facts.problems = list(dict.fromkeys(plan.facts.problems))
    if plan.facts.problems:
        raise plan.study.error(plan.facts.problems)
    evaluation = plan.study.evaluate
    plan.estimator.facts = plan.facts
    plan.estimator.splits = evaluation.splits
    plan.estimator.levels = 1 + len(evaluation.levels)
    plan.estimator.probes = evaluation.probes


def absolute(study: Study) -> Study:
    """The study with paths that do not depend on the working directory."""

    def resolved(entry: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: str(real_folder(value)) if key in ("path", "split_file", "val_path") and value else value
            for key, value in entry.items()
        }

    from vlsm_adapter.models import embedded_models, text_free_models

    def located(model: Mapping[str, Any]) -> dict[str, Any]:
        # As it is read: what is a folder here, else a name of the package or of a hub.
        name = str(model["name"])
        here = name not in (*embedded_models(), *text_free_models()) and Path(name).expanduser().is_dir()
        return {**model, "name": str(real_folder(name))} if here else dict(model)

    methods = {
        name: dataclasses.replace(
            method,
            data=resolved(method.data),
            model=None if method.model is None else (method.model[0], located(method.model[1])),
        )
        for name, method in study.methods.items()
    }
    return dataclasses.replace(
        study,
        data={name: resolved(entry) for name, entry in study.data.items()},
        protocols={name: resolved(entry) for name, entry in study.protocols.items()},
        models={label: located(entry) for label, entry in study.models.items()},
        methods=methods,
    )


def write_status(plan: Plan) -> None:
    """``status.json``: a row per run of the study."""
    name, version = STATUS_FORMAT
    rows = []
    for cell in plan.cells:
        folder = plan.cell_folder(cell)
        status = folder.status()
        if plan.finished(cell) and status.state != "finished":
            status = dataclasses.replace(status, state="finished", error=None)
        rows.append({"path": f"runs/{cell.path}", **cell.about(), **asdict(status)})
    states = Counter(row["state"] for row in rows)
    files.write_json(
        plan.folder.status_file,
        {"format": name, "format_version": version, "study": plan.study.source, "states": dict(states), "runs": rows},
    )
