"""A place in memory for what readers and writers want as files: uploads never touch a disk.

On Linux ``/dev/shm`` is memory with the face of a folder. Each server has a folder of its own there, readable by its user
alone, and removes what servers of the same user left that were killed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vlsm_adapter.serve.problems import Refused, busy

SHARED_MEMORY = Path("/dev/shm")


class Scratch:
    """Folders in memory.

    Args:
        root: a folder that lies in memory.

    Attributes:
        root: as given.
    """

    def __init__(self, root: Path = SHARED_MEMORY) -> None:
        self.root = root
        self._own: Path | None = None
        self._lock: int | None = None

    def folder(self) -> Path:
        """A new, empty folder. Whoever asked for it removes it with :meth:`remove`.

        Raises:
            Refused: 415, this machine has no such place; 503, it is full.
        """
        with self._in_words():
            return Path(tempfile.mkdtemp(dir=self._mine()))

    @contextlib.contextmanager
    def passing(self) -> Iterator[Path]:
        """A folder for as long as the context lasts.

        Raises:
            Refused: as :meth:`folder`, also for what is written in it.
        """
        folder = self.folder()
        try:
            with self._in_words():
                yield folder
        finally:
            self.remove(folder)

    def write(self, folder: Path, name: str, content: bytes) -> Path:
        """A file in ``folder``.

        Raises:
            Refused: 503, the place is full.
        """
        path = folder / name
        with self._in_words():
            path.write_bytes(content)
        return path

    def remove(self, folder: Path) -> None:
        """Forget a folder and what is in it."""
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Forget everything."""
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)
            self._own = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _mine(self) -> Path:
        if self._own is None:
            if not self.root.is_dir():
                raise Refused(
                    415, "volumes and DICOM files need memory that can be used as a folder, /dev/shm of Linux: send PNG"
                )
            import fcntl  # where there is /dev/shm, there is flock

            prefix = f"vlsm-serve-{os.getuid()}-"
            for left in self.root.glob(f"{prefix}*"):
                _remove_if_dead(left)
            self._own = Path(tempfile.mkdtemp(prefix=prefix, dir=self.root))  # mode 0700
            self._lock = os.open(self._own / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return self._own

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
                raise
            raise busy(f"{self.root} is full: ask again later, or give the server more shared memory", 10) from None


def _remove_if_dead(folder: Path) -> None:
    """Remove a folder whose server is gone: the lock of a process ends with it."""
    import fcntl

    with contextlib.suppress(OSError):
        handle = os.open(folder / ".lock", os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)
