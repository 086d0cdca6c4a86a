"""Where an audit may be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlsm_adapter.data.audit.run import check_out
from vlsm_adapter.errors import UserError


def test_an_audit_is_not_written_over_other_files_or_into_the_data(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    foreign = tmp_path / "site"
    foreign.mkdir()
    (foreign / "index.html").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for out, message in (
        (data, "lies in the data"),
        (data / "audit", "lies in the data"),
        (foreign, "holds no earlier audit"),
        (tmp_path / "file", "is a file"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            check_out(data, out)
        assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    (foreign / "findings.json").write_text("{}")
    for out in (tmp_path / "new", tmp_path / "empty", foreign):
        check_out(data, out)
