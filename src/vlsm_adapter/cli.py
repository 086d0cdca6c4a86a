"""The command ``vlsm``: each verb parses its options, then calls one function.

Exit codes: 0 done; 2 something the user gave is wrong, in one line; 130 stopped by Ctrl-C, resumable; 1 our fault.
Nothing heavy is imported before a verb runs, so that ``vlsm --help`` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vlsm_adapter.errors import UserError

app = typer.Typer(
    name="vlsm",
    help="Fine-tune text-promptable medical image segmentation with small adapters on a frozen model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Look at data sets, and make phantom ones.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of a recipe, e.g. train.warmup=0.1.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")]
SkipBad = Annotated[bool | None, typer.Option("--skip-bad", help="Leave bad cases out, listed and counted.")]


@app.command()
def train(
    data: Annotated[str | None, typer.Option(metavar="DIR", help="Data folder or manifest (docs/data.md).")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="'tiny', a folder, or a hub id.")] = None,
    adapter: Annotated[str | None, typer.Option(metavar="METHOD", help="See 'vlsm adapters'.")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="YAML recipe.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Run folder to make.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Continue this run; no other option.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Class name, for data without prompts.")] = None,
    level: Annotated[str | None, typer.Option(help="Prompt level of training: p0..p9 or random.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training cases.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Cases per step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of initialisation, order and prompts.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the network's input, in pixels.")] = None,
    skip_bad: SkipBad = None,
    assign: Set = None,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a frozen model with an adapter; Ctrl-C leaves a run that --resume continues."""
    from vlsm_adapter.config import RunConfig
    from vlsm_adapter.console import Console, show_log

    show_log(quiet=quiet)
    console = Console(quiet=quiet)
    options: dict[str, Any] = {
        "data.path": data,
        "model.name": model,
        "adapter.method": adapter,
        "data.prompt": prompt,
        "data.level": level,
        "train.epochs": epochs,
        "train.batch_size": batch_size,
        "train.lr": lr,
        "train.seed": seed,
        "model.image_size": image_size,
        "data.skip_bad": skip_bad,
    }
    if resume is not None:
        given = [name for name, value in options.items() if value is not None]
        if given or assign or config or out:
            raise UserError(f"--resume {resume} takes the run's own configuration: leave the other options out")
        from vlsm_adapter.train import resume as resume_run

        folder = resume_run(resume, console=console)
    else:
        settings = RunConfig.load(config, options, assign or ())
        name = f"{Path(settings.data.path).resolve().name}-{Path(settings.model.name).name}-{settings.adapter.method}"
        from vlsm_adapter.train import train as train_run

        folder = train_run(settings, out or Path("runs") / f"{name}-s{settings.train.seed}", console=console)
    console.say(f"adapter: {folder.adapter}\nnext: vlsm evaluate {folder.path}")


@app.command()
def evaluate(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="Run folder.")] = None,
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    level: Annotated[str | None, typer.Option(help="Prompt level; by default the run's own.")] = None,
    threshold: Annotated[float | None, typer.Option(help="By default the adapter's.")] = None,
    nsd_tolerance: Annotated[float, typer.Option(help="Of NSD, in mm where the spacing is known, else in px.")] = 2.0,
    zero_shot: Annotated[bool, typer.Option(help="Evaluate the base model beside it.")] = True,
    data: Annotated[str | None, typer.Option(metavar="DIR", help="Other data than the run's.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Class name, for data without prompts.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Where RUN's base model is now; without RUN: a base model alone, on --data.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where to write.")] = None,
    skip_bad: SkipBad = None,
    quiet: Quiet = False,
) -> None:
    """Score an adapter beside its base model: per case at native size, with confidence intervals and pictures."""
    from vlsm_adapter.console import Console, show_log
    from vlsm_adapter.evaluate import evaluate_model, evaluate_run

    show_log(quiet=quiet)
    console = Console(quiet=quiet)
    common: dict[str, Any] = {
        "split": split,
        "level": level,
        "threshold": threshold,
        "nsd_tolerance": nsd_tolerance,
        "skip_bad": skip_bad,
        "prompt": prompt,
        "out": out,
        "console": console,
    }
    if run is not None:
        folder = evaluate_run(run, zero_shot=zero_shot, data=data, base=model, **common)
    elif model is not None and data is not None:
        folder = evaluate_model(model, data, **common)
    else:
        raise UserError("give a run folder, or a base model and data: vlsm evaluate RUN, or --model NAME --data DIR")
    console.say(f"report: {folder / 'report.md'}")


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or adapter folder.")],
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="An image, a folder, or a pattern in quotes.")],
    prompt: Annotated[list[str] | None, typer.Option(help="What to segment; repeat for several.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where to write.")] = Path("predictions"),
    threshold: Annotated[float | None, typer.Option(help="By default the adapter's.")] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also probability maps, 16-bit PNG.")] = False,
    overlays: Annotated[bool, typer.Option("--overlays", help="Also pictures of mask on image.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier predictions.")] = False,
    model: Annotated[str | None, typer.Option(help="Where the base model is now, if it moved.")] = None,
    skip_bad: SkipBad = None,
    quiet: Quiet = False,
) -> None:
    """Segment images by prompt; masks are PNG at the images' own size."""
    from vlsm_adapter.console import Console, show_log

    show_log(quiet=quiet)
    if not prompt:
        raise UserError('--prompt is missing: say what to segment, e.g. --prompt "polyp"')
    if any(not text.strip() for text in prompt):
        raise UserError("--prompt is empty: say what to segment; an unset variable in quotes gives an empty prompt")
    from vlsm_adapter.data.records import list_images

    files = list_images(images)
    from vlsm_adapter.predict import Predictor
    from vlsm_adapter.predict_files import predict_files

    console = Console(quiet=quiet)
    predictor = Predictor.load(run, base=model, threshold=threshold)
    report = predict_files(
        predictor,
        files,
        prompt,
        out,
        probabilities=probabilities,
        overlays=overlays,
        overwrite=overwrite,
        skip_bad=bool(skip_bad),
        console=console,
    )
    console.say(str(report))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="EVALUATION", help="A folder that 'vlsm evaluate' wrote.")],
) -> None:
    """Write report.md anew from the numbers of an evaluation."""
    from vlsm_adapter.report import write_report

    typer.echo(write_report(folder))


