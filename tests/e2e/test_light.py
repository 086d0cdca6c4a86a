"""Nothing heavy before it is needed; verbs that only list."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "peft", "scipy", "numpy", "PIL")


@pytest.mark.parametrize("code", ["import vlsm_adapter", "import vlsm_adapter.cli", "import vlsm_adapter.config"])
def test_importing_loads_nothing_heavy(code: str) -> None:
    script = f"import sys; {code}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_version_and_lists(vlsm: Callable, phantoms: Path) -> None:
    for arguments, says in (
        (["--help"], "evaluate"),
        (["--version"], "vlsm-adapter 0"),
        (["models"], "tiny"),
        (["adapters"], "bottleneck_dim"),
        (["data", "show", phantoms], "6 train"),
        (["train", "--help"], "--resume"),
    ):
        answer = vlsm(*arguments)
        assert answer.code == 0, answer.err
        assert says in answer.out


def test_every_public_name_is_there() -> None:
    import vlsm_adapter

    for name in vlsm_adapter.__all__:
        assert getattr(vlsm_adapter, name) is not None
    assert set(vlsm_adapter.__all__) <= set(dir(vlsm_adapter))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vlsm_adapter.nothing
