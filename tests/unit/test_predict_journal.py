"""The journal of a prediction: what survives a kill, what is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlsm_adapter.errors import UserError
from vlsm_adapter.imaging.base import OutputNames
from vlsm_adapter.imaging.pictures_in import PictureStack
from vlsm_adapter.predict_journal import NAME, Done, Journal, fingerprint
from vlsm_adapter.types import Skipped

ASKED = {"prompts": ["polyp", "息肉"], "threshold": 0.5}
DONE = Done(
    "abc-1",
    ("a.png",),
    ({"image": "a\udcff.png", "mask": "a.png", "area_px": 3},),
    OutputNames("a", ("a",)),
    (Skipped("f", "f.png", "truncated"),),
)


def written(out: Path) -> Journal:
    journal = Journal(out, ASKED)
    journal.begin("a", ["a.png"])
    journal.finish("a", DONE)
    journal.begin("b", ["b.png", "b_overlay.png"])
    journal.close()
    return journal


def test_what_was_done_and_begun_is_known_again(tmp_path: Path) -> None:
    written(tmp_path)
    again = Journal(tmp_path, ASKED)
    assert again.continued
    assert again.done == {"a": DONE}
    assert again.begun == {"a.png", "b.png", "b_overlay.png"}
    again.start()
    again.close()
    once_more = Journal(tmp_path, ASKED)
    assert (once_more.done, once_more.begun) == (again.done, again.begun)


def test_a_torn_last_line_costs_one_stack(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / NAME
    whole = path.read_bytes()
    for cut in range(len(whole) - 50, len(whole)):
        path.write_bytes(whole[:cut])
        journal = Journal(tmp_path, ASKED)
        assert journal.done == {"a": DONE}
        journal.begin("c", ["c.png"])  # is no part of the torn line
        journal.close()
        assert "c.png" in Journal(tmp_path, ASKED).begun


def test_other_questions_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(UserError, match=r"threshold 0\.5, now 0\.4"):
        Journal(tmp_path, {**ASKED, "threshold": 0.4})
    with pytest.raises(UserError, match="window null, now"):
        Journal(tmp_path, {**ASKED, "window": [40, 400]})
    assert Journal(tmp_path, {"other": 1}, fresh=True).done == {}


@pytest.mark.parametrize("content", [b"", b"\0\xff", b"[]\n", b'{"journal": 99, "asked": {}}\n', b'"text"\n'])
def test_what_is_no_journal(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(UserError, match="no journal of this version"):
        Journal(tmp_path, ASKED)


def test_a_changed_file_has_another_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    before = fingerprint(PictureStack(path))
    assert fingerprint(PictureStack(path)) == before
    path.write_bytes(b"12")
    assert fingerprint(PictureStack(path)) != before
    path.unlink()
    assert fingerprint(PictureStack(path)) != before
