"""The values that travel between the parts, and the one shape legend used everywhere.

Shape legend::

    B  images in a batch          P  prompts in a batch (P >= 1; several may share an image)
    C  channels                   H, W  rows and columns in pixels
    L  tokens of a prompt         D  width of a transformer (its hidden size)
    T  tokens of an image (class token and patches)

Arrays of pixels are ``(H, W)`` or ``(H, W, C)``; tensors are ``(B, C, H, W)``. Spacing is ``(row, column)`` in mm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

#: Of probabilities, where neither an adapter nor the user says another.
DEFAULT_THRESHOLD = 0.5

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True, slots=True)
class Record:
    """One case: an image, its mask if there is one, and the texts that name what the mask shows.

    Attributes:
        case_id: unique within the data set; file names and random choices derive from it.
        image: absolute path of the image file.
        mask: absolute path of the mask file, or None for an unlabelled case.
        prompts: prompt level (``"p1"`` is the class name) to the texts of that level, any of which may be used.
        split: ``"train"``, ``"val"``, ``"test"`` or None where the data set does not say.
        group: cases of one group (a patient, a video) never stand on both sides of a split.
        spacing: pixel size (row, column) in mm, or None where unknown: distances are then in pixels.
        mask_value: the value that means foreground in a multi-label mask, or None for a binary mask.
        dataset: name of the data set, for tables.
        leak_free: prompt levels that the data declares not drawn from the mask; None where it declares nothing.
    """

    case_id: str
    image: Path
    mask: Path | None = None
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    split: str | None = None
    group: str | None = None
    spacing: tuple[float, float] | None = None
    mask_value: int | None = None
    dataset: str = ""
    leak_free: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A case that was left out under ``--skip-bad``, and why (the message of the error it caused)."""

    case_id: str
    path: str
    reason: str


@dataclass(slots=True)
class Batch:
    """What one training or evaluation step sees.

    Attributes:
        pixel_values: float32 (K, 3, H, W), normalised by the model's preprocessing; K = B unless some images were
            loaded without pixels, since what is computed from them is known.
        input_ids: int64 (P, L) token ids, trimmed to the longest prompt of the batch.
        attention_mask: int64 (P, L), 1 where a token is real.
        image_index: int64 (P,), the image each prompt is asked of.
        masks: float32 (P, H, W) in {0, 1}, or None for unlabelled cases.
        case_ids: P case ids.
        prompts: P texts.
        images: the files of the B images, or names where a file is shown in more than one form.
        pixel_rows: K numbers, the image of each row of ``pixel_values``; None where every image has its row.
    """

    pixel_values: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    image_index: torch.Tensor
    masks: torch.Tensor | None
    case_ids: Sequence[str]
    prompts: Sequence[str]
    images: Sequence[str] = ()
    pixel_rows: Sequence[int] | None = None

    def pin_memory(self) -> Batch:
        """The batch with its tensors in page-locked memory, from which a GPU reads while the CPU goes on.

        torch's ``DataLoader`` calls it by this name where it is made with ``pin_memory``.
        """
        return replace(
            self,
            pixel_values=self.pixel_values.pin_memory(),
            input_ids=self.input_ids.pin_memory(),
            attention_mask=self.attention_mask.pin_memory(),
            image_index=self.image_index.pin_memory(),
            masks=None if self.masks is None else self.masks.pin_memory(),
        )


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one prompt on one image, at the image's native size.

    Attributes:
        prompt: the text asked.
        probability: float32 (H, W) in [0, 1].
        mask: bool (H, W), ``probability > threshold``.
        threshold: the threshold used.
    """

    prompt: str
    probability: np.ndarray
    mask: np.ndarray
    threshold: float


@dataclass(frozen=True, slots=True)
class CaseScore:
    """The metrics of one case, computed at native size.

    Attributes:
        case_id, prompt: which case, asked how.
        values: metric name (``"dice"``, ``"iou"``, ``"hd95"``, ``"nsd"``) to value; distances in ``unit``.
        unit: ``"mm"`` where the spacing is known, else ``"px"``.
        emptiness: ``"none"`` (both masks have foreground), ``"both"`` (rightly empty), ``"missed"``
            (predicted empty, truth not), ``"false_alarm"`` (truth empty, prediction not).
        truth_area, predicted_area: foreground in pixels.
    """

    case_id: str
    prompt: str
    values: Mapping[str, float]
    unit: str
    emptiness: str
    truth_area: int
    predicted_area: int

    def row(self) -> dict[str, Any]:
        """A flat row for a CSV file."""
        return {
            "case_id": self.case_id,
            "prompt": self.prompt,
            **self.values,
            "unit": self.unit,
            "emptiness": self.emptiness,
            "truth_area": self.truth_area,
            "predicted_area": self.predicted_area,
        }
