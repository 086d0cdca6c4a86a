"""Training, read top to bottom: build, set up, fit, close. One loop for every model and method.

A run is a pure function of its configuration: order and prompts come from hashes of case, epoch and seed, so a run
killed at any moment and resumed ends with the same bits as one left alone (on the same machine and thread count).
"""

from __future__ import annotations

import csv
import io
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from vlsm_adapter import checkpoint, files
from vlsm_adapter.adapters import adapter_config
from vlsm_adapter.adapters.attach import AttachReport, attach
from vlsm_adapter.adapters.folder import AdapterInfo, save_adapter
from vlsm_adapter.checkpoint import Progress
from vlsm_adapter.config import RunConfig
from vlsm_adapter.console import Console, log_to
from vlsm_adapter.data.cases import Cases, load_cases, try_all
from vlsm_adapter.data.loaders import CaseDataset, make_loader
from vlsm_adapter.data.prompts import choose_prompt, leaks
from vlsm_adapter.errors import TrainingError, UserError
from vlsm_adapter.interrupt import StopSignal
from vlsm_adapter.logs import Logs
from vlsm_adapter.losses import LOSSES
from vlsm_adapter.models import load_model
from vlsm_adapter.models.base import PromptSegmenter
from vlsm_adapter.optimization import check_gradients, choose_precision, learning_rate, make_optimizer, step_plateau
from vlsm_adapter.run_folder import RunFolder, environment
from vlsm_adapter.types import Batch

THRESHOLD = 0.5


def train(config: RunConfig, out: str | Path, *, console: Console | None = None) -> RunFolder:
    """Start a run in the folder ``out`` and fit it to the end.

    Returns:
        The run's folder: adapter, metrics, state, logs.

    Raises:
        UserError: ``out`` holds a run already, or anything of the data, model, adapter or training is wrong.
        Interrupted: by Ctrl-C; the state is saved.
    """
    folder = RunFolder(Path(out))
    config = absolute_paths(config)
    if folder.config_file.exists():
        raise UserError(f"{out}: holds a run already; continue it with --resume {out}, or choose another --out")
    if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
        raise UserError(f"{out}: is not an empty folder; choose another --out")
    return _run(config, folder, console or Console(quiet=True))


def resume(run: str | Path, *, console: Console | None = None) -> RunFolder:
    """Continue a run that was interrupted or killed; a finished one is left as it is."""
    folder = RunFolder.open(run)
    return _run(folder.config(), folder, console or Console(quiet=True))


def _run(config: RunConfig, folder: RunFolder, console: Console) -> RunFolder:
    if folder.state_file.is_file():
        _, before = checkpoint.read_state(folder.state_file)
        if before.finished:
            console.say(f"{folder.path}: finished already ({before.finished})")
            return folder
    parts = build(config, console)
    folder.path.mkdir(parents=True, exist_ok=True)
    with log_to(folder.log_file):
        session = set_up(parts, folder, console)
        try:
            fit(session)
        finally:
            close(session)
    return folder


# -- build: everything that can be wrong is found here, before anything is written ------------------------------------


@dataclass
class Parts:
    """What a run is made of."""

    config: RunConfig
    cases: Cases
    model: PromptSegmenter
    report: AttachReport
    train_data: CaseDataset
    val_data: CaseDataset


