"""Choosing hyper-parameters, by the best validation Dice of trials that never see a test case.

Trials are ordinary runs below ``search/`` that are trained and not evaluated. For each data set, protocol, model and
method they are proposed in rounds, a round from the results of those before it, by Optuna's samplers with fixed seeds:
the trials do not depend on how many run at once, and a search that was interrupted goes on with the same ones.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlsm_adapter import files
from vlsm_adapter.config import RunConfig
from vlsm_adapter.errors import ConfigError, UserError, one_line
from vlsm_adapter.study.config import Study
from vlsm_adapter.study.drift import Comparison, drift
from vlsm_adapter.study.folder import CellFolder, best_validation
from vlsm_adapter.study.grid import Cell, Group, config_of
from vlsm_adapter.study.ranges import Range

_STARTUP = 10  # trials drawn at random before tpe has something to go by


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        number: from 0.
        params: dotted key to value.
        state: ``finished``, ``failed`` (for good), or that of a run under way.
        value: best validation Dice; ``epoch`` when (1-based).
        error: why it failed.
    """

    number: int
    params: Mapping[str, Any]
    state: str = "waiting"
    value: float | None = None
    epoch: int | None = None
    seconds: float = 0.0
    error: str | None = None

    @property
    def over(self) -> bool:
        """Whether it is done, well or ill."""
        return self.state in ("finished", "failed")


class GroupSearch:
    """The search for one data set, protocol, model and method.

    Args:
        study: with a ``search`` section.
        group: for what.
        folder: of the trials.
        comparison: of what trials were trained on, cases and base models, with what there is now.
    """

    def __init__(self, study: Study, group: Group, folder: Path, comparison: Comparison | None = None) -> None:
        assert study.search is not None
        self._comparison = comparison or Comparison()
        self.study, self.group, self.folder = study, group, folder
        self.settings = study.search
        self.space = study.methods[group[3]].space
        self.fraction = self.settings.fraction or study.fractions[0]
        # A grid may hold fewer combinations than there may be trials.
        combinations = math.prod(len(choice.choices) for choice in self.space.values())
        grid = self.settings.sampler == "grid"
        self.count = min(self.settings.trials, combinations) if grid else self.settings.trials
        self.trials: list[Trial] = []
        self._checked: dict[
            int, tuple[str, dict[str, Any], str | None]
        ] = {}  # of a trial: what for, values, what is wrong

    @property
    def label(self) -> str:
        """For messages."""
        return "/".join(self.group)

    def run_of(self, number: int) -> Path:
        """Folder of a trial."""
        return self.folder / f"t{number:03}"

    def config_of(self, params: Mapping[str, Any]) -> RunConfig:
        """The configuration of a trial.

        Raises:
            ConfigError: these values do not go together.
        """
        return config_of(self.study, self.group, self.fraction, self.settings.seed, params, self.settings.train)

    def about(self, trial: Trial) -> dict[str, Any]:
        """For ``cell.json``."""
        data, protocol, model, method = self.group
        adapter = self.study.methods[method].adapter
        return {
            "data": data, "protocol": protocol, "model": model, "method": method, "fraction": self.fraction,
            "seed": self.settings.seed, "adapter": adapter, "trial": trial.number, "params": dict(trial.params),
        }  # fmt: skip

    def round(self) -> list[Trial]:
        """The trials to run now, empty when the search is over: those of the first round that is not."""
        self.trials = []
        while len(self.trials) < self.count:
            count = min(self.settings.parallel, self.count - len(self.trials))
            past = [(trial.params, trial.value) for trial in self.trials]
            proposals = propose(self.space, past, count, self.settings.sampler, f"{self.settings.seed} {self.label}")
            begun = [self._read(len(self.trials) + number, params) for number, params in enumerate(proposals)]
            self.trials += begun
            if open_ones := [trial for trial in begun if not trial.over]:
                return open_ones
        return []

    def best(self) -> Trial | None:
        """The finished trial of the highest validation Dice, the first of equals."""
        found = [trial for trial in self.trials if trial.state == "finished" and trial.value is not None]
        return max(found, key=lambda trial: (trial.value, -trial.number), default=None)

    def _read(self, number: int, proposal: Mapping[str, Any]) -> Trial:
        """A trial as it stands on disk; what it was begun with counts, should the sampler propose otherwise by now."""
        folder = CellFolder(self.run_of(number))
        params, wrong = self._check(number, proposal, folder)
        if wrong is not None:
            return Trial(number, params, "failed", error=wrong)
        status = folder.status()
        if folder.trained():
            value, epoch = best_validation(folder.path) or (None, None)
            return Trial(number, params, "finished" if value is not None else "failed", value, epoch, status.seconds)
        # A kill says nothing about the values; a failure, such as a loss that is not a number, does.
        return Trial(number, params, status.state, seconds=status.seconds, error=status.error)

    def _check(self, number: int, proposal: Mapping[str, Any], folder: CellFolder) -> tuple[dict[str, Any], str | None]:
        """The values of a trial, and why they do not go together, if so; anew only where the trial's files have changed.

        Raises:
            ConfigError: the trial on disk is not one of this search.
        """
        asked = repr((dict(proposal), _stamp(folder.cell_file), _stamp(folder.run.config_file)))
        known = self._checked.get(number)
        if known is not None and known[0] == asked:
            return known[1], known[2]
        params = dict(proposal)
        if folder.cell_file.is_file():
            params = dict(folder.cell().get("params") or {})
            if params.keys() != proposal.keys():
                raise self._refusal(
                    f"{folder.path} was begun with {', '.join(params)}, the study now searches {', '.join(proposal)}; remove "
                    f"{self.folder} to search anew"
                )
            for key, value in params.items():
                grid = self.settings.sampler == "grid"
                if not self.space[key].holds(value) or (grid and repr(value) != repr(proposal[key])):
                    raise self._refusal(
                        f"{folder.path} was begun with {key}={value!r}, which {self.space[key].to_plain()} does not give "
                        f"it now; bring back what the study searched, or remove {self.folder} to search anew"
                    )
        wrong = None
        try:
            config = self.config_of(params)
        except ConfigError as error:
            wrong = one_line(error)
        else:
            if changed := drift(folder, config, self._comparison):
                raise self._refusal(changed)
        self._checked[number] = asked, params, wrong
        return params, wrong

    def _refusal(self, problem: str) -> ConfigError:
        return self.study.error([f"search: {problem}"])


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Another one for another file; None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def groups_of(study: Study, cells: Sequence[Cell]) -> list[Group]:
    """What is searched for these cells, each once."""
    return list(dict.fromkeys(cell.group for cell in cells if study.methods[cell.method].space))


