"""The files of a tree, and what is refused as no file of a data set."""

from __future__ import annotations

import contextlib
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vlsm_adapter.data.digests import checksum_of_file
from vlsm_adapter.data.entries import MAX_NAME, shown
from vlsm_adapter.errors import DataError, UserError, one_line

_JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini", "ehthumbs.db", "$recycle.bin", "system volume information"})
_GIB = 2**30


@dataclass(frozen=True)
class Limits:
    """What is refused as no data set.

    Attributes:
        files: most files.
        file_bytes: most bytes of one file, which is read as a whole.
        total_bytes: most bytes of all files of an archive, unpacked.
        ratio: most bytes unpacked for one byte packed, of an archive (above ``ratio_from`` bytes) as a whole. Masks
            pack well, about 300:1; a deflate bomb has 1000:1.
        ratio_from: archives that unpack to less are not judged by their ratio.
    """

    files: int = 1_000_000
    file_bytes: int = 2 * _GIB
    total_bytes: int = 500 * _GIB
    ratio: float = 200.0
    ratio_from: int = _GIB // 4


DEFAULT = Limits()


@dataclass(frozen=True)
class TreeFile:
    """One file of a tree.

    Attributes:
        path: its name below the tree, with ``/``.
        size: in bytes.
        where: the tree, for messages.
        folder_path: where it lies on disk, if it does.
        read: reads all of it, with whatever errors; ``read_bytes`` is what to call.
        listed_checksum: the CRC-32 that the archive lists for it, which ``read`` has checked; None where it lists none.
    """

    path: str
    size: int
    where: str
    folder_path: Path | None
    read: Callable[[], bytes]
    listed_checksum: int | None = None

    @property
    def name(self) -> str:
        """Its last part."""
        return self.path.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The ending, lower case, with its dot."""
        return PurePosixPath(self.name).suffix.lower()

    @property
    def parent(self) -> str:
        """The folder below the tree, empty at its top."""
        return self.path.rpartition("/")[0]

    def __str__(self) -> str:
        return f"{self.where}: {self.path}" if self.folder_path is None else str(self.folder_path)

    def read_bytes(self) -> bytes:
        """All of it.

        Raises:
            DataError: it cannot be read, or is not what the archive says (size, checksum).
        """
        try:
            return self.read()
        except UserError:
            raise
        except MemoryError:
            raise DataError(f"{self}: {self.size} bytes, too large for the memory of this machine") from None
        except (
            OSError,
            EOFError,
            zipfile.BadZipFile,
            tarfile.TarError,
            zlib.error,
            NotImplementedError,
            RuntimeError,
            ValueError,
        ) as error:
            raise DataError(f"{self}: cannot be read ({one_line(error)}): fetch the archive again") from None

    def read_start(self, size: int) -> bytes:
        """Its first ``size`` bytes, or all of it; only an archived file is read to its end.

        Raises:
            DataError: as ``read_bytes``.
        """
        if self.folder_path is None:
            return self.read_bytes()[:size]
        try:
            with self.folder_path.open("rb") as stream:
                return stream.read(size)
        except OSError as error:
            raise DataError(f"{self}: cannot be read ({one_line(error)}): fetch the file again") from None

    def checksum(self) -> int:
        """CRC-32 of its content, -1 where it cannot be read."""
        if self.listed_checksum is not None:
            return self.listed_checksum
        try:
            return zlib.crc32(self.read_bytes()) if self.folder_path is None else checksum_of_file(self.folder_path)
        except (OSError, DataError):
            return -1

    def read_text(self) -> str:
        """All of it as text; a byte order mark is dropped.

        Raises:
            DataError: as ``read_bytes``, or it is neither UTF-8 nor Latin-1 text.
        """
        content = self.read_bytes()
        if b"\0" in content:
            raise DataError(f"{self}: not a text file")
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            return content.decode("latin-1")

    @contextlib.contextmanager
    def on_disk(self) -> Iterator[Path]:
        """A path to read it by; of an archived file a copy that lasts as long as the context.

        A ``DataError`` raised inside names this file instead of the copy.
        """
        if self.folder_path is not None:
            yield self.folder_path
            return
        content = self.read_bytes()
        with tempfile.TemporaryDirectory(prefix="vlsm-") as folder:
            # A safe name with the ending that readers go by (.nii.gz has two).
            ending = (
                "".join(PurePosixPath(self.name).suffixes[-2:]) if self.name.lower().endswith(".gz") else self.suffix
            )
            copy = Path(folder, f"file{ending if ending.isascii() and ending.replace('.', '').isalnum() else ''}")
            try:
                copy.write_bytes(content)
            except OSError as error:
                raise UserError(
                    f"{copy.parent.parent}: cannot be written ({error.strerror or error}): free space there, or set TMPDIR"
                ) from error
            try:
                yield copy
            except DataError as error:
                raise DataError(str(error).replace(str(copy), str(self))) from None


def safe_name(archive: Path, name: str) -> str | None:
    """The name with ``/``, without ``.`` parts; None for junk.

    Raises:
        DataError: it is absolute, climbs out, or holds control characters.
    """
    plain = name.replace("\\", "/")  # as some programs on Windows write them
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if plain.startswith("/") or plain[1:2] == ":" or ".." in parts:
        raise DataError(
            f"{archive}: holds a file called {shown(name)}, which leads out of it: not a data set; do not unpack it"
        )
    if any(ord(char) < 32 or ord(char) == 127 or "\ud800" <= char <= "\udfff" for char in name) or len(name) > MAX_NAME:
        raise DataError(
            f"{archive}: holds a file called {shown(name)}, which is no file name: damaged, or not a data set"
        )
    if not parts or any(is_junk(part) for part in parts):
        return None
    return "/".join(parts)


def is_junk(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _JUNK


def exactly(content: bytes, size: int) -> bytes:
    if len(content) != size:
        raise EOFError(f"{len(content)} of {size} bytes")
    return content


def check_count(where: Path, count: int, limits: Limits) -> None:
    if count > limits.files:
        raise DataError(f"{where}: more than {limits.files} files: not one data set; give the folder of the set alone")


def check_file(where: str, size: int, limits: Limits) -> None:
    if size > limits.file_bytes:
        raise DataError(
            f"{where}: {size / _GIB:.1f} GiB; a file of a data set has at most {limits.file_bytes / _GIB:.0f} GiB"
        )


def check_total(where: Path, total: int, packed: int | None, limits: Limits) -> None:
    if total > limits.total_bytes:
        raise DataError(
            f"{where}: unpacks to more than {limits.total_bytes / _GIB:.0f} GiB: not read; unpack it yourself"
        )
    if packed is not None and total > limits.ratio_from and total > limits.ratio * max(packed, 1):
        raise DataError(
            f"{where}: unpacks to {total / max(packed, 1):.0f} times its size, as a decompression bomb does: not read; "
            "if you trust it, unpack it and give the folder"
        )
