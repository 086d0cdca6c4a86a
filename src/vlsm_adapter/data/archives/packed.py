"""Listing the files of zip and tar archives without unpacking them."""

from __future__ import annotations

import contextlib
import functools
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

from vlsm_adapter.data.archives.files import Limits, TreeFile, check_count, check_file, check_total, exactly, safe_name
from vlsm_adapter.data.entries import shown
from vlsm_adapter.errors import DataError, UserError, one_line

ZIP, TAR = (".zip",), (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_OTHER = (".rar", ".7z", ".gz", ".bz2", ".xz", ".zst", ".lz4", ".cab", ".iso")


def archive_files(path: Path, limits: Limits, stack: contextlib.ExitStack) -> list[TreeFile]:
    """The files of the archive ``path``, which stays open as long as ``stack``.

    Raises:
        DataError: no archive of a kind that is read, damaged, or refused.
        UserError: there is no room to decompress it.
    """
    lower = path.name.lower()
    try:
        # A tar goes by its name first: one that ends with a zip inside would pass for a zip.
        if not lower.endswith(TAR) and zipfile.is_zipfile(path):
            return _zip_files(path, limits, stack)
        if lower.endswith(TAR) or tarfile.is_tarfile(path):
            return _tar_files(path, limits, stack)
    except UserError:
        raise
    except (
        OSError,
        EOFError,
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        ValueError,
        NotImplementedError,
    ) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)}): damaged or cut off; fetch it again") from None
    if lower.endswith(_OTHER):
        raise DataError(f"{path}: archives of this kind are not read: unpack it and give the folder")
    if lower.endswith(ZIP):
        raise DataError(f"{path}: not a zip archive, though named so: damaged or cut off; fetch it again")
    raise DataError(
        f"{path}: neither a zip or tar archive nor a folder: give the file as its owners ship it, or unpack it"
    )


def _zip_files(path: Path, limits: Limits, stack: contextlib.ExitStack) -> list[TreeFile]:
    archive = stack.enter_context(zipfile.ZipFile(path))
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    check_count(path, len(entries), limits)
    files: list[TreeFile] = []
    taken: set[str] = set()
    for entry in entries:
        name = safe_name(path, entry.filename)
        if name is None:
            continue
        if entry.flag_bits & 0x1:
            raise DataError(f"{path}: {shown(name)} is encrypted: unpack it with its password and give the folder")
        if (entry.external_attr >> 16) & 0o170000 == 0o120000:
            raise DataError(f"{path}: {shown(name)} is a link: unpack the archive yourself and give the folder")
        if name in taken:
            raise DataError(f"{path}: holds two files called {shown(name)}: damaged; fetch it again")
        taken.add(name)
        check_file(f"{path}: {name}", entry.file_size, limits)
        read = functools.partial(_read_zipped, archive, entry)
        files.append(TreeFile(name, entry.file_size, str(path), None, read, entry.CRC))
    check_total(path, sum(file.size for file in files), path.stat().st_size, limits)
    return files


def _read_zipped(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    return exactly(archive.read(entry), entry.file_size)


def _tar_files(path: Path, limits: Limits, stack: contextlib.ExitStack) -> list[TreeFile]:
    packed: IO[bytes] = stack.enter_context(path.open("rb"))
    stream = packed
    opener = _decompressor(packed.read(6))
    packed.seek(0)
    if opener is not None:
        stream = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        _decompress(path, opener(packed), stream, limits)
        stream.seek(0)
    archive = stack.enter_context(tarfile.open(fileobj=stream, mode="r:"))  # noqa: SIM115
    lock = threading.Lock()
    files: dict[str, TreeFile] = {}
    for number, member in enumerate(archive, start=1):
        check_count(path, number, limits)
        name = safe_name(path, member.name)
        if name is None or member.isdir():
            continue
        if member.issym() or member.islnk():
            raise DataError(
                f"{path}: {shown(name)} is a link to {shown(member.linkname)}: unpack the archive yourself and give the folder"
            )
        if not member.isreg() or member.issparse():
            raise DataError(f"{path}: {shown(name)} is no plain file: unpack the archive yourself and give the folder")
        check_file(f"{path}: {name}", member.size, limits)

        def read(start: int = member.offset_data, size: int = member.size) -> bytes:
            with lock:  # one position in the file, several threads
                stream.seek(start)
                return exactly(stream.read(size), size)

        # A later entry of the same name takes the place of the earlier: that is how tar appends a new version.
        files[name] = TreeFile(name, member.size, str(path), None, read)
    check_total(path, sum(file.size for file in files.values()), None, limits)
    return list(files.values())


def _decompressor(magic: bytes) -> Callable[[IO[bytes]], IO[bytes]] | None:
    if magic.startswith(b"\x1f\x8b"):
        import gzip

        return lambda stream: cast("IO[bytes]", gzip.GzipFile(fileobj=stream, mode="rb"))
    if magic.startswith(b"BZh"):
        import bz2

        return lambda stream: bz2.BZ2File(stream)
    if magic.startswith(b"\xfd7zXZ\x00"):
        import lzma

        return lambda stream: lzma.LZMAFile(stream)
    return None


def _decompress(path: Path, source: IO[bytes], target: IO[bytes], limits: Limits) -> None:
    packed, done = path.stat().st_size, 0
    while True:
        try:
            block = source.read(2**20)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise DataError(
                f"{path}: cannot be unpacked ({one_line(error)}): damaged or cut off; fetch it again"
            ) from None
        if not block:
            return
        done += len(block)
        check_total(path, done, packed, limits)
        try:
            target.write(block)
        except OSError as error:
            raise UserError(
                f"{tempfile.gettempdir()}: no room to unpack {path.name} ({error.strerror or error}): "
                "free space there, set TMPDIR, or unpack it yourself and give the folder"
            ) from error


def archive_stem(name: str) -> str:
    """The name of an archive without its ending."""
    ending = next(ending for ending in sorted(ZIP + TAR, key=len, reverse=True) if name.lower().endswith(ending))
    return name[: -len(ending)]
