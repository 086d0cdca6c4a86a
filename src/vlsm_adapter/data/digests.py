"""Digests of foreign material: equal for equal material, wherever it lies; another for other material."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_END = 128 * 1024
_BLOCK = 1024 * 1024
# Formats whose files end with a checksum of all of their content.
_CHECKED = (".gz", ".png")


def digest_of_files(files: Iterable[Path], root: Path, also: str = "") -> str:
    """A digest of names (relative to ``root`` where they are below it), sizes and contents; another for other files.

    Of a gzip or PNG file over 256 KiB its two ends stand for its content: it ends with a checksum of all of it.
    """
    state = hashlib.blake2b(also.encode("utf-8", "surrogatepass"), digest_size=16)
    for file in sorted(set(files)):
        name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
        content, size = (
            hashlib.blake2b(digest_size=16),
            -1,
        )  # a file that cannot be read is refused later, with its reason
        with contextlib.suppress(OSError):
            if file.is_file():  # to open a pipe would wait for ever
                size = file.stat().st_size
                for part in _parts(file, size):
                    content.update(part)
        state.update(f"{name}\0{size}\0".encode("utf-8", "surrogatepass"))
        state.update(content.digest())
    return state.hexdigest()


def _parts(file: Path, size: int) -> Iterator[bytes]:
    with file.open("rb") as stream:
        if size > 2 * _END and file.name.lower().endswith(_CHECKED):
            yield stream.read(_END)
            stream.seek(-_END, os.SEEK_END)
        while part := stream.read(_BLOCK):
            yield part


class FileDigests:
    """SHA-256 of the whole content of files, each read once while its size, time and number stay."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int, int], bytes] = {}

    def of(self, file: Path) -> bytes | None:
        """32 bytes; None if the file cannot be read."""
        try:
            status = file.stat()
            key = (str(file), status.st_size, status.st_mtime_ns, status.st_ino)
            if key not in self._known:
                with file.open("rb") as handle:
                    self._known[key] = hashlib.file_digest(handle, "sha256").digest()
            return self._known[key]
        except (OSError, ValueError):
            return None


def digest_of_text(*texts: str) -> str:
    """A digest of the contents of list files."""
    state = hashlib.blake2b(digest_size=16)
    for text in texts:
        state.update(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())
    return state.hexdigest()


def digest_of_checksums(files: Iterable[tuple[str, int, int]]) -> str:
    """A digest of files by (name, size, CRC-32): zip archives list these, so that theirs costs no reading."""
    state = hashlib.blake2b(digest_size=16)
    for name, size, checksum in sorted(files):
        state.update(f"{name}\0{size}\0{checksum}\0".encode("utf-8", "surrogatepass"))
    return state.hexdigest()


def checksum_of_file(file: Path) -> int:
    """The CRC-32 of a file, read in parts.

    Raises:
        OSError: it cannot be read.
    """
    checksum = 0
    with file.open("rb") as stream:
        while part := stream.read(_BLOCK):
            checksum = zlib.crc32(part, checksum)
    return checksum
