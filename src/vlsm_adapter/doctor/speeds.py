"""What the machine reaches: matrix products, attention, and the frozen encoder against the matrix products.

Speeds are of the fastest of a few short repetitions, so that other work on the machine hides little of what it can do.
On a busy machine even those are interrupted: there one thread is measured, by processor time, which does not count while
others run. Operations are counted as the literature does, a multiplication and an addition as two. Rates are per second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter

# CLIPSeg at its input size: side in pixels, heads, tokens, width of a head.
SIDE, HEADS, TOKENS, HEAD_WIDTH = 352, 12, 485, 64
BLOCKS = 4  # of CLIPSeg's vision encoder that are run; each is like the others
Clock = Callable[[], float]
SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "int8": "int8"}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


@dataclass(frozen=True)
class Speeds:
    """What was measured on one device.

    Attributes:
        device: ``cpu``, ``cuda:0``, ...
        threads: of torch on the CPU, for these measurements.
        clock: ``wall``, or ``processor`` where the machine was busy.
        matmul: precision to operations per second of the fastest square matrix product; those torch lacks are left out.
        attention: precision to milliseconds: ``sdpa`` and ``matmul`` forward, ``sdpa_training`` and ``matmul_training``
            with the backward pass, of ``batch`` images with CLIPSeg's heads and tokens.
        forward: precision to operations per second of the frozen vision encoder, as prediction runs it.
        efficiency: precision to ``forward`` as a part of ``matmul``; none of int8, since attention and norms stay in fp32.
    """

    device: str
    threads: int
    clock: str = "wall"
    matmul: dict[str, float] = field(default_factory=dict)
    attention: dict[str, dict[str, float]] = field(default_factory=dict)
    forward: dict[str, float] = field(default_factory=dict)
    efficiency: dict[str, float] = field(default_factory=dict)


def measure(device: str = "cpu", seconds: float = 4.0, *, busy: bool = False) -> Speeds:
    """Measure ``device`` in about ``seconds``; on a machine so slow or busy that it takes twice that, the rest is left out.

    Args:
        device: ``cpu``, ``cuda:0``, ...
        seconds: on the clock on the wall.
        busy: whether others use the processor: see above.
    """
    chosen = torch.device(device)
    alone = busy and chosen.type == "cpu"
    threads = torch.get_num_threads()
    try:
        if alone:
            torch.set_num_threads(1)
        return _measure(chosen, seconds, time.process_time if alone else time.perf_counter)
    finally:
        torch.set_num_threads(threads)


def _measure(chosen: torch.device, seconds: float, clock: Clock) -> Speeds:
    found = Speeds(str(chosen), torch.get_num_threads(), "processor" if clock is time.process_time else "wall")
    until = time.perf_counter() + 2 * seconds
    names = ["float32", "bfloat16", *([] if chosen.type == "cpu" else ["float16"])]
    for name in [*names, "int8"]:
        rate = matmul_peak(name, chosen, seconds / 10, clock)
        if rate is not None:
            found.matmul[name] = rate
    # What is far slower than 32-bit is of no use to anybody.
    fast = [name for name in names if found.matmul.get(name, 0) > 0.8 * found.matmul["float32"]]
    for name in [*fast, *(["int8"] if "int8" in found.matmul and chosen.type == "cpu" else [])]:
        if time.perf_counter() > until:
            break
        found.forward[name] = frozen_forward(name, chosen, seconds / 5, clock)
        if name != "int8":  # of which only a part of the work is integers
            # The peak once more, close by in time: the machine may have become slower or faster meanwhile.
            again = matmul_peak(name, chosen, seconds / 20, clock)
            found.matmul[name] = max(found.matmul[name], again or 0.0)
            found.efficiency[name] = found.forward[name] / found.matmul[name]
    for name in fast:
        if time.perf_counter() < until:
            found.attention[name] = attention(name, chosen, seconds / 8, clock=clock)
    return found


def frozen_forward(precision: str, device: torch.device, seconds: float, clock: Clock = time.perf_counter) -> float:
    """Operations per second of blocks of CLIPSeg's vision encoder, as prediction runs them in ``precision``."""
    from vlsm_adapter.models.low_precision import computing, lower_precision

    encoder = vision_blocks().to(device)
    images = torch.randn(1 if device.type == "cpu" else 16, 3, SIDE, SIDE, device=device)
    operations = count_operations(lambda: encoder.encode_image(images))
    lower_precision(encoder, SHORT[precision])
    with torch.inference_mode(), computing(encoder):
        return operations / best_seconds(lambda: encoder.encode_image(images), device, seconds, clock=clock)


