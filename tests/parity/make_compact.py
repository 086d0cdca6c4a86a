"""Make ``tests/parity/clipseg.xz`` from the full parity fixtures, and read it back.

    python tests/parity/make_compact.py ../shared/parity/clipseg

The fixtures are numbers computed once with the published implementation of the dense and shallow adapters on a small
random CLIPSeg. The compact copy is exact, no bit is rounded. It is smaller because

- base weights that nothing reads are left out (vision block 10, visual projection, post layer norm, logit scale),
- the start weights of "v" and "vl" are subsets of those of "vlc", which alone are stored,
- of the expected logits every 7th pixel in both directions is stored (7 and the patch, 16, have no common divisor,
  so all places within a patch occur),
- the one mask is stored as bits, the bytes of the floats are stored by significance, and all is compressed (xz).
"""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

VARIANTS = ("dense_v", "dense_vl", "dense_vlc", "shallow_v", "shallow_vl", "shallow_vlc")
LOGITS = ("logits", "logits_after_8_steps_correct", "logits_after_8_steps_published")
UNREAD = ("vision_model.encoder.layers.10.", "visual_projection", "vision_model.post_layernorm", "logit_scale")
OFFSET, STRIDE = 3, 7


def sampled(logits: torch.Tensor) -> torch.Tensor:
    """The pixels of logits (..., H, W) that are stored."""
    return logits[..., OFFSET::STRIDE, OFFSET::STRIDE].contiguous()


def pack(tensors: dict[str, torch.Tensor], facts: dict) -> bytes:
    """Tensors (float32, int64 or bool) and JSON-able facts as one xz stream."""
    header: dict = {"facts": facts, "tensors": {}}
    planes: dict[str, list[bytes]] = {"float32": [], "int64": [], "bool": []}
    for name, tensor in tensors.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        header["tensors"][name] = [kind, list(tensor.shape)]
        array = tensor.contiguous().numpy()
        planes[kind].append(np.packbits(array).tobytes() if kind == "bool" else array.astype(array.dtype).tobytes())
    floats = np.frombuffer(b"".join(planes["float32"]), np.uint8).reshape(-1, 4).T.tobytes()
    body = json.dumps(header).encode() + b"\0" + floats + b"".join(planes["int64"]) + b"".join(planes["bool"])
    return lzma.compress(body, preset=9 | lzma.PRESET_EXTREME)


def unpack(content: bytes) -> tuple[dict[str, torch.Tensor], dict]:
    """The inverse of :func:`pack`."""
    head, _, body = lzma.decompress(content).partition(b"\0")
    header = json.loads(head)
    sizes = {name: int(np.prod(shape)) for name, (_, shape) in header["tensors"].items()}
    kinds = {name: kind for name, (kind, _) in header["tensors"].items()}
    count = sum(size for name, size in sizes.items() if kinds[name] == "float32")
    floats = np.ascontiguousarray(np.frombuffer(body[: 4 * count], np.uint8).reshape(4, -1).T).view("<f4").ravel()
    tensors: dict[str, torch.Tensor] = {}
    at = 0
    for name, size in sizes.items():
        if kinds[name] == "float32":
            tensors[name] = torch.from_numpy(floats[at : at + size].copy())
            at += size
    at = 4 * count
    for name, size in sizes.items():
        if kinds[name] == "int64":
            tensors[name] = torch.from_numpy(np.frombuffer(body[at : at + 8 * size], "<i8").copy())
            at += 8 * size
    for name, size in sizes.items():
        if kinds[name] == "bool":
            length = (size + 7) // 8
            bits = np.unpackbits(np.frombuffer(body[at : at + length], np.uint8), count=size)
            tensors[name] = torch.from_numpy(bits.astype(bool))
            at += length
    return {name: tensors[name].reshape(shape) for name, (_, shape) in header["tensors"].items()}, header["facts"]


def collect(source: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """What of the full fixtures in ``source`` goes into the compact copy."""
    tensors: dict[str, torch.Tensor] = {}
    base = load_file(source / "base" / "model.safetensors")
    facts: dict = {"base_config": json.loads((source / "base" / "config.json").read_text()), "left_out": {}}
    for key, tensor in base.items():
        if any(part in key for part in UNREAD):
            facts["left_out"][key] = list(tensor.shape)
        else:
            tensors[f"base/{key}"] = tensor
    for key, tensor in load_file(source / "inputs.safetensors").items():
        tensors[f"inputs/{key}"] = tensor.bool() if key == "mask" else tensor
        assert key != "mask" or torch.equal(tensor.bool().float(), tensor)
    tensors["zero_shot/logits"] = sampled(load_file(source / "zero_shot.safetensors")["logits"])
    facts["adapter_keys"] = {}
    for variant in VARIANTS:
        kind = variant.partition("_")[0]
        whole = load_file(source / f"{kind}_vlc.adapter.safetensors")
        weights = load_file(source / f"{variant}.adapter.safetensors")
        assert all(torch.equal(tensor, whole[key]) for key, tensor in weights.items())
        facts["adapter_keys"][variant] = sorted(weights)
        if variant.endswith("_vlc"):
            tensors.update({f"{kind}/{key}": tensor for key, tensor in whole.items()})
        for key, tensor in load_file(source / f"{variant}.expected.safetensors").items():
            if key != "mask":
                tensors[f"{variant}/{key}"] = sampled(tensor) if key in LOGITS else tensor
    return tensors, facts


if __name__ == "__main__":
    target = Path(__file__).parent / "clipseg.xz"
    target.write_bytes(pack(*collect(Path(sys.argv[1]))))
    print(f"{target}: {target.stat().st_size:,} bytes")
