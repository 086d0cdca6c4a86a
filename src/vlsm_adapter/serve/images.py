"""What was uploaded: kept in memory within a bound, by the hash of its bytes."""

from __future__ import annotations

import hashlib
import io
import re
import threading
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlsm_adapter.data.images import read_image
from vlsm_adapter.errors import ConfigError, DataError, UserError
from vlsm_adapter.serve.caches import ByteCache
from vlsm_adapter.serve.problems import Refused
from vlsm_adapter.serve.scratch import Scratch
from vlsm_adapter.serve.settings import MIB, ServeSettings

if TYPE_CHECKING:
    from vlsm_adapter.imaging.base import Stack

_ID = re.compile(r"[0-9a-f]{32}")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass
class Upload:
    """An image, volume or series of pictures.

    Attributes:
        image_id: hash of the uploaded bytes.
        kind: ``picture``, ``pages``, ``nifti`` or ``dicom``.
        size: (H, W) of every picture in it.
        count: pictures.
        spacing: (row, column) in mm, or None.
        pixels: of a single picture, uint8 (H, W, 3).
        stack: of the other kinds, read on demand from a file in ``folder``, which lies in memory.
    """

    image_id: str
    kind: str
    size: tuple[int, int]
    count: int
    spacing: tuple[float, float] | None
    pixels: np.ndarray | None = None
    stack: Stack | None = None
    folder: Path | None = None
    size_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def told(self, name: str) -> dict[str, object]:
        """What the client is told of it."""
        height, width = self.size
        return {
            "image_id": self.image_id,
            "name": name,
            "kind": self.kind,
            "width": width,
            "height": height,
            "frames": self.count,
            "spacing": list(self.spacing) if self.spacing else None,
        }


