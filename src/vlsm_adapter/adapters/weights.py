"""Whether weights that came from a file are the ones an adapter needs; PEFT would only warn."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vlsm_adapter.errors import AdapterError

_WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_COUNTER = ".num_batches_tracked"  # of a batch norm; its running statistics are copied and saved with it
_VARIANCE = ".running_var"


def check_weights(weights: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Whether ``weights`` are exactly the ones ``expected`` (shapes by key).

    Raises:
        AdapterError: a key is missing or not known, or a tensor has another shape, holds no real numbers, or is not
            finite.
    """
    missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or unknown:
        raise AdapterError(
            f"{source}: weights do not fit the adapter; missing {missing[:2]} ({len(missing)}), "
            f"unknown {unknown[:2]} ({len(unknown)}): was it saved for this model and configuration?"
        )
    for key, tensor in weights.items():
        if tuple(tensor.shape) != expected[key]:
            raise AdapterError(f"{source}: '{key}' has shape {tuple(tensor.shape)}, the adapter needs {expected[key]}")
        if tensor.dtype not in _WEIGHT_TYPES and not (tensor.dtype == torch.int64 and key.endswith(_COUNTER)):
            raise AdapterError(
                f"{source}: '{key}' is of type {tensor.dtype}; allowed: float32, float16, bfloat16, float64"
            )
        if not torch.isfinite(tensor.to(torch.float32)).all() or (key.endswith(_VARIANCE) and (tensor < 0).any()):
            what = "a negative variance" if key.endswith(_VARIANCE) else "values that are not finite"
            raise AdapterError(f"{source}: '{key}' holds {what}; the file is damaged")
