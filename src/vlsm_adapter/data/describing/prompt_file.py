"""The file of prompts beside a data set, read without looking at any image.

::

    {"format": "vlsm-prompts", "format_version": 1, "data": "../kvasir_polyp", "levels": {"p1": {"leaks": false}, ...}}
    {"case_id": "a", "prompts": {"p1": ["polyp"], ...}, "measured": {"number": 1, "shape": "round", ...}}

The first line names the data set, relative to the file, and says of every level whether its words were drawn from the
mask. Wherever a data set is asked for, the file can be given instead: images, masks, splits and groups are those of the
data set, prompts and leak flags those of the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlsm_adapter.data.entries import Entry, kind_of, parse_json, read_text, real_folder, shown
from vlsm_adapter.errors import DataError
from vlsm_adapter.types import Record, Skipped

FORMAT = "vlsm-prompts"
FORMAT_VERSION = 1
_AGAIN = "run 'vlsm prompts' again"


@dataclass(frozen=True)
class PromptFile:
    """A file of prompts.

    Attributes:
        path: of the file.
        data: the data set it belongs to, absolute.
        prompt: the class name that ``data`` needs where it has no prompts of its own, or None.
        leak_free: the levels whose words were not drawn from the mask.
        prompts: case id to level to texts.
    """

    path: Path
    data: Path
    prompt: str | None
    leak_free: tuple[str, ...]
    prompts: Mapping[str, Mapping[str, tuple[str, ...]]]

    @classmethod
    def open(cls, path: Path) -> PromptFile | None:
        """Read ``path``; None where it is something else (a folder, a manifest).

        Raises:
            DataError: a damaged file of prompts, one of another version, or one whose data is gone.
        """
        if path.suffix.lower() != ".jsonl" or not path.is_file():
            return None
        with path.open("rb") as handle:
            if FORMAT.encode() not in handle.readline(1 << 16):
                return None
        lines = read_text(path).split("\n")
        head = parse_json(lines[0], f"{path}: line 1")
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            return None
        if head.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{path}: format_version {shown(head.get('format_version'))}; this version reads {FORMAT_VERSION}: {_AGAIN}"
            )
        data = _data(path, head.get("data"))
        prompt = head.get("prompt")
        if prompt is not None and not isinstance(prompt, str):
            raise DataError(f"{path}: line 1, 'prompt': {kind_of(prompt)}, not a text: {_AGAIN}")
        cases: dict[str, Mapping[str, tuple[str, ...]]] = {}
        for number, line in enumerate(lines[1:], start=2):
            if line.strip():
                where = f"{path}: line {number}"
                entry = Entry.of(parse_json(line, where), where, path.parent)
                case_id = entry.case_id()
                if case_id is None or not (prompts := entry.prompts()):
                    raise DataError(f"{where}: needs case_id and prompts: {_AGAIN}")
                if case_id in cases:
                    raise DataError(f"{where}: the case {shown(case_id)} stands twice: {_AGAIN}")
                cases[case_id] = prompts
        return cls(path, data, prompt, _leak_free(path, head.get("levels")), cases)

    def apply(self, records: Iterable[Record], *, skip_bad: bool) -> tuple[list[Record], list[Skipped]]:
        """``records`` with the prompts of the file, and those it does not know.

        Raises:
            DataError: it does not know a case, and not ``skip_bad``.
        """
        made: list[Record] = []
        unknown: list[Skipped] = []
        for record in records:
            if record.case_id in self.prompts:
                made.append(replace(record, prompts=self.prompts[record.case_id], leak_free=self.leak_free))
                continue
            reason = f"{self.path}: has no prompts for case {record.case_id} of {self.data}: {_AGAIN}"
            if not skip_bad:
                raise DataError(reason)
            unknown.append(Skipped(record.case_id, str(record.image), reason))
        return made, unknown


def head_line(path: Path, data: Path, *, prompt: str | None, leaks: Mapping[str, bool], **about: Any) -> dict[str, Any]:
    """The first line of a file of prompts at ``path`` for the data set at ``data``, as a JSON object."""
    folder = real_folder(path.parent)
    try:
        named = Path(os.path.relpath(real_folder(data), folder)).as_posix()
    except ValueError:  # another drive
        named = real_folder(data).as_posix()
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "data": named,
        **({"prompt": prompt} if prompt is not None else {}),
        "levels": {level: {"leaks": leak} for level, leak in leaks.items()},
        **about,
    }


def _data(path: Path, value: object) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise DataError(
            f"{path}: line 1, 'data': {shown(value)}; it names the data set, relative to this file: {_AGAIN}"
        )
    data = real_folder(path.parent / value)
    if not data.exists():
        raise DataError(f'{path}: its data set {data} is not there: correct "data" in line 1, or {_AGAIN}')
    if data == real_folder(path):
        raise DataError(f"{path}: line 1, 'data': names this very file: {_AGAIN}")
    return data


def _leak_free(path: Path, value: object) -> tuple[str, ...]:
    if not isinstance(value, dict):
        raise DataError(f"{path}: line 1, 'levels': {kind_of(value)}, not a table of levels: {_AGAIN}")
    free: list[str] = []
    for level, about in value.items():
        leak = about.get("leaks") if isinstance(about, dict) else None
        if not isinstance(leak, bool):
            raise DataError(f"{path}: line 1, level {shown(level)}: 'leaks' must be true or false: {_AGAIN}")
        if not leak:
            free.append(level)
    return tuple(free)
