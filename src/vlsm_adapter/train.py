"""Training, read top to bottom: build, set up, fit, close. One loop for every model and method.

A run is a pure function of its configuration: order and prompts come from hashes of case, epoch and seed, so a run
killed at any moment and resumed ends with the same bits as one left alone (on the same machine and thread count).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from vlsm_adapter import checkpoint, files
from vlsm_adapter.adapters import adapter_config
from vlsm_adapter.adapters.attach import attach
from vlsm_adapter.adapters.folder import AdapterInfo
from vlsm_adapter.checkpoint import Progress
from vlsm_adapter.config import LogConfig, RunConfig
from vlsm_adapter.console import Console, log_to
from vlsm_adapter.data.cases import Cases, try_all
from vlsm_adapter.data.disk_cache import DiskCache, cache_folder
from vlsm_adapter.data.entries import real_folder
from vlsm_adapter.data.loaders import CaseDataset
from vlsm_adapter.data.prompts import RANDOM, choose_prompt, leaks_in
from vlsm_adapter.errors import ConfigError, DataError, TrainingError, UserError
from vlsm_adapter.feature_cache import FeatureCache
from vlsm_adapter.fit import THRESHOLD, Session, fit
from vlsm_adapter.interrupt import Interrupted, StopSignal
from vlsm_adapter.logs import Logs, check_logs
from vlsm_adapter.models import load_model
from vlsm_adapter.models.base import PromptSegmenter
from vlsm_adapter.models.low_precision import cast_frozen, lower_precision
from vlsm_adapter.optimization import (
    AUTOCAST_TYPES,
    INT8,
    choose_precision,
    fabric_precision,
    give_memory_back,
    make_optimizer,
    told_precision,
)
from vlsm_adapter.processes import (
    CommonStop,
    end_fabric,
    is_further_process,
    leave,
    left_by_another,
    lost,
    start_fabric,
)
from vlsm_adapter.resume_from import cases_for, start_from
from vlsm_adapter.run_folder import RunFolder, environment
from vlsm_adapter.seen_cases import kept_for_later, kept_of_before
from vlsm_adapter.types import Record


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
    if folder.path.exists() and (not folder.path.is_dir() or not _is_empty(folder.path)):
        kind = "is not empty" if folder.path.is_dir() else "is a file"
        raise UserError(f"{out}: {kind}; choose another --out")
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
    if folder.config_file.is_file():
        _check_places(config, folder)
    # One that helps builds once it has joined: what is wrong there can then be told.
    under_way = folder.state_file.is_file()
    parts = None if is_further_process(config.train.devices) else build(config, console, under_way=under_way)
    fabric = start_fabric(config.train.devices, fabric_precision(choose_precision(config.train.precision)))
    failed = True
    try:
        if fabric.is_global_zero:
            _lead(parts or build(config, console, under_way=under_way), folder, fabric, console)
        else:
            _help(config, folder, fabric)
        failed = False
    finally:
        end_fabric(fabric, failed=failed)
    return folder


def _check_places(config: RunConfig, folder: RunFolder) -> None:
    """A run keeps where its base model and data were when it began; say what to do if they have moved since."""
    name = Path(config.model.name)
    moved = [("model.name", "folder ", "base model is", name)] if name.is_absolute() and not name.is_dir() else []
    data = {"data.path": config.data.path, "data.val_path": config.data.val_path}
    moved += [(key, "", "data are", Path(path)) for key, path in data.items() if path and not Path(path).exists()]
    for key, kind, what, place in moved:
        raise TrainingError(
            f"{folder.config_file}: {key}: there is no {kind}'{place}' any more; write there where the {what} now, and "
            "resume again"
        )


def _claim(folder: RunFolder, config: RunConfig) -> None:
    """Write the configuration, first of all: from then on a killed run can be resumed."""
    if not folder.config_file.is_file():
        files.write_text(folder.config_file, config.to_yaml())
    elif folder.config() != config:
        raise UserError(f"{folder.path}: another run was started there meanwhile; choose another --out")


def _lead(parts: Parts, folder: RunFolder, fabric: Fabric, console: Console) -> None:
    """The run, by its only process or the first of several."""
    try:
        with folder.locked():
            _claim(folder, parts.config)
            with log_to(folder.log_file):
                for note in parts.notes:
                    console.say(note)
                session = set_up(parts, folder, console, fabric)
                try:
                    fit(session)
                finally:
                    close(session)
    except RuntimeError as error:
        if fabric.world_size == 1 or not lost(error):
            raise
        raise TrainingError(left_by_another()) from error


def _help(config: RunConfig, folder: RunFolder, fabric: Fabric) -> None:
    """The share of a further process of the run, which writes nothing; an error is the first one's to report."""
    console = Console(quiet=True)
    try:
        parts = build(config, console, under_way=folder.state_file.is_file())
        parts.config = replace(config, log=LogConfig(tensorboard=False))
        session = set_up(parts, folder, console, fabric)
        try:
            fit(session)
        finally:
            close(session)
    except (Interrupted, KeyboardInterrupt):
        raise SystemExit(0) from None
    except UserError as error:
        leave(str(error))
    except RuntimeError as error:
        if not lost(error):
            raise
        raise SystemExit(0) from None


