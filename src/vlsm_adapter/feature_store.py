"""Where the features of frozen encoders are kept: in memory first, then on disk, each with a bound.

What is put in first stays: every epoch asks for everything once, in another order, and then a fixed part that is there
serves better than one that changes, from which what is asked next has just gone. What fits nowhere is the caller's to
compute again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from vlsm_adapter.data.entry_folder import EntryFolder, seal, unseal

logger = logging.getLogger("vlsm_adapter")

Tensors = tuple[torch.Tensor, ...]

SUFFIX = ".features"
# The first bytes of an entry; another number for another form of entries.
_MAGIC = b"vlsm-feature-cache 1\n"
# Of the memory that is free at the start, the part that features may take; the rest is for training itself.
_PART_OF_MEMORY = 4
_MEMORY_UNKNOWN = 4 << 30
_PART_OF_DISK = 2
_CGROUP = Path("/sys/fs/cgroup")
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool)
}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the tensors of one key lie in the scratch file, one behind the other."""

    offset: int
    specs: tuple[tuple[torch.dtype, tuple[int, ...], int], ...]  # type, shape, bytes


class Scratch:
    """Tensors in one file that has no name and is gone with the process, however that ends.

    Args:
        folder: whose disk to use.
        max_bytes: bound on the file; no more than half of what is free on the disk is taken either way.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._file: IO[bytes] | None = None
        self._places: dict[str, _Place] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def room(self) -> int:
        """Bytes that may still be written."""
        free = shutil.disk_usage(self.folder).free // _PART_OF_DISK
        return max(0, min(self.max_bytes - self.used_bytes, free))

    def put(self, key: str, tensors: Tensors) -> bool:
        """Keep the tensors if they fit; whether they did. A disk that is full is told once, and is the bound then."""
        size = nbytes(tensors)
        if self.used_bytes + size > self.max_bytes:
            return False
        try:
            if self._file is None:
                self.max_bytes = self.room()
                if size > self.max_bytes:
                    return False
                self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115  # closed by close()
            self._file.seek(self.used_bytes)
            for tensor in tensors:
                view = content(tensor.cpu().contiguous())
                while view:  # an unbuffered file may write less than it is given
                    view = view[self._file.write(view) :]
        except OSError as error:
            logger.warning("%s: %s; features beyond memory are computed anew", self.folder, error.strerror or error)
            self.max_bytes = self.used_bytes
            return False
        specs = tuple((tensor.dtype, tuple(tensor.shape), tensor.nbytes) for tensor in tensors)
        self._places[key] = _Place(self.used_bytes, specs)
        self.used_bytes += size
        return True

    def get(self, key: str) -> Tensors | None:
        """The tensors, in main memory; None where they are not kept or cannot be read."""
        place = self._places.get(key)
        if place is None or self._file is None:
            return None
        found = []
        try:
            self._file.seek(place.offset)
            for dtype, shape, size in place.specs:
                tensor = torch.empty(shape, dtype=dtype)
                view = content(tensor)
                while view:
                    count = self._file.readinto(view)  # type: ignore[attr-defined]
                    if not count:
                        raise OSError("the file is shorter than what was written")
                    view = view[count:]
                assert tensor.nbytes == size
                found.append(tensor)
        except OSError as error:
            logger.warning("%s: %s; features are computed anew", self.folder, error.strerror or error)
            del self._places[key]
            return None
        return tuple(found)

    def close(self) -> None:
        """Give the disk back."""
        self._places.clear()
        if self._file is not None:
            self._file.close()
            self._file = None


class FeatureStore:
    """Tensors by key, bounded.

    Args:
        memory_bytes: bound of what is kept in memory, of the device that the tensors are on.
        scratch: takes what neither memory nor ``shared`` does; or None.
        shared: a folder where what may be shared is kept as well, for other runs and processes; or None.
    """

    def __init__(self, memory_bytes: int, *, scratch: Scratch | None = None, shared: EntryFolder | None = None) -> None:
        self.memory_bytes = memory_bytes
        self.used_bytes = 0
        self.scratch = scratch
        self.shared = shared
        self._memory: dict[str, Tensors] = {}

    def __contains__(self, key: str) -> bool:
        """Whether :meth:`get` will probably find it; a file may be damaged, or gone by then."""
        return (
            key in self._memory
            or (self.scratch is not None and key in self.scratch)
            or (self.shared is not None and key in self.shared)
        )

    def get(self, key: str, device: torch.device) -> Tensors | None:
        """The tensors on ``device``, bit for bit as they were put; not to be changed. None where they are not kept."""
        found = self._memory.get(key)
        if found is not None:
            return found
        if self.scratch is not None:
            found = self.scratch.get(key)
        if found is None and self.shared is not None:
            found = self.shared.read(key, _decode)
            if found is not None:
                return self._remember(key, _to(found, device))
        return None if found is None else _to(found, device)

    def put(self, key: str, tensors: Tensors, *, share: bool = True) -> Tensors:
        """Keep the tensors where there is room; returns them.

        Args:
            key: names all that the tensors depend on, where they are shared: it is for ever, and for every run.
            tensors: what to keep.
            share: False keeps them out of the shared folder.
        """
        shared = self.shared if share else None
        if shared is not None and key not in shared and shared.takes(nbytes(tensors)):
            shared.write(key, _encode(tensors))
        return self._remember(key, tensors)

    def _remember(self, key: str, tensors: Tensors) -> Tensors:
        """Keep the tensors in this process, where there is room, on its disk only what is not shared."""
        if key in self._memory or (self.scratch is not None and key in self.scratch):
            return tensors
        if self.used_bytes + nbytes(tensors) <= self.memory_bytes:
            # A part of something larger would hold all of that.
            tensors = tuple(
                tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone() for tensor in tensors
            )
            self._memory[key] = tensors
            self.used_bytes += nbytes(tensors)
        elif self.scratch is not None and (self.shared is None or key not in self.shared):
            self.scratch.put(key, tensors)
        return tensors

    def close(self) -> None:
        """Give memory and disk back."""
        self._memory.clear()
        self.used_bytes = 0
        if self.scratch is not None:
            self.scratch.close()


def nbytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of all of them."""
    return sum(tensor.nbytes for tensor in tensors)


