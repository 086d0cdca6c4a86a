"""The adapter folder: the file format in which a fine-tuned adapter is kept, shared and put to use.

``adapter_model.safetensors`` the weights; ``adapter_config.json`` everything needed to rebuild predictions (method,
base model by id and hash, preprocessing, threshold, prompt protocol); ``README.md`` the card. The three alone suffice.
Format version 1; docs/adapter-folder.md describes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlsm_adapter import files
from vlsm_adapter.adapters import tuner
from vlsm_adapter.adapters.attach import active, attach
from vlsm_adapter.adapters.config import AdapterConfig, adapter_config
from vlsm_adapter.adapters.hub import local_folder
from vlsm_adapter.adapters.weights import check_weights
from vlsm_adapter.errors import AdapterError, ConfigError, ModelError, one_line

if TYPE_CHECKING:
    import torch

    from vlsm_adapter.models.base import PromptSegmenter

FORMAT = "vlsm-adapter"
FORMAT_VERSION = 1
CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
CARD_NAME = "README.md"
FILES = (CONFIG_NAME, WEIGHTS_NAME)  # what a reader needs


@dataclass(frozen=True)
class AdapterInfo:
    """What a user of the adapter must know beyond its weights; all of it goes into the card.

    Attributes:
        threshold: probability above which a pixel is foreground.
        threshold_origin: in words how it was chosen; None where it is the default.
        prompt_level: level of the prompts it was trained and validated with, e.g. ``"p1"`` (the class name).
        prompts: examples of such prompts.
        data: name of the data set; ``split`` how many cases trained, validated and tested it.
        scores: metric name to mean on the stated split; one that is not finite is kept as NaN.
        seed: of the training.
        licence: of the weights, where the author states one.
        parent: of an adapter whose training began from another's weights: that one's ``sha256`` (of its weights file),
            ``data``, and ``id`` where it came from a hub.

    Raises:
        ConfigError: a value is of another type or out of range.
    """

    threshold: float = 0.5
    prompt_level: str | None = None
    prompts: tuple[str, ...] = ()
    data: str | None = None
    split: dict[str, int] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    seed: int | None = None
    licence: str | None = None
    parent: dict[str, str] = field(default_factory=dict)
    threshold_origin: str | None = None

    def __post_init__(self) -> None:
        if not (_is_number(self.threshold) and 0 <= self.threshold <= 1):
            raise ConfigError(f"threshold={self.threshold!r}: must be a probability from 0 to 1")
        for name in ("prompt_level", "data", "licence", "threshold_origin"):
            if not isinstance(getattr(self, name), str | None):
                raise ConfigError(f"{name}={getattr(self, name)!r}: must be text")
        if not isinstance(self.prompts, tuple) or not all(isinstance(prompt, str) for prompt in self.prompts):
            raise ConfigError(f"prompts={self.prompts!r}: must be a tuple of texts")
        for name in ("split", "scores"):
            if not isinstance(getattr(self, name), dict) or not all(map(_is_number, getattr(self, name).values())):
                raise ConfigError(f"{name}={getattr(self, name)!r}: must be names with numbers")
        if not isinstance(self.parent, dict) or not all(isinstance(text, str) for text in self.parent.values()):
            raise ConfigError(f"parent={self.parent!r}: must be names with texts")
        if self.seed is not None and not isinstance(self.seed, int):
            raise ConfigError(f"seed={self.seed!r}: must be a whole number")


@dataclass(frozen=True)
class AdapterManifest:
    """``adapter_config.json``, read and checked."""

    config: AdapterConfig
    base_id: str
    base_family: str
    base_hash: str
    preprocessing: dict[str, Any]
    info: AdapterInfo


def save_adapter(
    model: PromptSegmenter, path: str | Path, *, name: str | None = None, info: AdapterInfo | None = None
) -> Path:
    """Write the adapter folder; each file replaces its predecessor atomically, the weights first.

    Args:
        path: the folder; made where missing.
        name: which adapter; by default the one in use.
        info: for the card and for prediction.

    Raises:
        AdapterError: no adapter is attached, its weights are not finite, or the folder holds a base model.
        UserError: the folder cannot be written; what stood there is intact.
    """
    from safetensors.torch import save

    name = active(model) if name is None else name
    if name not in model.adapter_configs:
        raise AdapterError(f"no adapter '{name}' is attached")
    info = info or AdapterInfo()
    folder = Path(path)
    if (folder / "config.json").exists():
        raise AdapterError(f"{folder}: holds a base model (config.json); give the adapter a folder of its own")
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in tuner.state_dict(model, name).items()}
    if odd := next((key for key, tensor in weights.items() if not tensor.isfinite().all()), None):
        raise AdapterError(
            f"{folder}: not written, '{odd}' of adapter '{name}' holds values that are not finite: no reader would take it; "
            "train with a lower train.lr"
        )
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "adapter": model.adapter_configs[name].to_dict(),
        "base": {"id": model.base_id, "family": model.family, "sha256": model.base_hash},
        "preprocessing": model.preprocessing.to_dict(),
        "info": _info_to_json(info),
    }
    files.write_bytes(folder / WEIGHTS_NAME, save(weights, metadata={"format": "pt"}))
    files.write_json(folder / CONFIG_NAME, manifest)
    count, _ = tuner.count_parameters(model, name)
    files.write_text(folder / CARD_NAME, _card(manifest, info, count, model.caution))
    return folder


def read_manifest(path: str | Path) -> AdapterManifest:
    """Read ``adapter_config.json`` of an adapter folder.

    Raises:
        AdapterError: not an adapter folder, of a newer format, or malformed.
    """
    folder = Path(path)
    file = folder / CONFIG_NAME
    if not file.is_file():
        raise AdapterError(
            f"{folder}: not an adapter folder, it has no {CONFIG_NAME}; give the folder save_adapter wrote"
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise AdapterError(f"{file}: format is {values.get('format')!r}, not '{FORMAT}'")
        if values.get("format_version") != FORMAT_VERSION:
            raise AdapterError(
                f"{file}: format_version {values.get('format_version')!r} is not known to this version, "
                f"which reads {FORMAT_VERSION}; update vlsm-adapter"
            )
        settings = dict(values["adapter"])
        config = adapter_config(settings.pop("method"), **settings)
        info = _info_from_json(values.get("info", {}))
        return AdapterManifest(
            config=config,
            base_id=str(values["base"]["id"]),
            base_family=str(values["base"]["family"]),
            base_hash=str(values["base"]["sha256"]),
            preprocessing=dict(values["preprocessing"]),
            info=info,
        )
    except ConfigError as error:
        raise AdapterError(f"{file}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(
            f"{file}: malformed ({type(error).__name__}: {one_line(error)}); copy the folder again"
        ) from error


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file.

    Raises:
        AdapterError: missing, truncated, or a pickle, which is refused.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = Path(path)
    if not file.is_file():
        raise AdapterError(f"{file}: missing; an adapter folder holds {CONFIG_NAME} and {WEIGHTS_NAME}")
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        # Only a file that is no safetensors is looked at for what else it is: a header of 640 bytes begins as a pickle.
        if _is_pickle(file):
            raise AdapterError(f"{file}: a pickle, which can run code, is refused; give the safetensors file") from None
        raise AdapterError(f"{file}: truncated or not safetensors ({one_line(error)}); copy it again") from error


def load_adapter(
    path: str | Path,
    *,
    model: PromptSegmenter | None = None,
    base: str | Path | None = None,
    name: str = "default",
    dtype: str | torch.dtype = "auto",
) -> PromptSegmenter:
    """Load an adapter folder onto its base model, strictly.

    Args:
        path: the folder, or ``OWNER/NAME`` or ``OWNER/NAME@REVISION`` on the Hugging Face Hub.
        model: a loaded base model to attach to; by default the base that the folder names is loaded.
        base: where the base model is now, if not where the folder says.
        name: of the adapter on the model.
        dtype: of the base where it is loaded here.

    Returns:
        The model with the adapter in use, in evaluation mode, nothing requiring gradients.

    Raises:
        AdapterError: damaged or foreign folder, another base (by hash), or other preprocessing than the model's; a hub
            that cannot be reached or has no such adapter.
        ModelError: the base cannot be loaded.
    """
    from vlsm_adapter.models import load_model
    from vlsm_adapter.models.preprocessing import Preprocessing

    folder = local_folder(path, FILES)
    manifest = read_manifest(folder)
    weights = read_weights(folder / WEIGHTS_NAME)
    try:
        preprocessing = Preprocessing.from_dict(manifest.preprocessing)
    except ModelError as error:
        raise AdapterError(f"{folder / CONFIG_NAME}: {error}") from error
    fresh = model is None
    if model is None:
        try:
            model = load_model(base if base is not None else manifest.base_id, dtype=dtype)
        except ModelError as error:
            if base is not None:
                raise
            raise ModelError(
                f"{folder}: its base model cannot be loaded ({error}); say where it is now: --model, base="
            ) from error
    if model.base_hash != manifest.base_hash:
        raise AdapterError(
            f"{folder}: made for base '{manifest.base_id}' with hash {manifest.base_hash[:12]}, but "
            f"'{model.base_id}' has {model.base_hash[:12]}; give the base it was trained on (base=, --model)"
        )
    if refused := model.refused_size(preprocessing.size):
        raise AdapterError(f"{folder / CONFIG_NAME}: preprocessing: {refused}")
    if fresh:
        model.preprocessing = preprocessing
    elif model.preprocessing != preprocessing:
        raise AdapterError(
            f"{folder}: trained with preprocessing {preprocessing}, the model uses {model.preprocessing}; "
            "load it on its own model"
        )
    source = str(folder / WEIGHTS_NAME)
    try:
        placements = manifest.config.placements(model)
    except AdapterError as error:  # blocks or places that this model does not have
        raise AdapterError(f"{folder / CONFIG_NAME}: {error}") from error
    # Before anything is attached: a configuration that lies about its sizes must not cost memory either.
    check_weights(weights, tuner.expected_shapes(placements, model), source)
    attach(model, manifest.config, name)
    tuner.load_state_dict(model, name, weights, source)
    return model.freeze()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_pickle(file: Path) -> bool:
    try:
        with file.open("rb") as handle:
            head = handle.read(2)
    except OSError:
        return False
    return head == b"PK" or (head[:1] == b"\x80" and head[1:] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def _info_to_json(info: AdapterInfo) -> dict[str, Any]:
    scores = {key: float(value) if math.isfinite(value) else None for key, value in info.scores.items()}
    values = {**asdict(info), "prompts": list(info.prompts), "scores": scores}
    if not info.parent:
        del values["parent"]
    if info.threshold_origin is None:
        del values["threshold_origin"]
    return values


def _info_from_json(values: Any) -> AdapterInfo:
    values = dict(values)
    if isinstance(prompts := values.get("prompts"), list):
        values["prompts"] = tuple(prompts)
    if isinstance(scores := values.get("scores"), dict):
        values["scores"] = {key: math.nan if value is None else value for key, value in scores.items()}
    return AdapterInfo(**values)


def parent_text(parent: Mapping[str, str]) -> str:
    """What ``AdapterInfo.parent`` says, in words."""
    name = f"`{parent['id']}`, " if "id" in parent else ""
    data = f", trained on {parent['data']}" if "data" in parent else ""
    return f"another adapter: {name}SHA-256 of its weights `{parent.get('sha256', 'not recorded')}`{data}"


def _card(manifest: dict[str, Any], info: AdapterInfo, count: int, caution: str) -> str:
    adapter, base = manifest["adapter"], manifest["base"]
    settings = ", ".join(f"{key}={value}" for key, value in adapter.items() if key != "method")
    size = " x ".join(str(side) for side in manifest["preprocessing"]["size"])
    split = ", ".join(f"{number} {part}" for part, number in info.split.items())
    scores = "\n".join(
        f"| {metric} | {f'{value:.4f}' if math.isfinite(value) else 'not defined'} |"
        for metric, value in info.scores.items()
    )
    lines = [
        "---",
        "library_name: vlsm-adapter",
        f"base_model: {base['id']}",
        "pipeline_tag: image-segmentation",
        *([f"license: {info.licence}"] if info.licence else []),
        "---",
        "",
        f"# Adapter '{adapter['method']}' for {base['id']}",
        "",
        "| | |",
        "|---|---|",
        f"| base model | `{base['id']}` ({base['family']}), SHA-256 `{base['sha256']}` |",
        *([f"| caution | {caution} |"] if caution else []),
        f"| method | {adapter['method']}: {settings} |",
        f"| parameters | {count:,} |",
        f"| input | {size} pixels, {manifest['preprocessing']['resample']}, stretched |",
        f"| threshold | {info.threshold:g}{f', {info.threshold_origin}' if info.threshold_origin else ''} |",
        f"| prompts | level {info.prompt_level or 'not recorded'}"
        + (f", e.g. {'; '.join(repr(prompt) for prompt in info.prompts[:3])}" if info.prompts else "")
        + " |",
        f"| data | {info.data or 'not recorded'}{f' ({split})' if split else ''} |",
        *([f"| training began from | {parent_text(info.parent)} |"] if info.parent else []),
        f"| seed | {info.seed if info.seed is not None else 'not recorded'} |",
        f"| licence | {info.licence or 'not stated by the author; the base model and the data have their own'} |",
        "",
    ]
    if scores:
        lines += ["| score | mean |", "|---|---|", scores, ""]
    lines += [
        "```python",
        "from vlsm_adapter import Predictor",
        "",
        'predictor = Predictor.load("path/to/this/folder")',
        "predictor.set_image(image)  # uint8 (H, W, 3), or a path",
        f"masks = predictor.predict([{(info.prompts[0] if info.prompts else 'polyp')!r}])",
        "```",
        "",
        "Research software, not a medical device: its output needs review by a qualified person.",
        "",
    ]
    return "\n".join(lines)
