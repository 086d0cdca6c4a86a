"""The verb ``vlsm compare``: parses its options, then calls one function. Nothing heavy is imported before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlsm_adapter.cli_data import Quiet


def compare(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="Axes of the study (docs/compare.md).")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder of the study; by default here, named as STUDY."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all of it, print the grid and the time; write nothing.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Runs at once; by default as cores and memory allow.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="ADDR", help="Of a Ray cluster whose nodes see the same files.")
    ] = None,
    retries: Annotated[int, typer.Option(metavar="N", min=0, help="Further attempts at a run that fails.")] = 1,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN", help="Runs whose path holds this, e.g. 'kvasir/*/dense*/s41'; several with commas."
        ),
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Without Ray: one run after another, on this machine.")
    ] = False,
    quiet: Quiet = False,
) -> int:
    """Run a study: data sets x models x methods x protocols x label fractions x seeds; the same command continues it."""
    from vlsm_adapter.console import Console, show_log
    from vlsm_adapter.study.runner import compare as run_study

    show_log(quiet=quiet)
    return run_study(
        study,
        out,
        dry_run=dry_run,
        jobs=jobs,
        address=address,
        retries=retries,
        only=only,
        local=local,
        console=Console(quiet=quiet),
    )
