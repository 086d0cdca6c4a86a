"""The verbs ``vlsm push`` and ``vlsm bundle``: parse options, then call one function. Nothing heavy is imported before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlsm_adapter.cli_data import Quiet
from vlsm_adapter.errors import UserError

Adapter = Annotated[str, typer.Argument(metavar="RUN", help="Run folder or adapter folder.")]


def push(
    run: Adapter,
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Only its owner sees it; public otherwise.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all of it, print the card; send nothing.")] = False,
    base: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="The base model's id, where it is a folder here.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="Of the weights, e.g. cc-by-4.0.")
    ] = None,
    card: Annotated[Path | None, typer.Option(metavar="FILE", help="Your own card in place of the one made.")] = None,
    quiet: Quiet = False,
) -> None:
    """Share an adapter on the Hugging Face Hub, with a model card filled from its run; never data or images."""
    from vlsm_adapter.adapters.hub import endpoint
    from vlsm_adapter.console import Console, show_log
    from vlsm_adapter.sharing.push import pack, send

    show_log(quiet=quiet)
    console = Console(quiet=quiet)
    parcel = pack(run, repo, base=base, licence=licence, card=card)
    for note in parcel.facts.left_out:
        console.warn(f"not in the card: {note}")
    if licence is None and parcel.facts.manifest.info.licence is None:
        console.warn("no licence is stated, so others have no right to use the weights: --licence NAME states one")
    files = ", ".join(f"{name} ({size / 1000:,.1f} kB)" for name, size in parcel.sizes().items())
    console.say(
        f"{endpoint()}/{repo} ({'private' if private else 'public, unless it is private there already'}): {files}"
    )
    if dry_run:
        typer.echo(parcel.card, nl=False)
        console.say("dry run: nothing was sent")
        return
    address = send(parcel, private=private)
    console.say(f"sent: {address}\nuse it: vlsm predict {repo} IMAGES --prompt WORDS")


def bundle(
    run: Adapter,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Bundle folder to make; its name names it.")],
    prompt: Annotated[
        list[str] | None, typer.Option(help="What it segments; repeat for several. By default the adapter's examples.")
    ] = None,
    with_base: Annotated[bool, typer.Option("--with-base", help="Copy the base model into the bundle.")] = False,
    base: Annotated[str | None, typer.Option(help="Where the base model is now, or its hub id.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write a MONAI Bundle that 'python -m monai.bundle run' executes (docs/integrations.md)."""
    from vlsm_adapter.console import Console, show_log
    from vlsm_adapter.integrations.monai_bundle import write_bundle

    show_log(quiet=quiet)
    if prompt is not None and any(not text.strip() for text in prompt):
        raise UserError('--prompt is empty: say what to segment, e.g. --prompt "polyp"')
    folder = write_bundle(run, out, prompts=prompt, with_base=with_base, base=base)
    Console(quiet=quiet).say(
        f"bundle: {folder}\nrun it: cd {folder} && python -m monai.bundle run --config_file configs/inference.json "
        "--dataset_dir IMAGES --output_dir MASKS"
    )
