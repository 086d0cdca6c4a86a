"""What a base model is: the hash of its weights, also after they were changed in memory or their files were replaced.

The hash is that of the files, and they are hashed when it is first asked for. So a model remembers what the files looked
like when it read them, and enough of its weights to notice a change without reading them all.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlsm_adapter.errors import ModelError
from vlsm_adapter.models import checkpoints
from vlsm_adapter.models.known_hashes import FileState

_SAMPLES = 8  # values of each tensor that are looked at


@dataclass(frozen=True)
class Mark:
    """By what a change of tensors is noticed.

    torch counts the in-place changes of a tensor, but not those made through ``tensor.data``: of each a few values are kept.

    Attributes:
        counts: name to identity of the tensor and number of its in-place changes.
        values: what a few values of each were.
    """

    counts: dict[str, tuple[int, int]]
    values: bytes

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Mark:
        """The mark of ``tensors`` as they are."""
        counts = {
            name: (id(tensor), 0 if tensor.is_inference() else tensor._version) for name, tensor in tensors.items()
        }
        samples = [_sample(tensor) for tensor in tensors.values() if not tensor.is_meta]
        values = torch.cat(samples).cpu().numpy().tobytes() if samples else b""
        return cls(counts, values)

    def holds(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether these are the tensors marked, unchanged; others may have joined them."""
        if not self.counts.keys() <= tensors.keys():
            return False
        return self == Mark.of({name: tensors[name] for name in self.counts})


_CHANGED = Mark({"": (0, 0)}, b"")  # holds for no model


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    values = tensor.detach().flatten()
    return values[:: max(1, len(values) // _SAMPLES)].double()


@dataclass(frozen=True)
class Origin:
    """The files that a model was read from.

    Attributes:
        folder: holds them.
        state: of the weights files before they were read.
    """

    folder: Path
    state: list[FileState] | None


class Identity(nn.Module):
    """The part of a base model that knows which weights it has."""

    base_id: str

    def __init__(self) -> None:
        super().__init__()
        self._base_hash: str | None = None
        self._origin: Origin | None = None  # None where the weights came from no file
        self._mark: Mark | None = None  # of the weights that the hash is of; None where nothing is watched

    @property
    def base_hash(self) -> str:
        """SHA-256 over the base model's weights (names, types, shapes, bytes), adapters apart.

        Of the files that they were read from; where memory or files have changed since, of the weights in memory.

        Raises:
            ModelError: the files have gone before it was first asked for.
        """
        if self._base_hash is not None and self._is_unchanged():
            return self._base_hash
        origin = self._origin
        found = None
        if origin is not None:
            if not checkpoints.weights_files(origin.folder) and self._is_unchanged():
                checkpoints.hash_folder(origin.folder)  # says that they are gone
            if (
                self._is_unchanged() and checkpoints.weights_state(origin.folder) == origin.state
            ) or self._equals_its_files():
                found = checkpoints.hash_folder(origin.folder)
                if checkpoints.weights_state(origin.folder) != origin.state and not self._equals_its_files():
                    found = None  # replaced while they were hashed
        self._base_hash = self.hash_in_memory() if found is None else found
        self._mark = Mark.of(self.base_state())
        return self._base_hash

    @abstractmethod
    def hash_in_memory(self) -> str:
        """As :attr:`base_hash`, of weights that came from no file."""

    def base_state(self) -> dict[str, torch.Tensor]:
        """The base's own parameters and saved buffers by their names in the base, adapters or not."""
        return {
            name.replace(".base_layer.", "."): tensor
            for name, tensor in self.state_dict(keep_vars=True).items()
            if ".adapter_" not in name
        }

    @contextmanager
    def keeping_base_hash(self) -> Iterator[None]:
        """What happens inside moves or rounds the weights, and the model stays the one that it was."""
        unchanged = self._mark is not None and self._is_unchanged()
        yield
        if unchanged:
            self._mark = Mark.of(self.base_state())

    def _read_from(self, source: str | Path, state: list[FileState] | None) -> None:
        """Say which files the weights were read from, and ``state`` of them before that, if it was known."""
        folder = checkpoints.weights_folder(source)
        if folder is not None:
            self._origin = Origin(folder, checkpoints.weights_state(folder) if state is None else state)
            self._mark = Mark.of(self.base_state())

    def _forget_files(self) -> None:
        """The weights will no longer be those of any file."""
        self._origin = self._base_hash = self._mark = None

    def _is_unchanged(self) -> bool:
        return self._mark is None or self._mark.holds(self.base_state())

    def _equals_its_files(self) -> bool:
        """Whether the files, read again, hold the weights in memory: a copy, or files that were only touched."""
        assert self._origin is not None
        state = checkpoints.weights_state(self._origin.folder)
        try:
            fresh = type(self).from_pretrained(self._origin.folder, self.base_id, torch.float32)  # type: ignore[attr-defined]
        except ModelError:
            return False
        own = self.base_state()
        same = all(
            name in own
            and own[name].shape == tensor.shape
            and torch.equal(own[name].detach().cpu(), tensor.detach().to(own[name].dtype))
            for name, tensor in fresh.base_state().items()
        )
        if same:
            self._origin = Origin(self._origin.folder, state)
        return same

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        with self.keeping_base_hash():  # to another device or type
            return super()._apply(fn, recurse)

    # The identity of a tensor is not that of its copy.

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mark": None if self._mark is None else self._is_unchanged()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_origin": None, "_mark": None, **state})  # pickled before there were such
        if isinstance(self._mark, bool):
            self._mark = Mark.of(self.base_state()) if self._mark else _CHANGED
