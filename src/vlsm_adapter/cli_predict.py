"""The verb ``vlsm predict``: it parses its options, then calls one function. Nothing heavy is imported before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from vlsm_adapter.cli_data import Quiet
from vlsm_adapter.errors import UserError


def predict(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, adapter folder, or hub id.")],
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES...", help="Files, folders, patterns: pictures, TIFF, NIfTI, DICOM."),
    ],
    prompt: Annotated[list[str] | None, typer.Option(help="What to segment; repeat for several.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where to write.")] = Path("predictions"),
    form: Annotated[
        str, typer.Option("--format", help="auto (in kind), png, tiff, nifti or seg (DICOM Segmentation).")
    ] = "auto",
    threshold: Annotated[float | None, typer.Option(help="By default the adapter's.")] = None,
    compete: Annotated[
        bool, typer.Option("--compete", help="Prompts compete for every pixel: one map of labels.")
    ] = False,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also probability maps.")] = False,
    overlays: Annotated[bool, typer.Option("--overlays", help="Also pictures of mask on image.")] = False,
    contours: Annotated[bool, typer.Option("--contours", help="Also outlines, as GeoJSON.")] = False,
    largest_component: Annotated[
        bool, typer.Option("--largest-component", help="Keep only the largest part of each mask.")
    ] = False,
    fill_holes: Annotated[bool, typer.Option("--fill-holes", help="Fill what a mask encloses.")] = False,
    min_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Remove smaller parts: 50 (pixels, voxels) or 20mm (mm2, mm3).")
    ] = "0",
    window: Annotated[
        str, typer.Option(metavar="WINDOW", help="CENTRE,WIDTH, percentiles, percentiles:LOW,HIGH, or auto.")
    ] = "auto",
    plane: Annotated[str, typer.Option(help="Of NIfTI: auto, axial, coronal, sagittal or native.")] = "auto",
    frames: Annotated[
        bool, typer.Option("--frames", help="A folder of pictures is a video; 4-D NIfTI is a volume per frame.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew and replace earlier predictions.")] = False,
    model: Annotated[str | None, typer.Option(help="Where the base model is now, if it moved.")] = None,
    skip_bad: Annotated[
        bool | None,
        typer.Option("--skip-bad/--stop-at-bad", help="Go on after a bad input; by default where there are several."),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="fp32; faster: int8 on a CPU, bf16, fp16 on a GPU (docs/performance.md).")
    ] = "fp32",
    workers: Annotated[int, typer.Option(help="Threads that read ahead.", min=1)] = 2,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Spread over this Ray cluster: auto, HOST:PORT, or local.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Segment images by prompt, answers in kind: PNG, TIFF, NIfTI, DICOM SEG. The same command again goes on."""
    from vlsm_adapter.console import Console, show_log

    show_log(quiet=quiet)
    if not prompt:
        raise UserError('--prompt is missing: say what to segment, e.g. --prompt "polyp"')
    if any(not text.strip() for text in prompt):
        raise UserError("--prompt is empty: say what to segment; an unset variable in quotes gives an empty prompt")
    from vlsm_adapter.imaging.base import AnswerOptions
    from vlsm_adapter.imaging.inputs import input_files
    from vlsm_adapter.imaging.options import ReadOptions, Window, check_form, parse_size

    size, in_mm = parse_size(min_size)
    options = AnswerOptions(
        form=check_form(form),
        compete=compete,
        probabilities=probabilities,
        overlays=overlays,
        contours=contours,
        largest_component=largest_component,
        fill_holes=fill_holes,
        min_size=size,
        min_size_mm=in_mm,
    )
    read = ReadOptions(window=Window.parse(window), plane=plane, frames=frames)  # type: ignore[arg-type]
    files = input_files(images, leave_out=out)
    from vlsm_adapter.predict import Predictor
    from vlsm_adapter.predict_files import predict_files

    console = Console(quiet=quiet)
    with _told_how_to_go_on(out, overwrite=overwrite):
        predictor = Predictor.load(run, base=model, threshold=threshold, precision=precision)
        if precision != "fp32":
            console.say(f"precision {predictor.precision}")
        report = predict_files(
            predictor,
            files,
            prompt,
            out,
            options=options,
            read=read,
            overwrite=overwrite,
            skip_bad=skip_bad,
            workers=workers,
            ray=ray,
            console=console,
        )
    console.say(str(report))


@contextmanager
def _told_how_to_go_on(out: Path, *, overwrite: bool) -> Iterator[None]:
    """Ctrl-C ends with the way to go on, where ``out`` has a journal to go on from."""
    try:
        yield
    except KeyboardInterrupt:
        from vlsm_adapter.interrupt import Interrupted
        from vlsm_adapter.predict_journal import NAME

        if not (out / NAME).is_file():
            raise
        # With it, the same command would do everything anew.
        without = " without --overwrite" if overwrite else ""
        raise Interrupted(f"stopped; the same command{without} goes on: {out} keeps what is done") from None
