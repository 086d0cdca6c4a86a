"""A model as two graphs of torch: pixels to features, and prompts with features to logits.

``torch.export`` traces both with any number of images, prompts and tokens; rows and columns are those of the model's
preprocessing. The model is changed on the way: what an adapter only adds to the weights is folded into them
(:mod:`.merging`), and operations that no format can hold for any number of prompts are written otherwise.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.nn import functional as F

from vlsm_adapter.errors import ModelError, one_line
from vlsm_adapter.models.base import PromptSegmenter, Tokens
from vlsm_adapter.models.features import ImageFeatures

# Of the example that is traced; all unequal, so that no two dimensions are taken for one.
_IMAGES, _PROMPTS = 2, 3


class ImageGraph(nn.Module):
    """Normalised pixels (B, 3, H, W) to the features that the decoder reads, each (B, ...)."""

    def __init__(self, model: PromptSegmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.model.encode_image(pixel_values).activations


class PromptGraph(nn.Module):
    """Token ids and mask (P, L), image numbers (P,) and the features of B images to logits (P, h, w)."""

    def __init__(self, model: PromptSegmenter, grid: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.grid = grid

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        image_index: torch.Tensor,
        *features: torch.Tensor,
    ) -> torch.Tensor:
        text = self.model.encode_text(input_ids, attention_mask)
        return self.model.decode(ImageFeatures(features, self.grid), text, image_index)


class PerPromptFilter(nn.Module):
    """CRIS's projector with the filter of each prompt as nine shifted products.

    The model's own takes prompts as groups of a convolution, and a graph has to know the number of groups.
    """

    def __init__(self, projector: nn.Module) -> None:
        super().__init__()
        self.vis = projector.vis
        self.txt = projector.txt

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Map (P, D, h, w) and text state (P, E) to logits (P, 1, 4h, 4w)."""
        image = self.vis(x)  # type: ignore[operator]
        half, height, width = image.shape[1:]
        values = self.txt(state)  # type: ignore[operator]
        kernel = values[:, :-1].unflatten(1, (half, 9))
        padded = F.pad(image, (1, 1, 1, 1))
        logits = values[:, -1, None, None]
        for row in range(3):
            for column in range(3):
                seen = padded[:, :, row : row + height, column : column + width]
                logits = logits + (kernel[:, :, 3 * row + column, None, None] * seen).sum(1)
        return logits.unsqueeze(1)


@dataclass(frozen=True)
class Graphs:
    """What :func:`trace` gives.

    Attributes:
        image, prompt: the traced graphs; inputs of the second in the order of :attr:`prompt_inputs`.
        features: shape of each feature of one image.
        logits: (h, w).
    """

    image: ExportedProgram
    prompt: ExportedProgram
    features: tuple[tuple[int, ...], ...]
    logits: tuple[int, int]

    @property
    def prompt_inputs(self) -> list[str]:
        """Names of the second graph's inputs."""
        return ["input_ids", "attention_mask", "image_index", *self.feature_names]

    @property
    def feature_names(self) -> list[str]:
        """Names of the first graph's outputs, which are inputs of the second."""
        return [f"feature_{number}" for number in range(len(self.features))]


def trace(model: PromptSegmenter, tokens: Tokens | None = None) -> Graphs:
    """Trace both graphs of ``model``, in evaluation mode on the CPU in float32, with the adapter in use.

    ``model`` is changed where its family needs that; it answers as before.

    Args:
        tokens: example prompts of a model without a tokenizer.

    Raises:
        ModelError: the model holds something that cannot be traced.
    """
    projector = getattr(model, "proj", None)
    if model.family == "cris" and isinstance(projector, nn.Module):
        model.proj = PerPromptFilter(projector)
    pixels = torch.zeros(_IMAGES, 3, *model.preprocessing.size)
    # Of unequal lengths; a prompt has a start and an end, and a longer one than the context is cut before.
    ids, mask = tokens or model.tokenize(["a b c d"[: 2 * number + 1] for number in range(_PROMPTS)])
    length = {1: Dim.DYNAMIC(min=2, max=model.context_length)} if tokens or fixed_tokens(model) is None else {}
    index = torch.arange(len(ids)) % _IMAGES
    # Frozen layers are computed together, in a form for torch's kernels; a graph is better off with plain linear maps.
    model.requires_grad_(True)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            features = model.encode_image(pixels)
            image = torch.export.export(
                ImageGraph(model), (pixels,), dynamic_shapes={"pixel_values": {0: Dim.DYNAMIC}}, strict=False
            )
            prompts = {0: Dim.DYNAMIC}
            prompt = torch.export.export(
                PromptGraph(model, features.grid),
                (ids, mask, index, *features.activations),
                dynamic_shapes={
                    "input_ids": {**prompts, **length},
                    "attention_mask": {**prompts, **length},
                    "image_index": prompts,
                    "features": tuple({0: Dim.DYNAMIC} for _ in features.activations),
                },
                strict=False,
            )
            height, width = model.decode(features, model.encode_text(ids, mask), index).shape[-2:]
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"model '{model.base_id}' with adapter {list(model.adapter_configs) or 'none'} cannot be exported "
            f"({type(error).__name__}: {one_line(error)}); families known to export: clipseg, cris, san"
        ) from error
    finally:
        model.requires_grad_(False)
    for program in (image, prompt):
        _drop_unused(program)
        _allow_copies(program)
    shapes = tuple(tuple(each.shape[1:]) for each in features.activations)
    return Graphs(image, prompt, shapes, (int(height), int(width)))


def fixed_tokens(model: PromptSegmenter) -> int | None:
    """The number of tokens that every prompt is padded to, or None where it is that of the longest prompt."""
    if model.tokenizer is None:
        return 1
    lengths = {model.tokenize([text]).input_ids.shape[1] for text in ("a", "a a a")}
    return lengths.pop() if len(lengths) == 1 else None


def _drop_unused(program: ExportedProgram) -> None:
    """Take out the weights that a graph does not read: of a model whose other half they are."""
    unused = set()
    for node in list(program.graph.nodes):
        if node.op == "placeholder" and not node.users:
            unused.add(node.name)
    signature = program.graph_signature
    weights = (InputKind.PARAMETER, InputKind.BUFFER)
    kept = []
    for spec in signature.input_specs:
        if spec.kind in weights and spec.arg.name in unused and spec.target is not None:
            program.state_dict.pop(spec.target, None)
            node = next(node for node in program.graph.nodes if node.name == spec.arg.name)
            program.graph.erase_node(node)
        else:
            kept.append(spec)
    signature.input_specs[:] = kept
    program.graph_module.recompile()


def _allow_copies(program: ExportedProgram) -> None:
    """Copy what attention gives before its heads are joined.

    The kernel that was traced lays its output out so that no copy is needed; the plain form, as other formats have it,
    does not.
    """
    aten = torch.ops.aten
    for turned in list(program.graph.nodes):
        if turned.target is not aten.transpose.int:
            continue
        if turned.args[0].target is not aten.scaled_dot_product_attention.default:
            continue
        users = list(turned.users)
        with program.graph.inserting_after(turned):
            copied = program.graph.call_function(
                aten.clone.default, (turned,), {"memory_format": torch.contiguous_format}
            )
        copied.meta.update(turned.meta)
        for user in users:
            user.replace_input_with(turned, copied)
    program.graph_module.recompile()
