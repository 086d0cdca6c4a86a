"""A bounded cache on disk of what was decoded and resized, so that the next run, or a loader process, need not do it again.

An entry is named by a digest of the content of its source file and of what was done to it: a file that changes, another
size, or another version of the decoder has another name, and nothing can be stale. Any number of processes read and
write: an entry appears whole, by a rename, or not at all. Every entry carries a checksum of its content; one that is
damaged is removed and made anew. Where the disk is full or may not be written, work goes on without the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

log = logging.getLogger("vlsm_adapter.data")

DEFAULT_BYTES = 10 << 30
VARIABLE = "VLSM_CACHE_DIR"
OFF = "off"
AUTO = "auto"
# The first bytes of an entry; another number for another form of entries.
_MAGIC = b"vlsm-case-cache 1\n"
_SUFFIX = ".case"
_DIGEST = 32
# A killed writer leaves a temporary file; one this old has no writer any more.
_ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a file.

    Attributes:
        array: uint8 (h, w, 3) of an image, bool (h, w) of a mask; the caller's own.
        native: (H, W) of the file, upright.
    """

    array: np.ndarray
    native: tuple[int, int]


def cache_folder(setting: str | None) -> Path | None:
    """The folder that a setting names, or None for no cache.

    ``"off"`` is none; ``"auto"`` or None the environment's ``VLSM_CACHE_DIR`` (which may be ``off`` too), else
    ``vlsm-adapter/cases`` in ``XDG_CACHE_HOME``, else in ``~/.cache``; anything else is the folder itself.
    """
    if setting in (None, "", AUTO):
        setting = os.environ.get(VARIABLE) or None
        if setting is None:
            # The specification has relative paths ignored.
            base = Path(os.environ.get("XDG_CACHE_HOME") or "")
            with contextlib.suppress(RuntimeError):  # there is no home
                return (base if base.is_absolute() else Path.home() / ".cache") / "vlsm-adapter" / "cases"
            return None
    assert setting is not None
    return None if setting == OFF else Path(setting).expanduser()


class DiskCache:
    """Arrays by source file and treatment, in a folder, bounded in bytes; what was used longest ago goes first.

    The object can be sent to other processes, and several may work on one folder. Each looks at the whole folder when it
    has written a 32nd of the bound, and then makes room down to 7/8 of it: so up to four writing at once keep the bound.

    Args:
        folder: made when something is first written, readable for its owner alone.
        max_bytes: bound on the sum of the files' sizes.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int = DEFAULT_BYTES) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self._written: int | None = None  # bytes since the folder was last looked at; None: never
        self._broken = False
        self._contents: dict[tuple[str, int, int, int], bytes] = {}

    def load(self, source: Path, treatment: str, make: Callable[[], Kept]) -> Kept:
        """What is kept of ``source`` after ``treatment``, or, made and kept from now on, what ``make`` returns.

        Args:
            source: the file it is made from.
            treatment: all else that it depends on, in words.
            make: called where nothing sound is kept; its errors pass.
        """
        content = self._content(source)
        if content is None:  # whoever decodes the file says what is wrong with it
            return make()
        name = hashlib.sha256(content + treatment.encode()).hexdigest()
        path = self.folder / name[:2] / f"{name}{_SUFFIX}"
        kept = _read(path)
        if kept is None:
            kept = make()
            self._write(path, kept)
        return kept

    def _content(self, source: Path) -> bytes | None:
        """Digest of the file's content, computed once while its size, time and number stay; None if it cannot be read."""
        try:
            status = source.stat()
            key = (str(source), status.st_size, status.st_mtime_ns, status.st_ino)
            if key not in self._contents:
                with source.open("rb") as handle:
                    self._contents[key] = hashlib.file_digest(handle, "sha256").digest()
            return self._contents[key]
        except (OSError, ValueError):
            return None

    def _write(self, path: Path, kept: Kept) -> None:
        """Keep an entry; a failure is told once, and nothing is written any more."""
        if self._broken:
            return
        data = _encode(kept)
        if len(data) > self.max_bytes // 8:
            return
        temporary: Path | None = None
        try:
            if self._written is None or self._written + len(data) > self.max_bytes // 32:
                self._make_room()
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
            temporary = Path(name)
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            # Not flushed to disk first: what a power cut leaves of it fails the checksum.
            temporary.replace(path)
            temporary = None
            self._written = (self._written or 0) + len(data)
        except OSError as error:
            self._broken = True
            log.warning(
                "%s: cannot be written (%s); going on without keeping decoded images there (data.cache_dir)",
                self.folder,
                error.strerror or error,
            )
        finally:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    temporary.unlink()

    def _make_room(self) -> None:
        """Look at the whole folder; remove what is abandoned, and, above 7/8 of the bound, what was used longest ago."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        entries: list[tuple[float, int, str]] = []
        now = time.time()
        for file in _files(self.folder):
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
            if name.endswith(_SUFFIX):
                with contextlib.suppress(OSError):  # another process removed it, or (Windows) reads it
                    Path(name).unlink()
                    used -= size
        self._written = 0


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Our files: those in sub-folders named by two hexadecimal digits. A folder of something else is left alone."""
    with os.scandir(folder) as parts:
        names = [part.path for part in parts if len(part.name) == 2 and part.is_dir(follow_symlinks=False)]
    for name in names:
        with contextlib.suppress(OSError), os.scandir(name) as files:
            yield from (
                file for file in files if file.name.endswith((_SUFFIX, ".tmp")) and file.is_file(follow_symlinks=False)
            )


def _encode(kept: Kept) -> bytes:
    array = kept.array
    body = np.packbits(array) if array.dtype == bool else np.ascontiguousarray(array)
    about = {"dtype": array.dtype.name, "shape": array.shape, "native": kept.native}
    content = json.dumps(about).encode() + b"\n" + body.tobytes()
    return _MAGIC + hashlib.sha256(content).digest() + content


def _read(path: Path) -> Kept | None:
    """A sound entry; None where there is none, and a damaged one is removed."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        return None
    kept = _decode(data)
    with contextlib.suppress(OSError):
        if kept is None:
            log.info("%s: damaged, made anew", path)
            path.unlink()
        else:
            os.utime(path)  # what was used last goes last
    return kept


def _decode(data: bytes) -> Kept | None:
    start = len(_MAGIC) + _DIGEST
    content = memoryview(data)[start:]
    if data[: len(_MAGIC)] != _MAGIC or hashlib.sha256(content).digest() != data[len(_MAGIC) : start]:
        return None
    end = data.find(b"\n", start)
    try:
        about = json.loads(data[start:end])
        shape = tuple(int(side) for side in about["shape"])
        body = np.frombuffer(data, np.uint8, offset=end + 1)
        if about["dtype"] == "bool":
            array = np.unpackbits(body, count=int(np.prod(shape))).view(bool).reshape(shape)
        else:
            array = body.reshape(shape).copy()
        return Kept(array, (int(about["native"][0]), int(about["native"][1])))
    except (ValueError, KeyError, TypeError, IndexError):  # of another version, with a checksum that is right
        return None
