"""The verb ``vlsm serve``: parses its options, then calls one function. Nothing heavy is imported before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlsm_adapter.cli_data import Quiet


def serve(
    adapters: Annotated[
        Path,
        typer.Argument(metavar="ADAPTERS", help="Folder of adapters and runs, or one of them; no other is loaded."),
    ],
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Base model; by default that of the adapters.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; by default this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Ask clients for the token in it; or set VLSM_SERVE_TOKEN."),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A further name it is reached by; repeat for several.")
    ] = None,
    corrections: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save corrected masks there, to train on.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default a GPU if there is one.")
    ] = None,
    max_adapters: Annotated[int, typer.Option(min=1, help="Adapters in memory at once.")] = 8,
    max_body: Annotated[float, typer.Option(metavar="MIB", help="Of a request.")] = 64,
    max_pixels: Annotated[int, typer.Option(min=1, help="Of a picture.")] = 25_000_000,
    max_frames: Annotated[int, typer.Option(min=1, help="Pictures of an upload.")] = 2000,
    max_prompts: Annotated[int, typer.Option(min=1, help="Per request.")] = 32,
    queue: Annotated[int, typer.Option(min=1, help="Questions that may wait.")] = 1024,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="From a request to its answer.")] = 60,
    image_cache: Annotated[float, typer.Option(metavar="MIB", help="Images kept in memory.")] = 1024,
    encoding_cache: Annotated[float, typer.Option(metavar="MIB", help="Encodings kept in memory.")] = 512,
    keep: Annotated[float, typer.Option(metavar="MINUTES", help="Images nobody asks about are kept so long.")] = 60,
    quiet: Quiet = False,
) -> None:
    """Serve adapters over HTTP, with a web page: several on one base model in memory."""
    from vlsm_adapter.console import Console, show_log
    from vlsm_adapter.serve.run import serve as run
    from vlsm_adapter.serve.run import token_from
    from vlsm_adapter.serve.settings import MIB, ServeSettings

    show_log(quiet=quiet)
    settings = ServeSettings(
        adapters=adapters,
        model=model,
        device=device,
        host=host,
        port=port,
        token=token_from(token_file),
        corrections=corrections,
        hosts=tuple(allow_host or ()),
        most_body_bytes=round(max_body * MIB),
        most_waiting_bytes=max(256 * MIB, 2 * round(max_body * MIB)),
        most_pixels=max_pixels,
        most_frames=max_frames,
        most_prompts=max_prompts,
        most_adapters=max_adapters,
        queue=queue,
        timeout=timeout,
        image_cache_bytes=round(image_cache * MIB),
        encoding_cache_bytes=round(encoding_cache * MIB),
        keep_minutes=keep,
    )
    run(settings, Console(quiet=quiet))