def entry_bytes(tensors: Tensors) -> int:
    """Bytes of the file that has them in a shared folder."""
    return len(_encode(tensors))


def free_memory(device: torch.device) -> int:
    """Bytes that ``device`` has free: of a GPU its own memory, else what the machine or the container has."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = _MEMORY_UNKNOWN
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    except (OSError, StopIteration, ValueError):
        if "SC_AVPHYS_PAGES" in os.sysconf_names:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:  # the limit of a container
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        with contextlib.suppress(OSError, ValueError, IndexError):
            # Files that were read count as used, but give way to whoever wants memory.
            lines = (_CGROUP / "memory.stat").read_text().splitlines()
            used -= sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        free = min(free, max(0, limit - used))
    except (OSError, ValueError):  # none, or "max"
        pass
    return free


def memory_for_features(device: torch.device, megabytes: int | None = None, processes: int = 1) -> int:
    """The bound in bytes of one process: of ``megabytes``, or of a quarter of what is free now.

    ``processes`` on the CPU have one memory and share the bound evenly; of those on GPUs each has a GPU of its own, and
    the bound is for each.
    """
    bound = free_memory(device) // _PART_OF_MEMORY if megabytes is None else megabytes << 20
    return bound if device.type == "cuda" else bound // processes


def _to(tensors: Tensors, device: torch.device) -> Tensors:
    return tuple(tensor.to(device) for tensor in tensors)


def content(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, as bytes that can be read and written."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data  # NumPy has no bfloat16


def _encode(tensors: Tensors) -> bytes:
    moved = [tensor.cpu().contiguous() for tensor in tensors]
    about = [[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in moved]
    bodies = [content(tensor) for tensor in moved]
    return seal(_MAGIC, b"".join([json.dumps(about).encode(), b"\n", *bodies]))


def _decode(data: bytes) -> Tensors | None:
    sound = unseal(_MAGIC, data)
    if sound is None:
        return None
    start = len(data) - len(sound)
    end = data.find(b"\n", start)
    try:
        found = []
        place = end + 1
        for name, shape in json.loads(data[start:end]):
            tensor = torch.empty(shape, dtype=_DTYPES[name])
            content(tensor)[:] = memoryview(data)[place : place + tensor.nbytes]
            place += tensor.nbytes
            found.append(tensor)
        return tuple(found) if place == len(data) else None
    except (ValueError, KeyError, TypeError, RuntimeError):  # of another version, with a checksum that is right
        return None
