"""The verb ``vlsm report``: parses its options, then calls one function. Nothing heavy is imported before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vlsm_adapter.errors import UserError


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER...", help="A study, or folders that 'vlsm evaluate' wrote; several to compare."),
    ],
    metric: Annotated[list[str] | None, typer.Option(help="These only; repeat for several.")] = None,
    pairs: Annotated[str, typer.Option(help="Compare with the 'first', or 'all' with each other.")] = "first",
    common: Annotated[bool, typer.Option("--common", help="Compare the cases that all have.")] = False,
    reference: Annotated[
        str | None, typer.Option(help="Study: test against this method; by default decoder_only.")
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="Study: by default test; repeat for several.")] = None,
    small: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Study: also keep the results small, to go on elsewhere.")
    ] = None,
    images: Annotated[bool, typer.Option(help="Study: the grid of images and masks.")] = True,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="PATH", help="FILE.md of a comparison; a study's folder.")
    ] = None,
) -> None:
    """Tables and figures of a study; or report.md anew; or several evaluations with corrected paired tests."""
    from vlsm_adapter.study_report.reading import is_study

    for folder in folders:
        if not folder.exists():
            raise UserError(f"{folder}: is not there; give a study, or a folder that 'vlsm evaluate' wrote")
    if any(is_study(folder) for folder in folders):
        if pairs != "first":
            raise UserError("--pairs compares evaluations; of a study every method is tested against --reference")
        from vlsm_adapter.study_report.write import write_study_report

        options: dict[str, Any] = {"metrics": metric, "reference": reference, "splits": split, "common": common}
        typer.echo("\n".join(write_study_report(folders, out=out, small=small, images=images, **options).notes))
        return
    if reference is not None or split or small is not None or not images:
        raise UserError(
            f"--reference, --split, --small and --no-images are for a study: {folders[0]} holds no run folders below it"
        )
    if len(folders) == 1:
        if metric or common or out or pairs != "first":
            raise UserError("--metric, --pairs, --common and --out compare several evaluations: give at least two")
        from vlsm_adapter.report import write_report

        typer.echo(write_report(folders[0]))
        return
    from vlsm_adapter.comparison import compare_evaluations, render_comparison, write_comparison

    result = compare_evaluations(folders, metrics=metric, pairs=pairs, common=common)
    if out is None:
        typer.echo(render_comparison(result), nl=False)
    else:
        typer.echo("\n".join(str(path) for path in write_comparison(result, out)))
