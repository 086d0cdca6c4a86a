"""``vlsm export``: a fine-tuned model as a folder that predicts without torch.

::

    FOLDER/image_encoder.onnx    pixels (images, 3, height, width) -> feature_0, feature_1, ...
           prompt_decoder.onnx   token ids, mask (prompts, tokens), image numbers (prompts,), features -> logits
           tokenizer.json        with truncation and padding set
           manifest.json         what the graphs are, preprocessing, threshold, agreement with the model, checksums
           runtime.py            predicts with numpy, Pillow, tokenizers and onnxruntime alone
           requirements.txt      these
           README.md             the card; ADAPTER.md that of the adapter

The folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlsm_adapter import __version__, files
from vlsm_adapter.console import Console
from vlsm_adapter.errors import ConfigError, ModelError, UserError, nearest
from vlsm_adapter.export import agreement, onnx_files, other_files, runtime
from vlsm_adapter.export.card import card
from vlsm_adapter.export.place import new_folder, require_free
from vlsm_adapter.export.samples import sample_images, sample_prompts

if TYPE_CHECKING:
    import numpy as np

    from vlsm_adapter.adapters.folder import AdapterInfo
    from vlsm_adapter.export.graphs import Graphs
    from vlsm_adapter.models.base import PromptSegmenter

FORMATS = ("onnx", "openvino", "torch")
PRECISIONS = ("fp32", "fp16", "int8")
_NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "onnxruntime", "openvino")}
_REQUIREMENTS = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}
_LEAST_CALIBRATED, _MOST_CALIBRATED = 10, 32  # images


@dataclass(frozen=True)
class Source:
    """What is exported: the model in memory, and what its adapter folder says."""

    model: PromptSegmenter
    info: AdapterInfo
    adapter: dict[str, Any] | None
    card: str | None


@dataclass
class Prepared:
    """A traced model with its own answers; :func:`write` makes folders of it, in as many forms as are wanted.

    Attributes:
        source: the model, its adapter folded into the weights as far as it can be.
        graphs: both graphs.
        folded, carried: adapted modules that were folded, and that the graphs carry.
        prompts: what it was asked.
        references: its answers, from before anything was changed.
        image_source: what the images are.
    """

    source: Source
    graphs: Graphs
    folded: int
    carried: int
    prompts: list[str]
    references: list[agreement.Reference]
    image_source: str
    _onnx: dict[str, bytes] = field(default_factory=dict)  # the float32 files, from which the other forms are made

    def onnx_into(self, folder: Path) -> tuple[str, str]:
        """Write the float32 ONNX files to ``folder``; converted once."""
        if not self._onnx:
            for name in onnx_files.to_onnx(self.graphs, folder):
                self._onnx[name] = (folder / name).read_bytes()
        for name, content in self._onnx.items():
            (folder / name).write_bytes(content)
        image, prompt = self._onnx
        return image, prompt


def export(
    run: str | Path | None,
    out: str | Path,
    *,
    base: str | Path | None = None,
    format: str = "onnx",
    precision: str = "fp32",
    calibrate: str | None = None,
    check: str | None = None,
    prompts: Sequence[str] | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Path:
    """Write a model with its adapter as a folder that predicts alone, after comparing it with the model on images.

    Args:
        run: run folder or adapter folder; None exports ``base`` as it is.
        out: the folder to make.
        base: where the base model is now, if not where the adapter says.
        format: ``onnx``, ``openvino`` or ``torch`` (an archive of ``torch.export``, which needs torch to run).
        precision: ``fp32``, ``fp16`` or ``int8``.
        calibrate: images like those to come (a file, folder or pattern), to set the ranges of int8 beforehand.
        check: images to compare on; by default those to calibrate with, else validation images of the run, else generated
            ones.
        prompts: to compare on and to calibrate with; by default the adapter's own examples.
        overwrite: replace an earlier export.

    Returns:
        The folder.

    Raises:
        UserError: an option cannot be used, or ``out`` is taken.
        AdapterError, ModelError: the model cannot be loaded or exported, or the export answers otherwise than the model.
    """
    check_form(format, precision, calibrate=calibrate)
    require_free(out, overwrite=overwrite)
    prepared = prepare(run, base=base, check=check or calibrate, prompts=prompts, console=console)
    return write(
        prepared, out, format=format, precision=precision, calibrate=calibrate, overwrite=overwrite, console=console
    )


def prepare(
    run: str | Path | None,
    *,
    base: str | Path | None = None,
    check: str | None = None,
    prompts: Sequence[str] | None = None,
    console: Console | None = None,
) -> Prepared:
    """Load a model, keep its answers, fold and trace it; arguments and errors as in :func:`export`."""
    console = console or Console(quiet=True)
    if run is None and base is None:
        raise UserError("give a run or adapter folder, or a base model alone: vlsm export RUN, or --model NAME")
    asked_given = sample_prompts(prompts, ())
    given = None if check is None else sample_images(check, None, console)
    source = _load(run, base)
    asked = asked_given if prompts else sample_prompts(None, source.info.prompts)
    images, where = given or sample_images(None, run, console)
    references = agreement.ask_model(source.model, images, asked, source.info.threshold)

    from vlsm_adapter.export.graphs import trace
    from vlsm_adapter.export.merging import merge

    folded, carried = merge(source.model)
    console.say(
        f"tracing {source.model.base_id}: {folded} adapted modules folded into weights, {carried} carried along"
    )
    return Prepared(source, trace(source.model), folded, carried, asked, references, where)


def write(
    prepared: Prepared,
    out: str | Path,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    calibrate: str | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Path:
    """Write ``prepared`` in one form; arguments and errors as in :func:`export`."""
    console = console or Console(quiet=True)
    check_form(format, precision, calibrate=calibrate)
    with new_folder(out, overwrite=overwrite) as folder:
        model, info = prepared.source.model, prepared.source.info
        calibration = None if calibrate is None else sample_images(calibrate, None, console, most=_MOST_CALIBRATED)[0]
        if calibration is not None and len(calibration) < _LEAST_CALIBRATED:
            console.warn(
                f"--calibrate {calibrate}: ranges from {len(calibration)} images only, which may cost Dice; give "
                f"{_LEAST_CALIBRATED} or more"
            )
        tokenizer = _write_tokenizer(model, folder)
        names = _write_graphs(prepared, folder, format, precision, calibration)
        manifest: dict[str, Any] = {
            "format": runtime.FORMAT,
            "format_version": runtime.FORMAT_VERSION,
            "written_by": f"vlsm-adapter {__version__}",
            "format_of_graphs": format,
            "precision": precision,
            "quantisation": None if precision != "int8" else "static" if calibrate is not None else "dynamic",
            "opset": None if format == "torch" else onnx_files.OPSET,
            "graphs": dict(zip(("image", "prompt"), names, strict=True)),
            "features": [list(shape) for shape in prepared.graphs.features],
            "logits": list(prepared.graphs.logits),
            "base": {"id": model.base_id, "family": model.family, "sha256": model.base_hash},
            "adapter": prepared.source.adapter,
            "modules": {"folded": prepared.folded, "carried": prepared.carried},
            "preprocessing": model.preprocessing.to_dict(),
            "threshold": info.threshold,
            "tokenizer": tokenizer,
            "prompts": {"level": info.prompt_level, "examples": list(info.prompts[:5])},
            "licence": info.licence,
            "caution": model.caution or None,
        }
        files.write_json(folder / runtime.MANIFEST, manifest)
        found = agreement.compare(folder, prepared.references, prepared.prompts, prepared.image_source)
        agreement.require(found, precision, calibrated=calibrate is not None)
        manifest["agreement"] = found.to_dict()
        shutil.copyfile(str(runtime.__file__), folder / "runtime.py")
        needed = ("numpy>=2", "pillow>=11", "tokenizers>=0.21", _REQUIREMENTS[format])
        files.write_text(folder / "requirements.txt", "\n".join(needed) + "\n")
        adapter_card = prepared.source.card
        files.write_text(folder / "README.md", card(manifest, info, has_adapter_card=adapter_card is not None))
        if adapter_card is not None:
            files.write_text(folder / "ADAPTER.md", adapter_card)
        manifest["files"] = {
            each.name: _digest(each) for each in sorted(folder.iterdir()) if each.name != runtime.MANIFEST
        }
        files.write_json(folder / runtime.MANIFEST, manifest)
        console.say(f"agrees with the model: {found}")
    return Path(out)


def check_form(format: str, precision: str, *, calibrate: str | None = None) -> None:
    """Refuse what does not go together, and a library that is not installed.

    Raises:
        UserError: what is wrong, and what is allowed.
    """
    if format not in FORMATS:
        raise ConfigError(f"format '{format}': {nearest(format, FORMATS)}")
    if precision not in PRECISIONS:
        raise ConfigError(f"precision '{precision}': {nearest(precision, PRECISIONS)}")
    if format == "torch" and precision != "fp32":
        raise ConfigError(f"--format torch holds float32, not {precision}: use --format onnx or openvino for less")
    if calibrate is not None and precision != "int8":
        raise ConfigError(f"--calibrate is for --precision int8, not {precision}: leave it out, or ask for int8")
    if format == "openvino" and precision == "int8" and calibrate is None:
        raise ConfigError("int8 of OpenVINO needs the ranges of activations: give --calibrate IMAGES, 10 or more")
    onnx_files.require(*_NEEDS.get(format, ()))


def _load(run: str | Path | None, base: str | Path | None) -> Source:
    from vlsm_adapter.adapters.folder import CARD_NAME, WEIGHTS_NAME, AdapterInfo, load_adapter, read_manifest
    from vlsm_adapter.models import load_model
    from vlsm_adapter.predict import adapter_folder

    if run is None:
        assert base is not None
        model = load_model(base)
        model.require_pretrained()
        return Source(model, AdapterInfo(), None, None)
    folder = adapter_folder(run)
    manifest = read_manifest(folder)
    model = load_adapter(folder, base=base)
    told = folder / CARD_NAME
    adapter = {**manifest.config.to_dict(), "sha256": _digest(folder / WEIGHTS_NAME)}
    text = told.read_text(encoding="utf-8", errors="replace") if told.is_file() else None
    return Source(model, manifest.info, adapter, text)


def _write_tokenizer(model: PromptSegmenter, folder: Path) -> dict[str, Any] | None:
    """``tokenizer.json`` that cuts and pads by itself as the model's tokenizer is asked to."""
    from tokenizers import Tokenizer

    from vlsm_adapter.export.graphs import fixed_tokens

    if model.tokenizer is None:
        return None
    if not model.tokenizer.is_fast:
        raise ModelError(f"model '{model.base_id}': its tokenizer has no tokenizer.json; convert it with transformers")
    own = Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
    fixed = fixed_tokens(model)
    # What stands beside the shorter one.
    padding = model.tokenize(["a", "a b c d"]).input_ids[0, -1 if model.tokenizer.padding_side == "right" else 0]
    own.enable_truncation(model.context_length)
    own.enable_padding(
        direction=model.tokenizer.padding_side,
        pad_id=int(padding),
        pad_token=own.id_to_token(int(padding)),
        length=fixed,
    )
    own.save(str(folder / "tokenizer.json"))
    return {"file": "tokenizer.json", "context_length": model.context_length, "padded_to": fixed}


def _write_graphs(
    prepared: Prepared, folder: Path, format: str, precision: str, calibration: Sequence[np.ndarray] | None
) -> tuple[str, ...]:
    """Names of the two files that are to be loaded."""
    if format == "torch":
        return other_files.to_torch(prepared.graphs, folder)
    names = prepared.onnx_into(folder)
    if precision == "int8":
        feeds = (
            None
            if calibration is None
            else onnx_files.feeds(folder, prepared.graphs, prepared.source.model, calibration, prepared.prompts)
        )
        for number, name in enumerate(names):
            onnx_files.quantise(folder / name, None if feeds is None else feeds[number])
    if format == "openvino":
        return tuple(other_files.to_openvino(folder / name, half=precision == "fp16") for name in names)
    if precision == "fp16":
        for name in names:
            onnx_files.halve(folder / name)
    return names


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
