"""Errors: kinds, exit code, and the clauses that messages are built from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlsm_adapter import errors


@pytest.mark.parametrize("name", ["ConfigError", "DataError", "ModelError", "AdapterError", "TrainingError"])
def test_kinds_are_the_users_to_mend(name: str) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, errors.UserError)
    assert issubclass(kind, ValueError)
    assert kind.exit_code == 2


def test_nearest_name_comes_first() -> None:
    assert errors.nearest("dens", ["shallow", "dense"]) == "did you mean 'dense'? allowed: dense, shallow"
    assert errors.nearest("xyz", ["shallow", "dense"]) == "allowed: dense, shallow"
    assert errors.nearest("xyz", []) == "allowed: (none)"


@given(st.text(max_size=700))
def test_one_line_is_one_line(text: str) -> None:
    line = errors.one_line(RuntimeError(text))
    assert 0 < len(line) <= 300
    assert len(line.splitlines()) == 1


def test_one_line_keeps_the_words() -> None:
    assert errors.one_line(ValueError("first\n  second\tthird ")) == "first second third"
    assert errors.one_line(MemoryError()) == "MemoryError"