def need_optuna() -> Any:
    """The package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "the study has a search, and Optuna is not installed: pip install 'vlsm-adapter[study]'"
        ) from error
    return optuna


def propose(
    space: Mapping[str, Range],
    past: Sequence[tuple[Mapping[str, Any], float | None]],
    count: int,
    sampler: str,
    seed: str,
) -> list[dict[str, Any]]:
    """The next ``count`` trials, a function of the arguments alone.

    Args:
        past: values and score (higher is better) of the trials before; None for one that failed.
        sampler: ``tpe``, ``random``, or ``grid`` (the combinations of choices, the last key varying fastest).
        seed: any text.
    """
    if sampler == "grid":
        combinations = itertools.product(*(choice.choices for choice in space.values()))
        return [
            dict(zip(space, values, strict=True))
            for values in itertools.islice(combinations, len(past), len(past) + count)
        ]
    optuna = need_optuna()
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def distribution(choice: Range) -> Any:
        if choice.choices:
            return CategoricalDistribution(choice.choices)
        if choice.whole:
            return IntDistribution(int(choice.low), int(choice.high), log=choice.log, step=int(choice.step or 1))
        return FloatDistribution(choice.low, choice.high, log=choice.log, step=choice.step)

    spaces = {key: distribution(choice) for key, choice in space.items()}
    number = int.from_bytes(hashlib.blake2b(f"{seed} {len(past)}".encode(), digest_size=4).digest(), "big")
    chosen = (
        optuna.samplers.RandomSampler(seed=number)
        if sampler == "random"
        else optuna.samplers.TPESampler(seed=number, n_startup_trials=_STARTUP)
    )
    study = optuna.create_study(direction="maximize", sampler=chosen)
    for params, value in past:
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        study.add_trial(create_trial(params=dict(params), distributions=spaces, value=value, state=state))
    return [dict(study.ask(spaces).params) for _ in range(count)]


def write_report(folder: Path, searches: Sequence[GroupSearch]) -> None:
    """``trials.csv``, a row per trial, and ``search.json``, what was searched and chosen."""
    rows: list[dict[str, Any]] = []
    chosen: list[dict[str, Any]] = []
    for search in searches:
        best = search.best()
        names = dict(zip(("data", "protocol", "model", "method"), search.group, strict=True))
        over = len(search.trials) == search.count and all(trial.over for trial in search.trials)
        chosen.append(
            {
                **names,
                "fraction": search.fraction,
                "over": over,
                "trials": len(search.trials),
                "failed": sum(trial.state == "failed" for trial in search.trials),
                "space": {key: choice.to_plain() for key, choice in search.space.items()},
                "chosen": None
                if best is None or not over
                else {"trial": best.number, "validation_dice": best.value, "params": dict(best.params)},
            }
        )
        rows += [
            {
                **names, "fraction": search.fraction, "trial": trial.number, "state": trial.state,
                "validation_dice": trial.value, "epoch": trial.epoch, "seconds": trial.seconds,
                "chosen": over and best is not None and trial.number == best.number, "error": trial.error, **trial.params,
            }
            for trial in search.trials
        ]  # fmt: skip
    if not chosen:
        return
    settings = searches[0].settings
    about = {
        "trials": settings.trials,
        "sampler": settings.sampler,
        "seed": settings.seed,
        "parallel": settings.parallel,
    }
    files.write_json(
        folder / "search.json",
        {"format": "vlsm-search", "format_version": 1, "chosen_by": "best validation Dice", **about, "groups": chosen},
    )
    files.write_csv(folder / "trials.csv", list(dict.fromkeys(key for row in rows for key in row)), rows)
