"""The journal of a set that is being written, from which a stopped call goes on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlsm_adapter.data.entries import shown
from vlsm_adapter.data.prepared.card import About
from vlsm_adapter.data.prepared.files import Stored, unwritable
from vlsm_adapter.errors import DataError
from vlsm_adapter.files import write_text

PARTIAL = "records.jsonl.partial"


class Journal:
    """``records.jsonl.partial``: a line that says which set this is, then a line for each finished case."""

    def __init__(self, root: Path, about: About) -> None:
        self.path = root / PARTIAL
        self.finished: dict[str, Stored] = {}
        header = about.identity()
        try:
            if self.path.is_file():
                self._read(root, header)
            else:
                _refuse_foreign(root)
            for folder in ("images", "masks"):
                (root / folder).mkdir(parents=True, exist_ok=True)
                for torn in (root / folder).glob(".*.tmp"):
                    torn.unlink()
            # Written anew, so that a last line torn by a kill is not followed by others.
            lines = [json.dumps(header), *(_journal_line(name, stored) for name, stored in self.finished.items())]
            write_text(self.path, "\n".join(lines) + "\n")
            self._stream = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise unwritable(root, error) from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._stream.close()

    def discard(self) -> None:
        """Remove what was begun, so that a call refused at its first case leaves no folder to be deleted by hand."""
        self._stream.close()
        with contextlib.suppress(OSError):
            self.path.unlink()
            for folder in ("images", "masks"):
                shutil.rmtree(self.path.parent / folder)
            self.path.parent.rmdir()  # not where something else came to lie in it

    def add(self, case_id: str, stored: Stored) -> bool:
        """Note a finished case; whether it had been finished before."""
        if self.finished.get(case_id) == stored:
            return True
        try:
            self._stream.write(_journal_line(case_id, stored) + "\n")
            self._stream.flush()
        except OSError as error:
            raise unwritable(self.path, error) from error
        return False

    def _read(self, root: Path, header: Mapping[str, Any]) -> None:
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        try:
            found = json.loads(lines[0])
        except ValueError:
            found = None
        if found != json.loads(json.dumps(header)):
            raise DataError(
                f"{root}: holds an unfinished set of other material or options ({PARTIAL}): delete it or choose another folder"
            )
        present = {
            f"{folder}/{entry.name}"
            for folder in ("images", "masks")
            if (root / folder).is_dir()
            for entry in os.scandir(root / folder)
            if entry.is_file(follow_symlinks=False) and entry.stat().st_size
        }
        for line in lines[1:]:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a torn line: its case is done again
                row = json.loads(line)
                stored = Stored(row["image"], row["mask"], (row["size"][0], row["size"][1]), row["foreground"])
                if stored.image in present and stored.mask in present:
                    self.finished[row["case_id"]] = stored


def _journal_line(case_id: str, stored: Stored) -> str:
    row = {"case_id": case_id, "image": stored.image, "mask": stored.mask, "size": list(stored.size)}
    return json.dumps({**row, "foreground": stored.foreground}, ensure_ascii=False)


def _refuse_foreign(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise DataError(f"{root}: is a file, a data set needs a folder: choose another one")
    if root.is_dir() and (other := next((entry.name for entry in root.iterdir()), None)) is not None:
        raise DataError(f"{root}: holds other files ({shown(other)}): choose a new or empty folder")
