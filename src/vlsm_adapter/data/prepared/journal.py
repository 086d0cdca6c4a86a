"""The journal of a set that is being written, from which a stopped call goes on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlsm_adapter.data.entries import shown
from vlsm_adapter.data.prepared.card import About
from vlsm_adapter.data.prepared.files import Stored, unwritable
from vlsm_adapter.errors import DataError
from vlsm_adapter.files import locked, write_text

PARTIAL = "records.jsonl.partial"
LOCK = ".lock"


class Journal:
    """``records.jsonl.partial``: a line that says which set this is, then a line for each finished case.

    Only the process that holds the lock of the folder (``alone_in``) may make one: it clears away torn files.
    """

    def __init__(self, root: Path, about: About) -> None:
        self.path = root / PARTIAL
        self.finished: dict[str, Stored] = {}
        header = about.identity()
        try:
            if self.path.is_file():
                self._read(root, header)
            else:
                _refuse_foreign(root)
            # Written anew, so that a last line torn by a kill is not followed by others; and before the folders, which
            # without it would be those of somebody else.
            lines = [json.dumps(header), *(_journal_line(name, stored) for name, stored in self.finished.items())]
            write_text(self.path, "\n".join(lines) + "\n")
            for folder in (root, root / "images", root / "masks"):
                folder.mkdir(exist_ok=True)
                for torn in folder.glob(".*.tmp"):
                    torn.unlink()
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
                f"{root}: holds an unfinished set of other material or options ({PARTIAL}), or the material has changed since: "
                "delete it or choose another folder"
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


@contextlib.contextmanager
def alone_in(root: Path) -> Iterator[None]:
    """Make the folder ``root`` and keep other processes from writing a set into it; one left empty is removed.

    Raises:
        DataError: it is a file.
        UserError: another process writes into it, or it cannot be written.
    """
    if root.exists() and not root.is_dir():
        raise DataError(f"{root}: is a file, a data set needs a folder: choose another one")
    busy = f"{root}: another process is writing a data set there: wait for it or stop it, or choose another folder"
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_if_empty, root)
        try:
            stack.enter_context(locked(root / LOCK, busy))
        except OSError as error:
            raise unwritable(root, error) from error
        yield


def _remove_if_empty(root: Path) -> None:
    with contextlib.suppress(OSError):
        root.rmdir()


def _refuse_foreign(root: Path) -> None:
    ours = (LOCK, *(entry.name for entry in root.glob(f".{PARTIAL}.*.tmp")))
    if (other := next((entry.name for entry in root.iterdir() if entry.name not in ours), None)) is not None:
        raise DataError(f"{root}: holds other files ({shown(other)}): choose a new or empty folder")
