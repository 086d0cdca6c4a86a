"""What a prepared data set says of itself: ``dataset.json`` for programs, ``README.md`` for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlsm_adapter.types import Skipped

FORMAT, VERSION = "vlsm-prepared", 1
_MOST_LISTED = 50


@dataclass(frozen=True)
class About:
    """Where a data set comes from and on what terms.

    Attributes:
        name: short name, as in ``vlsm data prepare NAME``.
        title: the name its owners give it.
        kind: ``"source"`` (a public set known to us) or ``"import"`` (the user's own).
        licence, citation, homepage: as its owners state them; empty where unknown.
        origin: what it was made of and with which options, as JSON values; another origin is another data set. File
            names without folders, so that a copy made elsewhere says the same.
        command: the command that makes it.
        notes: lines for the card.
    """

    name: str
    title: str = ""
    kind: str = "import"
    licence: str = ""
    citation: str = ""
    homepage: str = ""
    origin: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    notes: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """What must agree for a folder to hold this very set."""
        return {"format": FORMAT, "version": VERSION, "name": self.name, "origin": dict(self.origin)}


@dataclass(frozen=True)
class Summary:
    """What was written.

    Attributes:
        out: the folder.
        name: of the set.
        cases, images: how many; an image may serve several cases.
        splits, classes: name to number of cases; ``"unassigned"`` where the set says no split.
        groups: different groups (patients, sequences), 0 where none is known.
        empty_masks: cases without any foreground.
        expected: the number of cases its owners state, or None.
        skipped: bad cases left out.
        warnings: one line each.
        resumed: cases that an earlier, stopped call had finished; all of them when the set was complete.
    """

    out: str
    name: str
    cases: int
    images: int
    splits: Mapping[str, int]
    classes: Mapping[str, int]
    groups: int
    empty_masks: int
    expected: int | None = None
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()
    resumed: int = 0

    @classmethod
    def of(cls, found: Mapping[str, Any], out: str) -> Summary:
        """Back from ``dataset.json``; raises KeyError or TypeError where that is another file."""
        return cls(
            out=out,
            name=found["name"],
            cases=found["cases"],
            images=found["images"],
            splits=found["splits"],
            classes=found["classes"],
            groups=found["groups"],
            empty_masks=found["empty_masks"],
            expected=found["expected_cases"],
            skipped=tuple(Skipped(row["case_id"], row["path"], row["reason"]) for row in found["skipped"]),
            warnings=tuple(found["warnings"]),
            resumed=found["cases"],
        )

    def __str__(self) -> str:
        """One line: how much of what."""
        parts = [
            f"{self.cases} case{'' if self.cases == 1 else 's'} on {self.images} image{'' if self.images == 1 else 's'}"
        ]
        if set(self.splits) != {"unassigned"}:
            parts.append(_counts(self.splits))
        if len(self.classes) > 1:
            parts.append(_counts(self.classes))
        if self.groups:
            parts.append(f"{self.groups} groups")
        if self.empty_masks:
            parts.append(f"{self.empty_masks} empty masks")
        if self.skipped:
            parts.append(f"{len(self.skipped)} left out as bad")
        return f"{self.out}: " + "; ".join(parts)


def facts(about: About, summary: Summary) -> dict[str, Any]:
    """The content of ``dataset.json``; no date and no machine, so that equal sets have equal files."""
    return {
        **about.identity(),
        "title": about.title or about.name,
        "kind": about.kind,
        "licence": about.licence,
        "citation": about.citation,
        "homepage": about.homepage,
        "command": about.command,
        "cases": summary.cases,
        "expected_cases": summary.expected,
        "images": summary.images,
        "splits": dict(summary.splits),
        "classes": dict(summary.classes),
        "groups": summary.groups,
        "empty_masks": summary.empty_masks,
        "notes": list(about.notes),
        "warnings": list(summary.warnings),
        "skipped": [{"case_id": s.case_id, "path": s.path, "reason": s.reason} for s in summary.skipped],
    }


def card(about: About, summary: Summary) -> str:
    """The content of ``README.md``: Markdown."""
    lines = [f"# {about.title or about.name}", ""]
    lines += [
        f"- {label}: {value}"
        for label, value in (
            ("Licence", about.licence or "not stated: ask the owners before you use or share it"),
            ("Citation", about.citation),
            ("Home page", about.homepage),
            ("Made with", f"`{about.command}`" if about.command else ""),
        )
        if value
    ]
    lines += ["", "| | cases |", "|---|---|", f"| all | {summary.cases} |"]
    lines += [f"| {name} | {count} |" for name, count in summary.splits.items() if name != "unassigned"]
    lines += [f"| {name.replace('|', '/')} | {count} |" for name, count in summary.classes.items()]
    lines += [f"| empty mask | {summary.empty_masks} |", ""]
    lines.append(
        f"{summary.images} images"
        + (f" of {summary.groups} groups (patients or sequences)." if summary.groups else ".")
    )
    lines.append(
        "`images/` holds each image once, `masks/` one 0/255 PNG a case; `records.jsonl` lists the cases with prompts."
    )
    if about.notes or summary.warnings:
        lines += ["", "## Notes", "", *(f"- {text}" for text in (*about.notes, *summary.warnings))]
    if summary.skipped:
        lines += ["", f"## Left out ({len(summary.skipped)})", ""]
        lines += [f"- {case.case_id}: {case.reason}" for case in summary.skipped[:_MOST_LISTED]]
        if len(summary.skipped) > _MOST_LISTED:
            lines.append(f"- and {len(summary.skipped) - _MOST_LISTED} more, all in `dataset.json`")
    return "\n".join(lines) + "\n"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
