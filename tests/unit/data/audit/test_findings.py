"""Severities, order and the level at which an audit fails."""

from __future__ import annotations

import pytest

from vlsm_adapter.data.audit.findings import Evidence, Finding, by_severity, fails, percent, plural
from vlsm_adapter.errors import ConfigError

NOTE, WARNING, ERROR = (Finding(severity, severity, "") for severity in ("note", "warning", "error"))


def test_worst_first_and_stable() -> None:
    other = Finding("warning", "other", "")
    assert by_severity([NOTE, WARNING, ERROR, other]) == [ERROR, WARNING, other, NOTE]


@pytest.mark.parametrize(
    ("found", "level", "expected"),
    [
        ([], "warning", False),
        ([NOTE], "warning", False),
        ([WARNING], "warning", True),
        ([WARNING], "error", False),
        ([ERROR, NOTE], "error", True),
        ([ERROR], "warning", True),
        ([ERROR], "never", False),
    ],
)
def test_fail_level(found: list[Finding], level: str, expected: bool) -> None:
    assert fails(found, level) is expected


def test_unknown_level_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'error'"):
        fails([], "errors")


def test_cases_are_listed_once_and_written_whole() -> None:
    finding = Finding("error", "x", "m", (Evidence(("a", "b"), "why"), Evidence(("b", "c"))), "do")
    assert finding.cases == ("a", "b", "c")
    assert finding.to_json() == {
        "severity": "error",
        "code": "x",
        "message": "m",
        "advice": "do",
        "evidence": [{"cases": ["a", "b"], "why": "why"}, {"cases": ["b", "c"], "why": ""}],
    }


def test_words_for_counts() -> None:
    assert (plural(1, "case"), plural(2, "case"), plural(2, "entry", "entries")) == ("1 case", "2 cases", "2 entries")
    assert (percent(1, 8), percent(1, 40), percent(0, 5), percent(1, 0)) == ("12 %", "2.5 %", "0 %", "0 %")
