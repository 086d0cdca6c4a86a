"""Text-free references: MONAI's U-Net family behind the seams of a text-promptable model.

What a vision-language model is worth shows beside a network that reads no words and starts from random weights, under
the same data, loop, metrics and report. Such a network answers every prompt alike: a right prompt and a wrong one give
the same mask. Method ``full`` trains all of it, no other method has anything to adapt.

No norm keeps running statistics (instance or group norm), so the trained weights are all there is to save.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn

from vlsm_adapter.errors import ModelError, nearest
from vlsm_adapter.models.base import PromptSegmenter, Site, Tokens
from vlsm_adapter.models.features import ImageFeatures, TextFeatures
from vlsm_adapter.models.preprocessing import Preprocessing

SIDE = 256  # pixels, by default


@dataclass(frozen=True)
class Architecture:
    """A network of MONAI and its settings.

    Attributes:
        network: name of the class in ``monai.networks.nets``.
        settings: its keyword arguments, beside two dimensions, three input channels and one output channel.
        reduction: side of the input over side of the deepest map; sides must be multiples of it.
    """

    network: str
    settings: Mapping[str, Any]
    reduction: int


_INSTANCE_NORM = ("instance", {"affine": True})

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        # Residual U-Net (Zhang et al., 2018; Kerfoot et al., 2019), light enough for a CPU: 6.5 million parameters.
        "unet": Architecture(
            "UNet",
            {
                "channels": (32, 64, 128, 256, 512),
                "strides": (2, 2, 2, 2),
                "num_res_units": 2,
                "norm": _INSTANCE_NORM,
            },
            reduction=16,
        ),
        # SegResNet without its autoencoder branch (Myronenko, 2018): 6.3 million parameters.
        "segresnet": Architecture(
            "SegResNet",
            {
                "init_filters": 32,
                "blocks_down": (1, 2, 2, 4),
                "blocks_up": (1, 1, 1),
                "norm": ("group", {"num_groups": 8}),
            },
            reduction=8,
        ),
        # The plain network that nnU-Net (Isensee et al., 2021) plans for 2-D images of this size: 20.6 million parameters.
        # Its planning, augmentation, deep supervision and ensembling are not part of this.
        "dynunet": Architecture(
            "DynUNet",
            {
                "kernel_size": (3,) * 6,
                "strides": (1, 2, 2, 2, 2, 2),
                "upsample_kernel_size": (2,) * 5,
                "filters": (32, 64, 128, 256, 512, 512),
                "norm_name": _INSTANCE_NORM,
            },
            reduction=32,
        ),
    }
)


class TextFree(PromptSegmenter):
    """A segmentation network without text: one map of logits per image, given as the answer to each of its prompts.

    Args:
        architecture: which network; its weights are drawn from torch's random numbers, so they follow the run's seed.
        preprocessing: by default 256 x 256 pixels, with ImageNet statistics as the other models have.
        base_id: name in :data:`ARCHITECTURES`, for messages and adapter cards.

    Raises:
        ModelError: MONAI is not installed.
    """

    family: ClassVar[str] = "text_free"
    pretrained: ClassVar[bool] = False
    caution: ClassVar[str] = "reads no text: a right prompt and a wrong one get the same mask"

    def __init__(
        self,
        architecture: Architecture,
        *,
        preprocessing: Preprocessing | None = None,
        base_id: str = "unnamed",
    ) -> None:
        super().__init__(base_id, preprocessing or Preprocessing(size=(SIDE, SIDE)))
        self.architecture = architecture
        self.network = _build(architecture, base_id)
        self.freeze()

    # -- the three stages ------------------------------------------------------------------------------------------

    @property
    def size_step(self) -> int:
        return self.architecture.reduction

    def encode_image(self, pixel_values: torch.Tensor) -> ImageFeatures:
        """The whole network: one activation, the logits (B, 1, H, W).

        Raises:
            ModelError: a side is no multiple of the network's reduction, or the deepest map would be a single pixel.
        """
        height, width = pixel_values.shape[-2:]
        step = self.architecture.reduction
        if height % step or width % step or height * width <= step * step:
            raise ModelError(
                f"image of {height} x {width} pixels: '{self.base_id}' needs sides that are multiples of {step}, "
                f"{2 * step} or more"
            )
        return ImageFeatures((self.network(pixel_values),), (height, width))

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> TextFeatures:
        """The same condition (P, 1), zero, whatever the P prompts say."""
        return TextFeatures(torch.zeros(input_ids.shape[0], 1, dtype=self.dtype, device=input_ids.device))

    def decode(self, image: ImageFeatures, text: TextFeatures, image_index: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (P, H, W): for each prompt the map of its image."""
        logits = image.activations[0][:, 0]
        return logits.expand(len(text), -1, -1) if image_index is None else logits[image_index]

    # -- sites, text and identity ----------------------------------------------------------------------------------

    def sites(self) -> list[Site]:
        """The network as one module: with random weights there is no part that could stay as it is."""
        return [Site("image", 0, "network", 0)]

    @property
    def context_length(self) -> int:
        return 1

    def tokenize(self, prompts: Sequence[str]) -> Tokens:
        """One token per prompt, the same for all: no word is read, so none is cut.

        Raises:
            ModelError: there is no prompt.
        """
        if not prompts:
            raise ModelError("no prompt given: ask for at least one, e.g. ['polyp']")
        return Tokens(torch.zeros(len(prompts), 1, dtype=torch.long), torch.ones(len(prompts), 1, dtype=torch.long))

    def hash_in_memory(self) -> str:
        """SHA-256 over the network's name and settings; there are no pretrained weights to tell apart."""
        told = [self.family, self.architecture.network, dict(self.architecture.settings)]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_pretrained(cls, source: str | Path, base_id: str, dtype: torch.dtype) -> TextFree:
        """Build the network called ``source`` in :data:`ARCHITECTURES`, with random weights.

        Raises:
            ModelError: no such network, or MONAI is not installed.
        """
        if str(source) not in ARCHITECTURES:
            raise ModelError(f"text-free network '{source}' is unknown: {nearest(str(source), ARCHITECTURES)}")
        return cls(ARCHITECTURES[str(source)], base_id=base_id).to(dtype)


def _build(architecture: Architecture, base_id: str) -> nn.Module:
    try:
        from monai.networks import nets
    except ImportError as error:
        raise ModelError(
            f"model '{base_id}' is a network of MONAI, which is not installed: pip install 'vlsm-adapter[monai]', "
            "or choose another model, see 'vlsm models'"
        ) from error
    network = getattr(nets, architecture.network)
    return network(spatial_dims=2, in_channels=3, out_channels=1, **architecture.settings)
