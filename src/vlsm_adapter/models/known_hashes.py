"""Hashes of large files, kept from one process to the next as long as the files are the same.

Every start hashes the base model, to refuse an adapter of another; of 600 MB that takes half a second. "The same" is what
it is for git: path, device, inode, size, and the times of the last change of content and of status, in nanoseconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlsm_adapter import files
from vlsm_adapter.errors import UserError

LEAST = 64 << 20  # bytes below which hashing takes no longer than a user would notice
_SETTLED = 2.0  # seconds after a change in which another could leave the same times


FileState = list[Any]  # path, device, inode, size, two times


def hash_of(paths: Sequence[Path], compute: Callable[[], str]) -> str:
    """What ``compute()`` gives for these files, or gave before they were last changed.

    Kept in ``$VLSM_CACHE_DIR/hashes``, else ``vlsm-adapter/hashes`` in ``XDG_CACHE_HOME`` or ``~/.cache``; with
    ``VLSM_CACHE_DIR=off``, or where that cannot be written, nowhere.
    """
    before = state_of(paths)
    folder = _folder()
    if folder is None or before is None or sum(row[3] for row in before) < LEAST:
        return compute()
    entry = folder / f"{hashlib.sha256(json.dumps([row[0] for row in before]).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        kept = json.loads(entry.read_text(encoding="utf-8"))
        if kept["files"] == before and isinstance(kept["hash"], str):
            return str(kept["hash"])
    found = compute()
    latest = max(max(row[4], row[5]) for row in before) / 1e9
    if state_of(paths) == before and latest + _SETTLED < time.time():
        with contextlib.suppress(UserError, OSError, ValueError):
            files.write_json(entry, {"files": before, "hash": found})
    return found


def state_of(paths: Sequence[Path]) -> list[FileState] | None:
    """Path, device, inode, size, and two times of each file; None where one cannot be seen."""
    rows: list[FileState] = []
    for path in paths:
        try:
            found = path.stat()
        except OSError:
            return None
        rows.append(
            [str(path.resolve()), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
        )
    return rows


def _folder() -> Path | None:
    chosen = os.environ.get("VLSM_CACHE_DIR")
    if chosen == "off":
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    with contextlib.suppress(RuntimeError):  # there is no home
        if chosen and chosen != "auto":
            return Path(chosen).expanduser() / "hashes"
        return (base if base.is_absolute() else Path.home() / ".cache") / "vlsm-adapter" / "hashes"
    return None
