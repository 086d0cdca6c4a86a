"""What prediction and evaluation share: the answer of a model at the native size of an image.

Logits, not masks, are brought to native size, and only then compared with the threshold; a mask enlarged after the
threshold has steps as large as the network's pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from vlsm_adapter.adapters import tuner
from vlsm_adapter.errors import UserError
from vlsm_adapter.models.low_precision import computing, flushing_denormals

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter
    from vlsm_adapter.models.features import ImageFeatures, TextFeatures

# Prompts decoded at a time: bounds memory when thousands are asked of one image.
_CHUNK = 32


def resize_logits(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bring logits to another size, bilinearly, pixel centres aligned by area (``align_corners=False``).

    Where the size shrinks, the filter widens (antialias), so that no pixel of the network goes unread.

    Args:
        logits: (P, h, w), any floating-point type.
        size: (H, W).

    Returns:
        float32 (P, H, W).
    """
    logits = logits.float()
    if logits.shape[-2:] == tuple(size):
        return logits
    shrinks = size[0] < logits.shape[-2] or size[1] < logits.shape[-1]
    return F.interpolate(logits[:, None], size=tuple(size), mode="bilinear", align_corners=False, antialias=shrinks)[
        :, 0
    ]


def probability_at_size(logits: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Probability of foreground, float32 (H, W), from logits (h, w) of one prompt."""
    with torch.inference_mode():
        return resize_logits(logits[None], size)[0].sigmoid().cpu().numpy()


@contextmanager
def inferring(model: PromptSegmenter) -> Iterator[None]:
    """Without gradients, in evaluation mode, in the model's precision; modules that were in training mode are put back into it."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        with torch.inference_mode(), computing(model), flushing_denormals():
            yield
    finally:
        for module in training:
            module.training = True


class TextCache:
    """Features of prompts, each text encoded once.

    Valid for the weights in use when it was filled: see :func:`weights_in_use`.
    """

    def __init__(self, model: PromptSegmenter) -> None:
        self._model = model
        self._features: dict[str, TextFeatures] = {}

    def __call__(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of P prompts, in their order. Call within :func:`inferring`.

        Raises:
            ModelError: the model has no tokenizer.
        """
        from vlsm_adapter.models.features import TextFeatures

        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._features]
        device = self._model.device
        for start in range(0, len(new), _CHUNK):
            chunk = new[start : start + _CHUNK]
            ids, mask = self._model.tokenize(chunk)
            features = self._model.encode_text(ids.to(device), mask.to(device))
            self._features.update({text: features[row : row + 1] for row, text in enumerate(chunk)})
        return TextFeatures.join([self._features[prompt] for prompt in prompts])

    def clear(self) -> None:
        """Forget everything."""
        self._features.clear()


def decode(
    model: PromptSegmenter, image: ImageFeatures, text: TextFeatures, image_index: Sequence[int]
) -> torch.Tensor:
    """Logits float32 (P, h, w) at the network's resolution of P prompts, prompt i on image ``image_index[i]``."""
    index = torch.as_tensor(list(image_index), dtype=torch.long, device=text.condition.device)
    at_once = min(_CHUNK, model.prompts_at_once(image))
    parts = []
    for start in range(0, len(index), at_once):
        chunk = slice(start, start + at_once)
        asked, own = image, index[chunk]
        if len(index) > at_once and len(image.activations[0]) > 1:
            # What is computed once per image is computed for these alone.
            which, own = own.unique(return_inverse=True)
            asked = image.with_tensors([tensor[which] for tensor in image.tensors()])
        parts.append(model.decode(asked, text[chunk], own).float())
    return torch.cat(parts)


def weights_in_use(model: PromptSegmenter) -> int:
    """A number that changes when the model would answer differently, or elsewhere.

    Another adapter, adapters off, weights changed, another device, type or precision.
    """
    adapters = tuple((tuple(layer.active_adapters), bool(layer.disable_adapters)) for layer in tuner.layers(model))
    # torch counts the in-place changes of every tensor; model.to() leaves the tensor and gives it other data.
    versions = tuple(
        (id(tensor), 0 if tensor.is_inference() else tensor._version, tensor.data_ptr(), tensor.dtype, tensor.device)
        for tensor in (*model.parameters(), *model.buffers())
    )
    return hash((adapters, versions, model.inference_precision))


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device of that name; by default the GPU where there is one.

    Raises:
        UserError: no such device on this machine.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"device '{device}' is unknown: allowed: auto, cpu, cuda, cuda:0, cuda:1, ..., mps") from None
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (chosen.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(chosen.type, False):
        raise UserError(f"device '{device}' is not on this machine: use 'cpu' or 'auto'")
    return chosen


def check_threshold(threshold: float) -> float:
    """``threshold`` as a float.

    Raises:
        UserError: not a number from 0 to 1.
    """
    try:
        value = float(threshold)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(f"threshold {threshold!r}: must be a probability, a number from 0 to 1")
    return value