@app.command()
def models() -> None:
    """Base models that come with the package, and how to name others."""
    from vlsm_adapter.models import embedded_models

    for name in embedded_models():
        typer.echo(f"{name}  (in the package)")
    typer.echo("PATH  a folder in Hugging Face format (config.json, model.safetensors, tokenizer)")
    typer.echo("OWNER/NAME  a hub id, e.g. CIDAS/clipseg-rd64-refined")


@app.command()
def adapters() -> None:
    """Adaptation methods and their settings."""
    import dataclasses

    from vlsm_adapter.adapters import ADAPTERS

    for name in ADAPTERS:
        kind = ADAPTERS.get(name)
        settings = ", ".join(f"{item.name}={item.default}" for item in dataclasses.fields(kind))
        summary = (kind.__doc__ or "").strip().splitlines()[0]
        typer.echo(f"{name}  {summary}\n    --set adapter.settings.KEY=VALUE: {settings}")


@data_app.command("show")
def data_show(
    path: Annotated[str, typer.Argument(metavar="DIR", help="Data folder or manifest.")],
    prompt: Annotated[str | None, typer.Option(help="Class name, for data without prompts.")] = None,
    skip_bad: SkipBad = None,
) -> None:
    """How a data folder is read: layout, cases by split, prompt levels with an example each."""
    from collections import Counter

    from vlsm_adapter.data.cases import load_cases
    from vlsm_adapter.data.prompts import choose_prompt, common_levels, leaks
    from vlsm_adapter.data.splits import SPLITS

    cases = load_cases(path, prompt=prompt, skip_bad=bool(skip_bad))
    counts = Counter(record.split for record in cases.all)
    typer.echo(
        f"{cases.where}: {len(cases.all)} case{'' if len(cases.all) == 1 else 's'}; "
        + ", ".join(f"{counts[s]} {s}" for s in sorted(counts, key=str))
    )
    for level in common_levels(cases.all):
        text = choose_prompt(cases.all[0], level)
        typer.echo(f"  {level}{' (from the ground truth)' if leaks(level) else ''}: {text!r}")
    for case in cases.skipped:
        typer.echo(f"  left out: {case.reason}")
    if empty := [split for split in SPLITS if not counts[split]]:
        typer.echo(f"  no case in {', '.join(empty)}: training needs train and val, evaluation test")
    typer.echo("  headers were checked; pixels are when training or evaluation starts")


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


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        from vlsm_adapter import __version__

        typer.echo(f"vlsm-adapter {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; errors of the user end in one line and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _complain("stopped")
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        # typer carries its own copy of click, so its exceptions are known by what they offer.
        if hasattr(error, "format_message"):
            context = getattr(error, "ctx", None)
            command = context.command_path if context is not None else "vlsm"
            if message := error.format_message():  # empty where help was shown instead
                hint = " (put a pattern of several images in quotes)" if "extra argument" in message else ""
                _complain(f"{message.rstrip('.')}{hint}. See '{command} --help'.")
            sys.exit(2)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            _complain(f"{error.filename or 'output'}: {error.strerror}; free disk space or choose another folder")
            sys.exit(2)
        if type(error).__name__ in ("Abort", "Exit"):
            sys.exit(getattr(error, "exit_code", 130))
        if os.environ.get("VLSM_DEBUG"):
            raise
        _complain(
            f"unexpected {type(error).__name__}: {error} (a fault of vlsm-adapter; VLSM_DEBUG=1 shows where, please report it)"
        )
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(text: str) -> None:
    for line in text.splitlines():
        print(f"vlsm: error: {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
