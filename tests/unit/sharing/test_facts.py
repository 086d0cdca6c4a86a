"""What is read of a run around an adapter: its table of epochs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from vlsm_adapter.errors import UserError
from vlsm_adapter.run_folder import RunFolder
from vlsm_adapter.sharing.facts import _best, _history


def manifest(dice: float) -> SimpleNamespace:
    return SimpleNamespace(info=SimpleNamespace(scores={"validation Dice": dice}, parent={}))


def test_epochs_that_were_not_validated_have_no_scores(tmp_path: Path) -> None:
    head = "epoch,train_loss,val_loss,val_dice,seconds\n"
    (tmp_path / "metrics.csv").write_text(f"{head}1,1.5,,,2.0\n2,1.25,1.5,0.5,2.0\n3,1.0,1.25,0.25,1.0\n")
    history = _history(RunFolder(tmp_path))
    assert history[0] == {"epoch": 1.0, "train_loss": 1.5, "seconds": 2.0}
    assert sum(row["seconds"] for row in history) == 5.0
    assert _best(history, manifest(0.5)) == 2  # type: ignore[arg-type]
    assert _best(history, manifest(0.75)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("row", ["1,1.5,,,\n", "1,,,,2.0\n", "1,x,,,2.0\n", "1,1.5\n"])
def test_other_cells_must_be_there(row: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(f"epoch,train_loss,val_loss,val_dice,seconds\n{row}")
    with pytest.raises(UserError, match="damaged"):
        _history(RunFolder(tmp_path))