def _is_empty(folder: Path) -> bool:
    """Nothing in it but the lock and what a killed write left behind (``.NAME.tmp``)."""
    return all(
        file.name == ".lock" or (file.name.startswith(".") and file.suffix == ".tmp") for file in folder.iterdir()
    )


# -- build: everything that can be wrong is found here, before anything is written ------------------------------------


@dataclass
class Parts:
    """What a run is made of."""

    config: RunConfig
    cases: Cases
    model: PromptSegmenter
    notes: list[str]  # what there is to say, once there is a log to say it in
    precision: str
    train_data: CaseDataset
    val_data: CaseDataset


def build(config: RunConfig, console: Console, *, under_way: bool = False) -> Parts:
    """Read data and model, attach the adapter, decode every case once.

    ``under_way``: a saved state holds the weights, the adapter that training began from is no longer needed.
    """
    precision = choose_precision(config.train.precision)
    check_logs(config)
    torch.manual_seed(config.train.seed)
    cases = cases_for(config)
    model = build_model(config)
    report = attach(model, adapter_config(config.adapter.method, **dict(config.adapter.settings)))
    if config.train.checkpointing and not model.can_checkpoint:
        raise ConfigError(f"train.checkpointing is for CLIPSeg, '{config.model.name}' is {model.family}: leave it out")
    model.checkpointing = config.train.checkpointing
    if model.checkpointing:
        give_memory_back()
    if precision in AUTOCAST_TYPES:
        with model.keeping_base_hash():
            cast_frozen(model, AUTOCAST_TYPES[precision])
    begins = start_from(model, config) if config.adapter.resume_from is not None and not under_way else ""
    asked = config.train.precision
    computed = lower_precision(model, "int8", trains=True) if precision == INT8 else told_precision(asked, precision)
    for split, level in (("train", config.data.level), ("val", config.data.eval_level)):
        for record in cases.records(split):
            choose_prompt(record, level, seed=config.train.seed)  # a case without the level is found now
    model.tokenize(sorted(_texts(cases, config)))  # prompts longer than the context are told here, once
    datasets: list[CaseDataset] = []
    budget = config.data.cache_mb * (1 << 20)
    folder = cache_folder(config.data.cache_dir)
    disk = DiskCache(folder, int(config.data.cache_gb * (1 << 30))) if folder else None
    for split, level in (("train", config.data.level), ("val", config.data.eval_level)):
        records = cases.records(split)
        augment = config.data.augment if split == "train" else "none"
        dataset = _dataset(config, model, records, level, budget // 2, disk, augment)
        with console.bar(f"reading {split} images", len(records)) as advance:
            bad = try_all(records, dataset.__getitem__, skip_bad=config.data.skip_bad, progress=advance)
        for record, reason in bad:
            cases.drop(record.case_id, record.image, reason)
        if bad:
            dataset = _dataset(config, model, cases.records(split), level, budget // 2, disk, augment)
        datasets.append(dataset)
    notes = [
        str(report),
        *([computed] if computed else []),
        *([begins] if begins else []),
        f"{cases.where}: {len(datasets[0])} training and {len(datasets[1])} validation cases, prompt level "
        f"{config.data.level}"
        + (f" ({cases.division})" if cases.division else "")
        + (f"; {len(cases.skipped)} bad cases left out" if cases.skipped else ""),
    ]
    if leaks_in(config.data.eval_level, cases.all):
        console.warn(
            f"prompt level {config.data.eval_level} is drawn from the ground truth; scores with it "
            "say what a reader of the mask could reach, use p1 for a leak-free evaluation"
        )
    return Parts(config, cases, model, notes, precision, datasets[0], datasets[1])


def _texts(cases: Cases, config: RunConfig) -> set[str]:
    """Every text that training or validation may ask."""
    texts: set[str] = set()
    for split, chosen in (("train", config.data.level), ("val", config.data.eval_level)):
        for record in cases.records(split):
            levels = record.prompts if chosen == RANDOM else (chosen,)
            texts.update(text for level in levels for text in record.prompts.get(level, ()))
    return texts


def absolute_paths(config: RunConfig) -> RunConfig:
    """``config`` with the data's path, and the model's where it is a folder, independent of the working directory."""
    data = replace(config.data, path=str(real_folder(config.data.path)))
    if data.split_file is not None:
        data = replace(data, split_file=str(real_folder(data.split_file)))
    if data.val_path is not None:
        data = replace(data, val_path=str(real_folder(data.val_path)))
    if data.cache_dir not in ("auto", "off"):
        data = replace(data, cache_dir=str(real_folder(data.cache_dir)))
    model = config.model
    if (folder := Path(model.name).expanduser()).is_dir():
        model = replace(model, name=str(folder.resolve()))
    return replace(config, data=data, model=model)


def build_model(config: RunConfig) -> PromptSegmenter:
    """The base model, with the input size the configuration asks for."""
    model = load_model(config.model.name)
    if config.model.image_size is not None:
        side = config.model.image_size
        model.preprocessing = replace(model.preprocessing, size=(side, side))
        with torch.no_grad():
            model.encode_image(torch.zeros(1, 3, side, side, dtype=model.dtype))  # a size it cannot take is found now
    return model


def _dataset(
    config: RunConfig,
    model: PromptSegmenter,
    records: list[Record],
    level: str,
    budget: int,
    disk: DiskCache | None,
    augment: str,
) -> CaseDataset:
    return CaseDataset(
        records,
        model.preprocessing,
        level=level,
        seed=config.train.seed,
        cache_bytes=budget,
        disk_cache=disk,
        augment=augment,
    )


# -- set up: folder, optimizer, saved state ------------------------------------------------------------------------------


def set_up(parts: Parts, folder: RunFolder, console: Console, fabric: Fabric | None = None) -> Session:
    """Write what is known before training, move to the device, and take up the saved state if there is one."""
    config = parts.config
    summary = _data_summary(parts)
    if folder.state_file.is_file():
        _check_same_cases(folder, summary)
    fabric = fabric or start_fabric(1, fabric_precision(parts.precision))
    fused = fabric.device.type == "cuda" and parts.precision != "16-mixed"
    optimizer = make_optimizer(parts.model, config.train, fused=fused)
    with parts.model.keeping_base_hash():  # the first process's weights are written over those of the others
        wrapped, wrapped_optimizer = fabric.setup(parts.model, optimizer)
    progress = Progress(base=parts.model.base_hash)
    if folder.state_file.is_file():
        progress = checkpoint.load_state(folder.state_file, parts.model, optimizer)
        if progress.base != parts.model.base_hash:
            raise TrainingError(
                f"{folder.path}: base model '{config.model.name}' has other weights than when the run began; "
                "bring them back, or start a new run"
            )
        if progress.scaler:
            fabric._precision.load_state_dict(progress.scaler)
        console.say(f"resumed at epoch {progress.epoch + 1}, batch {progress.batch}")
    elif fabric.is_global_zero:
        files.write_json(
            folder.environment_file, {**environment(), "device": str(fabric.device), "precision": parts.precision}
        )
    fabric.barrier()  # all have read the state before the first writes another
    if fabric.is_global_zero:
        if config.adapter.resume_from is not None:  # while that is here; kept when this run is resumed
            summary |= kept_of_before(folder)
        summary |= kept_for_later(folder, parts.train_data.records)
        files.write_json(folder.data_file, summary)
    counts = {split: sum(record.split == split for record in parts.cases.all) for split in ("train", "val", "test")}
    examples = tuple(dict.fromkeys(parts.val_data.prompt(index) for index in range(len(parts.val_data))))[:3]
    data = parts.train_data.records[0].dataset or Path(config.data.path).name
    info = AdapterInfo(
        threshold=THRESHOLD,
        prompt_level=config.data.eval_level,
        prompts=examples,
        data=f"{data}, {parts.cases.division}" if parts.cases.division else data,
        split=counts,
        seed=config.train.seed,
        parent={key: str(value) for key, value in config.adapter.parent.items()},
    )
    shared = cache_folder(config.data.cache_dir)
    features = FeatureCache(
        parts.model,
        folder=folder.path,
        precision=fabric.autocast,
        on=config.train.feature_cache != "off",
        memory_mb=config.train.feature_cache_mb,
        disk_bytes=int(config.train.feature_cache_gb * (1 << 30)),
        shared=shared / "features" if shared else None,
        processes=fabric.world_size,
    )
    console.say(features.describe(parts.train_data, parts.val_data))
    logs = Logs(config, folder, first_step=progress.update)
    return Session(
        config=config,
        model=parts.model,
        train_data=parts.train_data,
        val_data=parts.val_data,
        folder=folder,
        console=console,
        fabric=fabric,
        features=features,
        wrapped=wrapped,
        optimizer=wrapped_optimizer,
        progress=progress,
        logs=logs,
        info=info,
        stop=StopSignal(console) if fabric.world_size == 1 else CommonStop(console),
    )


def _check_same_cases(folder: RunFolder, summary: dict[str, Any]) -> None:
    """Refuse to go on with other cases: some trained on might by now be called test cases."""
    before = folder.data().get("splits")
    if before is None or before == summary["splits"]:
        return
    then = {(split, case) for split, cases in before.items() for case in cases}
    now = {(split, case) for split, cases in summary["splits"].items() for case in cases}
    odd = sorted(then ^ now)
    first = f"{len(odd)} differ, the first is {odd[0][1]} ({odd[0][0]})" if odd else "they stand in another order"
    raise DataError(
        f"{summary['path']}: its cases are not those that run {folder.path} began with ({first}); bring them back, or start a new run"
    )


# -- close ---------------------------------------------------------------------------------------------------------------


def close(session: Session) -> None:
    """Flush the logs, give back what features hold."""
    session.features.close()
    session.logs.close()


def _data_summary(parts: Parts) -> dict[str, Any]:
    return {
        "path": parts.config.data.path,
        "division": parts.cases.division,
        "splits": {
            split: [record.case_id for record in parts.cases.all if record.split == split]
            for split in ("train", "val", "test")
        },
        "skipped": [asdict(case) for case in parts.cases.skipped],
    }
