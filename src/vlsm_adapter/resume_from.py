"""A new run that begins from an adapter's weights: the annotate-train loop, and fine-tuning of what others shared.

What the weights only make sense with (method, settings, base model, input size) is the adapter's own and cannot be
changed; what training is free to choose (data, prompts, epochs, learning rate) can. Not to be confused with
``--resume``, which goes on with an interrupted run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlsm_adapter.adapters import adapter_config, tuner
from vlsm_adapter.adapters.attach import active
from vlsm_adapter.adapters.folder import WEIGHTS_NAME, AdapterManifest, parent_text, read_manifest, read_weights
from vlsm_adapter.adapters.hub import HubId
from vlsm_adapter.config import DataConfig, RunConfig
from vlsm_adapter.data.cases import Cases, load_cases
from vlsm_adapter.data.digests import FileDigests
from vlsm_adapter.data.division import Division
from vlsm_adapter.data.entries import real_folder
from vlsm_adapter.errors import AdapterError, ConfigError, DataError
from vlsm_adapter.predict import adapter_folder
from vlsm_adapter.run_folder import RunFolder

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter

# Where the data says no split: a handful of corrected cases has none to spare for a test.
FRACTIONS = (0.8, 0.2, 0.0)
# A tenth of what a new adapter begins with: on a few cases more than that forgets what was learned (docs/correct-and-learn.md).
LR = 1e-4


def config_from(
    adapter: str | Path, file: str | Path | None, overrides: Mapping[str, Any], assign: Sequence[str] = ()
) -> RunConfig:
    """The configuration of a run that begins from ``adapter``: its method, settings, base, input size and prompt level,
    and for the rest what ``RunConfig.load`` makes of ``file``, ``overrides`` and ``assign``.

    Args:
        adapter: an adapter folder, a run folder, or a hub id.

    Raises:
        AdapterError: no adapter there.
        ConfigError: as ``RunConfig.load``, or something was asked that contradicts the adapter.
    """
    folder = adapter_folder(adapter)
    manifest = read_manifest(folder)
    settings = {key: value for key, value in manifest.config.to_dict().items() if key != "method"}
    height, width = manifest.preprocessing["size"]
    if height != width:
        raise AdapterError(f"{adapter}: its input is {height} x {width} pixels; a run trains on squares only")
    eval_level = manifest.info.prompt_level or "p1"
    given = overrides.get("data.level")
    defaults: dict[str, Any] = {
        "model.name": manifest.base_id,
        "model.image_size": width,
        "adapter.method": manifest.config.method,
        "adapter.settings": settings,
        "data.level": _training_level(folder) or eval_level,
        "data.eval_level": given if given not in (None, "random") else eval_level,
        "data.fractions": list(FRACTIONS),
        "train.lr": LR,
    }
    without = {key: value for key, value in defaults.items() if key != "adapter.settings"}
    asked = RunConfig.load(file, overrides, assign, without)
    _check_method(asked, manifest, str(adapter))  # else its settings are amiss
    divided = _divided_by(folder)
    defaults.update(_as_before(divided, asked))
    config = RunConfig.load(file, overrides, assign, defaults)
    _check_same(config, manifest, str(adapter))
    parent = {"sha256": weights_hash(folder)}
    if manifest.info.data is not None:
        parent["data"] = manifest.info.data
    place = str(folder.resolve())
    hub = None if Path(adapter).exists() else HubId.parse(adapter)
    if hub is not None:
        place = parent["id"] = f"{hub.repo}@{folder.name}"  # of this commit, whatever is pushed later
    return replace(config, adapter=replace(config.adapter, resume_from=place, parent=parent, divided=divided))


def start_from(model: PromptSegmenter, config: RunConfig) -> str:
    """Give the adapter in use on ``model`` the weights that ``config`` says to begin from.

    Returns:
        A line that says so.

    Raises:
        AdapterError: the adapter is gone or another than when the run was configured, or does not fit the model.
        ConfigError: method, settings or input size are not the adapter's.
    """
    place = str(config.adapter.resume_from)
    folder = adapter_folder(place)
    manifest = read_manifest(folder)
    _check_same(config, manifest, place)
    if model.base_hash != manifest.base_hash:
        raise AdapterError(
            f"{place}: made for base '{manifest.base_id}' with hash {manifest.base_hash[:12]}, but '{model.base_id}' has "
            f"{model.base_hash[:12]}; say where its base is now with --model"
        )
    if model.preprocessing.to_dict() != manifest.preprocessing:
        raise AdapterError(
            f"{place}: trained with preprocessing {manifest.preprocessing}, base '{model.base_id}' comes with "
            f"{model.preprocessing.to_dict()}; bring back the base's preprocessor_config.json"
        )
    found, expected = weights_hash(folder), config.adapter.parent.get("sha256")
    if expected not in (None, found):
        raise AdapterError(
            f"{folder / WEIGHTS_NAME}: other weights ({found[:12]}) than when this run was started ({str(expected)[:12]}); "
            "bring them back, or start a new run"
        )
    tuner.load_state_dict(model, active(model), read_weights(folder / WEIGHTS_NAME), str(folder / WEIGHTS_NAME))
    return f"training begins from {parent_text({'sha256': found, **config.adapter.parent})}"


def threshold_of_parent(config: RunConfig) -> dict[str, Any]:
    """Threshold of the adapter that a run begins from, and how it was chosen, as fields of ``AdapterInfo``; empty where
    that adapter is no longer there."""
    try:
        info = read_manifest(adapter_folder(str(config.adapter.resume_from))).info
    except AdapterError:
        return {}
    return {"threshold": info.threshold, "threshold_origin": info.threshold_origin}


def own_division(config: RunConfig, split: str | None = None) -> Division:
    """How a run divides its own data, for the use of ``split``.

    With other data to validate on all cases train, but for those that the parent kept for its test.
    """
    division = config.data.division(split)
    known = config.adapter.divided.get(_place(config.data.path))
    if config.data.val_path is None or known is None:
        return division
    train, val, test = known["fractions"]
    return replace(division, seed=int(known["split_seed"]), fractions=(train + val, 0.0, test))


def division_of(config: RunConfig, path: str | Path) -> Division:
    """How a run divides data that is not its own: as the parent did that was trained on it, else as the data says.

    Folds, split files and subsets of the run are of its own data.
    """
    known = config.adapter.divided.get(_place(path))
    if known is not None:
        return Division(
            seed=int(known["split_seed"]),
            fractions=tuple(known["fractions"]),
            split_file=known["split_file"],
            fold=known["fold"],
            stratify=known["stratify"],
        )
    fractions = config.data.fractions
    if config.adapter.resume_from is not None and tuple(fractions) == FRACTIONS:
        fractions = DataConfig.fractions  # those of a few corrections would take the test part for validation
    return Division(config.data.split_seed, fractions)


def cases_for(config: RunConfig) -> Cases:
    """The cases of a run: those of its data, and those of the data to validate on, where that is another.

    Validation cases whose image file is also trained on are left out and listed.

    Raises:
        DataError: as ``load_cases``, or nothing is left to validate on.
    """
    cases = load_cases(
        config.data.path,
        prompt=config.data.prompt,
        division=own_division(config),
        skip_bad=config.data.skip_bad,
    )
    if config.data.val_path is not None:
        _validate_on(cases, config)
    elif config.adapter.resume_from is not None and not any(record.split == "val" for record in cases.all):
        raise DataError(
            f"{cases.where}: {len(cases.all)} case(s), none left to validate on; add a case of another image or patient, or "
            "give the data to validate on: --val-data DIR"
        )
    return cases


def _validate_on(cases: Cases, config: RunConfig) -> None:
    path = str(config.data.val_path)
    other = load_cases(
        path,
        prompt=config.data.prompt,
        division=division_of(config, path),
        skip_bad=config.data.skip_bad,
    )
    train = [record for record in cases.all if record.split == "train"]
    digests = FileDigests()
    trained = {digests.of(record.image) for record in train} - {None}
    groups = {record.group for record in train} - {None}  # the group of a correction begins the hash of its image
    names = {record.case_id for record in cases.all if record.split != "val"}
    cases.all = [record for record in cases.all if record.split != "val"]
    cases.skipped += other.skipped
    kept = []
    for record in other.records("val"):
        digest = digests.of(record.image)
        if digest is not None and (digest in trained or digest.hex()[:32] in groups):
            other.drop(record.case_id, record.image, "its image is trained on")
            cases.skipped.append(other.skipped[-1])
            continue
        if record.case_id in names:  # two data sets may count from one
            record = replace(record, case_id=f"val-{record.case_id}")
        kept.append(record)
    if not kept:
        raise DataError(f"{path}: every case of its split 'val' is trained on; give other data with --val-data")
    cases.all += kept


def weights_hash(folder: Path) -> str:
    """SHA-256 of an adapter's weights file, as ``sha256sum`` and the hub show it, in hexadecimal.

    Raises:
        AdapterError: it is missing.
    """
    file = folder / WEIGHTS_NAME
    try:
        with file.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise AdapterError(f"{file}: cannot be read ({error.strerror}); copy the folder again") from error


def _training_level(folder: Path) -> str | None:
    """The prompt level that the run of this adapter trained with, where it lies in its run."""
    run = RunFolder(folder.parent)
    return run.config().data.level if folder.name == run.adapter.name and run.config_file.is_file() else None


def _divided_by(folder: Path) -> dict[str, Any]:
    """Data folder to how the run of this adapter, and those that it began from, divided it; empty outside a run."""
    run = RunFolder(folder.parent)
    if folder.name != run.adapter.name or not run.config_file.is_file():
        return {}
    config = run.config()
    divided = config.adapter.divided
    if config.data.val_path is not None:  # all of its own data trained
        other = config.data.val_path
        return {**divided, _place(other): _keys_of(division_of(config, other))}
    return {**divided, _place(config.data.path): _keys_of(config.data.division())}


def _keys_of(division: Division) -> dict[str, Any]:
    return {
        "split_seed": division.seed,
        "fractions": list(division.fractions),
        "split_file": division.split_file,
        "fold": division.fold,
        "stratify": division.stratify,  # no subset: it thins the training cases alone, and is each run's own
    }


def _as_before(divided: Mapping[str, Any], asked: RunConfig) -> dict[str, Any]:
    """Defaults by which data that the parent was trained on is divided as it divided it."""
    known = divided.get(_place(asked.data.path), {})
    if asked.data.fold is not None or asked.data.split_file is not None:  # asked for: instead of the parent's
        known = {key: value for key, value in known.items() if key not in ("fold", "split_file")}
    return {f"data.{key}": value for key, value in known.items()}


def _place(path: str | Path) -> str:
    return str(real_folder(path))


def _check_method(config: RunConfig, manifest: AdapterManifest, adapter: str) -> None:
    """Raise ConfigError where another method was asked than the adapter's."""
    if config.adapter.method != manifest.config.method:
        raise ConfigError(
            f"adapter.method={config.adapter.method}: {adapter} is '{manifest.config.method}', whose weights fit no other "
            "method; leave it out, or start a new adapter without --resume-from"
        )


def _check_same(config: RunConfig, manifest: AdapterManifest, adapter: str) -> None:
    """Raise ConfigError where what was asked contradicts the adapter."""
    own = manifest.config
    _check_method(config, manifest, adapter)
    asked = adapter_config(config.adapter.method, **dict(config.adapter.settings))
    for field in fields(own):
        value, wanted = getattr(own, field.name), getattr(asked, field.name)
        if wanted != value:
            raise ConfigError(f"adapter.settings.{field.name}={wanted!r}: {adapter} has {value!r}; leave it out")
    side = config.model.image_size
    if side is not None and [side, side] != list(manifest.preprocessing["size"]):
        size = " x ".join(map(str, manifest.preprocessing["size"]))
        raise ConfigError(f"model.image_size={side}: {adapter} was trained on {size} pixels; leave it out")
