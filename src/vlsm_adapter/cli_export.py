"""The verb ``vlsm export``: parses its options, then calls one function. Nothing heavy is imported before."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from vlsm_adapter.cli_data import Quiet


def export(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="Run folder or adapter folder.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to make.")] = Path("exported"),
    format: Annotated[str, typer.Option(help="onnx, openvino, or torch (needs torch to run).")] = "onnx",
    precision: Annotated[str, typer.Option(help="fp32, fp16, or int8.")] = "fp32",
    calibrate: Annotated[
        str | None, typer.Option(metavar="IMAGES", help="Of int8: images like those to come, 10 or more.")
    ] = None,
    check: Annotated[
        str | None, typer.Option(metavar="IMAGES", help="Compare on these; by default on the run's validation images.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Compare with this prompt; repeat for several.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Where RUN's base model is now; without RUN: a base model as it is.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write a model as a folder that predicts without torch, after comparing it with the model on real images."""
    from vlsm_adapter.console import Console, show_log

    show_log(quiet=quiet)
    console = Console(quiet=quiet)
    from vlsm_adapter.export.write import export as write_export

    folder = write_export(
        run,
        out,
        base=model,
        format=format,
        precision=precision,
        calibrate=calibrate,
        check=check,
        prompts=prompt,
        overwrite=overwrite,
        console=console,
    )
    examples = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["prompts"]["examples"]
    asked = prompt or examples or ["polyp"]
    command = ["python", str(folder / "runtime.py"), str(folder), "IMAGE", "--prompt", asked[0], "--out", "mask.png"]
    console.say(f"exported: {folder}\nnext: {shlex.join(command)}")
