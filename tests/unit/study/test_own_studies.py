"""configs/studies: the studies of docs/results/study.md can be read, agree with each other, and its commands select runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vlsm_adapter.study.grid import expand, select
from vlsm_adapter.study.reader import load_study

ROOT = Path(__file__).resolve().parents[3]
STUDIES = sorted((ROOT / "configs" / "studies").glob("*.yaml"))
PAGE = ROOT / "docs" / "results" / "study.md"
RATES = {"tiny_rates", "int8"}  # of these two, one seeks them and one has its own question


def commands() -> list[list[str]]:
    """Calls of ``vlsm compare`` on the page, options on continued lines included; the one variable is filled in."""
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    only = re.search(r"^ONLY='([^']+)'$", text, re.MULTILINE)
    assert only
    lines = re.findall(r"^vlsm compare .*$", text, re.MULTILINE)
    return [shlex.split(line.replace('"$ONLY"', f"'{only[1]}'"), comments=True) for line in lines]


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_can_be_read_and_says_how_it_is_run(file: Path) -> None:
    assert expand(load_study(file))
    header = file.read_text(encoding="utf-8").split("\ndata:")[0]
    assert f"vlsm compare configs/studies/{file.name}" in header


@pytest.mark.parametrize("file", [file for file in STUDIES if file.stem not in RATES], ids=lambda file: file.stem)
def test_learning_rates_are_those_of_the_first(file: Path) -> None:
    """A method has one rate in all of them: what a study varies is something else."""

    def rates(study: Path) -> dict[tuple[str, str], float]:
        return {
            (cell.config.model.name, str(cell.config.adapter)): cell.config.train.lr
            for cell in expand(load_study(study))
        }

    first = rates(ROOT / "configs" / "studies" / "tiny.yaml")
    for what, rate in rates(file).items():
        assert rate == first[what]


def test_the_pages_commands_select_runs() -> None:
    assert len(commands()) >= 7
    for command in commands():
        cells = expand(load_study(ROOT / command[2]))
        if "--only" in command:
            assert select(cells, command[command.index("--only") + 1])  # a part that names no run is an error
