"""A batch goes to page-locked memory as a whole, where torch's loader asks for it."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from vlsm_adapter.types import Batch


@pytest.fixture
def batch() -> Batch:
    return Batch(
        pixel_values=torch.rand(1, 3, 4, 4),
        input_ids=torch.ones(2, 5, dtype=torch.int64),
        attention_mask=torch.ones(2, 5, dtype=torch.int64),
        image_index=torch.zeros(2, dtype=torch.int64),
        masks=torch.zeros(2, 4, 4),
        case_ids=("a", "b"),
        prompts=("polyp", "tumour"),
        images=("a.png",),
        pixel_rows=(0,),
    )


def test_every_tensor_is_pinned_and_the_rest_kept(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    # A stand-in where there is no GPU: what it gives can be told from what it was given.
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    for given in (batch, replace(batch, masks=None)):
        pinned = pin_memory(given)  # as the loader does it
        assert isinstance(pinned, Batch)
        for part in fields(Batch):
            before, after = getattr(given, part.name), getattr(pinned, part.name)
            if isinstance(before, torch.Tensor):
                assert torch.equal(after, before + 1), part.name
            else:
                assert after is before, part.name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, this machine has none")
def test_on_a_gpu_the_tensors_are_in_page_locked_memory(batch: Batch) -> None:
    for given in (batch, replace(batch, pixel_values=torch.empty(0, 3, 0, 0))):
        pinned = pin_memory(given)
        assert pinned.masks.is_pinned()
        assert pinned.image_index.is_pinned()
        assert torch.equal(pinned.pixel_values, given.pixel_values)