def build(config: RunConfig, console: Console) -> Parts:
    """Read data and model, attach the adapter, decode every case once."""
    torch.manual_seed(config.train.seed)
    cases = load_cases(
        config.data.path,
        prompt=config.data.prompt,
        split_seed=config.data.split_seed,
        fractions=config.data.fractions,
        skip_bad=config.data.skip_bad,
    )
    model = build_model(config)
    report = attach(model, adapter_config(config.adapter.method, **dict(config.adapter.settings)))
    console.say(str(report))
    for split, level in (("train", config.data.level), ("val", config.data.eval_level)):
        for record in cases.records(split):
            choose_prompt(record, level, seed=config.train.seed)  # a case without the level is found now
    datasets: list[CaseDataset] = []
    budget = config.data.cache_mb * (1 << 20)
    for split, level in (("train", config.data.level), ("val", config.data.eval_level)):
        records = cases.records(split)
        dataset = _dataset(config, model, records, level, budget // 2)
        with console.bar(f"reading {split} images", len(records)) as advance:
            bad = try_all(records, dataset.__getitem__, skip_bad=config.data.skip_bad, progress=advance)
        for record, reason in bad:
            cases.drop(record.case_id, record.image, reason)
        if bad:
            dataset = _dataset(config, model, cases.records(split), level, budget // 2)
        datasets.append(dataset)
    console.say(
        f"{cases.where}: {len(datasets[0])} training and {len(datasets[1])} validation cases, prompt level "
        f"{config.data.level}" + (f"; {len(cases.skipped)} bad cases left out" if cases.skipped else "")
    )
    if leaks(config.data.eval_level):
        console.say(
            f"warning: prompt level {config.data.eval_level} is drawn from the ground truth; scores with it "
            "say what a reader of the mask could reach, use p1 for a leak-free evaluation"
        )
    return Parts(config, cases, model, report, datasets[0], datasets[1])


def absolute_paths(config: RunConfig) -> RunConfig:
    """``config`` with the data's path, and the model's where it is a folder, independent of the working directory."""
    data = replace(config.data, path=str(Path(config.data.path).resolve()))
    model = config.model
    if Path(model.name).is_dir():
        model = replace(model, name=str(Path(model.name).resolve()))
    return replace(config, data=data, model=model)


def build_model(config: RunConfig) -> PromptSegmenter:
    """The base model, with the input size the configuration asks for."""
    model = load_model(config.model.name)
    if config.model.image_size is not None:
        side = config.model.image_size
        model.preprocessing = replace(model.preprocessing, size=(side, side))
    return model


def _dataset(config: RunConfig, model: PromptSegmenter, records: list, level: str, budget: int) -> CaseDataset:
    return CaseDataset(records, model.preprocessing, level=level, seed=config.train.seed, cache_bytes=budget)


# -- set up: folder, optimizer, saved state ------------------------------------------------------------------------------


@dataclass
class Session:
    """A run under way."""

    parts: Parts
    folder: RunFolder
    console: Console
    fabric: Fabric
    wrapped: Any  # the model as Fabric drives it
    optimizer: Any
    progress: Progress
    logs: Logs
    info: AdapterInfo
    stop: StopSignal


def set_up(parts: Parts, folder: RunFolder, console: Console) -> Session:
    """Write what is known before training, move to the device, and take up the saved state if there is one."""
    config = parts.config
    precision = choose_precision(config.train.precision)
    fabric = Fabric(accelerator="auto", devices=1, precision=precision)
    optimizer = make_optimizer(parts.model, config.train)
    wrapped, wrapped_optimizer = fabric.setup(parts.model, optimizer)
    progress = Progress()
    if folder.state_file.is_file():
        progress = checkpoint.load_state(folder.state_file, parts.model, optimizer)
        if progress.scaler:
            fabric._precision.load_state_dict(progress.scaler)
        console.say(f"resumed at epoch {progress.epoch + 1}, batch {progress.batch}")
    else:
        files.write_text(folder.config_file, config.to_yaml())
        files.write_json(
            folder.environment_file, {**environment(), "device": str(fabric.device), "precision": precision}
        )
    files.write_json(folder.data_file, _data_summary(parts))
    counts = {split: sum(record.split == split for record in parts.cases.all) for split in ("train", "val", "test")}
    examples = tuple(dict.fromkeys(parts.val_data.prompt(index) for index in range(len(parts.val_data))))[:3]
    info = AdapterInfo(
        threshold=THRESHOLD,
        prompt_level=config.data.eval_level,
        prompts=examples,
        data=parts.val_data.records[0].dataset or Path(config.data.path).name,
        split=counts,
        seed=config.train.seed,
    )
    logs = Logs(config, folder, first_step=progress.update)
    return Session(
        parts, folder, console, fabric, wrapped, wrapped_optimizer, progress, logs, info, StopSignal(console)
    )


# -- fit -----------------------------------------------------------------------------------------------------------------


def fit(session: Session) -> None:
    """Epochs until the end, a stop for want of progress, or an interruption; the state is saved after each."""
    config, progress = session.parts.config.train, session.progress
    with session.stop.listening():
        while progress.finished is None:
            started = time.perf_counter()
            _train_epoch(session)
            progress.epoch_seconds += time.perf_counter() - started
            row = _validate(session)
            _end_epoch(session, row)
            if progress.epoch >= config.epochs:
                progress.finished = f"all {config.epochs} epochs"
            elif config.patience and progress.stale >= config.patience:
                progress.finished = f"no better validation Dice for {config.patience} epochs"
            checkpoint.save_state(session.folder.state_file, session.parts.model, _plain(session.optimizer), progress)
            if progress.finished is None:
                session.stop.check(session.folder)
    session.console.say(
        f"finished: {progress.finished}; best validation Dice {progress.best:.4f} in epoch {progress.best_epoch}"
    )


def _train_epoch(session: Session) -> None:
    config, progress, parts = session.parts.config.train, session.progress, session.parts
    parts.train_data.set_epoch(progress.epoch)
    loader = make_loader(
        parts.train_data,
        parts.model.tokenize,
        batch_size=config.batch_size,
        shuffle=True,
        seed=config.seed,
        epoch=progress.epoch,
        num_workers=config.workers,
        start_batch=progress.batch,
        pin_memory=session.fabric.device.type == "cuda",
    )
    batches = math.ceil(len(parts.train_data) / config.batch_size)
    updates = config.epochs * math.ceil(batches / config.accumulate)
    loss_of = LOSSES.get(config.loss)
    saved = time.monotonic()
    description = f"epoch {progress.epoch + 1}/{config.epochs}"
    with session.console.bar(description, batches) as advance:
        for batch in loader:
            group_start = progress.batch - progress.batch % config.accumulate
            group = min(config.accumulate, batches - group_start)
            last_of_group = (progress.batch + 1 - group_start) == group
            with session.fabric.no_backward_sync(session.wrapped, enabled=not last_of_group):
                loss = _loss(session, batch, loss_of)
                value = loss.item()
                if not math.isfinite(value):
                    raise TrainingError(
                        f"loss is {value} in epoch {progress.epoch + 1}, batch {progress.batch + 1} (cases "
                        f"{', '.join(list(batch.case_ids)[:3])}, ...); the last good state is kept in "
                        f"{session.folder.path}: lower train.lr, or use train.precision=32-true"
                    )
                session.fabric.backward(loss / group)
            progress.epoch_loss += value * len(batch.case_ids)
            progress.epoch_cases += len(batch.case_ids)
            if last_of_group:
                if progress.update == 0:
                    check_gradients(parts.model)
                _update(session, updates)
            progress.batch += 1
            advance(progress.batch, note=f"loss {progress.epoch_loss / progress.epoch_cases:.4f}")
            if last_of_group and progress.batch < batches:
                stopping = session.stop.requested
                if stopping or time.monotonic() - saved >= config.save_seconds:
                    checkpoint.save_state(session.folder.state_file, parts.model, _plain(session.optimizer), progress)
                    saved = time.monotonic()
                session.stop.check(session.folder)


def _loss(session: Session, batch: Batch, loss_of: Any) -> torch.Tensor:
    if batch.masks is None:
        raise TrainingError(f"case {batch.case_ids[0]}: has no mask; training needs one for every case")
    logits, masks = _logits_and_masks(session, batch)
    return loss_of(logits, masks)


def _logits_and_masks(session: Session, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and masks, both (P, H, W) at the network's input size."""
    batch = _to_device(batch, session.fabric.device)
    assert batch.masks is not None
    logits = session.wrapped(
        pixel_values=batch.pixel_values,
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        image_index=batch.image_index,
    )[:, 0]
    return _at_size_of(logits, batch.masks), batch.masks


def _update(session: Session, updates: int) -> None:
    config, progress = session.parts.config.train, session.progress
    lr = learning_rate(config, progress.update, updates) * progress.plateau.get("factor", 1.0)
    for group in session.optimizer.param_groups:
        group["lr"] = lr
    if config.clip_norm:
        session.fabric.clip_gradients(
            session.wrapped, session.optimizer, max_norm=config.clip_norm, error_if_nonfinite=False
        )
    session.optimizer.step()
    session.optimizer.zero_grad(set_to_none=True)
    progress.update += 1


@torch.no_grad()
def _validate(session: Session) -> dict[str, float]:
    """Mean loss and Dice over the validation cases, at the network's resolution, with fixed prompts."""
    config, parts = session.parts.config.train, session.parts
    loader = make_loader(
        parts.val_data,
        parts.model.tokenize,
        batch_size=config.batch_size,
        shuffle=False,
        seed=config.seed,
        num_workers=config.workers,
    )
    loss_of = LOSSES.get(config.loss)
    losses = dices = 0.0
    count = 0
    with session.console.bar("validation", math.ceil(len(parts.val_data) / config.batch_size)) as advance:
        for number, batch in enumerate(loader, start=1):
            logits, masks = _logits_and_masks(session, batch)
            cases = len(batch.case_ids)
            losses += loss_of(logits, masks).item() * cases
            dices += batch_dice(logits.float().sigmoid() > THRESHOLD, masks > 0.5).sum().item()
            count += cases
            advance(number)
    return {"val_loss": losses / count, "val_dice": dices / count}


def batch_dice(prediction: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Dice (P,) of boolean masks (P, H, W); two empty masks agree: 1."""
    overlap = (prediction & truth).sum((1, 2)).double()
    size = (prediction.sum((1, 2)) + truth.sum((1, 2))).double()
    return torch.where(size == 0, torch.ones_like(size), 2 * overlap / size.clamp(min=1))


def _end_epoch(session: Session, scores: dict[str, float]) -> None:
    config, progress = session.parts.config.train, session.progress
    row = {
        "epoch": progress.epoch + 1,
        "updates": progress.update,
        "train_loss": progress.epoch_loss / max(1, progress.epoch_cases),
        **scores,
        "learning_rate": session.optimizer.param_groups[0]["lr"],
        "images_per_second": progress.epoch_cases / max(progress.epoch_seconds, 1e-9),
        "seconds": progress.epoch_seconds,
    }
    progress.history.append(row)
    gained = progress.best < 0 or scores["val_dice"] > progress.reference + config.min_delta
    progress.stale = 0 if gained else progress.stale + 1
    if gained:
        progress.reference = scores["val_dice"]
    best = scores["val_dice"] > progress.best
    if best:
        progress.best, progress.best_epoch = scores["val_dice"], progress.epoch + 1
        info = AdapterInfo(**{**asdict(session.info), "scores": {"validation Dice": scores["val_dice"]}})
        save_adapter(session.parts.model, session.folder.adapter, info=info)
    if config.schedule == "plateau":
        step_plateau(progress, scores["val_loss"])
    files.write_text(session.folder.metrics_file, _csv(progress.history))
    session.logs.write({key: value for key, value in row.items() if key not in ("epoch", "updates")}, progress.update)
    session.console.say(
        f"epoch {row['epoch']:>3}/{config.epochs}: loss {row['train_loss']:.4f}, validation loss {row['val_loss']:.4f}, "
        f"Dice {row['val_dice']:.4f}{' (best)' if best else ''}, "
        f"{row['images_per_second']:.1f} images/s"
    )
    progress.epoch += 1
    progress.batch, progress.epoch_loss, progress.epoch_cases, progress.epoch_seconds = 0, 0.0, 0, 0.0
    if (state := session.fabric._precision.state_dict()) is not None:
        progress.scaler = state


# -- close ---------------------------------------------------------------------------------------------------------------


def close(session: Session) -> None:
    """Flush the logs."""
    session.logs.close()


# -- small parts ---------------------------------------------------------------------------------------------------------


def _to_device(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    moved = {
        name: getattr(batch, name).to(device, non_blocking=True)
        for name in ("pixel_values", "input_ids", "attention_mask", "image_index")
    }
    masks = None if batch.masks is None else batch.masks.to(device, non_blocking=True)
    return Batch(**moved, masks=masks, case_ids=batch.case_ids, prompts=batch.prompts)


def _at_size_of(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Logits (P, h, w) at the size (H, W) of the masks; a decoder may answer at a lower resolution."""
    if logits.shape[-2:] == masks.shape[-2:]:
        return logits
    return torch.nn.functional.interpolate(logits[:, None].float(), size=masks.shape[-2:], mode="bilinear")[:, 0]


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    return getattr(optimizer, "optimizer", optimizer)


def _csv(rows: list[dict[str, float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _data_summary(parts: Parts) -> dict[str, Any]:
    return {
        "path": parts.config.data.path,
        "splits": {
            split: [record.case_id for record in parts.cases.all if record.split == split]
            for split in ("train", "val", "test")
        },
        "skipped": [asdict(case) for case in parts.cases.skipped],
    }
