"""The folder appears whole, replaces only what it may, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlsm_adapter.errors import UserError
from vlsm_adapter.export.place import new_folder

MANIFEST = json.dumps({"format": "vlsm-export", "format_version": 1})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_appears_on_success(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "out") as made:
        (made / "file").write_text("x")
        assert not (tmp_path / "a" / "out").exists()
    assert names(tmp_path / "a") == ["out"]
    assert (tmp_path / "a" / "out" / "file").read_text() == "x"


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError("no"), OSError("full")])
def test_an_error_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "out") as made:
            (made / "file").write_text("x")
            raise error

    with pytest.raises((KeyboardInterrupt, UserError)):
        fail()
    assert names(tmp_path) == []


def test_taken_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").write_text("x")
    for name, overwrite, expected in (
        ("file", True, "is a file"),
        ("data", False, "--overwrite"),
        ("data", True, "this is none"),
    ):
        with pytest.raises(UserError, match=expected), new_folder(tmp_path / name, overwrite=overwrite):
            pytest.fail("began")
    assert names(tmp_path / "data") == ["precious"]


def test_an_earlier_export_is_replaced_whole_or_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text(MANIFEST)
    (out / "old").write_text("x")
    with pytest.raises(UserError), new_folder(out, overwrite=True):
        raise UserError("stop")
    assert names(out) == ["manifest.json", "old"]
    with new_folder(out, overwrite=True) as made:
        (made / "new").write_text("x")
    assert names(out) == ["new"]
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as made:
        (made / "file").write_text("x")
    assert names(tmp_path / "out") == ["file"]


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def meet() -> None:
        with new_folder(tmp_path / "out"):
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").write_text("x")

    with pytest.raises(UserError, match="exists"):
        meet()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["theirs"]
