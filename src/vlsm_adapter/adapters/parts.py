"""The seam for methods that are more than a bottleneck behind a module: a part stands around the module of a site.

A part may change what goes in, what comes out, or both (a parallel branch, a scaled output, inserted tokens, tuned
biases). It lives under its adapter's name beside those of other adapters, in float32 whatever the base; its parameters
and buffers are what the adapter folder stores. It is in training mode in the steps of training alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn


class Part(nn.Module):
    """Base of all parts.

    A fresh part should leave the model's output as it was, so that training starts from the base; one that does not
    says so in its docstring.
    """

    @property
    def tokens_given(self) -> int:
        """Learned tokens that it gives at an ``image.tokens`` or ``text.tokens`` site; elsewhere 0."""
        return 0

    @abstractmethod
    def forward(self, base: Callable[..., torch.Tensor], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What the site gives in place of ``base(x, *args, **kwargs)``, in the type that the base would give."""

    def link(self, parts: Mapping[str, Part]) -> None:
        """Told once all parts of the adapter are made, by the module name of their sites: for parts that share.

        Keep another part in a tuple, not as an attribute of its own: its parameters are its own site's to store.
        """
