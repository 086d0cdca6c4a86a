"""A bounded cache on disk of what was decoded and resized, so that the next run, or a loader process, need not do it again.

An entry is named by a digest of the content of its source file and of what was done to it: a file that changes, another
size, or another version of the decoder has another name, and nothing can be stale. :mod:`.entry_folder` says how the
entries are written, shared and bounded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlsm_adapter.data.digests import FileDigests
from vlsm_adapter.data.entry_folder import EntryFolder, seal, unseal

DEFAULT_BYTES = 10 << 30
VARIABLE = "VLSM_CACHE_DIR"
OFF = "off"
AUTO = "auto"
# The first bytes of an entry; another number for another form of entries.
_MAGIC = b"vlsm-case-cache 1\n"
_SUFFIX = ".case"


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

    The object can be sent to other processes, and several may work on one folder.

    Args:
        folder: made when something is first written, readable for its owner alone.
        max_bytes: bound on the sum of the files' sizes.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int = DEFAULT_BYTES) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self._entries = EntryFolder(folder, max_bytes, suffix=_SUFFIX, holds="decoded images")
        self._digests = FileDigests()

    def load(self, source: Path, treatment: str, make: Callable[[], Kept]) -> Kept:
        """What is kept of ``source`` after ``treatment``, or, made and kept from now on, what ``make`` returns.

        Args:
            source: the file it is made from.
            treatment: all else that it depends on, in words.
            make: called where nothing sound is kept; its errors pass.
        """
        content = self._digests.of(source)
        if content is None:  # whoever decodes the file says what is wrong with it
            return make()
        name = hashlib.sha256(content + treatment.encode()).hexdigest()
        kept = self._entries.read(name, _decode)
        if kept is None:
            kept = make()
            self._entries.write(name, _encode(kept))
        return kept


def _encode(kept: Kept) -> bytes:
    array = kept.array
    body = np.packbits(array) if array.dtype == bool else np.ascontiguousarray(array)
    about = {"dtype": array.dtype.name, "shape": array.shape, "native": kept.native}
    return seal(_MAGIC, json.dumps(about).encode() + b"\n" + body.tobytes())


def _decode(data: bytes) -> Kept | None:
    content = unseal(_MAGIC, data)
    if content is None:
        return None
    start = len(data) - len(content)
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
