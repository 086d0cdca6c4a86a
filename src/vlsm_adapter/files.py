"""Writing files so that a crash, a full disk or a kill leaves the old file or the new one, never half of one.

A file is written under a temporary name beside its place, flushed to disk, then renamed over it
(rename is atomic on POSIX file systems). ``locked`` keeps a second process from writing into the same folder.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from vlsm_adapter.errors import UserError

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed and renamed over ``path``.

    On any error the temporary file is removed and what stood at ``path`` is untouched.

    Raises:
        UserError: the folder cannot be written or the disk is full; the previous file is intact.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
        _flush_folder(target.parent)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror or error}); the previous file, if any, is intact: "
            "free disk space or choose another folder"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], busy: str) -> Iterator[None]:
    """Keep other processes (and threads) out by a lock on the file ``path``, made for it and removed at the end.

    A kill lifts the lock; the file that then stays keeps nobody out. Nothing is locked on Windows and on file systems
    without locks.

    Args:
        path: a file that serves nothing else; its folder is made.
        busy: what to say when another process holds the lock.

    Raises:
        UserError: another process holds it.
        OSError: the folder cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        yield
        return

    def still_there(handle: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(handle.fileno()), target.stat())
        except FileNotFoundError:
            return False

    while True:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(busy) from None
            except OSError:  # a file system without locks
                pass
            else:
                if not still_there(handle):  # who held it has removed the file since it was opened
                    continue
            try:
                yield
            finally:
                target.unlink(missing_ok=True)
            return


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content``, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinities are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A table as CSV with a head and line feeds; None is an empty cell.

    Texts are quoted where one holds a carriage return, which the csv module of Python 3.11 leaves bare before line feeds
    and then takes for the end of a row.
    """
    rows = list(rows)
    bare = any("\r" in value for row in rows for value in row.values() if isinstance(value, str))
    text = io.StringIO()
    how: Literal[0, 2] = csv.QUOTE_NONNUMERIC if bare else csv.QUOTE_MINIMAL
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n", quoting=how)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_csv(path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace ``path`` by a table, see :func:`csv_text`; of names of files, bytes that are no text become escapes."""
    write_bytes(path, csv_text(columns, rows).encode("utf-8", "backslashreplace"))


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file, atomically; tensors are copied to main memory first.

    Raises:
        UserError: as :func:`atomic_path`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        try:
            save_file(
                {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()},
                temporary,
                metadata=dict(metadata),
            )
        except SafetensorError as error:  # what its writer makes of an operating system error
            raise OSError(str(error)) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush_folder(folder: Path) -> None:
    # The rename itself lives in the folder; without this a power cut may undo it.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
