"""What a bundle's configuration is made of: network, reader and writer in MONAI's form, with the predictor's answers.

Pictures are (H, W) everywhere here, never MONAI's (W, H) of Pillow images: the reader does not turn them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import PILReader, decollate_batch
from monai.transforms import MapTransform
from PIL import Image
from torch import nn

from vlsm_adapter import files
from vlsm_adapter.adapters import tuner
from vlsm_adapter.adapters.attach import active
from vlsm_adapter.adapters.folder import load_adapter
from vlsm_adapter.data.images import read_image
from vlsm_adapter.data.records import list_images
from vlsm_adapter.errors import UserError
from vlsm_adapter.output_names import output_names
from vlsm_adapter.predict import Predictor, check_prompts


class PromptedNetwork(nn.Module):
    """A base model with its adapter that asks fixed prompts of every image.

    Its state dict is the adapter's (``models/model.pt`` of the bundle); the base is found by its id, or in ``models/base``.

    Args:
        bundle_root: the bundle's folder.
        prompts: P texts, a channel of the output each.
        base: where the base model is, if neither in the bundle nor where the adapter says.

    Raises:
        AdapterError, ModelError: adapter or base cannot be loaded.
        UserError: no prompts.
    """

    def __init__(self, bundle_root: str, prompts: Sequence[str], base: str | None = None) -> None:
        super().__init__()
        models = Path(bundle_root) / "models"
        own = models / "base"
        self.prompts = check_prompts(prompts)
        self.segmenter = load_adapter(models / "adapter", base=base or (own if own.is_dir() else None))
        self._predictor: Predictor | None = None
        self._device: torch.device | None = None

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Probabilities of foreground.

        Args:
            image: (B, 3, H, W) RGB from 0 to 255, of any type, at the pictures' own size.

        Returns:
            float32 (B, P, H, W) in [0, 1], at the same size.
        """
        if self._predictor is None or self._device != self.segmenter.device:  # encoded texts stay on their device
            self._predictor, self._device = Predictor(self.segmenter), self.segmenter.device
        answers = []
        for one in image.detach().cpu():
            pixels = torch.as_tensor(np.asarray(one)).float().round().clamp(0, 255).byte()
            self._predictor.set_image(pixels.permute(1, 2, 0).numpy())
            answers.append(torch.from_numpy(self._predictor.probabilities(self.prompts)))
        return torch.stack(answers).to(self._device)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """Weights of the adapter."""
        return tuner.state_dict(self.segmenter, active(self.segmenter))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights of the adapter; every key and shape must fit, whatever ``strict`` says.

        Raises:
            AdapterError: they do not.
        """
        tuner.load_state_dict(self.segmenter, active(self.segmenter), state_dict, "state dict")
        return nn.modules.module._IncompatibleKeys([], [])


class PictureReader(PILReader):
    """Reads pictures as the predictor does: EXIF orientation applied, 16 bits windowed, transparency on black."""

    def __init__(self) -> None:
        super().__init__(reverse_indexing=False)

    def verify_suffix(self, filename: Any) -> bool:
        """Whatever Pillow reads."""
        return True

    def read(self, data: Any, **kwargs: Any) -> Any:
        """A Pillow image in RGB for each file.

        Raises:
            DataError: it cannot be read.
        """
        names = [data] if isinstance(data, str | Path) else list(data)
        pictures = [Image.fromarray(read_image(Path(name))) for name in names]
        return pictures if len(pictures) > 1 else pictures[0]


class AboveThresholdd(MapTransform):
    """What is above a threshold, as uint8 0 or 1; MONAI's ``AsDiscrete`` counts the threshold itself in."""

    def __init__(self, keys: Any, threshold: float) -> None:
        super().__init__(keys)
        self.threshold = threshold

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """(P, H, W) probabilities to (P, H, W) masks."""
        changed = dict(data)
        for key in self.key_iterator(changed):
            changed[key] = (changed[key] > self.threshold).to(torch.uint8)
        return changed


class SavePromptMasksd(MapTransform):
    """Writes each prompt's mask as 8-bit PNG, 0 or 255, named as ``vlsm predict`` names it.

    Args:
        keys: of the masks (P, H, W).
        images: all files that are to be answered; names are chosen for them together.
        prompts: P texts.
        output_dir: the folder; made where missing.
        overwrite: replace files that are there.

    Raises:
        UserError: at the first mask, where a file is there already.
    """

    def __init__(
        self,
        keys: Any,
        images: Sequence[Mapping[str, str]],
        prompts: Sequence[str],
        output_dir: str,
        overwrite: bool = False,
    ) -> None:
        super().__init__(keys)
        sources = [Path(one["image"]) for one in images]
        rows = output_names(sources, check_prompts(prompts)) if sources else []
        self._targets = {
            str(source): [Path(output_dir) / f"{name}.png" for name in row]
            for source, row in zip(sources, rows, strict=True)
        }
        self._checked = overwrite

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Write the masks of one image; the data goes on unchanged."""
        if not self._checked:
            standing = next((file for row in self._targets.values() for file in row if file.exists()), None)
            if standing is not None:
                raise UserError(f"{standing}: exists already; choose another --output_dir, or pass --overwrite True")
            self._checked = True
        for key in self.key_iterator(dict(data)):
            masks = data[key]
            for mask, target in zip(masks, self._targets[str(masks.meta["filename_or_obj"])], strict=True):
                levels = np.asarray(mask.detach().cpu()).astype(np.uint8) * 255
                with files.atomic_path(target) as temporary:
                    Image.fromarray(levels).save(temporary, format="PNG")
        return dict(data)


class PictureEvaluator:
    """Goes over the pictures; in place of ``SupervisedEvaluator``, whose arguments it takes, without pytorch-ignite."""

    def __init__(
        self,
        device: torch.device | str,
        val_data_loader: Any,
        network: nn.Module,
        inferer: Any,
        postprocessing: Any,
        val_handlers: Any = None,
    ) -> None:
        if val_handlers:
            raise UserError(
                "this evaluator has no handlers: put SupervisedEvaluator (needs pytorch-ignite) in its place"
            )
        self.device, self.loader, self.network = device, val_data_loader, network.to(device)
        self.inferer, self.postprocessing = inferer, postprocessing

    def run(self) -> int:
        """Answer every picture; how many there were."""
        count = 0
        self.network.eval()
        with torch.no_grad():
            for batch in self.loader:
                image = batch["image"].to(self.device)
                made = {**batch, "pred": _with_meta(self.inferer(image, self.network), batch["image"])}
                for one in decollate_batch(made):
                    self.postprocessing(one)
                    count += 1
        return count


def datalist(dataset_dir: str) -> list[dict[str, str]]:
    """Entries for the images of a folder, its sub-folders among them.

    Raises:
        DataError: there are none.
    """
    return [{"image": str(file)} for file in list_images(dataset_dir)]


def _with_meta(answer: torch.Tensor, image: Any) -> Any:
    """``answer`` with the metadata of the image it is about: the writer needs its file name."""
    from monai.data import MetaTensor

    made = MetaTensor(answer, meta=dict(image.meta))
    made.is_batch = True
    return made
