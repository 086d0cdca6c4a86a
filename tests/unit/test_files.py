"""Atomic writing: after any failure the old file stands, whole, and nothing lies beside it."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlsm_adapter import files
from vlsm_adapter.errors import UserError


def test_folders_are_made(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a" / "b.txt", "é\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "é\n".encode()


def test_bytes_and_replacement(tmp_path: Path) -> None:
    for content in (b"one", b"", b"\x00\xff" * 1000):
        files.write_bytes(str(tmp_path / "x"), content)
        assert (tmp_path / "x").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_file_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "x", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [RuntimeError("in the body"), KeyboardInterrupt()])
def test_error_in_the_body_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "x"
    target.write_text("old")
    with pytest.raises(type(error)), files.atomic_path(target) as temporary:  # noqa: PT012
        temporary.write_text("half of the n")
        raise error
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    target = tmp_path / "x"
    target.write_text("old")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if step == "fsync" else Path, step, no_space)
    with pytest.raises(UserError, match="No space left on device") as caught:
        files.write_text(target, "new")
    assert str(target) in str(caught.value)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match="cannot be written"):
        files.write_text(tmp_path / "x" / "y", "")


@pytest.mark.parametrize("value", [float("nan"), [float("inf")]])
def test_json_has_no_nan(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "x.json", value)
    assert not (tmp_path / "x.json").exists()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    )
)
def test_json_reads_back(tmp_path: Path, value: object) -> None:
    files.write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == value


def test_a_lock_keeps_others_out_and_leaves_nothing(tmp_path: Path) -> None:
    lock = tmp_path / "new" / ".lock"
    with files.locked(lock, "busy: wait"):
        with pytest.raises(UserError, match=r"^busy: wait$"), files.locked(lock, "busy: wait"):
            pass
        assert lock.exists(), "the refused one did not remove it"
    assert not lock.exists()
    lock.write_text("")  # what a kill leaves
    with files.locked(lock, "busy"):
        pass
    with pytest.raises(KeyboardInterrupt), files.locked(lock, "busy"):
        raise KeyboardInterrupt
    with files.locked(lock, "busy"):
        pass


def test_a_lock_lets_one_in_at_a_time(tmp_path: Path) -> None:
    inside, most, entered = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, entered
        for _ in range(100):
            try:
                with files.locked(tmp_path / "a" / ".lock", "busy"):
                    inside += 1
                    most = max(most, inside)
                    entered += 1
                    time.sleep(1e-4)
                    inside -= 1
            except UserError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, inside) == (1, 0)
    assert entered > 0


TEXTS = st.text(st.one_of(st.sampled_from('\r\n",; '), st.characters(exclude_categories=["Cs"])))


@given(st.lists(st.fixed_dictionaries({"a": TEXTS, 'b, "c"': TEXTS}), max_size=4))
def test_a_table_reads_back_whatever_its_texts_hold(rows: list[dict[str, str]]) -> None:
    read = list(csv.DictReader(io.StringIO(files.csv_text(["a", 'b, "c"'], rows), newline="")))
    assert read == rows


def test_an_ordinary_table_has_no_quotes_and_empty_cells_for_nothing() -> None:
    assert files.csv_text(["a", "b"], [{"a": "polyp", "b": 0.5}, {"a": None, "b": 1}]) == "a,b\npolyp,0.5\n,1\n"
