"""Graphs of torch as ONNX files: in float32, in float16, or with weights and activations of 8 bits.

Bytes are the same for the same weights and the same versions of the libraries: names of dimensions are set, and what the
exporter notes about the source code it came from is taken out.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlsm_adapter.errors import ModelError, UserError, one_line

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from torch.export import ExportedProgram

    from vlsm_adapter.export.graphs import Graphs
    from vlsm_adapter.models.base import PromptSegmenter

OPSET = 20
IMAGE, PROMPT = "image_encoder.onnx", "prompt_decoder.onnx"
_MOST_BYTES = 2**31 - 1  # of one message of protobuf
_LARGEST_HALF = 1e4  # stands for the infinity of masks, which float16 cannot hold
# What is quantised: where the time and the bytes are. Norms and softmax stay in float32.
_QUANTISED = ["MatMul", "Gemm", "Conv"]


def require(*packages: str) -> None:
    """Raise UserError where one of ``packages`` is missing."""
    import importlib.util

    for package in packages:
        if importlib.util.find_spec(package) is None:
            extra = "openvino" if package == "openvino" else "export"
            raise UserError(f"{package} is not installed: pip install 'vlsm-adapter[{extra}]'")


def to_onnx(graphs: Graphs, folder: Path) -> tuple[str, str]:
    """Write ``image_encoder.onnx`` and ``prompt_decoder.onnx`` in float32 to ``folder``; returns their names.

    Raises:
        ModelError: an operation has no ONNX form, or a graph is larger than a file can be.
    """
    names: dict[str, tuple[str, ...]] = {
        "pixel_values": ("images",),
        **dict.fromkeys(graphs.feature_names, ("images",)),
    }
    _write(_convert(graphs.image, ["pixel_values"], graphs.feature_names, names), folder / IMAGE)
    names |= dict.fromkeys(("input_ids", "attention_mask"), ("prompts", "tokens"))
    names |= dict.fromkeys(("image_index", "logits"), ("prompts",))
    _write(_convert(graphs.prompt, graphs.prompt_inputs, ["logits"], names), folder / PROMPT)
    return IMAGE, PROMPT


def halve(file: Path) -> None:
    """Turn a float32 file into one that holds weights and computes in float16, in place; inputs and outputs stay float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _silent():
        model = convert_float_to_float16(onnx.load(file), keep_io_types=True, max_finite_val=_LARGEST_HALF)
    _write(_cleaned(model), file)


def quantise(file: Path, feeds: Iterable[Mapping[str, np.ndarray]] | None) -> None:
    """Turn a float32 file into one with 8-bit weights (per output channel) and 8-bit activations, in place.

    Args:
        file: the ONNX file.
        feeds: inputs to calibrate the ranges of activations with (QDQ form); None measures them at every call (dynamic).
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".quantise.") as work, _silent():
        prepared, out = Path(work) / "prepared.onnx", Path(work) / "out.onnx"
        # Symbolic inference does not know every operation of this opset; ONNX's own does.
        quant_pre_process(file, prepared, skip_symbolic_shape=True)
        # Products of two activations (queries and keys) stay in float32: 8 bits of a softmax are too few.
        options = {"MatMulConstBOnly": True}
        nodes = onnx.load(prepared, load_external_data=False)
        weights = {each.name for each in nodes.graph.initializer}
        excluded = [
            node.name
            for node in nodes.graph.node
            if node.op_type in _QUANTISED and not any(name in weights for name in node.input[1:2])
        ]
        if feeds is None:
            quantize_dynamic(
                prepared,
                out,
                op_types_to_quantize=_QUANTISED[:2],
                per_channel=True,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=excluded,
                extra_options=options,
            )
        else:
            given = list(feeds)

            class Reader(CalibrationDataReader):
                def __init__(self) -> None:
                    self._feeds = iter(given)

                def get_next(self) -> dict[str, Any] | None:
                    feed = next(self._feeds, None)
                    return None if feed is None else dict(feed)

            quantize_static(
                prepared,
                out,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_QUANTISED,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=excluded,
                extra_options=options,
            )
        model = onnx.load(out)
    _write(_cleaned(model), file)


def feeds(
    folder: Path, graphs: Graphs, model: PromptSegmenter, images: Sequence[np.ndarray], prompts: Sequence[str]
) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """Inputs of both graphs to calibrate with: each of ``images`` uint8 (H, W, 3), asked all ``prompts``."""
    import numpy as np

    from vlsm_adapter.export.runtime import _onnx

    run = _onnx(folder / IMAGE, None, None)
    tokens = model.tokenize(list(prompts))
    text = {
        "input_ids": tokens.input_ids.numpy(),
        "attention_mask": tokens.attention_mask.numpy(),
        "image_index": np.zeros(len(prompts), np.int64),
    }
    pixels = [{"pixel_values": model.preprocess([image]).numpy()} for image in images]
    return pixels, [text | dict(zip(graphs.feature_names, run(feed), strict=True)) for feed in pixels]


def _convert(
    program: ExportedProgram,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dimensions: Mapping[str, tuple[str, ...]],
) -> onnx.ModelProto:
    import torch

    with _silent():
        try:
            made = torch.onnx.export(
                program, input_names=list(inputs), output_names=list(outputs), opset_version=OPSET, verbose=False
            )
        except torch.onnx.OnnxExporterError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:  # the outer ones tell how to report a fault of torch's
                cause = cause.__cause__
            raise ModelError(f"the model has no ONNX form ({one_line(cause)}); use --format torch") from error
    assert made is not None
    proto: onnx.ModelProto = made.model_proto
    _name(proto, dimensions)
    return _cleaned(proto)


def _name(proto: onnx.ModelProto, dimensions: Mapping[str, tuple[str, ...]]) -> None:
    for value in (*proto.graph.input, *proto.graph.output):
        for axis, name in enumerate(dimensions[value.name]):
            dimension = value.type.tensor_type.shape.dim[axis]
            if not dimension.HasField("dim_value"):
                dimension.dim_param = name


def _cleaned(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Without notes on the exporter's source code, and without shapes of what is inside, which runtimes infer."""
    del proto.metadata_props[:]
    del proto.graph.value_info[:]
    del proto.graph.metadata_props[:]
    proto.ClearField("doc_string")
    proto.graph.ClearField("doc_string")
    proto.graph.name = "vlsm"
    for items in (proto.graph.node, proto.graph.initializer, proto.graph.input, proto.graph.output):
        for item in items:
            item.ClearField("doc_string")
            if hasattr(item, "metadata_props"):
                del item.metadata_props[:]
    for function in proto.functions:
        for node in function.node:
            node.ClearField("doc_string")
            del node.metadata_props[:]
    return proto


def _write(proto: onnx.ModelProto, path: Path) -> None:
    if proto.ByteSize() > _MOST_BYTES:
        raise ModelError(
            f"{path.name}: {proto.ByteSize():,} bytes, an ONNX file holds {_MOST_BYTES:,}; use --precision fp16"
        )
    path.write_bytes(proto.SerializeToString(deterministic=True))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The exporters print and log as they go; nothing of that is for the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
