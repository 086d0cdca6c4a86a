"""The command line as a user runs it: phantom data, a small random model, and ``vlsm`` in this process."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

from vlsm_adapter import cli
from vlsm_adapter.data.phantoms import write_phantoms


@dataclass
class Answer:
    """What a command gave back."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The error lines, without progress messages."""
        return "\n".join(line for line in self.err.splitlines() if line.startswith("vlsm: error:"))


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight endoscopy phantoms of 96 x 96 pixels or so, in the published layout. Read only: copy it to change it."""
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    write_phantoms(folder, cases_per_modality=10, seed=1, modalities=("endoscopy",), splits=(0.6, 0.2, 0.2))
    return folder


@pytest.fixture(scope="session")
def _fork_server() -> ModuleType:
    """The module ``forked``, its server started."""
    sys.path.append(str(Path(__file__).parent))  # processes import it by its name
    import forked

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        forked.start_server()
    return forked


@pytest.fixture
def start(_fork_server: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """``start("train", "--data", folder)``: the command as a process (``forked.Command``), ended with the test."""
    started: list[Any] = []
    folder = tmp_path_factory.mktemp("told")

    def begin(*arguments: object, **options: Any) -> Any:
        options.setdefault("told", folder / str(len(started)))
        started.append(_fork_server.Command(*arguments, **options))
        return started[-1]

    yield begin
    for command in started:
        command.kill()
        command.wait(60)


@pytest.fixture(scope="session", autouse=True)
def _one_command_tree() -> Iterator[None]:
    # Typer builds the tree of all commands and options anew for every call.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.main.get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture
def vlsm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """``vlsm("train", "--data", folder)`` runs the command and gives exit code and output."""

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["vlsm", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run
