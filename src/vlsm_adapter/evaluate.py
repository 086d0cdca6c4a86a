"""What the fine-tuning is worth: adapter and base on the same cases, at native size, with the same words.

``evaluate_run`` scores a run's adapter beside zero-shot, ``evaluate_model`` a base model alone. Both leave an
evaluation folder (:mod:`vlsm_adapter.evaluation_folder`) with its report.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlsm_adapter import files
from vlsm_adapter.adapters import tuner
from vlsm_adapter.adapters.attach import active, without_adapter
from vlsm_adapter.adapters.folder import load_adapter, read_manifest
from vlsm_adapter.checkpoint import read_progress
from vlsm_adapter.console import Console
from vlsm_adapter.data.cases import Cases, load_cases
from vlsm_adapter.data.describing.classes import Classes
from vlsm_adapter.data.division import Division
from vlsm_adapter.data.folds import parse_fold
from vlsm_adapter.errors import DataError, TrainingError, UserError
from vlsm_adapter.evaluation_folder import EvaluationFolder, free_folder, prepare, replacing, write_scores
from vlsm_adapter.evaluation_summary import Job, summarise_evaluation
from vlsm_adapter.evaluation_threshold import SPLIT as CALIBRATION_SPLIT
from vlsm_adapter.evaluation_threshold import calibrate_adapter
from vlsm_adapter.examples import keep_examples
from vlsm_adapter.inference import check_threshold, choose_device
from vlsm_adapter.metrics.base import DEFAULT_NSD_TOLERANCE
from vlsm_adapter.models import load_model
from vlsm_adapter.models.low_precision import lower_precision
from vlsm_adapter.pictures import draw_cases
from vlsm_adapter.predict import adapter_folder
from vlsm_adapter.prober import Prober, write_sensitivity
from vlsm_adapter.report import write_report
from vlsm_adapter.resume_from import cases_for, division_of, own_division, weights_hash
from vlsm_adapter.run_folder import RunFolder
from vlsm_adapter.scoring import (
    DEFAULT_BATCH_SIZE,
    Context,
    Protocol,
    evaluate_cases,
    score_variants,
)
from vlsm_adapter.seen_cases import (
    compare_with_training,
    left_out_in_training,
    own_data_elsewhere,
    trained_on,
    trained_on_before,
)
from vlsm_adapter.sensitivity import of_all_kinds
from vlsm_adapter.types import DEFAULT_THRESHOLD, Record

if TYPE_CHECKING:
    import torch

    from vlsm_adapter.models.base import PromptSegmenter

__all__ = ["evaluate_cases", "evaluate_model", "evaluate_run"]


def evaluate_run(
    run_dir: str | Path,
    *,
    split: str | None = None,
    level: str | None = None,
    threshold: float | None = None,
    calibrate: bool = False,
    zero_shot: bool = True,
    nsd_tolerance: float = DEFAULT_NSD_TOLERANCE,
    skip_bad: bool | None = None,
    data: str | Path | None = None,
    prompt: str | None = None,
    base: str | Path | None = None,
    out: str | Path | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    device: str | torch.device | None = None,
    precision: str = "fp32",
    probes: bool = False,
    classes: str | Path | None = None,
    console: Console | None = None,
) -> Path:
    """Score a run's adapter on one split, beside its base model, and write the evaluation folder.

    Args:
        run_dir: a folder that ``vlsm train`` made.
        split: ``"train"``, ``"val"``, ``"test"``: the same cases as in training; or ``"all"``, for data of another place.
            By default test, with ``calibrate`` val.
        level: prompt level; by default the run's ``data.eval_level``. ``random`` asks every case a level of its own, the same
            one in every evaluation.
        threshold: by default the adapter's.
        calibrate: first choose the threshold with the largest mean Dice on the validation cases and store it in the adapter
            folder, where prediction finds it.
        zero_shot: also score the base model, on the same cases with the same words and threshold; left out, and said so,
            where it has no pretrained weights.
        nsd_tolerance: in mm where the spacing is known, else in pixels.
        skip_bad: leave unusable cases out, listed and counted; by default as in training.
        data: another data set than the run's; or the run's own, where that has moved.
        prompt: the class name, where ``data`` has no prompts.
        base: where the base model is now, if not where the adapter says.
        out: the folder; by default ``RUN/evaluation/SPLIT-LEVEL`` (``DATA-SPLIT-LEVEL`` with ``data``).
        batch_size: images encoded together.
        device: by default the GPU where there is one.
        precision: of the model's answers, as ``Predictor.load`` takes it; another than ``fp32`` is added to the folder's name.
        probes: also ask every prompt level, contradictory, swapped, absent, empty and paraphrased prompts, and write
            ``sensitivity.json`` and ``probes.csv`` (docs/prompts.md).
        classes: file of class names for the probes, beside those of the package.

    Returns:
        The evaluation folder.

    Raises:
        UserError: one of its kinds, for a run, adapter, base, data set or argument that cannot be used.
    """
    console = console or Console(quiet=True)
    run = RunFolder.open(run_dir)
    config = run.config()
    folder = adapter_folder(run.path)
    manifest = read_manifest(folder)
    level = level or config.data.eval_level
    if data is not None and (moved := own_data_elsewhere(run, data)) is not None:
        console.say(f"{data}: the run's own data, which lay in {config.data.path}")
        config, data = moved, None
    if calibrate and (split not in (None, CALIBRATION_SPLIT) or data is not None or threshold is not None):
        raise UserError(
            "--calibrate chooses the threshold on the run's own validation cases, never on others: leave --split, --data and "
            "--threshold out, and evaluate the test cases after it"
        )
    split = split or (CALIBRATION_SPLIT if calibrate else "test")
    protocol = Protocol(
        level=level,
        threshold=check_threshold(manifest.info.threshold if threshold is None else threshold),
        nsd_tolerance=nsd_tolerance,
        batch_size=batch_size,
    )
    trained = run.data()
    if data is None and not Path(config.data.path).exists():
        raise DataError(f"{config.data.path}: the run's data are no longer there; say where they are: --data DIR")
    skip_bad = config.data.skip_bad if skip_bad is None else skip_bad
    asked = prompt if data is not None or prompt is not None else config.data.prompt
    if data is None and split == CALIBRATION_SPLIT and config.data.val_path is not None:
        # Validation cases of other data, as in training.
        cases = cases_for(replace(config, data=replace(config.data, prompt=asked, skip_bad=skip_bad)))
    else:
        cases = load_cases(
            config.data.path if data is None else data,
            prompt=asked,
            division=own_division(config, split) if data is None else division_of(config, data),
            skip_bad=skip_bad,
        )
    if data is None:
        cases.skipped += left_out_in_training(trained, split, cases)
    records = cases.records(split)
    model = load_adapter(folder, base=base).to(choose_device(device))
    told_precision = lower_precision(model, precision)
    origin = manifest.info.threshold_origin if threshold is None else None
    calibration = None
    if calibrate:
        calibration = calibrate_adapter(run, folder, model, cases, protocol, console, skip_bad=skip_bad)
        protocol, origin = replace(protocol, threshold=calibration.threshold), str(calibration)
        records = cases.records(split)  # without those that could not be used
    variants: dict[str, Context] = {"adapter": nullcontext}
    if zero_shot and not model.pretrained:
        console.say(f"no zero-shot scores: base model '{model.base_id}' is nothing but random weights")
    elif zero_shot:
        variants["zero_shot"] = lambda: without_adapter(model)
    name = f"{split}-{level}" if data is None else f"{_name(cases.where)}-{split}-{level}"
    name += "" if precision == "fp32" else f"-{precision}"
    place = run.evaluation / name if out is None else Path(out)
    seen = (trained_on_before if data is None else trained_on)(run, records, console)
    job = Job(
        model=model,
        cases=cases,
        records=records,
        split=split,
        variants=variants,
        protocol=protocol,
        folder=EvaluationFolder(place) if data is None or out is not None else free_folder(place, cases.where),
        skip_bad=skip_bad,
        about={
            "run": str(run.path.resolve()),
            "division": str(config.data.division()) if data is None else cases.division,
            "adapter": {
                "method": manifest.config.method,
                "settings": {key: value for key, value in manifest.config.to_dict().items() if key != "method"},
                "trainable_parameters": tuner.count_parameters(model, active(model))[0],
                "sha256": weights_hash(folder),
            },
            "unfinished": _unfinished(run, console),
            "training_cases": compare_with_training(run, records, split, console) if data is None else None,
            "trained_on": seen.count,
            "trained_on_before": seen.before,
            "trained_on_known": seen.known,
            "precision": told_precision,
            "threshold_origin": origin,
            "calibration": None if calibration is None else calibration.to_dict(),
        },
        prober=_prober(records, cases, protocol, classes) if probes else None,
    )
    return _evaluate(job, console)


def evaluate_model(
    model: str | Path | PromptSegmenter,
    data: str | Path,
    *,
    out: str | Path | None = None,
    split: str = "test",
    level: str | None = None,
    prompt: str | None = None,
    threshold: float | None = None,
    nsd_tolerance: float = DEFAULT_NSD_TOLERANCE,
    skip_bad: bool | None = None,
    split_seed: int = 0,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    split_file: str | Path | None = None,
    fold: str | None = None,
    stratify: str = "size",
    batch_size: int = DEFAULT_BATCH_SIZE,
    device: str | torch.device | None = None,
    probes: bool = False,
    classes: str | Path | None = None,
    console: Console | None = None,
) -> Path:
    """Score a base model without any adapter (zero-shot) on one split of a data set.

    Args:
        model: ``"tiny"``, a folder, a hub id, or a loaded model (its adapters are put out of use meanwhile).
        data: folder or manifest.
        out: the folder; by default ``evaluation/DATA-MODEL-SPLIT-LEVEL`` here, with the fold or split file if there is one.
        level: prompt level, by default p1, the class name.
        threshold: by default 0.5.
        split_seed, fractions: of the split by case, where the data has none, and of folds.
        split_file: takes the place of the data's own splits.
        fold: ``"2/5"`` takes their place too: the second of five folds is the test part, as with ``data.fold`` in training.
        stratify: ``"size"`` makes folds alike in foreground size, ``"none"`` does not.
        split, prompt, nsd_tolerance, skip_bad, batch_size, device: as in `evaluate_run`; bad cases stop it by default, and
            a loaded model stays on its device unless ``device`` says otherwise.
        probes, classes: as in `evaluate_run`.

    Returns:
        The evaluation folder.

    Raises:
        UserError: one of its kinds, for a model, data set or argument that cannot be used.
    """
    console = console or Console(quiet=True)
    protocol = Protocol(
        level=level or "p1",
        threshold=check_threshold(DEFAULT_THRESHOLD if threshold is None else threshold),
        nsd_tolerance=nsd_tolerance,
        batch_size=batch_size,
    )
    division = Division(split_seed, fractions, None if split_file is None else str(split_file), fold, stratify=stratify)
    cases = load_cases(data, prompt=prompt, division=division, skip_bad=bool(skip_bad))
    records = cases.records(split)
    if isinstance(model, (str, Path)):
        loaded = load_model(model).to(choose_device(device))
    else:
        loaded = model if device is None else model.to(choose_device(device))
    loaded.require_pretrained()
    divided = [_name(str(split_file))] if split_file is not None else []
    divided += ["fold-{}-of-{}".format(*parse_fold(fold))] if fold is not None else []
    name = "-".join((_name(cases.where), _name(loaded.base_id), *divided, split, protocol.level))
    job = Job(
        model=loaded,
        cases=cases,
        records=records,
        split=split,
        variants={"zero_shot": lambda: without_adapter(loaded)},
        protocol=protocol,
        folder=EvaluationFolder(Path(out)) if out is not None else free_folder(Path("evaluation") / name, cases.where),
        skip_bad=bool(skip_bad),
        about={"run": None, "adapter": None, "training_cases": None, "division": cases.division},
        prober=_prober(records, cases, protocol, classes) if probes else None,
    )
    return _evaluate(job, console)


# -- one evaluation ------------------------------------------------------------------------------------------------------


def _evaluate(job: Job, console: Console) -> Path:
    started = time.perf_counter()
    for record in job.records:
        job.protocol.prompt(record)  # a case without the level is found before anything is read
    prepare(job.folder)
    with console.bar(f"evaluating {job.split}", len(job.records)) as advance:
        scores = score_variants(
            job.model,
            job.records,
            job.variants,
            job.protocol,
            prober=job.prober,
            on_bad=(lambda record, reason: job.cases.drop(record.case_id, record.image, reason))
            if job.skip_bad
            else None,
            progress=advance,
        )
    kept = {score.case_id for score in next(iter(scores.values()))}
    job.records = [record for record in job.records if record.case_id in kept]
    if not job.records:
        reason = job.cases.skipped[-1].reason
        raise DataError(f"split '{job.split}' of {job.cases.where}: no usable case is left, the last: {reason}")
    seconds = time.perf_counter() - started
    groups = {record.case_id: record.group for record in job.records}
    with replacing(job.folder) as fresh:
        for name, found in scores.items():
            write_scores(fresh.scores_file(name), found, groups)
        pictures = draw_cases(job, scores, fresh)
        keep_examples(job, scores, fresh)
        summary = summarise_evaluation(job, scores, pictures, seconds)
        files.write_json(fresh.summary_file, summary)
        if job.prober is not None:
            by_group = groups if any(group is not None for group in groups.values()) else None
            heard = write_sensitivity(job.prober, fresh.sensitivity_file, fresh.probes_file, by_group)
        write_report(fresh.path, place=job.folder.path)
    main = next(iter(scores))
    if summary["prompts"]["leaks"]:
        console.warn(
            f"level {job.protocol.level} leaks: its words are drawn from the ground truth, and the scores flatter"
        )
    for name in scores:
        dice = summary[name]["metrics"]["dice"]["mean"]
        console.say(
            f"{'adapter' if name == 'adapter' else 'zero-shot'}: Dice {dice:.4f} on {len(scores[main])} cases"
            f"{'' if job.split == 'all' else f' of split {job.split}'}"
        )
        if job.prober is not None:
            console.say(f"  {_heard(heard['variants'][name]['score'])}")
    return job.folder.path


# -- small parts ---------------------------------------------------------------------------------------------------------


def _unfinished(run: RunFolder, console: Console) -> dict[str, int] | None:
    """How far a run is whose training was stopped or still goes on; None for one that is finished or does not say."""
    if not run.state_file.is_file():
        return None  # e.g. left behind when the run was copied
    try:
        progress = read_progress(run.state_file)
    except TrainingError:
        return None  # scores need no state
    if progress.finished is not None:
        return None
    planned = run.config().train.epochs
    which = f"the best so far, of epoch {progress.best_epoch}" if progress.best_epoch else "the one it began from"
    console.warn(
        f"training is not finished, {progress.epoch} of {planned} epochs are done; the adapter is {which}. "
        f"Go on with: vlsm train --resume {shlex.quote(str(run.path))}"
    )
    return {"epochs_done": progress.epoch, "epochs": planned, "best_epoch": progress.best_epoch}


def _prober(records: Sequence[Record], cases: Cases, protocol: Protocol, classes: str | Path | None) -> Prober:
    return Prober(records, cases.all, Classes.load(classes), protocol.seed)


def _heard(score: Mapping[str, Any]) -> str:
    if score["value"] is None:
        return "prompt sensitivity: not measurable, it finds next to nothing when asked rightly"
    low, high = score["ci_low"], score["ci_high"]
    interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    return f"prompt sensitivity {score['value']:.3f}{interval}{of_all_kinds(score)}"


def _name(path: str) -> str:
    """The last part of a folder or hub id, or of a file without its ending, for a folder name."""
    place = Path(path).resolve()
    return (place.stem if place.is_file() else place.name) or "data"
