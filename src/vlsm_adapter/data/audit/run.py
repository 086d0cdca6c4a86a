"""The whole audit: read, look at every file once, run all checks, write what was found."""

from __future__ import annotations

import os
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlsm_adapter import files
from vlsm_adapter.data.audit.classes import class_findings
from vlsm_adapter.data.audit.duplicates import (
    MAX_BITS,
    MIN_CORRELATION,
    MIN_FINE_CORRELATION,
    duplicate_findings,
    find_copies,
)
from vlsm_adapter.data.audit.findings import SEVERITIES, Evidence, Finding, by_severity, plural
from vlsm_adapter.data.audit.groups import group_findings
from vlsm_adapter.data.audit.pixels import Look, look_at_all, pixel_findings
from vlsm_adapter.data.audit.reading import Case, DataSet, read_data
from vlsm_adapter.data.audit.sizes import size_findings, split_order
from vlsm_adapter.data.audit.words import word_findings
from vlsm_adapter.data.entries import real_folder
from vlsm_adapter.data.group_files import write_group_file
from vlsm_adapter.errors import DataError, UserError

#: A context manager that takes a description and a total and gives a function called with the number done.
Bar = Callable[[str, int], AbstractContextManager[Callable[..., None]]]
# So many entries with equal names and equal describing words are no chance.
_COPIED_LEAST = 10
_SHOWN = 3
_WIDTH = 160  # of the text in characters
_LONGEST = 1200  # characters of one instance; prompts may be longer


@dataclass(slots=True)
class SetAudit:
    """One data set, what its files hold (empty for annotations alone), and the findings, the worst first.

    ``copies`` are sets of case ids that show one picture, exactly or nearly (``duplicates.Copies.groups``).
    """

    data: DataSet
    looks: dict[str, Look] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    copies: list[tuple[str, ...]] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Split to number of cases, in the usual order."""
        found = Counter(case.split for case in self.data.cases)
        return {split: found[split] for split in sorted(found, key=split_order)}

    def title(self) -> str:
        """``kvasir_polyp: 1000 cases (train 800, val 100, test 100)``."""
        counts = ", ".join(f"{split} {count}" for split, count in self.counts().items())
        images = "" if self.data.with_images else "; annotations without images"
        return f"{self.data.name}: {plural(len(self.data.cases), 'case')} ({counts}){images}"


@dataclass(slots=True)
class Audit:
    """What an audit found.

    Attributes:
        where: what was checked.
        sets: one data set, or several sets of annotations.
        between: what shows only between several sets.
    """

    where: str
    sets: list[SetAudit]
    between: list[Finding] = field(default_factory=list)

    @property
    def findings(self) -> list[Finding]:
        """All findings, the worst first."""
        return by_severity([*self.between, *(finding for one in self.sets for finding in one.findings)])

    def summary(self) -> str:
        """``2 errors, 8 warnings, 6 notes``."""
        counts = Counter(finding.severity for finding in self.findings)
        return ", ".join(plural(counts[severity], severity) for severity in reversed(SEVERITIES))

    def lines(self) -> Iterator[str]:
        """The audit as text, with the first few cases of each finding."""
        for one in self.sets:
            yield one.title()
            yield from (line for finding in one.findings for line in _text(finding))
        yield from (line for finding in self.between for line in _text(finding))
        yield self.summary()

    def to_json(self) -> dict[str, Any]:
        """The audit with all evidence, as JSON values."""
        return {
            "where": self.where,
            "summary": {severity: sum(f.severity == severity for f in self.findings) for severity in SEVERITIES},
            "sets": [
                {
                    "name": one.data.name,
                    "images": one.data.with_images,
                    "cases": one.counts(),
                    "findings": [finding.to_json() for finding in one.findings],
                }
                for one in self.sets
            ],
            "between_sets": [finding.to_json() for finding in self.between],
        }


def check_data(
    path: str | os.PathLike[str],
    *,
    prompt: str | None = None,
    thumbnails: bool = False,
    workers: int | None = None,
    bar: Bar | None = None,
) -> Audit:
    """Audit a data set: every file is decoded once, nothing is written.

    Args:
        path: a data folder or manifest; or annotations without images, ``train.json``, ``val.json``, ``test.json`` in a
            folder, or a folder of such folders.
        prompt: what the masks of a plain folder show; without it words are not checked there.
        thumbnails: keep small pictures, for ``write_audit``.
        workers: threads that decode; by default one for each processor, at most eight.
        bar: shows progress, ``Console.bar``.

    Raises:
        DataError: no known layout, or not one usable case.
    """
    workers = workers or min(8, os.cpu_count() or 1)
    audits: list[SetAudit] = []
    for data in read_data(Path(path), prompt):
        looks: dict[str, Look] = {}
        if data.with_images:
            with (bar or _no_bar)(f"looking at {data.name}", len(data.cases)) as advance:
                looks = look_at_all(data.cases, thumbnails=thumbnails, workers=workers, progress=advance)
        found, copies = _checks(data, looks)
        audits.append(SetAudit(data, looks, by_severity(found), copies))
    return Audit(str(path), audits, _between([one.data for one in audits]))


def _checks(data: DataSet, looks: dict[str, Look]) -> tuple[list[Finding], list[tuple[str, ...]]]:
    cases = data.cases
    found = list(data.findings)
    groups: list[tuple[str, ...]] = []
    if data.with_images:
        copies = find_copies(cases, looks)
        groups = copies.groups
        found += pixel_findings(cases, looks)
        found += [*duplicate_findings(cases, looks, copies), *size_findings(cases, looks)]
    found += group_findings(cases, looks)
    if data.with_words:
        found += [*word_findings(cases, looks), *class_findings(cases)]
    return found, groups


def _between(sets: Sequence[DataSet]) -> list[Finding]:
    """Annotations of one set that are a copy of another's: equal names with equal words drawn from the masks."""
    found: list[Finding] = []
    keys = [
        {(case.name, case.mask_name, _describing(case)): case for case in data.cases if _describing(case)}
        for data in sets
    ]
    for first in range(len(sets)):
        for second in range(first + 1, len(sets)):
            shared = sorted(keys[first].keys() & keys[second].keys())
            if len(shared) < _COPIED_LEAST or 5 * len(shared) < min(len(keys[first]), len(keys[second])):
                continue
            one, other = sets[first].name, sets[second].name
            found.append(
                Finding(
                    "error",
                    "annotations-copied",
                    f"{len(shared)} entries of {one} ({len(sets[first].cases)} cases) and {other} ({len(sets[second].cases)} "
                    "cases) are the same, name and words",
                    tuple(Evidence((keys[first][key].id,), key[0]) for key in shared),
                    "one of the two annotates other pictures: do not use it",
                )
            )
    return found


