"""The loop: epochs of training and validation until the end, every state of it on disk."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning_fabric import Fabric

from vlsm_adapter import checkpoint, files
from vlsm_adapter.adapters.attach import training_mode
from vlsm_adapter.adapters.folder import AdapterInfo, save_adapter
from vlsm_adapter.checkpoint import Progress
from vlsm_adapter.config import RunConfig, TrainConfig
from vlsm_adapter.console import Console
from vlsm_adapter.data.loaders import CaseDataset, make_loader
from vlsm_adapter.errors import TrainingError
from vlsm_adapter.feature_cache import FeatureCache
from vlsm_adapter.inference import resize_logits
from vlsm_adapter.interrupt import StopSignal
from vlsm_adapter.logs import Logs
from vlsm_adapter.losses import LOSSES, Loss
from vlsm_adapter.models.base import PromptSegmenter
from vlsm_adapter.models.low_precision import flushing_denormals
from vlsm_adapter.optimization import check_gradients, learning_rate, step_plateau
from vlsm_adapter.processes import CommonStop, own_share, summed
from vlsm_adapter.resume_from import threshold_of_parent
from vlsm_adapter.run_folder import RunFolder
from vlsm_adapter.types import Batch

THRESHOLD = 0.5


@dataclass
class Session:
    """A run under way."""

    config: RunConfig
    model: PromptSegmenter
    train_data: CaseDataset
    val_data: CaseDataset
    folder: RunFolder
    console: Console
    fabric: Fabric
    features: FeatureCache
    wrapped: Any  # the model as Fabric drives it
    optimizer: Any
    progress: Progress
    logs: Logs
    info: AdapterInfo
    stop: StopSignal

    @property
    def batch_size(self) -> int:
        """Cases per step of all processes."""
        return self.config.train.batch_size * self.fabric.world_size

    @property
    def share(self) -> tuple[int, int]:
        """Which part of a batch is this process's, see ``EpochBatches``."""
        return self.fabric.global_rank, self.fabric.world_size

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes."""
        return self.fabric.is_global_zero


def fit(session: Session) -> None:
    """Epochs until the end, a stop for want of progress, or an interruption; the state is saved after each."""
    config, progress = session.config.train, session.progress
    with session.stop.listening(), flushing_denormals():
        if session.config.adapter.resume_from is not None and progress.best < 0:
            _score_start(session)
        while progress.finished is None:
            _train_epoch(session)
            scores = _validate(session) if _is_validated(config, progress.epoch + 1) else None
            _end_epoch(session, scores)
            if progress.epoch >= config.epochs:
                progress.finished = f"all {config.epochs} epochs"
            elif scores is not None and config.patience and progress.stale >= config.patience:
                progress.finished = f"no better validation Dice for {progress.stale} epochs"
            _save(session)
            if progress.finished is None:
                session.stop.check(session.folder)
    session.console.say(
        f"finished: {progress.finished}; best validation Dice {progress.best:.4f} "
        + (f"in epoch {progress.best_epoch}" if progress.best_epoch else "before training: no epoch was better")
    )


def _is_validated(config: TrainConfig, epoch: int) -> bool:
    """Whether the validation cases are scored after an epoch (1-based): by its number alone, so that all processes agree."""
    return epoch % config.validate_every == 0 or epoch >= config.epochs


def _score_start(session: Session) -> None:
    """Score the adapter that training begins from: it stays the best until an epoch does better."""
    progress = session.progress
    scores = _validate(session)
    progress.best = progress.reference = scores["val_dice"]
    kept = threshold_of_parent(session.config)  # with these weights it answers as before
    _keep(session, scores, **kept)
    session.console.say(f"before training: validation loss {scores['val_loss']:.4f}, Dice {scores['val_dice']:.4f}")
    if (threshold := kept.get("threshold", THRESHOLD)) != THRESHOLD:
        session.console.say(
            f"its threshold of {threshold:g} was chosen for these weights; an epoch that is better answers at {THRESHOLD:g} "
            "until 'vlsm evaluate RUN --calibrate' chooses its own"
        )


def _train_epoch(session: Session) -> None:
    config, progress = session.config.train, session.progress
    session.train_data.set_epoch(progress.epoch)
    session.features.prepare(session.train_data)
    loader = make_loader(
        session.train_data,
        session.model.tokenize,
        batch_size=session.batch_size,
        shuffle=True,
        seed=config.seed,
        epoch=progress.epoch,
        num_workers=config.workers,
        start_batch=progress.batch,
        share=session.share,
        pin_memory=session.fabric.device.type == "cuda",
    )
    batches = math.ceil(len(session.train_data) / session.batch_size)
    updates = config.epochs * math.ceil(batches / config.accumulate)
    loss_of = LOSSES.get(config.loss)
    saved, since = time.monotonic(), time.perf_counter()
    description = f"epoch {progress.epoch + 1}/{config.epochs}"
    with session.console.bar(description, batches) as advance:
        for batch in loader:
            group_start = progress.batch - progress.batch % config.accumulate
            group = min(config.accumulate, batches - group_start)
            last_of_group = (progress.batch + 1 - group_start) == group
            # A short last batch counts by its cases: an update is the mean over all of its group.
            group_cases = min(group * session.batch_size, len(session.train_data) - group_start * session.batch_size)
            with session.fabric.no_backward_sync(session.wrapped, enabled=not last_of_group):
                cases = min(session.batch_size, len(session.train_data) - progress.batch * session.batch_size)
                with training_mode(session.model):  # for the backward pass, too: checkpointing computes again there
                    loss = _loss(session, batch, loss_of)
                    value, weight = _over_processes(session, loss.item(), cases)
                    if not math.isfinite(value):
                        raise _not_finite(session, f"loss is {value}", batch)
                    session.fabric.backward(loss * weight * (cases / group_cases))
            progress.epoch_loss += value * cases
            progress.epoch_cases += cases
            if last_of_group:
                if progress.update == 0:
                    check_gradients(session.model)
                _update(session, updates, batch)
            progress.batch += 1
            now = time.perf_counter()
            progress.epoch_seconds, since = progress.epoch_seconds + now - since, now
            advance(progress.batch, note=f"loss {progress.epoch_loss / progress.epoch_cases:.4f}")
            if last_of_group and progress.batch < batches:
                if session.stop.requested or time.monotonic() - saved >= config.save_seconds:
                    _save(session)
                    saved = time.monotonic()
                session.stop.check(session.folder)


def _over_processes(session: Session, value: float, cases: int) -> tuple[float, float]:
    """Mean loss over a batch of ``cases``, of all processes, and what to weigh this one's with: gradients are averaged
    over processes, not over cases. All agree here whether to stop."""
    if session.fabric.world_size == 1:
        return value, 1.0
    own = own_share(cases, session.fabric)
    stop = session.stop
    wanted = isinstance(stop, CommonStop) and stop.wanted
    total, stops = summed(session.fabric, [value * own, float(wanted)])
    if isinstance(stop, CommonStop):
        stop.agree(stops)
    return total / cases, own * session.fabric.world_size / cases


def _loss(session: Session, batch: Batch, loss_of: Loss) -> torch.Tensor:
    if batch.masks is None:
        raise TrainingError(f"case {batch.case_ids[0]}: has no mask; training needs one for every case")
    torch.manual_seed(_step_seed(session))
    logits, masks = _logits_and_masks(session, batch, session.train_data)
    return loss_of(logits, masks)


def _step_seed(session: Session) -> int:
    """Of what is random in a step, dropout; each step has its own, so it does not matter where a run was resumed."""
    progress = session.progress
    step = f"step\0{session.config.train.seed}\0{progress.epoch}\0{progress.batch}\0{session.fabric.global_rank}"
    return int.from_bytes(hashlib.blake2b(step.encode(), digest_size=8).digest(), "little")


def _logits_and_masks(session: Session, batch: Batch, data: CaseDataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and masks, both (P, H, W) at the network's input size."""
    assert batch.masks is not None
    masks = batch.masks.to(session.fabric.device, non_blocking=True)
    logits = session.wrapped(**session.features.inputs(batch, data))[:, 0]
    return resize_logits(logits, (masks.shape[-2], masks.shape[-1])), masks


