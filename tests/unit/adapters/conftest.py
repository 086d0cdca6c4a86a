"""CLIPSeg at the papers' size, without its memory."""

from __future__ import annotations

import pytest
import torch

from vlsm_adapter.models.base import PromptSegmenter


@pytest.fixture(scope="session")
def full_size_model() -> PromptSegmenter:
    """CLIPSeg rd64-refined on the meta device: shapes alone. Detach what you attach."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    from vlsm_adapter.models.clipseg import CLIPSeg

    config = CLIPSegConfig(
        text_config={"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048},
        vision_config={"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16},
        projection_dim=512,
        extract_layers=[3, 6, 9],
        reduce_dim=64,
        use_complex_transposed_convolution=True,
    )
    with torch.device("meta"):
        model = CLIPSeg(CLIPSegForImageSegmentation(config), base_id="papers' size")
    model._base_hash = "0" * 64  # there are no bytes to hash
    return model
