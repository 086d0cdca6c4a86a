"""A run folder: one process at a time, leftovers cleared, damage named."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlsm_adapter.errors import UserError
from vlsm_adapter.run_folder import RunFolder, environment


def test_a_second_process_is_kept_out_and_leftovers_go(tmp_path: Path) -> None:
    leftover = tmp_path / ".state.safetensors.abc.tmp"
    leftover.write_bytes(b"half")
    folder = RunFolder(tmp_path)
    with folder.locked():
        assert not leftover.exists()
        with pytest.raises(UserError, match="another process is training this run"), folder.locked():
            pass
    with folder.locked():
        pass
    assert not list(tmp_path.iterdir()), "no file is left over"


def test_damaged_data_file_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.data() == {}
    folder.data_file.write_text("{")
    with pytest.raises(UserError, match=r"data\.json: damaged"):
        folder.data()


def test_environment_names_what_numbers_depend_on() -> None:
    values = environment()
    assert values["versions"]["torch"] != "unknown"
    assert values["threads"] >= 1