def _update(session: Session, updates: int, batch: Batch) -> None:
    config, progress = session.config.train, session.progress
    lr = learning_rate(config, progress.update, updates) * progress.plateau.get("factor", 1.0)
    for group in session.optimizer.param_groups:
        group["lr"] = lr
    norm = session.fabric.clip_gradients(
        session.wrapped, session.optimizer, max_norm=config.clip_norm or math.inf, error_if_nonfinite=False
    )
    # The scaler of 16-bit training passes over such updates by itself.
    scaled = getattr(session.fabric._precision, "scaler", None) is not None
    if norm is not None and not scaled and not math.isfinite(norm.item()):
        raise _not_finite(session, f"norm of the gradient is {norm.item()}", batch)
    session.optimizer.step()
    session.optimizer.zero_grad(set_to_none=True)
    progress.update += 1


@torch.no_grad()
def _validate(session: Session) -> dict[str, float]:
    """Mean loss and Dice over the validation cases, at the network's resolution, with fixed prompts."""
    config = session.config.train
    session.features.prepare(session.val_data)
    loader = make_loader(
        session.val_data,
        session.model.tokenize,
        batch_size=session.batch_size,
        shuffle=False,
        seed=config.seed,
        num_workers=config.workers,
        share=session.share,
        pin_memory=session.fabric.device.type == "cuda",
    )
    loss_of = LOSSES.get(config.loss)
    losses = dices = count = 0.0
    batches = math.ceil(len(session.val_data) / session.batch_size)
    with session.console.bar("validation", batches) as advance:
        for number, batch in enumerate(loader, start=1):
            logits, masks = _logits_and_masks(session, batch, session.val_data)
            whole = min(session.batch_size, len(session.val_data) - (number - 1) * session.batch_size)
            cases = own_share(whole, session.fabric)
            if cases:  # else the batch is a stand-in, to keep step with the other processes
                losses += loss_of(logits, masks).item() * cases
                dices += batch_dice(logits.float().sigmoid() > THRESHOLD, masks > 0.5).sum().item()
                count += cases
            advance(number)
            if session.stop.requested:
                _save(session)  # all batches of the epoch are done: resumed, it begins with the validation
                session.stop.check(session.folder)
    losses, dices, count = summed(session.fabric, [losses, dices, count])
    if not math.isfinite(losses):
        raise _not_finite(session, f"validation loss is {losses}")
    return {"val_loss": losses / count, "val_dice": dices / count}


