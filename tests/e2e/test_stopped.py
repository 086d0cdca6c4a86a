"""Ctrl-C ends every command with one line and exit code 130."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


def test_ctrl_c_is_never_silent(vlsm: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vlsm_adapter.data.phantoms.write_phantoms", stop)
    answer = vlsm("data", "phantoms", tmp_path / "phantoms")
    assert (answer.code, answer.err) == (130, "vlsm: error: stopped\n")
