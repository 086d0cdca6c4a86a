"""Corrected masks become a data folder that training reads; a later one supersedes, nothing is lost, nothing half-written."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlsm_adapter import files
from vlsm_adapter.data.images import read_pair
from vlsm_adapter.data.records import load_records
from vlsm_adapter.errors import UserError
from vlsm_adapter.serve.corrections import Corrections

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def save(corrections: Corrections, picture: np.ndarray, **changes: Any) -> tuple[str, int]:
    mask = np.zeros(picture.shape[:2], bool)
    mask[2:9, 3:7] = True
    values: dict[str, Any] = {
        "image_id": "a" * 32,
        "frame": 0,
        "picture": picture,
        "mask": mask,
        "prompt": "polyp",
        "adapter": "first",
        "spacing": None,
    }
    return corrections.save(**{**values, **changes})


def test_training_reads_what_is_saved(tmp_path: Path, picture: np.ndarray) -> None:
    corrections = Corrections(tmp_path / "new", now=lambda: WHEN)
    for number in range(6):
        mask = np.zeros(picture.shape[:2], bool)
        mask[: number + 1] = True
        save(corrections, picture, image_id=f"{number:032x}", mask=mask, spacing=(0.5, 0.25))
    save(corrections, picture, image_id=f"{0:032x}", prompt="tool", adapter=None)
    records, skipped = load_records(tmp_path / "new")
    assert not skipped
    assert len(records) == 7
    assert {record.group for record in records} == {f"{number:032x}" for number in range(6)}
    first = records[0]
    assert first.prompts["p1"] == ("polyp",)
    assert first.spacing == (0.5, 0.25)
    image, mask = read_pair(first)
    np.testing.assert_array_equal(image, picture)
    assert mask.sum() == picture.shape[1]
    line = json.loads((tmp_path / "new" / "records.jsonl").read_text().splitlines()[0])
    assert (line["adapter"], line["saved"], line["revision"]) == ("first", "2026-01-02T03:04:05+00:00", 1)


def test_a_later_one_takes_the_place_and_the_earlier_file_stays(tmp_path: Path, picture: np.ndarray) -> None:
    corrections = Corrections(tmp_path)
    record, count = save(corrections, picture)
    assert count == 1
    assert save(corrections, picture, prompt=" polyp ", mask=np.zeros(picture.shape[:2], bool)) == (record, 1)
    assert save(corrections, picture, frame=1) != (record, 1)
    records, _ = load_records(tmp_path)
    (case,) = [one for one in records if one.case_id == record]
    assert not read_pair(case)[1].any()
    line = json.loads((tmp_path / "records.jsonl").read_text().splitlines()[0])
    assert line["revision"] == 2
    assert len(line["earlier"]) == 1
    assert (tmp_path / line["earlier"][0]).is_file()


def test_the_same_again_changes_nothing(tmp_path: Path, picture: np.ndarray) -> None:
    """A client that got no answer sends its correction once more."""
    corrections = Corrections(tmp_path)
    record = save(corrections, picture)
    before = (tmp_path / "records.jsonl").read_bytes()
    assert save(corrections, picture) == record
    assert (tmp_path / "records.jsonl").read_bytes() == before
    assert len(list((tmp_path / "masks").iterdir())) == 1
    save(corrections, picture, adapter="second")  # whose answer it was is another fact
    assert json.loads((tmp_path / "records.jsonl").read_text())["revision"] == 2


def test_a_folder_that_became_read_only(tmp_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    corrections = Corrections(tmp_path)

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(files, "locked", read_only)
    with pytest.raises(UserError, match="cannot be written \\(Read-only file system\\)"):
        save(corrections, picture)


def test_a_full_disk_leaves_the_records_as_they_were(
    tmp_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrections = Corrections(tmp_path)
    save(corrections, picture)
    before = (tmp_path / "records.jsonl").read_bytes()

    def full(path: Path, text: str) -> None:
        raise UserError("full")

    other = np.ones(picture.shape[:2], bool)
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_text", full)
        with pytest.raises(UserError, match="full"):
            save(corrections, picture, mask=other)
    assert (tmp_path / "records.jsonl").read_bytes() == before
    load_records(tmp_path)
    # The mask that was left is not written over.
    save(corrections, picture, mask=other)
    line = json.loads((tmp_path / "records.jsonl").read_text())
    assert line["mask"].endswith("_r3.png")
    assert not list(tmp_path.rglob("*.tmp"))


def test_foreign_and_damaged_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text('{"image": "a.png", "text": "polyp"}\n')
    with pytest.raises(UserError, match="folder of their own"):
        Corrections(tmp_path)
    (tmp_path / "records.jsonl").write_text('{"image": "a.png", "tex')
    with pytest.raises(UserError, match="cannot be read"):
        Corrections(tmp_path)
    (tmp_path / "records.jsonl").unlink()
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        Corrections(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        Corrections(tmp_path / "thesis.tex")


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Corrections(tmp_path / "new" / "deeper")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr("os.access", lambda place, _: Path(place) != tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        Corrections(tmp_path / "new" / "deeper")


def test_two_servers_on_one_folder(tmp_path: Path, picture: np.ndarray) -> None:
    one, two = Corrections(tmp_path), Corrections(tmp_path)
    save(one, picture, prompt="a")
    assert save(two, picture, prompt="b")[1] == 2
    assert save(one, picture, prompt="c")[1] == 3
    assert len(load_records(tmp_path)[0]) == 3