class Images:
    """The uploads that are kept.

    Args:
        settings: limits and sizes.
        scratch: where files of volumes and DICOM are laid.
    """

    def __init__(self, settings: ServeSettings, scratch: Scratch) -> None:
        self._settings = settings
        self._scratch = scratch
        self._adding = threading.Lock()
        # Three quarters for what was uploaded, a quarter for single pictures of volumes.
        self.uploads: ByteCache[str, Upload] = ByteCache(settings.image_cache_bytes * 3 // 4, on_drop=self._let_go)
        self.pictures: ByteCache[tuple[str, int], np.ndarray] = ByteCache(settings.image_cache_bytes // 4)

    def add(self, content: bytes, name: str) -> Upload:
        """Read an upload; one that is kept already is not read again.

        Raises:
            Refused: it cannot be read (422), is too large (413), or of a kind that this server cannot read (415).
        """
        image_id = hashlib.sha256(content).hexdigest()[:32]
        held = self.uploads.get(image_id)
        if held is not None:
            return held
        if not content:
            raise Refused(422, f"{name}: is empty (0 bytes): choose another file", field="file")
        try:
            upload = self._read_files(image_id, content, name) if _is_stack(content, name) else None
            if upload is None:
                pixels = read_image(name, content=content, most_pixels=self._settings.most_pixels)
                upload = Upload(image_id, "picture", pixels.shape[:2], 1, None, pixels=pixels, size_bytes=pixels.nbytes)
        except DataError as error:
            too_large = "pixels; at most" in str(error) or "more than" in str(error)
            raise Refused(413 if too_large else 422, _short(str(error)), field="file") from None
        with self._adding:
            held = self.uploads.get(image_id, count=False)
            kept = held is None and self.uploads.put(image_id, upload, upload.size_bytes)
        if held is not None:  # sent twice at the same moment
            self._let_go(image_id, upload)
            return held
        if not kept:
            self._let_go(image_id, upload)
            raise self._too_large(name, upload.size_bytes)
        return upload

    def require(self, image_id: str, frame: int = 0) -> Upload:
        """The upload of that id.

        Raises:
            Refused: 404, it is not kept, or not any more; 422, it has no such frame.
        """
        upload = self.uploads.get(image_id) if _ID.fullmatch(image_id) else None
        if upload is None:
            raise Refused(404, "no such image is held (any more): upload it again", field="image_id")
        if not 0 <= frame < upload.count:
            allowed = "0 alone" if upload.count == 1 else f"0 to {upload.count - 1}"
            raise Refused(422, f"frame {frame}: the image has {upload.count}, allowed is {allowed}", field="frame")
        return upload

    def picture(self, upload: Upload, frame: int) -> np.ndarray:
        """A picture of it, uint8 (H, W, 3).

        Raises:
            Refused: 422, it cannot be decoded.
        """
        if upload.pixels is not None:
            return upload.pixels
        held = self.pictures.get((upload.image_id, frame))
        if held is not None:
            return held
        assert upload.stack is not None
        try:
            with upload.lock:  # a stack holds open files
                pixels = upload.stack.picture(frame)
        except DataError as error:
            if not self.uploads.holds(upload.image_id):  # forgotten while it was read
                raise Refused(404, "the image is not held any more: upload it again", field="image_id") from None
            raise Refused(422, _short(self._without_place(str(error), upload)), field="frame") from None
        self.pictures.put((upload.image_id, frame), pixels, pixels.nbytes)
        return pixels

    def forget(self, image_id: str) -> None:
        """Let go of an upload.

        Raises:
            Refused: 404, it is not kept.
        """
        self.require(image_id)
        self.uploads.drop(lambda key: key == image_id)
        self.pictures.drop(lambda key: key[0] == image_id)

    def forget_unused(self, seconds: float) -> int:
        """Let go of what nobody asked about in so many seconds; how many uploads that were."""
        self.pictures.drop_unused(seconds)
        return self.uploads.drop_unused(seconds)

    def close(self) -> None:
        """Let go of everything."""
        self.uploads.drop(lambda _: True)
        self.pictures.drop(lambda _: True)

    def _read_files(self, image_id: str, content: bytes, name: str) -> Upload:
        from vlsm_adapter.imaging.dicom_headers import inflated_bytes, is_dicom
        from vlsm_adapter.imaging.inputs import find_stacks

        settings = self._settings
        folder = self._scratch.folder()
        try:
            path = self._scratch.write(folder, _plain_name(content, name), content)
            # The reader of a deflated file holds all of it unpacked, which may be a thousand times what was sent.
            inflated = inflated_bytes(path, self.uploads.most_bytes) if is_dicom(path) else 0
            found = find_stacks([path])
            if not found.stacks:
                reason = found.failures[0].reason if found.failures else "holds no picture"
                raise Refused(422, _short(reason.replace(str(path), name)), field="file")
            if len(found.stacks) > 1:
                raise Refused(
                    422, f"{name}: holds {len(found.stacks)} volumes (4-D, or of several sizes): send one", field="file"
                )
            stack = found.stacks[0]
            height, width = stack.size
            if height * width > settings.most_pixels:
                raise Refused(
                    413, f"{name}: {width} x {height} pixels; at most {settings.most_pixels} are read", field="file"
                )
            if stack.count > settings.most_frames:
                raise Refused(
                    413, f"{name}: {stack.count} frames; at most {settings.most_frames} are read", field="file"
                )
            size_bytes = len(content) + inflated + stack.resident_bytes()
            if size_bytes > self.uploads.most_bytes:  # before it is decoded
                raise self._too_large(name, size_bytes)
            stack.picture(0)  # now, not when somebody looks at it: a file that cannot be decoded is refused
            spacing = (stack.spacing.row, stack.spacing.column) if stack.spacing else None
            return Upload(
                image_id,
                stack.kind,
                stack.size,
                stack.count,
                spacing,
                stack=stack,
                folder=folder,
                size_bytes=size_bytes,
            )
        except ConfigError as error:  # an extra is not installed
            self._scratch.remove(folder)
            raise Refused(415, f"{name}: {error}", field="file") from None
        except UserError as error:
            self._scratch.remove(folder)
            raise DataError(str(error).replace(str(path), name).replace(str(folder), "")) from None
        except BaseException:
            self._scratch.remove(folder)
            raise

    def _too_large(self, name: str, size_bytes: int) -> Refused:
        return Refused(
            413,
            f"{name}: takes {size_bytes // MIB + 1} MiB in memory, the server keeps "
            f"{self.uploads.most_bytes // MIB}: send a smaller one",
            field="file",
        )

    def _let_go(self, _: str, upload: Upload) -> None:
        if upload.stack is not None and upload.folder is not None:
            with upload.lock:
                upload.stack.close()
                self._scratch.remove(upload.folder)

    @staticmethod
    def _without_place(message: str, upload: Upload) -> str:
        return message.replace(f"{upload.folder}/", "")


def clean_name(name: str | None) -> str:
    """A client's file name, fit for messages and headers: its last part, printable, at most 100 characters."""
    last = re.split(r"[\\/]", name or "")[-1]
    kept = "".join(char for char in last if unicodedata.category(char)[0] not in "CZ" or char == " ").strip()
    return (kept if len(kept) <= 100 else f"{kept[:60]}...{kept[-30:]}") or "upload"


def _is_stack(content: bytes, name: str) -> bool:
    """Whether the volume and DICOM readers are to read it: told by its first bytes, by its name where they do not say."""
    if content[128:132] == b"DICM" or content[344:348] in (b"n+1\0", b"ni1\0") or content[4:8] == b"n+2\0":
        return True
    if content[:2] == b"\x1f\x8b" or name.lower().endswith((".dcm", ".nii")):
        return True
    return content[:4] in _TIFF and _has_pages(content)


def _has_pages(content: bytes) -> bool:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("TIFF",)) as picture:
            picture.seek(1)
            return True
    except Exception:  # one page, or damaged: the reader of pictures says so
        return False


def _plain_name(content: bytes, name: str) -> str:
    """A name that tells the reader the kind and nothing of the client's."""
    if content[128:132] == b"DICM" or name.lower().endswith(".dcm"):  # first: its preamble may be that of a TIFF
        return "upload.dcm"
    if content[:2] == b"\x1f\x8b":
        return "upload.nii.gz"
    if content[:4] in _TIFF:
        return "upload.tif"
    return "upload.nii"


def _short(message: str) -> str:
    text = " ".join(message.split())
    return text if len(text) <= 400 else text[:397] + "..."
