"""Sizes of ``config.json`` beside the shapes of the weights, before modules are built: a million blocks would take all memory.

No limits are made up: what the weights hold is allowed. Where a tensor is missing nothing is compared, and whoever fills the
model says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlsm_adapter.errors import ModelError

if TYPE_CHECKING:
    import torch


def _itself(length: int) -> range:
    return range(length, length + 1)


@dataclass(frozen=True)
class Width:
    """A size that one dimension of a tensor shows.

    Attributes:
        key: in ``config.json``.
        value: that it has there.
        tensor: name in the weights.
        axis: of its shape.
        allowed: values of the key that make a dimension of that length.
    """

    key: str
    value: int
    tensor: str
    axis: int = 0
    allowed: Callable[[int], range] = _itself


@dataclass(frozen=True)
class Blocks:
    """A number of blocks: ``layers.0.``, ``layers.1.``, ... of the weights.

    Attributes:
        key: in ``config.json``.
        value: that it has there; fewer blocks than there are weights for can be built.
        prefix: what stands before a block's number.
    """

    key: str
    value: int
    prefix: str


def side(patch: int, extra: int = 0) -> Callable[[int], range]:
    """Sides in pixels of the square image that a table of places is for, with ``extra`` rows for other tokens.

    What is left over of an image beside whole patches is in no table.
    """

    def allowed(rows: int) -> range:
        least = math.isqrt(max(0, rows - extra)) * patch
        return range(least, least + patch)

    return allowed


def check_sizes(
    sizes: Iterable[Width | Blocks], tensors: Mapping[str, torch.Tensor], config: object, weights: object
) -> None:
    """Compare sizes with the shapes of the weights, in their order.

    Args:
        sizes: what ``config`` says.
        tensors: the weights by name; their values are not read.
        config, weights: the files, for messages.

    Raises:
        ModelError: two contradict each other; a line that names both, and what is allowed.
    """
    for size in sizes:
        told = f"{config}: {size.key} {size.value} contradicts {weights}"
        if isinstance(size, Blocks):
            number = re.compile(rf"{re.escape(size.prefix)}(\d+)\.")
            found = len({match[1] for name in tensors if (match := number.match(name))})
            if not found:
                raise ModelError(f"{told}, where the blocks '{size.prefix}*' are missing; copy both files of one model")
            if size.value > found:
                raise ModelError(
                    f"{told}, which holds {found} such blocks ('{size.prefix}*'): at most as many are allowed; copy both files "
                    "of one model"
                )
        elif size.tensor in tensors and len(shape := tensors[size.tensor].shape) > size.axis:
            allowed = size.allowed(shape[size.axis])
            if size.value not in allowed:
                raise ModelError(
                    f"{told}, where '{size.tensor}' has the shape {list(shape)}: {allowed.start} is allowed; copy both files "
                    "of one model"
                )
