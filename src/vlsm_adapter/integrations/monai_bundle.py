"""An adapter as a MONAI Bundle: a folder that ``python -m monai.bundle run`` executes.

::

    BUNDLE/configs/metadata.json    what it is, its input and output (MONAI's schema of 2024-07-25)
           configs/inference.json   images in a folder to masks in another; prompts and threshold are keys of it
           models/model.pt          the adapter's weights, for tools that look there (tensors only)
           models/adapter/          the adapter folder, from which the network is built
           models/base/             the base model, with ``with_base``
           scripts/                 the network and the transforms, importable
           docs/README.md           the model card

The specification: https://docs.monai.io/en/stable/mb_specification.html. The bundle needs vlsm-adapter where it runs.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vlsm_adapter import __version__, files
from vlsm_adapter.adapters.folder import CONFIG_NAME, WEIGHTS_NAME, read_weights
from vlsm_adapter.adapters.hub import HubId
from vlsm_adapter.errors import ModelError, UserError
from vlsm_adapter.models import base_folder, embedded_models
from vlsm_adapter.sharing.card import NOT_RECORDED, card_body
from vlsm_adapter.sharing.facts import Facts, gather
from vlsm_adapter.sharing.private import refuse_paths, texts_in
from vlsm_adapter.sharing.push import places_of, public_base, shared_config

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_SCRIPT = '''"""The parts that configs/inference.json names; they come with vlsm-adapter."""

from vlsm_adapter.integrations.monai_parts import (
    AboveThresholdd,
    PictureEvaluator,
    PictureReader,
    PromptedNetwork,
    SavePromptMasksd,
    datalist,
)

__all__ = [
    "AboveThresholdd",
    "PictureEvaluator",
    "PictureReader",
    "PromptedNetwork",
    "SavePromptMasksd",
    "datalist",
]
'''
_BASE_FILES = (
    "config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "vocab.json", "merges.txt", "added_tokens.json", "model*.safetensors", "model.safetensors.index.json",
)  # fmt: skip


def write_bundle(
    path: str | Path,
    out: str | Path,
    *,
    prompts: Sequence[str] | None = None,
    with_base: bool = False,
    base: str | None = None,
) -> Path:
    """Write the bundle; it is there whole or not at all.

    Args:
        path: a run folder, or an adapter folder.
        out: the folder to make; its name is the bundle's.
        prompts: what it segments; by default the adapter's examples. They can be changed in ``inference.json``.
        with_base: copy the base model into the bundle.
        base: where the base model is now, or its hub id, if the adapter does not say what others can find.

    Raises:
        UserError: no adapter, no prompts, a folder that is not empty, MONAI is missing, or a base that is only here.
        ModelError: the base cannot be copied.
    """
    target = Path(out)
    try:
        monai = version("monai")
    except PackageNotFoundError:
        raise UserError("a bundle needs MONAI: pip install 'vlsm-adapter[monai]'") from None
    facts = gather(path)
    asked = list(dict.fromkeys(facts.manifest.info.prompts if prompts is None else prompts))
    if not asked:
        raise UserError(f"{path}: the adapter names no prompts; say what the bundle segments, e.g. --prompt polyp")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: is there already; choose another --out")
    source = base_folder(base or facts.manifest.base_id) if with_base else None
    named = _base_name(facts.manifest.base_id, base, source)
    licence = facts.manifest.info.licence
    config = shared_config(facts.raw, named, licence)
    readme = _readme(facts, target.name, named, licence, asked)
    refuse_paths(CONFIG_NAME, texts_in(config), places_of(facts), whole=True)
    refuse_paths("docs/README.md", [("", readme)], places_of(facts), whole=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        made.chmod(0o755)
        _fill(made, facts, config, source, asked, monai, readme)
        made.rename(target)  # over an empty folder, or none
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error}); choose another --out") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


def _fill(
    made: Path,
    facts: Facts,
    config: dict[str, Any],
    source: Path | None,
    prompts: list[str],
    monai: str,
    readme: str,
) -> None:
    import torch

    adapter = made / "models" / "adapter"
    files.write_json(adapter / CONFIG_NAME, config)
    shutil.copyfile(facts.folder / WEIGHTS_NAME, adapter / WEIGHTS_NAME)
    torch.save(read_weights(facts.folder / WEIGHTS_NAME), made / "models" / "model.pt")
    if source is not None:
        _copy_base(source, made / "models" / "base", facts.manifest.base_hash)
    files.write_json(made / "configs" / "metadata.json", metadata(facts, prompts, monai))
    files.write_json(made / "configs" / "inference.json", inference(prompts, facts.manifest.info.threshold))
    files.write_text(made / "scripts" / "__init__.py", _SCRIPT)
    files.write_text(made / "docs" / "README.md", readme)


def inference(prompts: Sequence[str], threshold: float) -> dict[str, Any]:
    """``configs/inference.json``: the keys that MONAI and its applications look for, and ours beside them."""
    return {
        "imports": ["$import scripts"],
        "bundle_root": ".",
        "dataset_dir": "./images",
        "output_dir": "./masks",
        "prompts": list(prompts),
        "threshold": threshold,
        "overwrite": False,
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "datalist": "$scripts.datalist(@dataset_dir)",
        "network_def": {"_target_": "scripts.PromptedNetwork", "bundle_root": "@bundle_root", "prompts": "@prompts"},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "LoadImaged",
                    "keys": "image",
                    "reader": {"_target_": "scripts.PictureReader"},
                    "ensure_channel_first": True,
                },
                {"_target_": "EnsureTyped", "keys": "image"},
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "scripts.AboveThresholdd", "keys": "pred", "threshold": "@threshold"},
                {
                    "_target_": "scripts.SavePromptMasksd",
                    "keys": "pred",
                    "images": "@datalist",
                    "prompts": "@prompts",
                    "output_dir": "@output_dir",
                    "overwrite": "@overwrite",
                },
            ],
        },
        "evaluator": {
            "_target_": "scripts.PictureEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }


def metadata(facts: Facts, prompts: Sequence[str], monai: str) -> dict[str, Any]:
    """``configs/metadata.json``; what is not known is 'not recorded'."""
    info = facts.manifest.info
    held_out = next((one for one in facts.evaluations if one.held_out), None)
    values: dict[str, Any] = {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": "written by vlsm bundle"},
        "monai_version": monai,
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {
            "vlsm-adapter": __version__,
            **{name: version(name) for name in ("transformers", "peft", "safetensors", "pillow")},
        },
        "task": f"Segmentation by prompt: {', '.join(prompts)}",
        "description": f"A {facts.manifest.config.method} adapter for the frozen text-promptable segmentation model "
        f"{facts.manifest.base_family}, trained with vlsm-adapter on {info.data or 'data that is not recorded'}.",
        "authors": NOT_RECORDED,
        "copyright": NOT_RECORDED,
        "data_source": info.data or NOT_RECORDED,
        "data_type": "pictures (PNG, JPEG, TIFF, BMP and others that Pillow reads)",
        "image_classes": "RGB from 0 to 255",
        "pred_classes": "; ".join(f"channel {number}: {text}" for number, text in enumerate(prompts)),
        "intended_use": "Research; not a medical device. Its masks need review by a qualified person.",
        "references": ["M. Dhakal et al., VLSM-Adapter, MICCAI 2024, arXiv 2405.06196"],
        "network_data_format": {
            "inputs": {"image": _tensor("magnitude", 3, [0, 255], {"0": "red", "1": "green", "2": "blue"})},
            "outputs": {
                "pred": _tensor(
                    "classes", len(prompts), [0, 1], {str(number): text for number, text in enumerate(prompts)}
                )
            },
        },
    }
    if held_out is not None:
        values["eval_metrics"] = {
            name: about["mean"] for name, about in held_out.metrics.items() if about["mean"] is not None
        }
    return values


def _tensor(form: str, channels: int, span: list[int], channel_def: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "image",
        "format": form,
        "modality": "n/a",
        "num_channels": channels,
        "spatial_shape": ["*", "*"],
        "dtype": "float32",
        "value_range": span,
        "is_patch_data": False,
        "channel_def": channel_def,
    }


def _base_name(own: str, given: str | None, source: Path | None) -> str:
    """What the bundle calls its base: an id that others can find, or the name of the folder that is copied."""
    if source is None:
        return public_base(own, given)
    known = given or own
    public = known in embedded_models() or (HubId.parse(known) is not None and not Path(known).is_dir())
    return known if public else Path(known).name


def _copy_base(source: Path, target: Path, expected: str) -> None:
    from vlsm_adapter.models.checkpoints import hash_folder

    found = hash_folder(source)
    if found != expected:
        raise ModelError(
            f"{source}: holds other weights ({found[:12]}) than the adapter was made for ({expected[:12]}); say where its "
            "base is with --base"
        )
    target.mkdir(parents=True)
    for pattern in _BASE_FILES:
        for file in source.glob(pattern):
            shutil.copyfile(file, target / file.name)


def _readme(facts: Facts, name: str, base: str, licence: str | None, prompts: Sequence[str]) -> str:
    shown = json.dumps(list(prompts), ensure_ascii=False)
    lines = [
        f"# {name}",
        "",
        "A MONAI Bundle of an adapter for a text-promptable segmentation model. It needs `vlsm-adapter` and `monai` where it "
        "runs. Research software, not a medical device.",
        "",
        "```bash",
        f"cd {name}",
        "python -m monai.bundle run --config_file configs/inference.json --dataset_dir IMAGES --output_dir MASKS",
        "```",
        "",
        f"It asks {shown} of every picture below IMAGES and writes a PNG mask for each, at the picture's size; other prompts: "
        "`--prompts \"['polyp','instrument']\"`, or the key `prompts` of `configs/inference.json`. `--threshold` and "
        "`--overwrite True` are keys too. From another folder, add `--bundle_root`.",
        "",
        *card_body(facts, name, base=base, licence=licence),
    ]
    return "\n".join(lines) + "\n"
