"""docs/methods.md: a row for every method, with numbers that are true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from vlsm_adapter.adapters import ADAPTERS, adapter_config
from vlsm_adapter.adapters.attach import attach, detach
from vlsm_adapter.models import load_model
from vlsm_adapter.models.base import PromptSegmenter

PAGE = Path(__file__).parents[3] / "docs" / "methods.md"
ROW = re.compile(r"\| `--adapter (\w+)((?: --set adapter\.settings\.\w+=\S+)*)` \|.*\| ([\d,]+) \| ([\d,]+) \|")
ROWS = [match for line in PAGE.read_text(encoding="utf-8").splitlines() if (match := ROW.fullmatch(line))]


@pytest.fixture(scope="module")
def tiny() -> PromptSegmenter:
    return load_model("tiny")


@pytest.mark.parametrize(
    "row", ROWS, ids=[f"{row[1]}{row[2].replace(' --set adapter.settings.', ',')}" for row in ROWS]
)
def test_row(row: re.Match[str], full_size_model: PromptSegmenter, tiny: PromptSegmenter) -> None:
    settings = dict(part.split("=") for part in re.findall(r"adapter\.settings\.(\S+)", row[2]))
    config = adapter_config(row[1], **{key: yaml.safe_load(value) for key, value in settings.items()})
    counts = []
    for model in (full_size_model, tiny):
        counts.append(f"{attach(model, config).trainable:,}")
        detach(model, "default")
    assert counts == [row[3], row[4]], "write these numbers into the row"


def test_every_method_has_a_row() -> None:
    assert {row[1] for row in ROWS} == {name for name in ADAPTERS if ADAPTERS.get(name).trains}
    lines = PAGE.read_text(encoding="utf-8").count("| `--adapter ")
    assert len(ROWS) == lines, "a row is not of the form that this test reads"


def test_sizes_of_the_bases(full_size_model: PromptSegmenter, tiny: PromptSegmenter) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for model in (full_size_model, tiny):
        assert f"{sum(parameter.numel() for parameter in model.parameters()):,}" in text
