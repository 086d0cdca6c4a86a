"""Files whose aliases stand for far more than was written."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

from vlsm_adapter.config import RunConfig
from vlsm_adapter.errors import ConfigError
from vlsm_adapter.plain_values import check_size
from vlsm_adapter.study.reader import load_study


def bomb(levels: int) -> str:
    names = "abcdefghij"[:levels]
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    return "\n".join([*lines, *(f"{n}: &{n} [{', '.join([f'*{p}'] * 10)}]" for p, n in itertools.pairwise(names))])


@pytest.mark.parametrize("text", [f"{bomb(10)}\ndata: {{path: *j}}", "data: &a {path: [*a]}"])
def test_what_aliases_stand_for_is_counted_before_it_is_read(text: str, tmp_path: Path) -> None:
    file = tmp_path / "bomb.yaml"
    file.write_text(text)
    for read in (RunConfig.load, load_study):
        with pytest.raises(ConfigError, match="stand for more than 1,000,000 values, or for themselves") as caught:
            read(file)
        assert len(str(caught.value)) < 300


def test_aliases_of_an_ordinary_size_are_fine() -> None:
    check_size(yaml.safe_load(bomb(5)), "x")
    check_size({"a": [1, {"b": None}], "c": []}, "x")
