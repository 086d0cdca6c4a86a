"""The commands that a command advises can be pasted into a shell, and are of use."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from vlsm_adapter.run_folder import RunFolder


def advised(said: str) -> list[list[str]]:
    """The commands of the ``next:`` lines, as a shell reads them."""
    return [shlex.split(line.removeprefix("next: ")) for line in said.splitlines() if line.startswith("next: ")]


@pytest.mark.parametrize(("test_cases", "evaluates"), [(["a"], True), ([], False)])
def test_after_training(
    vlsm: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test_cases: list[str], evaluates: bool
) -> None:
    run = RunFolder(tmp_path / "my run")
    run.path.mkdir()
    run.data_file.write_text(json.dumps({"splits": {"train": ["b"], "val": ["c"], "test": test_cases}}))
    monkeypatch.setattr("vlsm_adapter.train.train", lambda *_, **__: run)
    answer = vlsm("train", "--data", tmp_path)
    assert answer.code == 0, answer.err
    assert f"adapter: {run.adapter}" in answer.err
    assert advised(answer.err) == ([["vlsm", "evaluate", str(run.path)]] if evaluates else [])


def test_after_preparing_data(capsys: pytest.CaptureFixture[str]) -> None:
    from vlsm_adapter.cli_data import _report_prepared

    summary = SimpleNamespace(warnings=(), skipped=(), resumed=0, out="my data")
    _report_prepared(summary, SimpleNamespace(say=print))
    assert advised(capsys.readouterr().out) == [["vlsm", "data", "show", "my data"]]


@pytest.mark.parametrize(
    ("options", "examples", "asked"),
    [((), ["skin lesion"], "skin lesion"), (("--prompt", "a tool"), ["polyp"], "a tool"), ((), [], "polyp")],
)
def test_after_an_export(
    vlsm: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    examples: list[str],
    asked: str,
) -> None:
    out = tmp_path / "my export"
    out.mkdir()
    (out / "manifest.json").write_text(json.dumps({"prompts": {"level": "p1", "examples": examples}}))
    monkeypatch.setattr("vlsm_adapter.export.write.export", lambda *_, **__: out)
    answer = vlsm("export", tmp_path, *options)
    assert answer.code == 0, answer.err
    (command,) = advised(answer.err)
    assert command[:6] == ["python", str(out / "runtime.py"), str(out), "IMAGE", "--prompt", asked]
