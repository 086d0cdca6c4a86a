"""Whether an exported folder answers as the model does: the whole way, from the image's pixels to masks at native size."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vlsm_adapter.errors import ModelError
from vlsm_adapter.export import runtime
from vlsm_adapter.inference import inferring, probability_at_size

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter


@dataclass(frozen=True)
class Limits:
    """How far an export may be from the model.

    Attributes:
        logits: largest difference of a logit, as a part of the largest logit (at least of 1).
        pixels: part of the pixels of each mask that must agree, on average over the masks.
    """

    logits: float
    pixels: float


# float32 differs by rounding alone; float16 has 11 bits; of 8 bits the masks count, not the logits.
LIMITS = {"fp32": Limits(1e-3, 0.999), "fp16": Limits(0.05, 0.99), "int8": Limits(float("inf"), 0.95)}


@dataclass(frozen=True)
class Reference:
    """What the model itself answers to P prompts on one image: logits (P, h, w), masks bool (P, H, W) at native size."""

    image: np.ndarray
    logits: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True)
class Agreement:
    """How near an exported folder is to the model.

    Attributes:
        images, image_source: how many images were asked, and what they are.
        prompts: what each was asked.
        max_logit_difference, largest_logit: over all logits at the network's resolution.
        pixels_agree, worst_pixels_agree: part of the pixels of a mask at native size that are the same; mean and least.
        dice: of the exported masks with the model's, mean; 1 where both are empty.
    """

    images: int
    image_source: str
    prompts: tuple[str, ...]
    max_logit_difference: float
    largest_logit: float
    pixels_agree: float
    worst_pixels_agree: float
    dice: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {**asdict(self), "prompts": list(self.prompts)}

    def __str__(self) -> str:
        return (
            f"{self.images} images x {len(self.prompts)} prompts ({self.image_source}): largest difference of a logit "
            f"{self.max_logit_difference:.1e} (of logits up to {self.largest_logit:.1f}), {self.pixels_agree:.3%} of the pixels "
            f"of masks agree, Dice with the model's masks {self.dice:.4f}"
        )


def ask_model(
    model: PromptSegmenter, images: Sequence[np.ndarray], prompts: Sequence[str], threshold: float
) -> list[Reference]:
    """Answers of ``model`` as it stands to all ``prompts`` on each of ``images``, uint8 (H, W, 3)."""
    answers = []
    with inferring(model):
        tokens = model.tokenize(list(prompts))
        text = model.encode_text(tokens.input_ids, tokens.attention_mask)
        index = torch.zeros(len(prompts), dtype=torch.long)
        for image in images:
            logits = model.decode(model.encode_image(model.preprocess([image])), text, index)
            size = (image.shape[0], image.shape[1])
            masks = np.stack([probability_at_size(one, size) > threshold for one in logits])
            answers.append(Reference(image, logits.numpy(), masks))
    return answers


def compare(folder: Path, references: Sequence[Reference], prompts: Sequence[str], source: str) -> Agreement:
    """Ask the exported ``folder`` what the model was asked."""
    predictor = runtime.Predictor(folder, check=False)
    difference = largest = 0.0
    agree, dice = [], []
    for reference in references:
        predictor.set_image(reference.image)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the model has told of prompts that are cut
            logits = predictor.decode(predictor.encode([reference.image]), prompts, [0] * len(prompts))
            masks = predictor.predict(prompts)
        gap = float(np.abs(logits - reference.logits).max())
        difference = max(difference, gap) if np.isfinite(gap) else float("inf")
        largest = max(largest, float(np.abs(reference.logits).max()))
        for mask, expected in zip(masks, reference.masks, strict=True):
            agree.append(float((mask == expected).mean()))
            total = int(mask.sum()) + int(expected.sum())
            dice.append(2 * int((mask & expected).sum()) / total if total else 1.0)
    return Agreement(
        images=len(references),
        image_source=source,
        prompts=tuple(prompts),
        max_logit_difference=difference,
        largest_logit=largest,
        pixels_agree=float(np.mean(agree)),
        worst_pixels_agree=min(agree),
        dice=float(np.mean(dice)),
    )


def require(agreement: Agreement, precision: str, *, calibrated: bool = False) -> None:
    """Refuse an export that answers otherwise than the model.

    Raises:
        ModelError: a logit or the masks differ more than :data:`LIMITS` allow.
    """
    limits = LIMITS[precision]
    most = limits.logits * max(1.0, agreement.largest_logit)
    if agreement.max_logit_difference <= most and agreement.pixels_agree >= limits.pixels:
        return
    mend = {
        "fp32": "a fault of the export, please report it; --format torch may do",
        "fp16": "use --precision fp32",
        "int8": "use --precision fp16"
        if calibrated
        else "give --calibrate IMAGES like those to come, or use --precision fp16",
    }[precision]
    raise ModelError(
        f"the exported {precision} graphs differ from the model: a logit by {agreement.max_logit_difference:.2g} (at most "
        f"{most:.2g}), {agreement.pixels_agree:.2%} of the masks' pixels agree (at least {limits.pixels:.1%}); nothing was "
        f"written: {mend}"
    )
