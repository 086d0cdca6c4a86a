"""The image and mask files of a prepared set: each image once, decoded once; each mask checked against its image."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlsm_adapter.data.entries import Entry, id_part, shown
from vlsm_adapter.data.images import FORMATS, header_size
from vlsm_adapter.data.layouts import IMAGE_SUFFIXES
from vlsm_adapter.data.prepared.cases import ImageFile, RawCase
from vlsm_adapter.errors import DataError, UserError, one_line


@dataclass(frozen=True, slots=True)
class Stored:
    """What a case has on disk: names below the folder, (height, width), and pixels of foreground."""

    image: str
    mask: str
    size: tuple[int, int]
    foreground: int


class Writer:
    """Writes images and masks below ``root`` with the threads of ``pool``; what ``finished`` holds is taken as it is."""

    def __init__(self, root: Path, pool: ThreadPoolExecutor, finished: Mapping[str, Stored]) -> None:
        self._root, self._pool, self._finished = root, pool, finished
        self._images: dict[str, Future[tuple[str, tuple[int, int]]]] = {}
        # What to call the case that has an id; not the case, whose functions may hold its pixels.
        self._ids: dict[str, str] = {}
        self._taken: set[str] = set()

    def submit(self, case: RawCase) -> Future[Stored]:
        """Begin to write ``case``.

        Raises:
            DataError: its id is taken or names no file, or it has no prompt.
        """
        Entry({"case_id": case.case_id}, case.shown, self._root).case_id()
        if case.case_id in self._ids:
            raise DataError(
                f"{case.shown}: the case id {shown(case.case_id)} is already that of {self._ids[case.case_id]}"
            )
        if not any(texts and any(text.strip() for text in texts) for texts in case.prompts.values()):
            raise DataError(f"{case.shown}: has no prompt: say what its mask shows")
        self._ids[case.case_id] = case.shown
        mask = f"masks/{self._free('masks', case.case_id)}.png"
        known = self._finished.get(case.case_id)
        if known is not None and known.mask == mask:
            done: Future[Stored] = Future()
            done.set_result(known)
            self._take_image(case, known)
            return done
        # The image was submitted before, so a worker that waits for it never waits for one behind itself.
        return self._pool.submit(self._write_mask, case, self._image(case), mask)

    def _key(self, case: RawCase) -> str:
        if case.image_id is not None:
            return f"id:{case.image_id}"
        return f"file:{case.image}" if isinstance(case.image, ImageFile) else f"case:{case.case_id}"

    def _take_image(self, case: RawCase, known: Stored) -> None:
        if (key := self._key(case)) not in self._images:
            self._taken.add(PurePosixPath(known.image).with_suffix("").as_posix().casefold())
            self._images[key] = Future()
            self._images[key].set_result((known.image, known.size))

    def _image(self, case: RawCase) -> Future[tuple[str, tuple[int, int]]]:
        key = self._key(case)
        if key not in self._images:
            stem = self._free("images", id_part(case.image_id if case.image_id is not None else case.case_id))
            self._images[key] = self._pool.submit(self._write_image, case, f"images/{stem}")
        return self._images[key]

    def _free(self, folder: str, stem: str) -> str:
        """``stem``, made different where a file system that ignores case could not hold both."""
        if f"{folder}/{stem}".casefold() in self._taken:
            stem = f"{stem}_{hashlib.blake2b(stem.encode(), digest_size=4).hexdigest()}"
        self._taken.add(f"{folder}/{stem}".casefold())
        return stem

    def _write_image(self, case: RawCase, stem: str) -> tuple[str, tuple[int, int]]:
        if isinstance(case.image, ImageFile):
            ending = PurePosixPath(case.image.name).suffix.lower()
            if ending not in IMAGE_SUFFIXES:
                raise DataError(f"{case.shown}: the ending '{ending}' is not that of an image")
            content = _read(case.image, case.shown)
        else:
            ending = ".png"
            content = _png(_made(case.image, case.shown, "image"), case.shown)
        name = stem + ending
        with _new_file(self._root / name) as temporary:
            temporary.write_bytes(content)
            if isinstance(case.image, ImageFile):
                width, height = _decoded_size(temporary, case.shown)
            else:
                width, height = header_size(temporary)
        return name, (height, width)

    def _write_mask(self, case: RawCase, image: Future[tuple[str, tuple[int, int]]], name: str) -> Stored:
        stored, size = image.result()
        mask = np.asarray(_made(case.mask, case.shown, "mask"))
        if mask.dtype != np.bool_ or mask.ndim != 2:
            raise DataError(f"{case.shown}: its mask is {mask.dtype} {mask.shape}, not bool (H, W)")
        if mask.shape != size:
            raise DataError(
                f"{case.shown}: the image has {size[1]} x {size[0]} pixels but its mask {mask.shape[1]} x {mask.shape[0]}: "
                "a mask must have the size of its image"
            )
        buffer = io.BytesIO()
        # Eight bits, not one: programs that read a 1-bit PNG as 0 and 1 are many.
        Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(buffer, format="PNG")
        with _new_file(self._root / name) as temporary:
            temporary.write_bytes(buffer.getvalue())
        return Stored(stored, name, size, int(np.count_nonzero(mask)))


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """As ``files.atomic_path`` without a flush of each file: the set is flushed as a whole before it is complete."""
    temporary = path.with_name(f".{path.name[:150]}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> UserError:
    """The error of a file or folder that cannot be written."""
    return UserError(
        f"{path}: cannot be written ({error.strerror or error}): free disk space or check permissions; "
        "the same command goes on from here"
    )


def _read(file: ImageFile, where: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror or error}): fetch the file again") from None


def _made(make: Callable[[], npt.NDArray[Any]], where: str, what: str) -> npt.NDArray[Any]:
    try:
        return make()
    except OSError as error:  # reading, never writing: a bad case, not a full disk
        raise DataError(f"{where}: its {what} cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise DataError(f"{where}: its {what} is too large for the memory of this machine") from None


def _png(pixels: npt.NDArray[Any], where: str) -> bytes:
    grey = pixels.ndim == 2 and pixels.dtype in (np.uint8, np.uint16)
    colour = pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8
    if not (grey or colour) or 0 in pixels.shape:
        raise DataError(
            f"{where}: pixels are {pixels.dtype} {pixels.shape}; needed: uint8 (H, W), (H, W, 3) or uint16 (H, W)"
        )
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _decoded_size(path: Path, where: str) -> tuple[int, int]:
    """(width, height) of the upright image, after all of it was decoded."""
    try:
        size = header_size(path)
        with path.open("rb") as stream, Image.open(stream, formats=FORMATS) as picture:
            # A JPEG is read to its end at an eighth of its size, which finds the same damage in a third of the time.
            picture.draft("RGB", (max(1, picture.width // 8), max(1, picture.height // 8)))
            picture.load()
    except DataError as error:
        raise DataError(str(error).replace(str(path), where)) from None
    except Exception as error:
        # Decoders raise nearly anything on damaged files (OSError, SyntaxError, struct.error, ...).
        raise DataError(
            f"{where}: cannot be decoded ({one_line(error)}): damaged or truncated; fetch it again"
        ) from None
    return size
