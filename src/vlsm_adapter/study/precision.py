"""What ``train.precision: auto`` became in the runs of a study, beside what it is on this machine."""

from __future__ import annotations

from collections import Counter

from vlsm_adapter.config import RunConfig
from vlsm_adapter.errors import TrainingError
from vlsm_adapter.markdown import plural
from vlsm_adapter.optimization import AUTO, choose_precision
from vlsm_adapter.study.folder import CellFolder
from vlsm_adapter.study.plan import Plan


def mixed_precision(plan: Plan) -> str | None:
    """Where ``auto`` trains what is to come in another arithmetic than what is on disk: one line, to be mended in the study's file; else None."""
    auto = {name: folder for name, folder, config in _trainings(plan) if config.train.precision == AUTO}
    if all(folder.trained() for folder in auto.values()):
        return None
    here = choose_precision(AUTO)
    others = {name: used for name, folder in auto.items() if (used := folder.run.precision()) not in (None, here)}
    if not others:
        return None
    counts = Counter(others.values()).most_common()
    usual = str(counts[0][0])
    try:
        choose_precision(usual)
    except TrainingError:
        remedy = "go on with the study on a machine like theirs"
    else:
        remedy = f"to train the others like them, write 'train: {{precision: {usual}}}' in the study"
    told = " and ".join(f"{used} in {plural(count, 'run')}" for used, count in counts)
    return plan.study.line(
        f"train.precision: auto is {here} on this machine, and was {told} of this study, the first {next(iter(others))}: "
        f"what is trained now is no repetition of them, and a report leaves the fewer out; {remedy}"
    )


def _trainings(plan: Plan) -> list[tuple[str, CellFolder, RunConfig]]:
    """Name, folder and configuration of all that the study trains: runs (of the selected ones what is to come), trials."""
    selected = {cell.path for cell in plan.selected}
    found = [(cell.path, plan.cell_folder(cell), cell.config) for cell in plan.cells if cell.trains]
    found = [one for one in found if one[0] in selected or one[1].trained()]
    for search in plan.searches:
        for trial in search.trials:
            if trial.state != "failed":
                place = CellFolder(search.run_of(trial.number))
                found.append((f"search/{search.label}/{place.path.name}", place, search.config_of(trial.params)))
    return found
