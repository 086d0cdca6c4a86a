"""Rows of the table on training: a dense step, and epochs in which frozen encoders need not run."""

from __future__ import annotations

from pathlib import Path

import torch

from measuring import Measured, Setting, alternate
from our_way import OurTraining, UsualTraining, save_data
from vlsm_adapter.optimization import choose_precision

SAME_LOSS = 1e-3  # relative; sums are in another order
SAME_LOSS_LOW = 0.02  # with 16 or 8 bits on one side


def fastest_precision(asked: str) -> str:
    """The precision of training that is fastest here; of ``auto`` that is 8 bits where a CPU has no bf16 but VNNI."""
    vnni = getattr(torch.cpu, "_is_vnni_supported", lambda: False)()
    return "int8" if asked == "auto" and choose_precision("auto") == "32-true" and vnni else asked


def dense(setting: Setting, *, batch: int, precision: str = "32-true") -> Measured:
    """Images per second of training dense VLC adapters; both ways take the same steps on the same batches."""
    model = Path(setting.model)
    cases = batch if batch > 4 else 2 * batch
    data = save_data(setting.new_folder("data"), cases)
    out = setting.new_folder("dense")
    ours = OurTraining(model, data, out, "dense", batch, setting.now, **{"train.precision": precision})
    usual = UsualTraining(model, ours)
    ours.epoch(), usual.epoch()
    first, second = alternate(ours.epoch, usual.epoch, setting.repeats)
    tolerance = SAME_LOSS if ours.precision == "32-true" else SAME_LOSS_LOW
    notes = {
        "precision": ours.precision,
        "steps_per_repetition": cases // batch,
        "trainable": usual.trainable,
        "losses": {"ours": ours.losses(), "usual": usual.losses()},
    }
    ours.close()
    return Measured(first, second, _alike(ours.losses(), usual.losses(), tolerance), notes)


def epochs(setting: Setting, *, method: str) -> Measured:
    """Images per second of epochs after the first; also whether the weights are those of a run without the cache."""
    model = Path(setting.model)
    cases, batch = (4, 2) if setting.quick else (32, 16)
    data = save_data(setting.new_folder("data"), cases)
    ours = OurTraining(model, data, setting.new_folder(method), method, batch, setting.now)
    usual = UsualTraining(model, ours)
    without = OurTraining(
        model, data, setting.new_folder(method), method, batch, setting.now, **{"train.feature_cache": "off"}
    )
    first_epoch = ours.epoch()
    usual.epoch(), without.epoch()
    first, second = alternate(ours.epoch, usual.epoch, 1)
    without.epoch()
    # After two epochs each: later ones would only take longer to say the same.
    cached, plain = ours.weights(), without.weights()
    same = all(torch.equal(tensor, plain[key]) for key, tensor in cached.items())
    without.close()
    more_first, more_second = alternate(ours.epoch, usual.epoch, setting.repeats - 1)
    notes = {
        "precision": ours.precision,
        "images": cases,
        "first_epoch_images_per_second": first_epoch,
        "weights_equal_to_uncached": same,
        "losses": {"ours": ours.losses(), "usual": usual.losses()},
    }
    ours.close()
    equal = same and _alike(ours.losses(), usual.losses(), SAME_LOSS)
    return Measured(first + more_first, second + more_second, equal, notes)


def _alike(ours: list[float], usual: list[float], tolerance: float) -> bool:
    return all(abs(one - other) <= tolerance * abs(other) for one, other in zip(ours, usual, strict=True))
