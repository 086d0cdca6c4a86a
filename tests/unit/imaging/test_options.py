"""Windows, sizes and forms as the user gives them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlsm_adapter.errors import UserError
from vlsm_adapter.imaging.options import Window, check_form, parse_size


def test_windows() -> None:
    assert Window.parse("auto") is None
    assert Window.parse("40,400") == Window(40, 400)
    assert Window.parse(" -600 , 1500 ") == Window(-600, 1500)
    assert Window.parse("percentiles") == Window(percentiles=(0.5, 99.5))
    assert Window.parse("percentiles:1,99") == Window(percentiles=(1, 99))
    assert Window(40, 400).limits == (-160, 240)
    assert Window(percentiles=(1, 99)).limits is None


@pytest.mark.parametrize(
    "text", ["", "40", "40,0", "40,-1", "a,b", "1,2,3", "nan,1", "percentiles:99,1", "percentiles:-1,50"]
)
def test_windows_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--window"):
        Window.parse(text)


@given(st.text(max_size=20))
def test_any_text_is_a_window_or_an_error(text: str) -> None:
    with contextlib.suppress(UserError):
        found = Window.parse(text)
        assert found is None or (found.limits is None) == (found.percentiles is not None)


def test_sizes_and_forms() -> None:
    assert parse_size("50") == (50, False)
    assert parse_size("50px") == (50, False)
    assert parse_size("2.5 mm2") == parse_size("2.5mm") == (2.5, True)
    for text in ("", "-1", "1cm", "x", "1e9mm4"):
        with pytest.raises(UserError, match="--min-size"):
            parse_size(text)
    assert check_form("seg") == "seg"
    with pytest.raises(UserError, match="did you mean 'nifti'"):
        check_form("nifty")
