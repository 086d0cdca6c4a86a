"""This package driven for measurement, and the same data and base model for both ways.

The one file of the benchmarks that knows how the package's inner parts are called.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPSegForImageSegmentation

import usual_way
from vlsm_adapter import fit
from vlsm_adapter.adapters import tuner
from vlsm_adapter.config import RunConfig
from vlsm_adapter.console import Console
from vlsm_adapter.data.loaders import make_loader
from vlsm_adapter.data.phantoms import write_phantoms
from vlsm_adapter.losses import LOSSES
from vlsm_adapter.models import load_model
from vlsm_adapter.models.low_precision import flushing_denormals
from vlsm_adapter.models.preprocessing import Preprocessing
from vlsm_adapter.optimization import make_optimizer
from vlsm_adapter.run_folder import RunFolder
from vlsm_adapter.train import build, close, set_up

PARAMETERS = 150_747_746
# Both ways then do the same updates, and can be compared by their losses.
SAME_UPDATES = {"train.schedule": "constant", "train.clip_norm": 0, "train.lr": 1e-4}
SETTINGS: dict[str, dict[str, Any]] = {
    "dense": {"variant": "published", "parts": "vlc"},
    "shallow": {"variant": "published", "parts": "vlc"},
    "decoder_only": {},
}


def save_base_model(folder: Path, *, quick: bool = False) -> Path:
    """CLIPSeg's published architecture with random weights and the embedded model's tokenizer; the latter's own if ``quick``."""
    tiny = load_model("tiny")
    assert tiny.tokenizer is not None
    if quick:
        stock, preprocessing = tiny.clipseg, tiny.preprocessing  # type: ignore[attr-defined]
    else:
        names = ("eos_token_id", "bos_token_id", "pad_token_id")
        stock = usual_way.full_size(special={name: getattr(tiny.tokenizer, name) for name in names})
        count = sum(parameter.numel() for parameter in stock.parameters())
        assert count == PARAMETERS, count
        preprocessing = Preprocessing()
    stock.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing.to_hugging_face()))
    return folder


def save_data(folder: Path, cases: int) -> Path:
    """Phantoms: ``cases`` to train with and one to validate with."""
    count = cases + 1
    return write_phantoms(
        folder,
        cases_per_modality=count,
        seed=0,
        modalities=("endoscopy",),
        splits=(cases / count, 1 / count, 0.0),
        sizes=((480, 640),),
    )


class OurTraining:
    """A run of ``vlsm train``, epoch by epoch, without its validation.

    Args:
        model, data, out: folders; ``out`` is made.
        method: ``dense``, ``shallow`` or ``decoder_only``, as published.
        batch: cases per step.
        clock: gives seconds.
        changes: further keys of the recipe.
    """

    def __init__(
        self,
        model: Path,
        data: Path,
        out: Path,
        method: str,
        batch: int,
        clock: Callable[[], float] = time.perf_counter,
        **changes: Any,
    ) -> None:
        settings = {**SETTINGS[method], **changes.pop("settings", {})}
        config = RunConfig.load(
            None,
            {
                "data.path": str(data),
                "model.name": str(model),
                "adapter.method": method,
                "adapter.settings": settings,
                "train.epochs": 1000,
                "train.batch_size": batch,
                "train.precision": "32-true",
                "log.tensorboard": False,
                **SAME_UPDATES,
                **changes,
            },
        )
        console = Console(quiet=True)
        folder = RunFolder(out)
        folder.path.mkdir(parents=True)
        self.session = set_up(build(config, console), folder, console)
        self.method, self.clock = method, clock

    @property
    def precision(self) -> str:
        lower = self.session.model.inference_precision
        return lower if lower == "int8" else str(self.session.fabric._precision.precision)

    def epoch(self) -> float:
        """Train an epoch; images per second."""
        session = self.session
        start = self.clock()
        with flushing_denormals():  # as fit.fit does
            fit._train_epoch(session)
        _finish(session.fabric.device)
        seconds = self.clock() - start
        images, loss = session.progress.epoch_cases, session.progress.epoch_loss
        # The first epoch's adapter is saved, that of later ones is not: their score is no better.
        fit._end_epoch(session, {"val_loss": loss / images, "val_dice": 0.0})
        return images / seconds

    def losses(self) -> list[float]:
        """Mean training loss of each epoch done."""
        return [row["train_loss"] for row in self.session.progress.history]

    def weights(self) -> dict[str, torch.Tensor]:
        """What trains, a copy."""
        held = tuner.state_dict(self.session.model, "default")
        return {key: tensor.detach().clone().cpu() for key, tensor in held.items()}

    def adapter_folder(self) -> Path:
        """The artefact: what is saved of a run to predict with."""
        return self.session.folder.adapter

    def close(self) -> None:
        close(self.session)


class UsualTraining:
    """The usual way on the same cases in the same order, from the same weights.

    Args:
        model: folder of the base model.
        ours: run whose data, order, loss, learning rate and first weights are taken.
    """

    def __init__(self, model: Path, ours: OurTraining) -> None:
        session = self.session = ours.session
        self.clock = ours.clock
        stock = CLIPSegForImageSegmentation.from_pretrained(model).eval().requires_grad_(False)
        narrow = session.config.adapter.settings.get("bottleneck_dim")
        self.model = usual_way.UsualWay(stock, ours.method, narrow)
        self.model.take(ours.weights())
        self.model.to(session.fabric.device)
        self.optimizer = make_optimizer(self.model, session.config.train)  # type: ignore[arg-type]
        self.trainable = sum(one.numel() for one in self.model.parameters() if one.requires_grad)
        self._epoch = 0
        self._losses: list[float] = []

    def epoch(self) -> float:
        """Train an epoch; images per second."""
        loss_of = LOSSES.get(self.session.config.train.loss)
        self.session.train_data.set_epoch(self._epoch)
        self.session.train_data.encoded = frozenset()  # every image with its pixels, whatever our cache holds
        total, images = 0.0, 0
        start = self.clock()
        for loss, count in usual_way.train(self.model, self.optimizer, self._batches(), loss_of):
            total, images = total + loss * count, images + count
        _finish(self.session.fabric.device)
        seconds = self.clock() - start
        self._losses.append(total / images)
        self._epoch += 1
        return images / seconds

    def losses(self) -> list[float]:
        """Mean training loss of each epoch done."""
        return list(self._losses)

    def _batches(self) -> Iterator[tuple[torch.Tensor, ...]]:
        session = self.session
        tokenizer = session.model.tokenizer
        assert tokenizer is not None
        for batch in make_loader(
            session.train_data,
            session.model.tokenize,
            batch_size=session.batch_size,
            shuffle=True,
            seed=session.config.train.seed,
            epoch=self._epoch,
            pin_memory=session.fabric.device.type == "cuda",
        ):
            assert batch.masks is not None
            ids, mask = padded_as_given(batch.input_ids, batch.attention_mask, tokenizer.eos_token_id)
            given = (batch.pixel_values[batch.image_index], ids, mask, batch.masks)
            yield tuple(tensor.to(session.fabric.device, non_blocking=True) for tensor in given)


def padded_as_given(ids: torch.Tensor, mask: torch.Tensor, end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`usual_way.padded`, of ids (P, L) that are padded to the longest prompt already."""
    longer, attend = usual_way.padded(ids, end)
    attend[:, : mask.shape[1]] = mask
    return longer, attend


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
