"""A folder of entries: whether it can be written, and its bound."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlsm_adapter.data.entry_folder import EntryFolder


def folder(path: Path, max_bytes: int = 3200) -> EntryFolder:
    return EntryFolder(path, max_bytes, suffix=".entry", holds="entries")


def used(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*.entry"))


def test_a_folder_that_can_be_written_is_made_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    entries = folder(tmp_path / "a" / "b")
    assert entries.writable()
    assert not list((tmp_path / "a" / "b").iterdir())
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_one_that_cannot_is_told_once_and_takes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    entries = folder(tmp_path / "file")
    assert not entries.writable()
    assert not entries.writable()
    assert not entries.takes(1)
    assert caplog.text.count("cannot be written") == 1


@pytest.mark.parametrize(("size", "writers", "above"), [(400, 1, 0), (100, 4, 0), (400, 4, 3 * 400)])
def test_how_far_writers_keep_the_bound(tmp_path: Path, size: int, writers: int, above: int) -> None:
    several = [folder(tmp_path) for _ in range(writers)]
    highest = 0
    for number in range(60):
        several[number % writers].write(f"{number:02x}{number:062x}", b"x" * size)
        highest = max(highest, used(tmp_path))
    assert 2800 <= highest <= 3200 + above
