"""The examination as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from vlsm_adapter.doctor import Examination
from vlsm_adapter.doctor.software import PACKAGE
from vlsm_adapter.doctor.speeds import BLOCKS, HEADS, SHORT, SIDE, TOKENS, Speeds

_WIDTH = 13
_MARKS = {"problem": "!!", "advice": "->", "note": "  "}


def render(seen: Examination) -> str:
    """Lines of at most a terminal's width or two, the findings last."""
    sections: dict[str, list[str]] = {
        "processor": list(_processor(seen)),
        "memory": [_memory(seen)],
        "accelerator": [_gpu(one) for one in seen.accelerators] or ["none that torch can use"],
        "threads": [f"torch {seen.threads}; " + (_pairs(seen.variables) or "no variable that steers them is set")],
        "versions": [", ".join(f"{name} {version}" for name, version in seen.versions.items())],
        "chosen": [
            f"device {seen.choices.device}; training {seen.choices.training}, prediction {seen.choices.prediction}; "
            f"attention {seen.choices.attention}"
        ],
        "measured": list(_speeds(seen.speeds)) if seen.speeds is not None else ["nothing (--no-measure)"],
        "extras": list(_extras(seen)),
        "folders": [
            f"{folder.path}: {_bytes(folder.free)} free{'' if folder.writable else ', cannot be written'} ({folder.use})"
            for folder in seen.folders
        ],
        "hub": [_hub(seen)],
        "findings": [f"{_MARKS[one.kind]} {one.text}" for one in seen.findings] or ["nothing to mend"],
    }
    lines = []
    for title, texts in sections.items():
        for number, text in enumerate(texts):
            lines.append(f"{title if number == 0 else '':{_WIDTH}}{text}")
    return "\n".join(lines)


def _processor(seen: Examination) -> Iterator[str]:
    cpu = seen.processor
    cores = f"{cpu.physical} cores, " if cpu.physical is not None else ""
    limits = [f"{cpu.allowed} of {cpu.logical} allowed"] if cpu.allowed < cpu.logical else []
    if cpu.quota is not None:
        limits.append(f"container limited to {cpu.quota:g}")
    limited = f" ({', '.join(limits)})" if limits else ""
    load = "" if cpu.load is None else f"; load {cpu.load:g}" + (", busy" if cpu.busy else "")
    yield f"{cpu.name}: {cores}{cpu.logical} logical, {cpu.usable} usable{limited}{load}"
    if cpu.instructions:
        has = [name for name, there in cpu.instructions.items() if there]
        lacks = [name for name, there in cpu.instructions.items() if not there]
        yield f"has {', '.join(has) or 'none of'}" + (f"; not {', '.join(lacks)}" if lacks else "")


def _memory(seen: Examination) -> str:
    about = seen.memory
    limit = f", limited to {_bytes(about.limit)}" if about.limit is not None else ""
    shared = f"; /dev/shm {_bytes(about.shared)} free" if about.shared is not None else ""
    return f"{_bytes(about.total)}, {_bytes(about.free)} free{limit}{shared}"


def _gpu(one: dict) -> str:
    if "memory" not in one:
        return f"{one['device']}: {one['name']}"
    fast = "bf16" if one["bf16"] else "no fast bf16"
    memory = f"{_bytes(one['memory'])}, {_bytes(one['free'])} free"
    return f"{one['device']}: {one['name']}, {memory}, compute capability {one['capability']}, {fast}"


def _speeds(speeds: Speeds) -> Iterator[str]:
    where = speeds.device
    if where == "cpu":
        where = f"{speeds.threads} {'thread' if speeds.threads == 1 else 'threads'}"
    where += ", by processor time" if speeds.clock == "processor" else ""
    rates = ", ".join(f"{SHORT[name]} {_rate(rate)}" for name, rate in speeds.matmul.items())
    yield f"matrix product ({where}): {rates}"
    for name, times in speeds.attention.items():
        forward = f"SDPA {times['sdpa']:.1f} ms, batched matmul {times['matmul']:.1f} ms"
        backward = f"{times['sdpa_training']:.1f} and {times['matmul_training']:.1f} ms"
        yield f"attention {SHORT[name]} (2 x {HEADS} heads x {TOKENS} tokens): {forward}; with backward {backward}"
    for name, rate in speeds.forward.items():
        part = f", {speeds.efficiency[name]:.0%} of its matrix product" if name in speeds.efficiency else ""
        yield f"frozen encoder {SHORT[name]} ({BLOCKS} blocks of CLIPSeg at {SIDE} px): {_rate(rate)}{part}"


def _extras(seen: Examination) -> Iterator[str]:
    there = [extra.name for extra in seen.extras if extra.installed]
    if there:
        yield f"installed: {', '.join(there)}"
    for extra in seen.extras:
        if not extra.installed:
            yield f"pip install '{PACKAGE}[{extra.name}]'" + (f" to {extra.purpose}" if extra.purpose else "")
    if not seen.extras:
        yield "unknown: the package is not installed"


def _hub(seen: Examination) -> str:
    if seen.hub is None:
        return "not asked (--network)"
    return f"{seen.hub['endpoint']}: " + (seen.hub["error"] or "answers")


def _pairs(values: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _rate(value: float) -> str:
    for factor, unit in ((1e12, "T"), (1e9, "G")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}op/s"
    return f"{value / 1e6:.3g} Mop/s"


def _bytes(value: int | None) -> str:
    return "unknown" if value is None else f"{value / (1 << 30):.1f} GiB"
