"""A SAN to train: CLIP's pretrained encoders, read from a CLIP in Hugging Face format, and a fresh side network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlsm_adapter.errors import ModelError

if TYPE_CHECKING:
    import torch

    from vlsm_adapter.models.san import SAN, SANConfig

_BLOCK = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_IN_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    **{f"self_attn.{part}": f"attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")},
}
_NAMES = {
    "logit_scale": "logit_scale.weight",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding.weight",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding.weight",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding.weight",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
# Linear layers there, stored the other way round here.
_TRANSPOSED = {"text_projection.weight": "text_projection.weight", "visual_projection.weight": "visual.proj.weight"}


def san_from_clip(clip: str | Path, *, graph: str = "corrected", config: SANConfig | None = None, seed: int = 0) -> SAN:
    """CLIP's encoders with a side network drawn at random as the SAN paper starts it: it answers nothing until trained.

    Args:
        clip: folder or hub id of a CLIP ViT in Hugging Face format, such as ``"openai/clip-vit-base-patch16"``.
        graph: see :class:`~vlsm_adapter.models.san.SAN`.
        config: sizes and graph; by default the paper's side network, for images of 640 x 640.
        seed: of the side network.

    Returns:
        The model, with CLIP's tokenizer; ``models.saving.save_model`` makes a folder of it.

    Raises:
        ModelError: not a CLIP ViT with QuickGELU, or one that ``config`` does not fit.
    """
    import torch
    from transformers import CLIPModel

    from vlsm_adapter.models import checkpoints, saving
    from vlsm_adapter.models.san import SAN
    from vlsm_adapter.models.sizes import Blocks

    source = Path(clip) if Path(clip).is_dir() else str(clip)
    values = checkpoints.read_config(source, str(clip))
    if values.get("model_type") != "clip":
        raise ModelError(f"model '{clip}': model_type '{values.get('model_type')}' is no CLIP; allowed: clip")
    blocks = [
        Blocks(f"{tower}_config.num_hidden_layers", count, f"{tower}_model.encoder.layers.")
        for tower in ("text", "vision")
        if isinstance(part := values.get(f"{tower}_config"), dict)
        and type(count := part.get("num_hidden_layers")) is int  # else transformers' default
    ]
    stock = checkpoints.load_stock_model(CLIPModel, source, str(clip), torch.float32, blocks)
    sizes = config or paper_config(stock.config, graph)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SAN(sizes, tokenizer=checkpoints.load_tokenizer(source, str(clip)), base_id=f"SAN on {clip}")
    saving.fill(model.clip_model, clip_tensors(stock.state_dict()), f"model '{clip}'")
    model.freeze()
    return model


def paper_config(clip: Any, graph: str = "corrected") -> SANConfig:
    """The paper's side network beside a CLIP, split after three quarters of its image blocks.

    Args:
        clip: transformers' ``CLIPConfig``.

    Raises:
        ModelError: an activation other than QuickGELU, or sizes of which no SAN can be made.
    """
    from vlsm_adapter.models.san import SANConfig

    vision, text = clip.vision_config, clip.text_config
    for part, name in ((vision, "vision"), (text, "text")):
        if part.hidden_act != "quick_gelu" or part.intermediate_size != 4 * part.hidden_size:
            raise ModelError(
                f"CLIP's {name} encoder has {part.hidden_act} of width {part.intermediate_size}; a SAN here needs "
                f"quick_gelu of width {4 * part.hidden_size}"
            )
    split = vision.num_hidden_layers * 3 // 4
    published = SANConfig(
        embed_dim=clip.projection_dim,
        clip_image_size=vision.image_size,
        clip_patch=vision.patch_size,
        vision_layers=vision.num_hidden_layers,
        vision_width=vision.hidden_size,
        vision_head_width=vision.hidden_size // vision.num_attention_heads,
        context_length=text.max_position_embeddings,
        vocab_size=text.vocab_size,
        text_width=text.hidden_size,
        text_heads=text.num_attention_heads,
        text_layers=text.num_hidden_layers,
        split=split,
        side_image_size=640,
        side_patch=16,
        side_width=240,
        side_depth=8,
        side_heads=6,
        queries=100,
        mask_hidden=256,
        mask_embed=256,
        bias_heads=vision.num_attention_heads,
        bias_layers=1,
        fusion_map=((0, 0), (3, min(1, split)), (6, min(2, split)), (9, min(3, split))),
        supervised=(7, 8),
        graph="published",
    )
    return published.with_graph(graph)


def clip_tensors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of transformers' CLIP under the names of our :class:`~vlsm_adapter.models.san_parts.clip.CLIP`."""
    named: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        if key.endswith("position_ids"):
            continue
        match = _BLOCK.fullmatch(key)
        if match and match[3] in _IN_BLOCK:
            tower = "visual." if match[1] == "vision" else ""
            named[f"{tower}transformer.resblocks.{match[2]}.{_IN_BLOCK[match[3]]}.{match[4]}"] = tensor
        elif key in _TRANSPOSED:
            named[_TRANSPOSED[key]] = tensor.T.contiguous()
        else:
            named[_NAMES.get(key, key)] = tensor  # an unknown one is refused where it is filled in
    return named
