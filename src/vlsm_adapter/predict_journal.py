"""The journal of a prediction, from which the same command goes on after it was stopped, however it was.

``OUT/.predictions.jsonl`` begins with a line that says what was asked; then a line when the writing of a stack begins, and
one when it is done. The same command again does what is missing. What was begun and not done is done anew, since its
files are ours; a finished stack stays as it is, even where its masks were edited by hand, and under the name that it had.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from vlsm_adapter.errors import UserError
from vlsm_adapter.files import write_text
from vlsm_adapter.imaging.base import AnswerOptions, OutputNames, Stack
from vlsm_adapter.imaging.masks_out import planned_files
from vlsm_adapter.predict_jobs import Job
from vlsm_adapter.types import Skipped

NAME = ".predictions.jsonl"
LOCK = ".predictions.lock"
_VERSION = 2


@dataclass(frozen=True)
class Done:
    """A stack that is finished.

    Attributes:
        inputs: fingerprint of its input files.
        files: written, relative to the folder.
        rows: of ``predictions.csv``.
        names: of its outputs.
        failures: its frames that could not be read.
    """

    inputs: str
    files: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    names: OutputNames
    failures: tuple[Skipped, ...] = ()


class Journal:
    """The journal of one folder, held by the process that has its lock.

    Args:
        out: the folder; it is made when the first stack is begun.
        asked: what was asked of every stack: prompts, options, weights; plain JSON values.
        fresh: forget what an earlier prediction noted; files that are to be replaced are added to ``begun``, so that
            they still may be after a kill.

    Attributes:
        done: by name of the stack.
        begun: files of stacks whose writing was begun but not finished.
        continued: whether there was a journal to go on from.

    Raises:
        UserError: the folder holds the journal of a prediction that was asked something else.
    """

    def __init__(self, out: Path, asked: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.path = out / NAME
        self.asked = json.loads(json.dumps(asked))
        self.done: dict[str, Done] = {}
        self.begun: set[str] = set()
        self._stream: IO[str] | None = None
        self.continued = self.path.is_file() and not fresh
        if self.continued:
            self._read(out)

    def begin(self, name: str, files: Sequence[str]) -> None:
        """Note that the files of a stack are written from now on."""
        self._add({"begin": name, "files": list(files)})

    def finish(self, name: str, done: Done) -> None:
        """Note that a stack is done."""
        self.done[name] = done
        self._add(_line(name, done))

    def named_as_before(self, jobs: Sequence[Job], options: AnswerOptions) -> list[Job]:
        """``jobs``, with the names of the earlier call for inputs that it knew.

        A name depends on what else is asked: a second ``frame.png`` makes ``patient1__frame`` of ``frame``. What is done
        under ``frame`` stays so, and an input that would now have that name gets another one.
        """
        before = Counter(_whose(done.inputs) for done in self.done.values())
        known = {_whose(done.inputs): done.names for done in self.done.values()}
        inputs = [_whose(fingerprint(job.stack)) for job in jobs]
        now = Counter(inputs)
        found, taken = list(jobs), set()
        for number, (job, whose) in enumerate(zip(jobs, inputs, strict=True)):
            if now[whose] == before[whose] == 1 and known[whose] != job.names:
                found[number] = _renamed(job, known[whose], options)
                taken |= {name.casefold() for name in (known[whose].stack, *found[number].files)}
        for number, (job, whose) in enumerate(zip(jobs, inputs, strict=True)):
            if found[number] is job and any(name.casefold() in taken for name in (job.names.stack, *job.files)):
                bases = tuple(f"{base}_{whose[:10]}" for base in job.names.prompts)
                found[number] = _renamed(job, OutputNames(f"{job.names.stack}_{whose[:10]}", bases), options)
        return found

    def start(self) -> None:
        """Write the journal anew, without lines torn by a kill, and keep it open."""
        if self._stream is not None:
            return
        lines: list[dict[str, Any]] = [{"journal": _VERSION, "asked": self.asked}]
        lines += [{"begin": "", "files": sorted(self.begun)}] if self.begun else []
        lines += [_line(name, done) for name, done in self.done.items()]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))
        self._stream = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Let go of the file."""
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.close()
            self._stream = None

    def _add(self, line: Mapping[str, Any]) -> None:
        self.start()
        assert self._stream is not None
        try:
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()
            if "begin" in line:  # before its files are: after a power cut they must be known as ours
                os.fsync(self._stream.fileno())
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror or error}): free disk space, then repeat the command"
            ) from error

    def _read(self, out: Path) -> None:
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error}): choose another folder") from None
        rows = []
        for line in lines:
            with contextlib.suppress(ValueError):  # torn by a kill
                row = json.loads(line)
                if isinstance(row, dict):
                    rows.append(row)
        first = rows[0] if rows else {}
        if first.get("journal") != _VERSION or not isinstance(first.get("asked"), dict):
            raise UserError(f"{self.path}: is no journal of this version: pass --overwrite, or choose another folder")
        self._check_same(out, first["asked"])
        for row in rows[1:]:
            with contextlib.suppress(KeyError, TypeError):
                if "begin" in row:
                    self.begun |= set(row["files"])
                else:
                    name, prompts = row["done"], row["names"]
                    names = OutputNames(name, tuple(prompts))
                    failures = tuple(Skipped(**case) for case in row.get("failures", ()))
                    self.done[name] = Done(row["inputs"], tuple(row["files"]), tuple(row["rows"]), names, failures)

    def _check_same(self, out: Path, before: Mapping[str, Any]) -> None:
        other = [key for key in {**before, **self.asked} if before.get(key) != self.asked.get(key)]
        if other:
            told = "; ".join(f"{key} {_told(before.get(key))}, now {_told(self.asked.get(key))}" for key in other[:3])
            raise UserError(
                f"{out}: holds predictions that were asked otherwise ({told}): choose another folder, or pass --overwrite "
                "to begin anew"
            )


def fingerprint(stack: Stack) -> str:
    """Of a stack's files: their paths, then their sizes and times of change, which change when one of them is replaced."""
    paths, states = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    for path in stack.paths:
        try:
            found = path.stat()
            state = (found.st_size, found.st_mtime_ns)
        except OSError:
            state = (-1, -1)
        paths.update(os.fsencode(os.path.realpath(path)) + b"\0")
        states.update(repr(state).encode())
    return f"{paths.hexdigest()}-{states.hexdigest()}"


def same_files(one: str, other: str) -> bool:
    """Whether two fingerprints are of the same paths, changed or not."""
    return _whose(one) == _whose(other)


def _whose(inputs: str) -> str:
    return inputs.partition("-")[0]


def _renamed(job: Job, names: OutputNames, options: AnswerOptions) -> Job:
    job.stack.name = names.stack
    return Job(job.stack, names, tuple(planned_files(job.stack, names, options)))


def _line(name: str, done: Done) -> dict[str, Any]:
    return {
        "done": name,
        "inputs": done.inputs,
        "files": done.files,
        "rows": done.rows,
        "names": done.names.prompts,
        **({"failures": [asdict(case) for case in done.failures]} if done.failures else {}),
    }


def _told(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
