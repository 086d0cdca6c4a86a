"""Masks and probability maps of a stack, kept until they are written: little memory, whatever the stack's length.

Masks are packed to bits and compressed (some kilobytes for a picture). Probability maps go to an unnamed temporary file,
16 bits a pixel, which vanishes with the process.
"""

from __future__ import annotations

import tempfile
import zlib
from typing import IO

import numpy as np
import numpy.typing as npt

from vlsm_adapter.errors import UserError

SCALE = 65535


def no_room(error: OSError) -> UserError:
    """``error`` of writing a temporary file, as one that says the fix."""
    return UserError(
        f"{tempfile.gettempdir()}: masks and probability maps cannot be kept there ({error.strerror}); free disk space, or set TMPDIR "
        "to a folder on a larger disk"
    )


class Masks:
    """Label maps of N pictures (H, W): 0 background, else a number up to 65535; pictures that are not set are background."""

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        self.count = count
        self.size = size
        self._kept: dict[int, tuple[np.dtype | None, bytes]] = {}  # None: bits

    def __setitem__(self, index: int, picture: npt.NDArray[np.bool_ | np.unsignedinteger]) -> None:
        dtype = None if picture.dtype.kind == "b" else picture.dtype
        packed = np.packbits(picture) if dtype is None else np.ascontiguousarray(picture)
        self._kept[index] = (dtype, zlib.compress(packed.tobytes(), 1))

    def __getitem__(self, index: int) -> npt.NDArray:
        if index not in self._kept:
            return np.zeros(self.size, bool)
        dtype, packed = self._kept[index]
        values = np.frombuffer(zlib.decompress(packed), np.uint8 if dtype is None else dtype)
        if dtype is None:
            values = np.unpackbits(values, count=self.size[0] * self.size[1]).view(bool)
        return values.reshape(self.size)

    def set_volume(self, volume: npt.NDArray[np.bool_ | np.unsignedinteger]) -> None:
        """Replace all pictures by those of ``volume`` (N, H, W)."""
        for index, picture in enumerate(volume):
            self[index] = picture

    def volume(self, dtype: npt.DTypeLike = bool) -> npt.NDArray:
        """All pictures, (N, H, W)."""
        found = np.zeros((self.count, *self.size), dtype)
        for index in self._kept:
            found[index] = self[index]
        return found


class Maps:
    """Probability maps in [0, 1] of P prompts on N pictures (H, W), to 1/65535; what is not set is 0. Close it."""

    def __init__(self, prompts: int, count: int, size: tuple[int, int]) -> None:
        self.prompts = prompts
        self.count = count
        self.size = size
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)

    def put(self, number: int, index: int, picture: npt.NDArray[np.floating]) -> None:
        """Keep the map (H, W) of prompt ``number`` on picture ``index``.

        Raises:
            UserError: the disk of temporary files is full.
        """
        try:
            self._seek(number, index)
            self._file.write(np.rint(picture * SCALE).astype("<u2").tobytes())
            self._file.flush()
        except OSError as error:
            raise no_room(error) from error

    def levels(self, number: int, index: int) -> npt.NDArray[np.uint16]:
        """The map of a prompt on a picture as uint16 (H, W), probability times 65535."""
        pixels = self.size[0] * self.size[1]
        self._seek(number, index)
        values = np.frombuffer(self._file.read(2 * pixels), "<u2").astype(np.uint16)
        return np.pad(values, (0, pixels - values.size)).reshape(self.size)

    def get(self, number: int, index: int) -> npt.NDArray[np.float32]:
        """The map of a prompt on a picture, float32 (H, W)."""
        return self.levels(number, index).astype(np.float32) / np.float32(SCALE)

    def close(self) -> None:
        """Give the disk space back."""
        self._file.close()

    def _seek(self, number: int, index: int) -> None:
        self._file.seek((number * self.count + index) * 2 * self.size[0] * self.size[1])
