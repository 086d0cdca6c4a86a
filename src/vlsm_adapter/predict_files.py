"""Answers for many files: named, written whole or not at all, nothing overwritten unasked, no file lost silently.

What is asked of a folder is noted in a journal (:mod:`vlsm_adapter.predict_journal`), so that the same command goes on where
it was stopped.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlsm_adapter import files
from vlsm_adapter.console import Console
from vlsm_adapter.errors import DataError, UserError
from vlsm_adapter.imaging.base import AnswerOptions, OutputNames, Stack
from vlsm_adapter.imaging.inputs import find_stacks, naming_paths
from vlsm_adapter.imaging.masks_out import planned_files
from vlsm_adapter.imaging.measures import COLUMNS
from vlsm_adapter.imaging.options import ReadOptions
from vlsm_adapter.output_names import stack_names
from vlsm_adapter.predict_jobs import Job, Result, run_jobs, skipped, weights_of
from vlsm_adapter.predict_journal import LOCK, NAME, Done, Journal, fingerprint, same_files
from vlsm_adapter.types import Skipped

if TYPE_CHECKING:
    from vlsm_adapter.predict import Predictor

TABLE_NAME = "predictions.csv"
FAILURES_NAME = "failures.csv"
# A thousand files without a pixel size need not be told a thousand times.
_MOST_NOTES = 5


@dataclass(frozen=True)
class PredictReport:
    """What :func:`predict_files` did.

    Attributes:
        out_dir: the folder written to.
        images: inputs that are predicted: pictures, volumes, series, videos.
        masks: mask files, in the order of inputs and prompts.
        table: ``predictions.csv``.
        skipped: inputs that could not be predicted, with reasons; also in ``failures.csv``.
        before: how many of ``images`` had been predicted by an earlier call.
    """

    out_dir: Path
    images: int
    masks: list[Path]
    table: Path
    skipped: list[Skipped] = field(default_factory=list)
    before: int = 0

    def __str__(self) -> str:
        text = f"{_count(len(self.masks), 'mask file')} of {_count(self.images, 'input')} in {self.out_dir}"
        if self.before:
            text += f" ({self.before} of them from before)"
        text += f"; areas in {self.table}"
        if self.skipped:
            text += f"; {_count(len(self.skipped), 'input')} left out, listed in {self.out_dir / FAILURES_NAME}"
        return text


def predict_files(
    predictor: Predictor,
    images: Sequence[Path],
    prompts: Sequence[str],
    out_dir: str | os.PathLike[str],
    *,
    options: AnswerOptions | None = None,
    read: ReadOptions | None = None,
    probabilities: bool = False,
    overlays: bool = False,
    overwrite: bool = False,
    skip_bad: bool | None = None,
    threshold: float | None = None,
    workers: int = 2,
    ray: str | None = None,
    console: Console | None = None,
) -> PredictReport:
    """Ask every prompt of every image and write the answers as files.

    Answers come in kind: PNG for pictures, TIFF for pages, NIfTI for volumes, DICOM SEG for DICOM. A table
    ``predictions.csv`` has a row per mask, ``failures.csv`` one per input that could not be read. All in docs/predict.md.

    The same call again goes on where it was stopped: finished inputs are not repeated, new ones are added. Another call
    into the same folder is refused, and so is one after an input has changed.

    Args:
        predictor: with the model, and the default threshold.
        images: files (``imaging.inputs.input_files`` finds them); one listed twice is predicted once.
        prompts: texts; one given twice is asked once.
        out_dir: the folder; made where missing.
        options: form of the answers, post-processing; its threshold is not read.
        read: plane, window, frames.
        probabilities, overlays: as in ``options``, either may ask for them.
        overwrite: replace files of earlier predictions, and begin anew.
        skip_bad: go on after an input that cannot be read; by default where there are several.
        threshold: by default the predictor's own.
        workers: threads that read ahead.
        ray: address of a Ray cluster whose nodes see the same files; the predictor must have been loaded from a path.
        console: shows progress; silent by default.

    Raises:
        UserError: no images, no prompts, a file exists already (before anything is computed), an output would replace
            an input, or a file cannot be written. What was written before stays and stands in ``predictions.csv``.
        DataError: no input can be read, or one cannot be without ``skip_bad``.
    """
    from vlsm_adapter.inference import check_threshold
    from vlsm_adapter.predict import check_prompts

    console = console or Console(quiet=True)
    out = Path(out_dir)
    texts = list(dict.fromkeys(check_prompts(prompts)))
    if isinstance(images, (str, Path)):
        raise UserError("images is one path: give a list of files, as input_files returns")
    if not images:
        raise UserError("no image to predict: give an image file, a folder, or a pattern such as 'images/*.png'")
    if workers < 1:
        raise UserError(f"workers {workers}: at least one thread reads")
    options = options or AnswerOptions()
    options = replace(
        options,
        threshold=predictor.threshold if threshold is None else check_threshold(threshold),
        probabilities=probabilities or options.probabilities,
        overlays=overlays or options.overlays,
    )
    read = read or ReadOptions()
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder for the masks")

    with console.bar("reading headers", len(images)) as advance:
        found = find_stacks(images, read, workers=workers, progress=advance)
    total = len(found.stacks) + len(found.failures)
    skips = total > 1 if skip_bad is None else skip_bad
    if found.failures and not skips:
        raise DataError(found.failures[0].reason)
    jobs, failures = _plan(found.stacks, texts, options)
    failures = [*found.failures, *failures]
    if failures and not skips:
        raise DataError(failures[0].reason)
    _tell(console, [*found.notes, *(note for job in jobs for note in job.stack.notes)])
    _check_inputs(out, jobs, failures)

    batch = _Batch(predictor, out, texts, options, skips, failures, workers)
    asked = {"prompts": texts, **asdict(options), **asdict(read), "weights": weights_of(predictor)}
    with _alone_in(out):
        journal = Journal(out, asked, fresh=overwrite)
        jobs = journal.named_as_before(jobs, options)
        todo = batch.left(journal, jobs, overwrite=overwrite)
        if len(todo) < len(jobs):
            console.say(f"going on: {len(jobs) - len(todo)} of {len(jobs)} are done already")
        anew = {job.stack.name for job in todo}
        # Frames that an earlier call could not read stay listed, with the masks of the others.
        batch.failures += [case for name, done in journal.done.items() if name not in anew for case in done.failures]
        if not jobs:
            batch.close(journal, jobs)
            raise DataError(batch.none_left())
        try:
            with contextlib.closing(_results(batch, todo, ray, console)) as results:
                for job, result in results:
                    batch.take(journal, job, result)
        finally:
            # Also after an error or Ctrl-C: the masks that are there are listed.
            batch.close(journal, jobs)
    there = [job for job in jobs if job.stack.name in journal.done]
    if not there:
        raise DataError(batch.none_left())
    masks = dict.fromkeys(str(row["mask"]) for job in there for row in journal.done[job.stack.name].rows)
    return PredictReport(
        out, len(there), [out / mask for mask in masks], out / TABLE_NAME, failures, len(jobs) - len(todo)
    )


@dataclass
class _Batch:
    """One call: what it asks, and what it has to list at the end."""

    predictor: Predictor
    out: Path
    texts: list[str]
    options: AnswerOptions
    skips: bool
    failures: list[Skipped]
    workers: int

    def left(self, journal: Journal, jobs: Sequence[Job], *, overwrite: bool) -> list[Job]:
        """The jobs that are not done yet.

        Raises:
            UserError: a planned file is there that is not ours, or an input has changed since it was predicted.
        """
        todo: list[Job] = []
        changed: list[Job] = []
        for job in jobs:
            done = journal.done.get(job.stack.name)
            if done is None or not all((self.out / file).exists() for file in done.files):
                todo.append(job)
            elif done.inputs != fingerprint(job.stack):
                changed.append(job)
        if changed:
            first = changed[0]
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            if not same_files(journal.done[first.stack.name].inputs, fingerprint(first.stack)):
                raise UserError(
                    f"{first.stack.paths[0]}: {self.out / first.files[0]} is the mask of another input of that name{more}; "
                    "choose another output folder, or pass --overwrite to begin anew"
                )
            raise UserError(
                f"{first.stack.paths[0]}: has changed since its mask {self.out / first.files[0]} was written{more}; "
                "move that mask away to have it done anew, or pass --overwrite"
            )
        if overwrite:
            journal.begun |= {file for job in todo for file in job.files}
            return todo
        ours = journal.begun | {file for job in todo if job.stack.name in journal.done for file in job.files}
        planned = [file for job in todo for file in job.files if file not in ours]
        tables = () if journal.continued else (TABLE_NAME, FAILURES_NAME)
        standing = [self.out / file for file in (*planned, *tables) if (self.out / file).exists()]
        if standing:
            more = f" (and {len(standing) - 1} more)" if len(standing) > 1 else ""
            raise UserError(f"{standing[0]}: exists already{more}; choose another output folder, or pass --overwrite")
        return todo

    def take(self, journal: Journal, job: Job, result: Result | None) -> None:
        """Note that a job begins (``None``), or what became of it.

        Raises:
            DataError: it failed, and the rest is not to go on.
        """
        if result is None:
            journal.begin(job.stack.name, job.files)
            return
        self.failures += result.failures
        if result.failed:
            if not self.skips:
                raise DataError(result.failures[0].reason)
            return
        # Frames that could not be read have no files.
        there = [file for file in job.files if not result.failures or (self.out / file).exists()]
        done = Done(fingerprint(job.stack), tuple(there), tuple(result.rows), job.names, tuple(result.failures))
        journal.finish(job.stack.name, done)

    def close(self, journal: Journal, jobs: Sequence[Job]) -> None:
        """Write the tables, unless nothing was done and nothing is to be gone on with."""
        journal.close()
        if not journal.done and not (self.failures and self.skips):
            if not journal.continued:
                (self.out / NAME).unlink(missing_ok=True)
            return
        if not (self.out / NAME).exists():
            journal.start()
            journal.close()
        now = [job.stack.name for job in jobs]
        order = [*now, *(name for name in journal.done if name not in set(now))]
        rows = [row for name in order if name in journal.done for row in journal.done[name].rows]
        if rows:
            files.write_csv(self.out / TABLE_NAME, COLUMNS, rows)
        listed = [{"image": case.path, "reason": case.reason} for case in self.failures]
        files.write_csv(self.out / FAILURES_NAME, ("image", "reason"), listed)

    def none_left(self) -> str:
        """The message where nothing could be predicted."""
        if not self.failures:
            return f"{self.out}: nothing to predict"
        if len(self.failures) == 1:
            return self.failures[0].reason
        return (
            f"none of {len(self.failures)} inputs can be predicted; all are listed in {self.out / FAILURES_NAME}; the first: "
            f"{self.failures[0].reason}"
        )


def _results(
    batch: _Batch, todo: Sequence[Job], ray: str | None, console: Console
) -> Generator[tuple[Job, Result | None], None, None]:
    with console.bar("predicting", len(todo)) as advance:
        if not todo:
            return
        if ray is not None:
            from vlsm_adapter.predict_ray import run_on_cluster

            running = run_on_cluster(
                ray,
                batch.predictor,
                todo,
                batch.texts,
                batch.out,
                batch.options,
                workers=batch.workers,
                console=console,
            )
        else:
            running = run_jobs(batch.predictor, todo, batch.texts, batch.out, batch.options, workers=batch.workers)
        ended = 0
        with contextlib.closing(running):
            for job, result in running:
                yield job, result
                ended += result is not None
                advance(ended)


def _plan(stacks: Sequence[Stack], prompts: Sequence[str], options: AnswerOptions) -> tuple[list[Job], list[Skipped]]:
    jobs: list[Job] = []
    failures: list[Skipped] = []
    for stack, (name, bases) in zip(stacks, stack_names(naming_paths(stacks), prompts), strict=True):
        names = OutputNames(name, bases)
        stack.name = name
        try:
            jobs.append(Job(stack, names, tuple(planned_files(stack, names, options))))
        except DataError as error:
            failures.append(skipped(stack, str(error)))
    return jobs, failures


def _check_inputs(out: Path, jobs: Sequence[Job], failures: Sequence[Skipped]) -> None:
    inputs = {os.path.realpath(path) for job in jobs for path in job.stack.paths}
    inputs |= {os.path.realpath(case.path) for case in failures}
    taken: dict[str, Job] = {}
    for job in jobs:
        for file in job.files:
            target = out / file
            if os.path.realpath(target) in inputs:
                raise UserError(f"{target}: the mask would replace an input image; choose another output folder")
            if (other := taken.setdefault(file.casefold(), job)) is not job:
                raise UserError(
                    f"{target}: would hold the masks of both {other.stack.paths[0]} and {job.stack.paths[0]}: rename one"
                )


@contextlib.contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Keep other processes from predicting into the folder; one that was made for it and stays empty is removed."""
    new = not out.exists()
    busy = f"{out}: another process is predicting into this folder: wait for it, stop it, or choose another folder"
    try:
        with files.locked(out / LOCK, busy):
            _clear_torn(out)
            yield
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error}): choose another folder") from error
    finally:
        if new:
            with contextlib.suppress(OSError):
                out.rmdir()


def _clear_torn(out: Path) -> None:
    """Remove what a killed process left half-written; nobody else writes here now."""
    if not (out / NAME).is_file():
        return
    for torn in out.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            torn.unlink()


def _tell(console: Console, notes: Sequence[str]) -> None:
    different = list(dict.fromkeys(notes))
    for note in different[:_MOST_NOTES]:
        console.say(note)
    if len(different) > _MOST_NOTES:
        console.say(f"... and {len(different) - _MOST_NOTES} more remarks like these")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
