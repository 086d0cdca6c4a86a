"""One stack after the other through the model and onto the disk: what a process of a prediction does, here or on a cluster."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlsm_adapter.errors import DataError
from vlsm_adapter.imaging.base import AnswerOptions, OutputNames, PictureAnswer, Stack
from vlsm_adapter.imaging.dicom_seg import Provenance
from vlsm_adapter.imaging.masks_out import write_answers
from vlsm_adapter.predict_stream import Stream, Unreadable
from vlsm_adapter.types import Skipped

if TYPE_CHECKING:
    from vlsm_adapter.predict import Predictor


@dataclass(frozen=True)
class Job:
    """One stack with what is to be written for it; travels to other machines.

    Attributes:
        stack: the input.
        names: of its outputs.
        files: planned, relative to the folder.
    """

    stack: Stack
    names: OutputNames
    files: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """What became of a job.

    Attributes:
        rows: of ``predictions.csv``; empty after a failure.
        failures: of the stack as a whole, or of single frames of a video.
        failed: whether nothing was written.
    """

    rows: list[dict[str, Any]]
    failures: list[Skipped]
    failed: bool = False


def run_jobs(
    predictor: Predictor,
    jobs: Sequence[Job],
    prompts: Sequence[str],
    out: Path,
    options: AnswerOptions,
    *,
    workers: int,
) -> Generator[tuple[Job, Result | None], None, None]:
    """Predict stacks and write their answers, one after the other.

    Yields:
        ``(job, None)`` before a job's files are written, then ``(job, result)``.

    Raises:
        UserError: a file cannot be written.
    """
    stream = Stream(predictor, prompts, [job.stack for job in jobs], workers=workers)
    provenance = provenance_of(predictor)
    with contextlib.closing(stream.__iter__()) as answers:
        for number, job in enumerate(jobs):
            yield job, None
            own = islice(answers, job.stack.count)
            try:
                unread: list[Skipped] = []
                readable = _readable(own, job.stack, unread)
                rows = write_answers(job.stack, out, job.names, prompts, readable, options, provenance)
                result = Result(rows, unread)
                if len(unread) == job.stack.count:
                    raise DataError(unread[0].reason)
            except DataError as error:
                stream.skip(number)
                result = Result([], [skipped(job.stack, str(error))], failed=True)
            for _ in own:  # what a failure left over
                pass
            stream.done(number)
            yield job, result


def weights_of(predictor: Predictor) -> str:
    """A hash of what decides a predictor's answers: the adapter folder, or the values of a model from memory."""
    origin = predictor.origin
    digest = hashlib.sha256(f"{predictor.model.base_id}\0{predictor.model.inference_precision}".encode())
    if origin is not None and origin.folder is not None:
        for file in sorted(origin.folder.glob("adapter_*")):
            digest.update(file.name.encode() + _file_hash(file).encode())
    else:
        import torch

        for name, tensor in predictor.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def provenance_of(predictor: Predictor) -> Provenance:
    """What made the masks, as DICOM SEG files record it."""
    origin = predictor.origin
    if origin is None:
        return Provenance(adapter="in memory", base=predictor.model.base_id)
    if origin.folder is None:
        return Provenance(adapter="zero-shot", base=predictor.model.base_id)
    weights = origin.folder / "adapter_model.safetensors"
    folder = origin.folder.resolve()
    name = folder.parent.name if folder.name == "adapter" else folder.name
    return Provenance(name, _file_hash(weights) if weights.is_file() else "", predictor.model.base_id)


def skipped(stack: Stack, reason: str) -> Skipped:
    """``stack`` as an input that was left out."""
    path = stack.paths[0] if len(stack.paths) == 1 else stack.paths[0].parent
    return Skipped(stack.name, str(path), reason)


def _readable(
    answers: Iterator[tuple[int, PictureAnswer | Unreadable]], stack: Stack, unread: list[Skipped]
) -> Iterator[PictureAnswer]:
    """The answers; a frame of a video that cannot be read is listed in ``unread``, any other picture raises."""
    for _, answer in answers:
        if isinstance(answer, PictureAnswer):
            yield answer
        elif stack.kind == "frames":
            path = stack.paths[answer.index]
            unread.append(Skipped(path.stem, str(path), str(answer.error)))
        else:
            raise answer.error


def _file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
