"""Rows of the table on memory, metrics, and how near the frozen forward comes to the arithmetic limit."""

from __future__ import annotations

import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from measuring import Measured, Setting, alternate, in_new_process, peak_memory

SCRIPT = "performance.py"


def memory(setting: Setting, *, checkpointing: bool = False) -> Measured:
    """The most memory a dense training step at batch 4 holds, each way in processes of its own."""

    def ours() -> float:
        return float(in_new_process(SCRIPT, "memory_of_ours", setting, checkpointing=checkpointing)["peak"])

    def usual() -> float:
        return float(in_new_process(SCRIPT, "memory_of_usual", setting)["peak"])

    first, second = alternate(ours, usual, 1 if setting.quick else min(3, setting.repeats))
    libraries = in_new_process(SCRIPT, "memory_of_libraries", setting)["peak"]
    return Measured(first, second, notes={"libraries_alone_mib": libraries / 2**20})


def memory_of_ours(setting: Setting, *, checkpointing: bool = False) -> dict[str, Any]:
    """A run of ``vlsm train`` until two steps are done."""
    from our_way import OurTraining, save_data

    data = save_data(setting.new_folder("data"), 8)
    run = OurTraining(
        Path(setting.model), data, setting.new_folder("run"), "dense", 4, **{"train.checkpointing": checkpointing}
    )
    run.epoch()
    run.close()
    return {"peak": peak_memory()}


def memory_of_usual(setting: Setting) -> dict[str, Any]:
    """Two steps of the usual way; its pixels are random numbers."""
    from transformers import CLIPSegForImageSegmentation

    import usual_way
    from vlsm_adapter.losses import dice_bce

    stock = CLIPSegForImageSegmentation.from_pretrained(setting.model).eval().requires_grad_(False)
    model = usual_way.UsualWay(stock, "dense").to("cuda" if torch.cuda.is_available() else "cpu")
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-4)
    side = 352
    end = stock.clip.text_model.eos_token_id
    ids, mask = usual_way.padded(torch.full((4, 3), end), end)
    truth = torch.zeros(4, side, side)
    truth[:, :9, :9] = 1
    device = next(model.parameters()).device
    batch = tuple(tensor.to(device) for tensor in (torch.randn(4, 3, side, side), ids, mask, truth))
    for _ in usual_way.train(model, optimizer, iter([batch, batch]), dice_bce):
        pass
    return {"peak": peak_memory()}


def memory_of_libraries(setting: Setting) -> dict[str, Any]:
    """What a process holds that has only imported what both ways need."""
    import transformers

    _ = transformers.CLIPSegForImageSegmentation
    return {"peak": peak_memory()}


def metrics(setting: Setting) -> Measured:
    """Cases per second of HD95 and NSD at 3000 x 2000, one thread; the row is of a lesion, the notes have the others."""
    import metrics_vs_monai as pairs

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    names = ("hd95", "nsd")
    large = (200, 300) if setting.quick else (2000, 3000)
    found: dict[str, tuple[list[float], list[float]]] = {}
    apart = 0.0
    for name, (pred, truth) in pairs.cases(large=large).items():
        if not name.endswith(f"{large[1]} x {large[0]}"):
            continue
        tensors = [torch.from_numpy(mask)[None, None].float() for mask in (pred, truth)]
        values, expected = pairs.ours(pred, truth, names), pairs.monai(*tensors, names)
        apart = max(apart, *(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(values, expected, strict=True)))
        found[name] = alternate(
            lambda pair=(pred, truth): 1 / setting.seconds_of(lambda: pairs.ours(*pair, names)),  # type: ignore[misc]
            lambda pair=tensors: 1 / setting.seconds_of(lambda: pairs.monai(*pair, names)),  # type: ignore[misc]
            setting.repeats,
        )
    ratios = {name: statistics.median(a / b for a, b in zip(*both, strict=True)) for name, both in found.items()}
    first, second = next(both for name, both in found.items() if name.startswith("lesion, good"))
    return Measured(first, second, apart < 1e-5, {"ratios": ratios, "largest_relative_difference": apart})


def efficiency(setting: Setting) -> Measured:
    """Operations per second of the frozen forward at batch 4, beside those of the fastest matrix product."""
    from vlsm_adapter.doctor.speeds import best_seconds, count_operations, matmul_peak
    from vlsm_adapter.inference import choose_device, inferring
    from vlsm_adapter.models import load_model

    device = choose_device("auto")
    model = load_model(setting.model).to(device)
    tokens = model.tokenize(["polyp", "skin lesion", "heart", "optic disc"])
    pixels = torch.randn(4, 3, *model.preprocessing.size, device=device)
    given = (pixels, tokens.input_ids.to(device), tokens.attention_mask.to(device))
    operations = count_operations(lambda: model(*given))
    clock = time.process_time if setting.clock == "processor" else time.perf_counter

    def forward() -> float:
        with inferring(model):
            return operations / best_seconds(lambda: model(*given), device, 0.0, 2, clock)

    def peak() -> float:
        return matmul_peak("float32", device, 0.2 if setting.quick else 2.0, clock) or 0.0

    forward(), peak()
    first, second = alternate(forward, peak, setting.repeats)
    notes = {"operations_per_image": operations / 4, "threads": torch.get_num_threads(), "device": str(device)}
    return Measured(first, second, notes=notes)