def _describing(case: Case) -> str:
    """The words that depend on the case: all levels but p0 and p1."""
    prompts = case.record.prompts
    return "\n".join(text for level in sorted(prompts) if level not in ("p0", "p1") for text in prompts[level])


def _text(finding: Finding) -> Iterator[str]:
    yield f"  {finding.severity:8} {finding.code}: {finding.message}"
    for one in finding.evidence[:_SHOWN]:
        yield from _wrapped(f"{', '.join(one.cases[:4])}{': ' + one.why if one.why else ''}")
    if len(finding.evidence) > _SHOWN:
        yield f"      ... and {len(finding.evidence) - _SHOWN} more"
    if finding.advice:
        yield f"      -> {finding.advice}"


def _wrapped(text: str) -> list[str]:
    """``text`` in lines that a terminal shows well; a reason names the file first and the fix last, so both ends are kept."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    lines = textwrap.wrap(text, _WIDTH - 8, break_long_words=False, break_on_hyphens=False)
    return [f"{' ' * (8 if number else 6)}{line}" for number, line in enumerate(lines)]


def write_groups(audit: Audit, out: str | os.PathLike[str]) -> int:
    """Write the copies that an audit found as a group file (``group_files``) for ``vlsm data split``.

    Returns:
        The number of groups.

    Raises:
        DataError: several data sets, or annotations without images; or ``out`` is there and is no group file.
        UserError: it cannot be written.
    """
    if len(audit.sets) != 1 or not audit.sets[0].data.with_images:
        raise DataError(f"{audit.where}: copies are found in the images of one data set: give its folder, with images")
    (one,) = audit.sets
    limits = {
        "max_hash_bits": MAX_BITS,
        "min_correlation": MIN_CORRELATION,
        "min_fine_correlation": MIN_FINE_CORRELATION,
    }
    return write_group_file(out, one.copies, one.data.name, {"made_by": "vlsm data check", **limits})


def check_out(where: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Whether an audit of ``where`` may be written to ``out``; cheap, to be asked before the audit is made.

    Raises:
        UserError: a file, a folder of other things, or one inside the data.
    """
    folder, data = real_folder(out), real_folder(where)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{out}: is a file; give a folder for the audit (--out)")
    if data.is_dir() and folder.is_relative_to(data):
        raise UserError(f"{out}: lies in the data, whose pictures would be joined by the audit's; choose another --out")
    if folder.is_dir() and not (folder / "findings.json").is_file() and any(folder.iterdir()):
        raise UserError(f"{out}: is not empty and holds no earlier audit; choose another --out")


def write_audit(audit: Audit, out: str | os.PathLike[str]) -> Path:
    """Write ``index.html``, ``findings.json`` and, where there are pictures, ``contact-sheet.png``; returns the page.

    Args:
        audit: of ``check_data(..., thumbnails=True)``; without thumbnails the page has no pictures.
        out: folder to make, an empty one, or that of an earlier audit, whose three files are replaced.

    Raises:
        UserError: ``check_out``; or it cannot be written.
    """
    from vlsm_adapter.data.audit.page import contact_sheet, html_page

    check_out(audit.where, out)
    folder = Path(out)
    files.write_json(folder / "findings.json", audit.to_json())
    sheet = contact_sheet(audit)
    if sheet is not None:
        files.write_bytes(folder / "contact-sheet.png", sheet)
    files.write_text(folder / "index.html", html_page(audit))
    return folder / "index.html"


@contextmanager
def _no_bar(description: str, total: int) -> Iterator[Callable[..., None]]:
    yield lambda done, note="": None