def batch_dice(prediction: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Dice (P,) of boolean masks (P, H, W); two empty masks agree: 1."""
    # On the CPU: not every accelerator has float64.
    overlap = (prediction & truth).sum((1, 2)).cpu().double()
    size = (prediction.sum((1, 2)) + truth.sum((1, 2))).cpu().double()
    return torch.where(size == 0, torch.ones_like(size), 2 * overlap / size.clamp(min=1))


def _end_epoch(session: Session, scores: dict[str, float] | None) -> None:
    """Record the epoch; without ``scores`` where it was not validated."""
    config, progress = session.config.train, session.progress
    loss = progress.epoch_loss / max(1, progress.epoch_cases)
    speed = progress.epoch_cases / max(progress.epoch_seconds, 1e-9)
    row: dict[str, float | None] = {
        "epoch": progress.epoch + 1,
        "updates": progress.update,
        "train_loss": loss,
        **(scores or {"val_loss": None, "val_dice": None}),  # the same columns in every row
        "learning_rate": session.optimizer.param_groups[0]["lr"],
        "images_per_second": speed,
        "seconds": progress.epoch_seconds,
    }
    progress.history.append(row)
    progress.stale += 1
    told = _note_scores(session, scores) if scores is not None else ""
    if config.schedule == "plateau":
        step_plateau(progress, scores["val_loss"] if scores is not None else None)
    if session.writes:
        files.write_csv(session.folder.metrics_file, list(progress.history[0]), progress.history)
    logged = {key: value for key, value in row.items() if key not in ("epoch", "updates") and value is not None}
    session.logs.write(logged, progress.update)
    session.console.say(f"epoch {progress.epoch + 1:>3}/{config.epochs}: loss {loss:.4f}, {told}{speed:.1f} images/s")
    progress.epoch += 1
    progress.batch, progress.epoch_loss, progress.epoch_cases, progress.epoch_seconds = 0, 0.0, 0, 0.0


def _note_scores(session: Session, scores: dict[str, float]) -> str:
    """Keep the adapter where it is the best so far, and count from here where it has gained; what to say of the scores."""
    progress, dice = session.progress, scores["val_dice"]
    if progress.best < 0 or dice > progress.reference + session.config.train.min_delta:
        progress.reference, progress.stale = dice, 0
    best = dice > progress.best
    if best:
        progress.best, progress.best_epoch = dice, progress.epoch + 1
        _keep(session, scores)
    return f"validation loss {scores['val_loss']:.4f}, Dice {dice:.4f}{' (best)' if best else ''}, "


def _keep(session: Session, scores: dict[str, float], **about: Any) -> None:
    """Write the adapter as it is: the best so far; ``about`` takes the place of what its folder would say."""
    info = AdapterInfo(**{**asdict(session.info), "scores": {"validation Dice": scores["val_dice"]}, **about})
    if session.writes:
        save_adapter(session.model, session.folder.adapter, info=info)


def _save(session: Session) -> None:
    """Write the state, the gradient scaler's of this moment with it."""
    if not session.writes:
        return
    session.progress.scaler = session.fabric._precision.state_dict()
    checkpoint.save_state(session.folder.state_file, session.model, _plain(session.optimizer), session.progress)


def _not_finite(session: Session, what: str, batch: Batch | None = None) -> TrainingError:
    """The error of a number that is none; nothing of it has been saved."""
    where = f"epoch {session.progress.epoch + 1}"
    if batch is not None:
        where += f", batch {session.progress.batch + 1} (cases {', '.join(list(batch.case_ids)[:3])}, ...)"
    return TrainingError(
        f"{what} in {where}; the last good state is kept in {session.folder.path}: "
        "lower train.lr, or use train.precision=32-true"
    )


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    return getattr(optimizer, "optimizer", optimizer)
