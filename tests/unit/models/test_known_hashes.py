"""Hashes of files are kept, and given again for the same files alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from vlsm_adapter.models import known_hashes
from vlsm_adapter.models.known_hashes import hash_of


class Counted:
    """Hashes, and counts how often it was asked."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0

    def __call__(self) -> str:
        self.count += 1
        return self.path.read_text()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(known_hashes, "LEAST", 1)
    monkeypatch.setattr(known_hashes, "_SETTLED", 0.0)
    monkeypatch.setenv("VLSM_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "model.safetensors"
    path.write_text("one")
    time.sleep(0.01)
    return path


def test_is_computed_once(file: Path) -> None:
    compute = Counted(file)
    assert [hash_of([file], compute) for _ in range(3)] == ["one"] * 3
    assert compute.count == 1


def test_another_content_of_the_same_size_and_time_is_seen(file: Path) -> None:
    compute = Counted(file)
    hash_of([file], compute)
    before = file.stat()
    file.write_text("two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync or cp -p would
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert hash_of([file], compute) == "two"


def test_another_file_in_its_place_is_seen(file: Path) -> None:
    compute = Counted(file)
    hash_of([file], compute)
    (file.parent / "new").write_text("new")
    (file.parent / "new").replace(file)
    assert hash_of([file], compute) == "new"


def test_what_has_just_changed_is_not_kept(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_hashes, "_SETTLED", 60.0)
    compute = Counted(file)
    assert [hash_of([file], compute) for _ in range(2)] == ["one"] * 2
    assert compute.count == 2


@pytest.mark.parametrize("damage", ["[" * 100_000, "", "{", "[]", '{"files": 1}', "\x00"])
def test_damaged_entry_is_replaced(file: Path, tmp_path: Path, damage: str) -> None:
    compute = Counted(file)
    hash_of([file], compute)
    [entry] = (tmp_path / "cache" / "hashes").iterdir()
    entry.write_text(damage)
    assert [hash_of([file], compute) for _ in range(2)] == ["one"] * 2
    assert compute.count == 2


def test_off_small_and_unwritable_are_computed(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = Counted(file)
    monkeypatch.setenv("VLSM_CACHE_DIR", "off")
    hash_of([file], compute), hash_of([file], compute)
    monkeypatch.setenv("VLSM_CACHE_DIR", str(file))  # no folder can be made in a file
    hash_of([file], compute), hash_of([file], compute)
    monkeypatch.setenv("VLSM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(known_hashes, "LEAST", 1 << 20)
    hash_of([file], compute), hash_of([file], compute)
    assert compute.count == 6
    assert not (tmp_path / "cache").exists()


def test_file_that_is_missing_is_left_to_who_reads_it(file: Path) -> None:
    with pytest.raises(FileNotFoundError):
        hash_of([file.parent / "no"], Counted(file.parent / "no"))
