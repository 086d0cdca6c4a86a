"""The command ``vlsm``: each verb parses its options, then calls one function.

Exit codes: 0 done; 2 something the user gave is wrong, in one line; 3 ``data check`` or ``doctor`` found something;
130 stopped by Ctrl-C; 1 our fault.
Nothing heavy is imported before a verb runs, so that ``vlsm --help`` answers at once.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vlsm_adapter.cli_data import Quiet, SkipBad, data_app
from vlsm_adapter.cli_doctor import doctor
from vlsm_adapter.cli_export import export
from vlsm_adapter.cli_predict import predict
from vlsm_adapter.cli_report import report
from vlsm_adapter.cli_serve import serve
from vlsm_adapter.cli_share import bundle, push
from vlsm_adapter.cli_study import compare
from vlsm_adapter.errors import UserError

app = typer.Typer(
    name="vlsm",
    help="Fine-tune text-promptable medical image segmentation with small adapters on a frozen model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")

_STOPPED = 130  # the exit code of Ctrl-C

Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of a recipe, e.g. train.warmup=0.1.")
]


@app.command()
def train(
    data: Annotated[str | None, typer.Option(metavar="DIR", help="Data folder or manifest (docs/data.md).")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="'tiny', a folder, or a hub id.")] = None,
    adapter: Annotated[str | None, typer.Option(metavar="METHOD", help="See 'vlsm adapters'.")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="YAML recipe.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Run folder to make.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Continue this run; no other option.")] = None,
    resume_from: Annotated[
        str | None,
        typer.Option(metavar="ADAPTER", help="Begin a new run from the weights of this adapter, run or hub id."),
    ] = None,
    val_data: Annotated[str | None, typer.Option(metavar="DIR", help="Validate on the val split of this data.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Class name, for data without prompts.")] = None,
    level: Annotated[str | None, typer.Option(help="Prompt level of training: p0..p9 or random.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training cases.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Cases per step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of initialisation, order and prompts.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the network's input, in pixels.")] = None,
    augment: Annotated[str | None, typer.Option(help="Random changes of training cases: none, light, medium.")] = None,
    cache_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Keep decoded images there; or 'auto'.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run frozen encoders anew for every batch.")] = False,
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
        "data.val_path": val_data,
        "model.name": model,
        "adapter.method": adapter,
        "data.prompt": prompt,
        "data.level": level,
        "train.epochs": epochs,
        "train.batch_size": batch_size,
        "train.lr": lr,
        "train.seed": seed,
        "model.image_size": image_size,
        "data.augment": augment,
        "data.cache_dir": cache_dir,
        "train.feature_cache": "off" if no_cache else None,
        "data.skip_bad": skip_bad,
    }
    if resume is not None:
        given = [name for name, value in options.items() if value is not None]
        if given or assign or config or out or resume_from:
            raise UserError(f"--resume {resume} takes the run's own configuration: leave the other options out")
        from vlsm_adapter.train import resume as resume_run

        folder = resume_run(resume, console=console)
    else:
        if resume_from is not None:
            from vlsm_adapter.resume_from import config_from

            settings = config_from(resume_from, config, options, assign or ())
        else:
            settings = RunConfig.load(config, options, assign or ())
        name = f"{Path(settings.data.path).resolve().name}-{Path(settings.model.name).name}-{settings.adapter.method}"
        from vlsm_adapter.train import train as train_run

        folder = train_run(settings, out or Path("runs") / f"{name}-s{settings.train.seed}", console=console)
    console.say(f"adapter: {folder.adapter}")
    if folder.data().get("splits", {}).get("test", True):  # evaluation needs test cases
        console.say(f"next: {shlex.join(['vlsm', 'evaluate', str(folder.path)])}")


@app.command()
def evaluate(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="Run folder.")] = None,
    split: Annotated[str | None, typer.Option(help="train, val, test or all; by default test.")] = None,
    level: Annotated[str | None, typer.Option(help="Prompt level; by default the run's own.")] = None,
    threshold: Annotated[float | None, typer.Option(help="By default the adapter's.")] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="First choose RUN's threshold on its validation cases, and store it.")
    ] = False,
    nsd_tolerance: Annotated[float, typer.Option(help="Of NSD, in mm where the spacing is known, else in px.")] = 2.0,
    zero_shot: Annotated[bool, typer.Option(help="Evaluate the base model beside it.")] = True,
    data: Annotated[str | None, typer.Option(metavar="DIR", help="Other data than the run's.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Class name, for data without prompts.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Where RUN's base model is now; without RUN: a base model alone, on --data.")
    ] = None,
    split_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Without RUN: splits in place of the data's own.")
    ] = None,
    fold: Annotated[str | None, typer.Option(metavar="K/N", help="Without RUN: this fold is the test split.")] = None,
    split_seed: Annotated[
        int | None, typer.Option(help="Without RUN: of folds, and of splits that the data does not say.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where to write.")] = None,
    precision: Annotated[str, typer.Option(help="With RUN: fp32, bf16, fp16 or int8, as of predict.")] = "fp32",
    probes: Annotated[
        bool, typer.Option("--probes", help="Also ask all levels, false, swapped, absent, no and other words.")
    ] = False,
    classes: Annotated[Path | None, typer.Option(metavar="FILE", help="Class names for the probes.")] = None,
    skip_bad: SkipBad = None,
    quiet: Quiet = False,
) -> None:
    """Score an adapter beside its base model: per case at native size, with confidence intervals and pictures."""
    from vlsm_adapter.console import Console, show_log
    from vlsm_adapter.evaluate import evaluate_model, evaluate_run

    show_log(quiet=quiet)
    console = Console(quiet=quiet)
    common: dict[str, Any] = {
        "level": level,
        "threshold": threshold,
        "nsd_tolerance": nsd_tolerance,
        "skip_bad": skip_bad,
        "prompt": prompt,
        "out": out,
        "probes": probes,
        "classes": classes,
        "console": console,
    }
    if run is not None:
        if split_file is not None or fold is not None or split_seed is not None:
            raise UserError(
                f"--split-file, --fold and --split-seed are for a base model alone: {run} keeps the division it was trained "
                "on; leave them out, or give --model NAME --data DIR instead of RUN"
            )
        folder = evaluate_run(
            run,
            split=split,
            calibrate=calibrate,
            zero_shot=zero_shot,
            data=data,
            base=model,
            precision=precision,
            **common,
        )
    elif calibrate:
        raise UserError(
            "--calibrate stores the threshold in the adapter of a run: give the run, vlsm evaluate RUN --calibrate"
        )
    elif precision != "fp32":
        raise UserError(f"--precision {precision} is for a run: vlsm evaluate RUN --precision {precision}")
    elif model is not None and data is not None:
        folder = evaluate_model(
            model, data, split=split or "test", split_file=split_file, fold=fold, split_seed=split_seed or 0, **common
        )
    else:
        raise UserError("give a run folder, or a base model and data: vlsm evaluate RUN, or --model NAME --data DIR")
    console.say(f"report: {folder / 'report.md'}")


app.command()(predict)
app.command()(compare)
app.command()(export)
app.command()(serve)
app.command()(push)
app.command()(bundle)
app.command()(doctor)
app.command()(report)


@app.command()
def prompts(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Data folder or manifest; it is only read.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="File of prompts (.jsonl), to give as --data.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your class names and descriptions (docs/prompts.md).")
    ] = None,
    levels: Annotated[list[str] | None, typer.Option(help="p1,p6,...; by default all that can be made.")] = None,
    show: Annotated[int, typer.Option(metavar="N", help="Print the prompts of the first N cases.", min=0)] = 0,
    prompt: Annotated[str | None, typer.Option(help="Class name, for data without prompts.")] = None,
    skip_bad: SkipBad = None,
    quiet: Quiet = False,
) -> None:
    """Make prompts p0 to p9 from images and masks: shape, colour, size, number, position, class descriptions."""
    from vlsm_adapter.console import Console, show_log
    from vlsm_adapter.data.cases import load_cases
    from vlsm_adapter.data.describing.classes import Classes
    from vlsm_adapter.data.describing.show import shown_prompts, told
    from vlsm_adapter.data.describing.write import check_levels, check_out, describe_cases, write_prompts

    show_log(quiet=quiet)
    console = Console(quiet=quiet)
    if out is None and not show:
        raise UserError("say where to write, --out FILE.jsonl, or how many cases to print, --show N")
    known, chosen = Classes.load(classes), check_levels(levels)
    if out is not None:
        check_out(out, data)
    cases = load_cases(data, prompt=prompt, skip_bad=bool(skip_bad))
    bad: list[str] = []
    for described in describe_cases(
        cases.all[:show], known, on_bad=(lambda _, reason: bad.append(reason)) if skip_bad else None
    ):
        typer.echo(shown_prompts(described, chosen))
    if out is None:
        for reason in [*(case.reason for case in cases.skipped), *bad]:
            console.say(f"  left out: {reason}")
    if out is not None:
        with console.bar("describing", len(cases.all)) as advance:
            tally = write_prompts(
                cases.all,
                out,
                data=data,
                classes=known,
                levels=chosen,
                prompt=prompt,
                skip_bad=bool(skip_bad),
                progress=advance,
            )
        tally.skipped[:0] = cases.skipped
        for line in told(tally, out, levels=chosen, skip_bad=bool(skip_bad)):
            console.say(line)


@app.command()
def models() -> None:
    """Base models that come with the package, and how to name others."""
    from vlsm_adapter.models import embedded_models, text_free_models

    for name in embedded_models():
        typer.echo(f"{name}  (in the package)")
    for name in text_free_models():
        typer.echo(f"{name}  text-free reference, trained from random weights by 'full' (needs the extra monai)")
    typer.echo("PATH  a folder in Hugging Face format (config.json, model.safetensors, tokenizer)")
    typer.echo("OWNER/NAME  a hub id, e.g. CIDAS/clipseg-rd64-refined")


@app.command()
def adapters() -> None:
    """Adaptation methods and their settings."""
    import dataclasses
    import json

    from vlsm_adapter.adapters import ADAPTERS

    for name in ADAPTERS:
        kind = ADAPTERS.get(name)
        defaults = {item.name: item.default for item in dataclasses.fields(kind)}
        settings = ", ".join(
            f"{name}={value if isinstance(value, str) else json.dumps(value, default=str)}"
            for name, value in defaults.items()
        )
        summary = (kind.__doc__ or "").strip().splitlines()[0]
        typer.echo(f"{name}  {summary}")
        typer.echo(f"    --set adapter.settings.KEY=VALUE: {settings}" if settings else "    no settings")


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
        if code == _STOPPED:
            raise KeyboardInterrupt  # typer makes an exit code of Ctrl-C, without a word
    except UserError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _complain("stopped")
        sys.exit(_STOPPED)
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
            sys.exit(getattr(error, "exit_code", _STOPPED))
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
