"""What an audit finds: one finding a defect, with its severity, the cases that show it, and what to do about it.

Severities:

* ``error``: the loaders refuse the case, or a number computed from this data would be wrong (a test image in train);
* ``warning``: a number is likely to flatter or to mislead; somebody has to look;
* ``note``: a property of the data that whoever reads its scores should know.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vlsm_adapter.errors import ConfigError, nearest

SEVERITIES = ("note", "warning", "error")
#: Severity from which on ``vlsm data check`` fails; ``never`` is above all of them.
FAIL_LEVELS = ("error", "warning", "never")


@dataclass(frozen=True, slots=True)
class Evidence:
    """One case, or some cases that belong together, showing a finding.

    Attributes:
        cases: case ids; two and more are to be looked at side by side (an image and its duplicate).
        why: what is seen there, in a few words: ``"says left, lies at 0.81 of the width"``.
    """

    cases: tuple[str, ...]
    why: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One defect or property of a data set.

    Attributes:
        severity: ``"error"``, ``"warning"`` or ``"note"``.
        code: the stable name of the check, e.g. ``"duplicate-across-splits"``; ``docs/check-data.md`` lists all.
        message: one line, with counts.
        evidence: every instance, the clearest first.
        advice: what to do, one line.
    """

    severity: str
    code: str
    message: str
    evidence: tuple[Evidence, ...] = ()
    advice: str = ""

    @property
    def cases(self) -> tuple[str, ...]:
        """The ids of all cases concerned, each once, in order of the evidence."""
        return tuple(dict.fromkeys(case for one in self.evidence for case in one.cases))

    def to_json(self) -> dict[str, Any]:
        """As written to ``findings.json``; the evidence is complete."""
        return {
            "severity": self.severity,
            "code": self.code,
            "message": self.message,
            "advice": self.advice,
            "evidence": [{"cases": list(one.cases), "why": one.why} for one in self.evidence],
        }


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes; within one severity the order is kept."""
    return sorted(findings, key=lambda finding: -SEVERITIES.index(finding.severity))


def fails(findings: Sequence[Finding], level: str) -> bool:
    """Whether there is a finding at or above ``level`` (``"error"``, ``"warning"``, ``"never"``).

    Raises:
        ConfigError: no such level.
    """
    if level not in FAIL_LEVELS:
        raise ConfigError(f"--fail-on '{level}' is unknown: {nearest(level, FAIL_LEVELS)}")
    if level == "never":
        return False
    return any(SEVERITIES.index(finding.severity) >= SEVERITIES.index(level) for finding in findings)


def plural(count: int, one: str, many: str | None = None) -> str:
    """``1 case``, ``2 cases``; ``many`` where an s does not make the plural."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def percent(part: float, whole: float) -> str:
    """``part`` of ``whole`` in percent, with a decimal where it is small."""
    share = 100 * part / whole if whole else 0.0
    return f"{share:.0f} %" if share >= 10 or share == 0 else f"{share:.1f} %"
