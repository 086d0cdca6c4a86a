"""``vlsm data prepare``: from the archive of a public set to a prepared data set; and what ``data info`` says."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

from vlsm_adapter.data.archives import open_tree
from vlsm_adapter.data.entries import real_folder
from vlsm_adapter.data.prepared import About, Summary, write_prepared
from vlsm_adapter.data.sources import SOURCES, Source
from vlsm_adapter.data.sources.annotations import join, read_annotations
from vlsm_adapter.errors import ConfigError, UserError, nearest

# Raised whenever the same archive gives other cases or other rows for them.
READER_VERSION = 2


def prepare(
    name: str,
    raw: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    annotations: str | os.PathLike[str] | None = None,
    variant: str | None = None,
    skip_bad: bool = False,
    jobs: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Summary:
    """Turn the archive of the public set ``name`` into a prepared data set.

    Args:
        name: of a ``Source``, see ``vlsm data list``.
        raw: the zip or tar archive as its owners ship it, a folder of their archives, or an unpacked folder.
        out: folder to make; a stopped call goes on there.
        annotations: folder with the published split and prompts.
        variant: one of the source's variants; by default its first.
        skip_bad: leave out cases that cannot be used, listed in the summary.
        jobs: threads, by default one for each processor, at most 8.
        progress: called with the number of cases done.

    Raises:
        ConfigError: no such set or variant.
        DataError: the archive is refused or is another one, a case is bad, ``out`` holds something else.
        UserError: ``out`` lies in ``raw`` or cannot be written.
    """
    source = SOURCES.get(name)
    jobs = jobs if jobs is not None else min(os.cpu_count() or 1, 8)
    chosen = _variant(source, variant)
    published = read_annotations(annotations, name) if annotations is not None else None
    folder = real_folder(raw)
    if folder.is_dir() and real_folder(out).is_relative_to(folder):
        # What is written must not be found as material by the call that goes on.
        raise UserError(f"{out}: lies in {raw}, which is read: choose a folder outside of it")
    with open_tree(raw) as tree:
        reading = source.read(tree, chosen)
        cases, expected = reading.cases, reading.expected
        if published is not None:
            cases, expected = join(cases, source, published, expected, reading.warnings), None
        about = About(
            name=source.name,
            title=source.title,
            kind="source",
            licence=reading.licence or source.licence,
            citation=reading.citation or source.citation,
            homepage=source.homepage,
            origin={
                "release": reading.release,
                "variant": chosen,
                "cases_of_release": reading.expected,
                "files": len(tree.files),
                "digest": tree.digest(jobs),
                "annotations": published.digest if published is not None else None,
                "reader": READER_VERSION,
            },
            command=_command(source, raw, out, annotations, chosen),
            notes=source.notes,
        )
        return write_prepared(
            cases,
            out,
            about=about,
            expected=expected,
            progress=progress,
            jobs=jobs,
            skip_bad=skip_bad,
            warnings=reading.warnings,
        )


def _variant(source: Source, variant: str | None) -> str:
    if variant is None:
        return next(iter(source.variants), "")
    if variant not in source.variants:
        allowed = nearest(variant, source.variants) if source.variants else f"{source.name} has none: leave it out"
        raise ConfigError(f"variant '{variant}' of {source.name} is unknown: {allowed}")
    return variant


def _command(
    source: Source,
    raw: str | os.PathLike[str],
    out: str | os.PathLike[str],
    annotations: str | os.PathLike[str] | None,
    variant: str,
) -> str:
    """The command with the names of files alone: paths are other people's business."""
    words = ["vlsm", "data", "prepare", source.name, "--raw", Path(raw).name, "--out", Path(out).name]
    if annotations is not None:
        words += ["--annotations", Path(annotations).name]
    if variant and variant != next(iter(source.variants)):
        words += ["--variant", variant]
    return shlex.join(word or "." for word in words)


def listing() -> list[str]:
    """A line for each set: name, cases, what it shows, title."""
    sources = [SOURCES.get(name) for name in SOURCES]
    width = max(len(source.name) for source in sources)
    return [f"{source.name:<{width}}  {source.cases:>5} cases  {source.title}: {source.about}" for source in sources]


def information(name: str) -> list[str]:
    """What is known of one set, and the command that prepares it.

    Raises:
        ConfigError: no such set.
    """
    source = SOURCES.get(name)
    rows = [
        ("title", source.title),
        ("shows", source.about),
        ("cases", f"{source.cases} on {source.images} images"),
        ("groups", source.groups or "not told by the release"),
        ("split", source.splits or "none of the owners' own; drawn by group and seed, or published (--annotations)"),
        ("licence", source.licence),
        ("citation", source.citation),
        ("home page", source.homepage),
        ("looks for", source.layout),
        *(("variant", f"{variant}: {meaning}") for variant, meaning in source.variants.items()),
        *(("note", note) for note in source.notes),
        ("command", f"vlsm data prepare {source.name} --raw ARCHIVE_OR_FOLDER --out {source.name}"),
    ]
    return [f"{label:<10} {text}" for label, text in rows]
