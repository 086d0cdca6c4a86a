"""The verbs of ``vlsm data``: each parses its options, then calls one function. Nothing heavy is imported before."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

#: Exit code of ``data check`` where it finds something; 2 is for what the user gave wrong, as everywhere.
FINDINGS = 3

data_app = typer.Typer(
    help="Look at data sets, check and split them, import your own, prepare public ones, make phantom ones.",
    no_args_is_help=True,
)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")]
SkipBad = Annotated[bool | None, typer.Option("--skip-bad", help="Leave bad cases out, listed and counted.")]


@data_app.command("show")
def data_show(
    path: Annotated[str, typer.Argument(metavar="DIR", help="Data folder or manifest.")],
    prompt: Annotated[str | None, typer.Option(help="Class name, for data without prompts.")] = None,
    skip_bad: SkipBad = None,
) -> None:
    """How a data folder is read: layout, cases by split, prompt levels with an example each."""
    from collections import Counter

    from vlsm_adapter.data.cases import load_cases
    from vlsm_adapter.data.prompts import choose_prompt, common_levels, leaks_in
    from vlsm_adapter.data.splits import SPLITS

    cases = load_cases(path, prompt=prompt, skip_bad=bool(skip_bad))
    counts = Counter(record.split for record in cases.all)
    typer.echo(
        f"{cases.where}: {len(cases.all)} case{'' if len(cases.all) == 1 else 's'}; "
        + ", ".join(f"{counts[s]} {s}" for s in sorted(counts, key=str))
    )
    for level in common_levels(cases.all):
        text = choose_prompt(cases.all[0], level)
        typer.echo(f"  {level}{' (from the ground truth)' if leaks_in(level, cases.all) else ''}: {text!r}")
    for case in cases.skipped:
        typer.echo(f"  left out: {case.reason}")
    if empty := [split for split in SPLITS if not counts[split]]:
        typer.echo(f"  no case in {', '.join(empty)}: training needs train and val, evaluation test")
    typer.echo("  headers were checked; pixels are when training or evaluation starts")


@data_app.command("check")
def data_check(
    path: Annotated[str, typer.Argument(metavar="DIR", help="Data folder, manifest, or annotations without images.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Write a page with pictures and all findings there."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Class name, for data without prompts.")] = None,
    groups: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write which cases are copies of each other, for 'data split'.")
    ] = None,
    fail_on: Annotated[str, typer.Option(help="Exit with 3 from this severity on: error, warning or never.")] = "error",
    as_json: Annotated[bool, typer.Option("--json", help="Print all findings as JSON.")] = False,
    workers: Annotated[int | None, typer.Option(help="Threads; by default one for each processor.", min=1)] = None,
    quiet: Quiet = False,
) -> None:
    """Audit a data set: files, masks, duplicates, leaks between splits, prompts that contradict their masks."""
    import json

    from vlsm_adapter.console import Console, show_log
    from vlsm_adapter.data.audit import check_data, write_audit, write_groups
    from vlsm_adapter.data.audit.findings import fails
    from vlsm_adapter.data.audit.run import check_out
    from vlsm_adapter.data.group_files import check_target

    show_log(quiet=quiet)
    console = Console(quiet=quiet)
    fails((), fail_on)  # a wrong level is said before thousands of files are read
    if groups is not None:
        check_target(groups)
    if out is not None:
        check_out(path, out)
    audit = check_data(path, prompt=prompt, thumbnails=out is not None, workers=workers, bar=console.bar)
    page = write_audit(audit, out) if out is not None else None
    count = write_groups(audit, groups) if groups is not None else 0
    typer.echo(json.dumps(audit.to_json(), indent=2, ensure_ascii=False) if as_json else "\n".join(audit.lines()))
    if page is not None:
        console.say(f"page: {page}")
    if groups is not None:
        console.say(f"groups: {groups}, {count} of copies; vlsm data split --groups keeps them together")
    if fails(audit.findings, fail_on):
        raise typer.Exit(FINDINGS)


@data_app.command("split")
def data_split(
    path: Annotated[str, typer.Argument(metavar="DIR", help="Data folder or manifest; it is only read.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where to write the split files.")],
    folds: Annotated[int | None, typer.Option(metavar="K", help="Cross-validation: every case is tested once.")] = None,
    fractions: Annotated[
        tuple[float, float, float] | None, typer.Option(metavar="TRAIN VAL TEST", help="Parts, e.g. 0.7 0.1 0.2.")
    ] = None,
    subset: Annotated[list[str] | None, typer.Option(help="Few-shot part of train, 5% or 20; repeat for more.")] = None,
    groups: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also keep these whole; 'data check --groups' writes copies.")
    ] = None,
    stratify: Annotated[str, typer.Option(help="By foreground 'size', or 'none'.")] = "size",
    seed: Annotated[int, typer.Option(help="Another seed, another division.")] = 0,
    prompt: Annotated[str | None, typer.Option(help="Class name, for data without prompts.")] = None,
    skip_bad: SkipBad = None,
    quiet: Quiet = False,
) -> None:
    """Write split files (for data.split_file): whole groups, alike in foreground size, subsets nested."""
    from vlsm_adapter.console import Console, show_log
    from vlsm_adapter.data.cases import load_undivided
    from vlsm_adapter.data.division import check_stratify
    from vlsm_adapter.data.group_files import read_group_file
    from vlsm_adapter.data.split_files import write_splits

    show_log(quiet=quiet)
    console = Console(quiet=quiet)
    stratified = check_stratify(stratify)
    together = None if groups is None else read_group_file(groups)
    records, left_out = load_undivided(path, prompt=prompt, skip_bad=bool(skip_bad))
    with console.bar("reading masks", len(records)) as advance:
        written = write_splits(
            records,
            out,
            fractions=fractions,
            folds=folds,
            subsets=subset or (),
            stratify=stratified,
            seed=seed,
            groups=together,
            left_out=left_out,
            where=path,
            progress=advance,
        )
    for file in written:
        typer.echo(f"{file.path}: {file}")


@data_app.command("list")
def data_list() -> None:
    """Public data sets that 'vlsm data prepare' knows (docs/data-sources.md)."""
    from vlsm_adapter.data.sources.prepare import listing

    typer.echo("\n".join(listing()))


@data_app.command("info")
def data_info(name: Annotated[str, typer.Argument(metavar="NAME", help="As 'vlsm data list' shows it.")]) -> None:
    """One public data set: licence, citation, home page, layout of its archive."""
    from vlsm_adapter.data.sources.prepare import information

    typer.echo("\n".join(information(name)))


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A public data set, see 'vlsm data list'.")],
    raw: Annotated[Path, typer.Option(metavar="PATH", help="Its archive, or a folder of its files or archives.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to make; the same command goes on.")],
    annotations: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Published split and prompts (MedVLSM's JSON files).")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Where 'vlsm data info NAME' shows several.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Threads; by default one a processor.")] = None,
    skip_bad: SkipBad = None,
    quiet: Quiet = False,
) -> None:
    """Turn the archive of a public data set into images, masks and prompts, with licence and citation."""
    from vlsm_adapter.console import Console, show_log
    from vlsm_adapter.data.sources import SOURCES
    from vlsm_adapter.data.sources.prepare import prepare

    show_log(quiet=quiet)
    console = Console(quiet=quiet)
    with console.bar("preparing", SOURCES.get(name).cases) as advance:
        summary = prepare(
            name,
            raw,
            out,
            annotations=annotations,
            variant=variant,
            skip_bad=bool(skip_bad),
            jobs=jobs,
            progress=advance,
        )
    _report_prepared(summary, console)


def _report_prepared(summary: Any, console: Any) -> None:
    """What ``data prepare`` and ``data import`` say at their end."""
    for warning in summary.warnings:
        console.warn(warning)
    for case in summary.skipped[:10]:
        console.warn(f"left out: {case.reason}")
    if len(summary.skipped) > 10:
        console.warn(f"and {len(summary.skipped) - 10} more, all in {Path(summary.out) / 'dataset.json'}")
    resumed = f" ({summary.resumed} of them by an earlier call)" if summary.resumed else ""
    console.say(f"{summary}{resumed}\nnext: {shlex.join(['vlsm', 'data', 'show', str(summary.out)])}")


@data_app.command("import")
def data_import(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Your file or folder (docs/import-data.md).")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to make; the same command goes on.")],
    format_: Annotated[
        str | None, typer.Option("--format", help="coco, table, nifti, multilabel or folders; told by the files.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What the masks show, as one class.")] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="TABLE", help="1=liver,2=tumor, or a YAML or CSV file.")
    ] = None,
    images: Annotated[str | None, typer.Option(metavar="DIR", help="Images, where they stand elsewhere.")] = None,
    masks: Annotated[str | None, typer.Option(metavar="DIR", help="Masks, where they stand elsewhere.")] = None,
    empty: Annotated[str | None, typer.Option(help="Empty masks: keep, drop, or the share kept, e.g. 0.1.")] = None,
    group_by: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Group in the file name: '(pat[0-9]+)'.")
    ] = None,
    spacing: Annotated[str | None, typer.Option(metavar="ROW,COL", help="Pixel size in mm.")] = None,
    columns: Annotated[str | None, typer.Option(metavar="OURS=THEIRS,...", help="Of a table: image=file,...")] = None,
    keep: Annotated[str | None, typer.Option(metavar="COLUMN,...", help="Of a table: kept as attributes.")] = None,
    plane: Annotated[str | None, typer.Option(help="Of volumes: axial, coronal, sagittal or native.")] = None,
    window: Annotated[str | None, typer.Option(metavar="LEVEL,WIDTH", help="Of volumes: 40,400.")] = None,
    percentiles: Annotated[str | None, typer.Option(metavar="LOW,HIGH", help="Of volumes: 0.5,99.5.")] = None,
    frame: Annotated[str | None, typer.Option(help="Of 4D volumes: a number from 0, or all.")] = None,
    channel: Annotated[str | None, typer.Option(help="Of volumes with files _0000, _0001: a number.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the data set; by default that of PATH.")] = None,
    licence: Annotated[str, typer.Option(help="For the card of the set.")] = "",
    citation: Annotated[str, typer.Option(help="For the card of the set.")] = "",
    jobs: Annotated[int | None, typer.Option(min=1, help="Threads; by default one a processor.")] = None,
    skip_bad: SkipBad = None,
    quiet: Quiet = False,
) -> None:
    """Make a data set of your own files: folder pairs, tables, COCO, NIfTI, masks of several labels."""
    from vlsm_adapter.console import Console, show_log
    from vlsm_adapter.data.importing import import_data

    show_log(quiet=quiet)
    console = Console(quiet=quiet)
    options = {
        "prompt": prompt,
        "classes": classes,
        "images": images,
        "masks": masks,
        "empty": empty,
        "group_by": group_by,
        "spacing": spacing,
        "columns": columns,
        "keep": keep,
        "plane": plane,
        "window": window,
        "percentiles": percentiles,
        "frame": frame,
        "channel": channel,
    }
    with console.bar("importing", 1000) as advance:
        summary = import_data(
            path,
            out,
            options=options,
            format=format_,
            name=name,
            licence=licence,
            citation=citation,
            skip_bad=bool(skip_bad),
            jobs=jobs,
            progress=lambda items, total, cases: advance(items * 1000 // total, note=f"{cases} cases"),
        )
    _report_prepared(summary, console)


@data_app.command("phantoms")
def data_phantoms(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make, in the published layout.")],
    cases: Annotated[int, typer.Option(help="Cases of each modality.")] = 60,
    seed: Annotated[int, typer.Option(help="Equal seeds make equal pictures.")] = 0,
    modality: Annotated[list[str] | None, typer.Option(help="One or more; by default all four.")] = None,
    quiet: Quiet = False,
) -> None:
    """Generate medical-looking images with exact masks and true prompts."""
    from vlsm_adapter.console import Console, show_log
    from vlsm_adapter.data.phantoms import MODALITIES, write_phantoms

    show_log(quiet=quiet)
    console = Console(quiet=quiet)
    chosen = tuple(modality or MODALITIES)
    with console.bar("phantoms", cases * len(chosen)) as advance:
        write_phantoms(
            out, cases_per_modality=cases, seed=seed, modalities=chosen, progress=lambda done, _: advance(done)
        )
    console.say(f"{out}: {cases * len(chosen)} cases")