def matmul_peak(
    precision: str, device: torch.device | str = "cpu", seconds: float = 0.4, clock: Clock = time.perf_counter
) -> float | None:
    """Operations per second of the fastest square matrix product, or None where torch has none of that ``precision``.

    Sizes grow from 256 as long as the time allows, to 2048 on a CPU and 8192 on a GPU.

    Args:
        precision: ``float32``, ``bfloat16``, ``float16`` or ``int8`` (with sums in int32).
    """
    chosen, dtype = torch.device(device), _DTYPES[precision]
    best = 0.0
    until = time.perf_counter() + seconds
    side = 256
    while side <= (2048 if chosen.type == "cpu" else 8192):
        try:
            product = _product(side, dtype, chosen)
            product()
        except (RuntimeError, NotImplementedError, AttributeError):
            return best or None
        left = max(0.0, until - time.perf_counter())
        took = best_seconds(product, chosen, left / 2, clock=clock)
        best = max(best, 2 * side**3 / took)
        if 8 * took > until - time.perf_counter():  # the next size takes eight times as long
            break
        side *= 2
    return best


def _product(side: int, dtype: torch.dtype, device: torch.device) -> Callable[[], Any]:
    if dtype == torch.int8:
        left, right = (torch.randint(-9, 9, (side, side), dtype=dtype, device=device) for _ in range(2))
        return lambda: torch._int_mm(left, right)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out)


def attention(
    precision: str,
    device: torch.device | str = "cpu",
    seconds: float = 0.5,
    batch: int = 2,
    clock: Clock = time.perf_counter,
) -> dict[str, float]:
    """Milliseconds of ``sdpa`` (the library's fused attention) and ``matmul`` (batched products and a softmax)."""
    chosen = torch.device(device)
    shape = (batch, HEADS, TOKENS, HEAD_WIDTH)
    parts = [torch.randn(shape, device=chosen).to(_DTYPES[precision]) for _ in range(3)]

    def by_matmul(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return torch.softmax(query @ key.transpose(-1, -2) * HEAD_WIDTH**-0.5, -1) @ value

    found: dict[str, float] = {}
    for name, attend in (("sdpa", F.scaled_dot_product_attention), ("matmul", by_matmul)):
        with torch.inference_mode():
            took = best_seconds(lambda attend=attend: attend(*parts), chosen, seconds / 6, clock=clock)  # type: ignore[misc]
        found[name] = 1e3 * took
        leaves = [part.detach().clone().requires_grad_() for part in parts]

        def step(attend: Callable[..., torch.Tensor] = attend, leaves: list[torch.Tensor] = leaves) -> None:
            attend(*leaves).sum().backward()
            for leaf in leaves:
                leaf.grad = None

        found[f"{name}_training"] = 1e3 * best_seconds(step, chosen, seconds / 3, clock=clock)
    return found


def vision_blocks(blocks: int = BLOCKS) -> PromptSegmenter:
    """CLIPSeg whose vision encoder has ``blocks`` blocks of the full size, random weights, and as good as no text encoder.

    The product's own code runs it, so its speed is the product's.
    """
    from vlsm_adapter.models.clipseg import CLIPSeg
    from vlsm_adapter.models.clipseg_parts.config import CLIPSegConfig, TextConfig, VisionConfig
    from vlsm_adapter.models.clipseg_parts.network import CLIPSegNetwork

    config = CLIPSegConfig(
        text_config=TextConfig(num_hidden_layers=1, vocab_size=32, bos_token_id=30, eos_token_id=31),
        vision_config=VisionConfig(patch_size=16, num_hidden_layers=blocks),
        extract_layers=tuple(range(max(0, blocks - 3), blocks)),
    )
    with torch.device("meta"):  # drawn once, below: torch's own way to draw them takes seconds
        network = CLIPSegNetwork(config)
    network.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(-0.02, 0.02)
    return CLIPSeg(network, base_id="random blocks")


def count_operations(call: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products and convolutions in ``call``, attention included.

    torch's counter knows no fused attention on a CPU, so attention is done by products while it counts.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def best_seconds(
    call: Callable[[], Any],
    device: torch.device,
    seconds: float,
    least: int = 1,
    clock: Clock = time.perf_counter,
) -> float:
    """Time by ``clock`` of the fastest of the calls that fit into ``seconds``, at least ``least`` of them."""
    best, longest, count = math.inf, 0.0, 0
    until = time.perf_counter() + seconds
    while count < least or time.perf_counter() + longest < until:
        _finish(device)
        wall, start = time.perf_counter(), clock()
        call()
        _finish(device)
        best = min(best, clock() - start)
        longest = max(longest, time.perf_counter() - wall)
        count += 1
    return max(best, 1e-9)


def _finish(device: torch.device) -> None:
    """Wait for what a GPU has been asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
