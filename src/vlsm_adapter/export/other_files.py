"""The same graphs as OpenVINO files, read from the ONNX ones, and as archives of ``torch.export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlsm_adapter.errors import ModelError, one_line

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from vlsm_adapter.export.graphs import Graphs


def to_openvino(file: Path, *, half: bool) -> str:
    """Turn an ONNX file into ``NAME.xml`` and ``NAME.bin`` beside it, and remove it; returns the name of the first.

    Args:
        file: in float32, or quantised in QDQ form.
        half: weights are kept in float16; OpenVINO computes in float32 on processors.

    Raises:
        ModelError: OpenVINO does not read the graph.
    """
    import openvino

    target = file.with_suffix(".xml")
    try:
        model = openvino.Core().read_model(file)
        openvino.save_model(model, target, compress_to_fp16=half)
    except RuntimeError as error:
        raise ModelError(f"OpenVINO cannot read the graph ({one_line(error)}); use --format onnx") from error
    file.unlink()
    return target.name


def to_torch(graphs: Graphs, folder: Path) -> tuple[str, str]:
    """Write ``image_encoder.pt2`` and ``prompt_decoder.pt2``; returns their names. ``torch.export.load`` reads them."""
    import torch

    names = ("image_encoder.pt2", "prompt_decoder.pt2")
    for program, name in zip((graphs.image, graphs.prompt), names, strict=True):
        _forget_sources(program)
        torch.export.save(program, folder / name)
    return names


def _forget_sources(program: ExportedProgram) -> None:
    """Leave out where in which source file each operation stood: paths of this machine."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
