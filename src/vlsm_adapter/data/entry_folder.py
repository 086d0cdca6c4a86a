"""A bounded folder of entries that any number of processes fill and read: what the caches on disk have in common.

An entry appears whole, by a rename, or not at all, and carries a checksum of its content; one that is damaged is
removed, and made anew by who asked for it. Where the disk is full or may not be written, work goes on without.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

log = logging.getLogger("vlsm_adapter.data")

T = TypeVar("T")

_DIGEST = 32
# A killed writer leaves a temporary file; one this old has no writer any more.
_ABANDONED_SECONDS = 3600.0


def seal(magic: bytes, content: bytes) -> bytes:
    """The bytes of an entry: what it is, a SHA-256 of its content, its content."""
    return magic + hashlib.sha256(content).digest() + content


def unseal(magic: bytes, data: bytes) -> memoryview | None:
    """The content of an entry; None where it is damaged or of another kind."""
    start = len(magic) + _DIGEST
    content = memoryview(data)[start:]
    if data[: len(magic)] != magic or hashlib.sha256(content).digest() != data[len(magic) : start]:
        return None
    return content


class EntryFolder:
    """Entries by name in a folder, bounded in bytes; what was used longest ago goes first.

    The object can be sent to other processes, and several may work on one folder. Each looks at the whole folder when it
    has written a 32nd of the bound, and then makes room down to 7/8 of it. One writer always keeps the bound, and four at
    once where no entry is larger than a 32nd of it; with larger entries, or more writers, the sum may be above the bound,
    by what each of them wrote since it last looked (a 32nd, or one entry), until one of them looks again.

    Args:
        folder: made when something is first written, readable for its owner alone.
        max_bytes: bound on the sum of the files' sizes.
        suffix: of the entries' file names.
        holds: what the entries are, for the message that they cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int, *, suffix: str, holds: str) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.suffix = suffix
        self.holds = holds
        self._written: int | None = None  # bytes since the folder was last looked at; None: never
        self._broken = False

    def path(self, name: str) -> Path:
        """Where the entry lies; ``name`` is a hexadecimal digest."""
        return self.folder / name[:2] / f"{name}{self.suffix}"

    def __contains__(self, name: str) -> bool:
        """Whether there is such an entry, sound or not."""
        return self.path(name).is_file()

    def takes(self, size: int) -> bool:
        """Whether an entry of ``size`` bytes may be written: one is at most an eighth of the bound."""
        return not self._broken and size <= self.max_bytes // 8

    def writable(self) -> bool:
        """Try whether a file can be made in the folder, which is made where it is missing; a failure is told once."""
        if not self._broken:
            try:
                self._make_folder()
                with tempfile.TemporaryFile(dir=self.folder):
                    pass
            except OSError as error:
                self._give_up(error)
        return not self._broken

    def read(self, name: str, decode: Callable[[bytes], T | None]) -> T | None:
        """What ``decode`` makes of the entry's bytes; None where there is none, or a damaged one, which is removed.

        Args:
            name: of the entry.
            decode: None from it says that the bytes are damaged.
        """
        path = self.path(name)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        found = decode(data)
        with contextlib.suppress(OSError):
            if found is None:
                log.warning("%s: damaged, made anew", path)
                path.unlink()
            else:
                os.utime(path)  # what was used last goes last
        return found

    def write(self, name: str, data: bytes) -> None:
        """Keep an entry; a failure is told once, and nothing is written any more."""
        if not self.takes(len(data)):
            return
        path = self.path(name)
        temporary: Path | None = None
        try:
            if self._written is None or self._written + len(data) > self.max_bytes // 32:
                self._make_room()
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, made = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
            temporary = Path(made)
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            # Not flushed to disk first: what a power cut leaves of it fails the checksum.
            temporary.replace(path)
            temporary = None
            self._written = (self._written or 0) + len(data)
        except OSError as error:
            self._give_up(error)
        finally:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    temporary.unlink()

    def _make_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _give_up(self, error: OSError) -> None:
        self._broken = True
        log.warning(
            "%s: cannot be written (%s); going on without keeping %s there (data.cache_dir)",
            self.folder,
            error.strerror or error,
            self.holds,
        )

    def _make_room(self) -> None:
        """Look at the whole folder; remove what is abandoned, and, above 7/8 of the bound, what was used longest ago."""
        self._make_folder()
        entries: list[tuple[float, int, str]] = []
        now = time.time()
        for file in self._files():
            with contextlib.suppress(OSError):
                status = file.stat()
                if file.name.endswith(".tmp") and now - status.st_mtime > _ABANDONED_SECONDS:
                    Path(file.path).unlink()
                else:
                    entries.append((status.st_mtime, status.st_size, file.path))
        used = sum(size for _, size, _ in entries)
        for _, size, name in sorted(entries):
            if used <= self.max_bytes * 7 // 8:
                break
            if name.endswith(self.suffix):
                with contextlib.suppress(OSError):  # another process removed it, or (Windows) reads it
                    Path(name).unlink()
                    used -= size
        self._written = 0

    def _files(self) -> Iterator[os.DirEntry[str]]:
        """Our files: those in sub-folders named by two hexadecimal digits. A folder of something else is left alone."""
        with os.scandir(self.folder) as parts:
            names = [part.path for part in parts if len(part.name) == 2 and part.is_dir(follow_symlinks=False)]
        for name in names:
            with contextlib.suppress(OSError), os.scandir(name) as files:
                yield from (
                    file
                    for file in files
                    if file.name.endswith((self.suffix, ".tmp")) and file.is_file(follow_symlinks=False)
                )
