"""A folder that appears whole under its name, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlsm_adapter.errors import UserError
from vlsm_adapter.export.runtime import ExportError, read_manifest


@contextmanager
def new_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; on success it takes that name, on any error it is removed.

    Args:
        path: the folder to make.
        overwrite: an earlier export may stand there, which is replaced; nothing else ever is.

    Raises:
        UserError: ``path`` is taken, or cannot be written.
    """
    target = Path(path)
    require_free(target, overwrite=overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    except OSError as error:
        raise UserError(f"{target}: cannot be made ({error.strerror or error}); choose another folder") from error
    try:
        made = work / "new"
        made.mkdir()
        yield made
        require_free(target, overwrite=overwrite)
        if target.exists():
            target.replace(work / "old")  # goes with the temporary folder
        try:
            made.replace(target)
        except OSError:
            if (work / "old").exists():
                (work / "old").replace(target)
            raise
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror or error}); what stood there is intact: free disk space or "
            "choose another folder"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def require_free(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse a name under which something stands that :func:`new_folder` does not replace.

    Raises:
        UserError: as there.
    """
    target = Path(path)
    if not (target.exists() or target.is_symlink()):
        return
    if not target.is_dir():
        raise UserError(f"{target}: is a file; give a folder to make")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{target}: exists; choose another --out, or give --overwrite to replace an earlier export")
    try:
        read_manifest(target)
    except ExportError as error:
        raise UserError(f"{target}: --overwrite replaces an earlier export only, and this is none ({error})") from error
