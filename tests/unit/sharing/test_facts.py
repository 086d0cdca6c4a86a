"""What is read of a run around an adapter: its table of epochs, and which evaluations are of its weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlsm_adapter.adapters.folder import WEIGHTS_NAME
from vlsm_adapter.errors import UserError
from vlsm_adapter.evaluation_folder import FORMAT, FORMAT_VERSION
from vlsm_adapter.run_folder import RunFolder
from vlsm_adapter.sharing.facts import _best, _evaluations, _history


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


@pytest.mark.parametrize(
    ("evaluated", "age", "why"),
    [
        (b"old", -10, "of other weights"),  # a copied run: all files are as new as the order in which they were copied
        (b"old", 10, "of other weights"),
        (None, 10, "older than the weights"),  # of a version that did not say of which weights
        (b"new", 10, None),
        (b"new", -10, None),
        (None, -10, None),
    ],
)
def test_evaluations_of_other_weights_are_left_out(
    evaluated: bytes | None, age: int, why: str | None, tmp_path: Path, summary: Callable[..., dict[str, Any]]
) -> None:
    """``age``: seconds by which the evaluation seems older than the weights."""
    adapter = {} if evaluated is None else {"sha256": hashlib.sha256(evaluated).hexdigest()}
    said = summary(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        base={"parameters": 10, "sha256": "b" * 64},
        trained_adapter={"method": "dense", **adapter},
    )
    file, weights = tmp_path / "evaluation" / "test-p1" / "summary.json", tmp_path / "adapter" / WEIGHTS_NAME
    for each, content in ((file, json.dumps(said).encode()), (weights, b"new")):
        each.parent.mkdir(parents=True)
        each.write_bytes(content)
    os.utime(weights, (1e9, 1e9))
    os.utime(file, (1e9 - age, 1e9 - age))
    (tmp_path / "config.yaml").write_text("data: {path: /data/polyps}\n")
    known = SimpleNamespace(base_hash="b" * 64, info=SimpleNamespace(threshold=0.5))
    found, left_out = _evaluations(RunFolder(tmp_path), known)  # type: ignore[arg-type]
    assert len(found) == (why is None)
    expected = f"{file.parent}: {why}; run 'vlsm evaluate' again to have it in the card"
    assert left_out == ([] if why is None else [expected])
