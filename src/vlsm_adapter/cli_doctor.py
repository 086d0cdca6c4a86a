"""The verb ``vlsm doctor``: parses its options, then calls one function. Nothing heavy is imported before."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON: sizes in bytes, speeds per second.")] = False,
    measure: Annotated[bool, typer.Option("--measure/--no-measure", help="Measure speeds; takes seconds.")] = True,
    network: Annotated[bool, typer.Option("--network", help="Also ask whether the hub can be reached.")] = False,
) -> int:
    """Examine the machine and the installation: what it has, what it reaches, what to do for more.

    Exit code 3 where there is a problem.
    """
    import json

    from vlsm_adapter.errors import UserError, one_line

    try:
        from vlsm_adapter.doctor import examine
        from vlsm_adapter.doctor.text import render
    except (ImportError, OSError) as error:  # OSError: of a library that torch loads
        raise UserError(
            f"the installation is broken ({one_line(error)}): pip install --force-reinstall -c constraints.txt vlsm-adapter"
        ) from error

    seen = examine(speed=measure, network=network)
    typer.echo(json.dumps(seen.to_dict(), indent=2) if as_json else render(seen))
    return 3 if seen.problems else 0
