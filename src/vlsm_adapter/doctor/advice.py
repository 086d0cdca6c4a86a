"""What is wrong, or could be better, each in one line with what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlsm_adapter.doctor.software import PACKAGE
from vlsm_adapter.doctor.speeds import SHORT

if TYPE_CHECKING:
    from vlsm_adapter.doctor import Examination

GIB = 1 << 30
_LITTLE_MEMORY = 4 * GIB  # a dense training step of full-size CLIPSeg, batch 4, with all that surrounds it
_LITTLE_DISK = 2 * GIB
_LITTLE_SHARED = 256 << 20
_CLEARLY = 1.25  # times as fast as what was chosen, before advice is given
_BELOW_PEAK = 0.5


@dataclass(frozen=True)
class Finding:
    """A line for the user.

    Attributes:
        kind: ``problem`` (something fails or is several times too slow), ``advice`` (more can be had) or ``note``
            (nothing to do, but good to know).
        text: what, and the fix.
    """

    kind: str
    text: str


def findings(seen: Examination) -> list[Finding]:
    """All of them, problems first."""
    found = [
        *_installation(seen),
        *_threads(seen),
        *_restricted(seen),
        *_memory_and_disk(seen),
        *_accelerator(seen),
        *_speed(seen),
        *_hub(seen),
    ]
    order = {"problem": 0, "advice": 1, "note": 2}
    return sorted(found, key=lambda one: order[one.kind])


def _installation(seen: Examination) -> list[Finding]:
    fix = f"pip install -c constraints.txt {PACKAGE}"
    found = [Finding("problem", f"requirement {line} is not met: {fix}") for line in seen.unmet]
    half = [
        extra for extra in seen.extras if not extra.installed and any("installed)" in line for line in extra.missing)
    ]
    for extra in half:
        missing = ", ".join(extra.missing)
        found.append(Finding("advice", f"extra {extra.name} is not complete, {missing}: {_install(extra.name)}"))
    return found


def _threads(seen: Examination) -> list[Finding]:
    usable, threads = seen.processor.usable, seen.threads
    named = next((name for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in seen.variables), None)
    found: list[Finding] = []
    if threads > max(usable, seen.processor.physical or 0) or (seen.processor.quota is not None and threads > usable):
        why = f"{named}={seen.variables[named]}" if named else "it counts cores it may not use"
        found.append(
            Finding(
                "problem",
                f"torch uses {threads} threads on {usable} usable {_cores(usable)} ({why}): they wait for each other; "
                f"export OMP_NUM_THREADS={usable}",
            )
        )
    elif threads < usable:
        cause = f"{named}={seen.variables[named]}" if named else "the settings of torch"
        fix = f"unset {named}" if named else f"export OMP_NUM_THREADS={usable}"
        found.append(
            Finding(
                "advice", f"torch uses {threads} of {usable} usable cores ({cause}): {fix}, unless others need them"
            )
        )
    omp, mkl = seen.variables.get("OMP_NUM_THREADS"), seen.variables.get("MKL_NUM_THREADS")
    if omp and mkl and omp != mkl:
        found.append(
            Finding(
                "advice", f"OMP_NUM_THREADS={omp} but MKL_NUM_THREADS={mkl}: set both alike, or unset MKL_NUM_THREADS"
            )
        )
    if seen.processor.busy:
        found.append(
            Finding(
                "note",
                f"others keep the machine busy (load {seen.processor.load:g} on {usable} {_cores(usable)}): what is "
                "measured now is of one thread, and low; run vlsm doctor again when it is idle",
            )
        )
    if seen.processor.governor == "powersave":
        found.append(
            Finding(
                "advice",
                "frequency governor 'powersave' keeps the cores slow: sudo cpupower frequency-set -g performance",
            )
        )
    return found


def _restricted(seen: Examination) -> list[Finding]:
    """Variables and builds that keep torch from instructions the processor has."""
    found: list[Finding] = []
    for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"):
        value = seen.variables.get(name)
        if value and value.lower() not in ("all", "default_isa"):
            found.append(Finding("advice", f"{name}={value} may keep torch from faster instructions: unset {name}"))
    has = seen.processor.instructions
    best = next((name for name in ("AVX-512", "AVX2") if has.get(name)), None)
    if best == "AVX-512" and seen.capability in ("AVX2", "DEFAULT") and "ATEN_CPU_CAPABILITY" not in seen.variables:
        found.append(
            Finding(
                "note", f"torch takes {seen.capability} where the processor has AVX-512: its own kernels are slower"
            )
        )
    if has and not best and "AVX2" in has:
        found.append(
            Finding("problem", "the processor has no AVX2: expect a tenth of the usual speed; use another machine")
        )
    if has.get("AVX-512") and not has.get("AVX-512 BF16") and not has.get("AMX BF16") and not seen.accelerators:
        found.append(
            Finding(
                "note",
                "no bf16 instructions (AVX-512 BF16, AMX): "
                + (
                    "int8 is the fastest here, train.precision=int8 and --precision int8 (its loss: docs/performance.md)"
                    if has.get("VNNI")
                    else "32-bit is the fastest precision here"
                ),
            )
        )
    if not seen.onednn:
        found.append(Finding("problem", "torch is built without oneDNN: install the official build, pip install torch"))
    return found


def _memory_and_disk(seen: Examination) -> list[Finding]:
    found: list[Finding] = []
    memory = seen.memory
    if memory.free is not None and memory.free < _LITTLE_MEMORY:
        limit = f" (limited to {memory.limit / GIB:.1f} GiB)" if memory.limit is not None else ""
        found.append(
            Finding(
                "advice",
                f"{memory.free / GIB:.1f} GiB of memory are free{limit}: CLIPSeg of full size trains in 2 to 4 GiB; close "
                "other programs, or use train.batch_size=1 with train.accumulate",
            )
        )
    if memory.shared is not None and memory.shared < _LITTLE_SHARED:
        found.append(
            Finding(
                "advice",
                f"/dev/shm has {memory.shared >> 20} MiB free: loader processes may die; use train.workers=0, or start "
                "the container with --shm-size=1g",
            )
        )
    for folder in seen.folders:
        if not folder.writable:
            found.append(
                Finding(
                    "problem", f"{folder.path} ({folder.use}) cannot be written: mend its permissions or choose another"
                )
            )
        elif folder.free is not None and folder.free < _LITTLE_DISK:
            found.append(
                Finding("advice", f"{folder.path} ({folder.use}) has {folder.free / GIB:.1f} GiB free: make room")
            )
    return found


def _accelerator(seen: Examination) -> list[Finding]:
    found: list[Finding] = []
    if seen.unused_gpu:
        found.append(
            Finding("problem", "an NVIDIA GPU is here, but torch is built for the CPU: install it as pytorch.org says")
        )
    found += [
        Finding("note", f"{one['name']} has no fast bf16: training takes 16-mixed, with a gradient scaler")
        for one in seen.accelerators
        if one["device"].startswith("cuda") and not one["bf16"]
    ]
    return found


def _speed(seen: Examination) -> list[Finding]:
    found: list[Finding] = []
    measured = seen.speeds
    if measured is None:
        return found
    chosen = seen.choices.training
    rates = {"32-true": measured.matmul.get("float32", 0.0), "bf16-mixed": measured.matmul.get("bfloat16", 0.0)}
    for name, rate in rates.items():
        if chosen in rates and name != chosen and rate > _CLEARLY * rates[chosen]:
            times = rate / rates[chosen] if rates[chosen] else float("inf")
            found.append(
                Finding(
                    "advice",
                    f"{name} multiplies {times:.1f} times as fast here as {chosen}, which was chosen: try "
                    f"--set train.precision={name}",
                )
            )
    part = measured.efficiency.get("float32")
    if part is not None and part < _BELOW_PEAK and not seen.processor.busy:
        found.append(
            Finding(
                "advice",
                f"the frozen encoder reaches {part:.0%} of the measured matrix product: other work, or slow memory; "
                "run vlsm doctor again when the machine is idle",
            )
        )
    plain = measured.forward.get("float32")
    best = max(measured.forward, key=lambda name: measured.forward[name], default="float32")
    if plain and measured.forward[best] > _CLEARLY * plain and seen.choices.prediction == "fp32":
        found.append(
            Finding(
                "advice",
                f"the frozen encoder runs {measured.forward[best] / plain:.1f} times as fast in {SHORT[best]} as in fp32, "
                f"which was chosen: predict with --precision {SHORT[best]}"
                + (", train with train.precision=int8" if best == "int8" else "")
                + " (its loss: docs/performance.md)",
            )
        )
    return found


def _hub(seen: Examination) -> list[Finding]:
    found: list[Finding] = []
    if seen.variables.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        found.append(Finding("note", "HF_HUB_OFFLINE is set: models are taken from the cache, none is fetched"))
    if seen.hub is not None and seen.hub["error"]:
        found.append(
            Finding(
                "problem",
                f"{seen.hub['endpoint']} cannot be reached ({seen.hub['error']}): check the network and its proxy, or give "
                "a model as a folder",
            )
        )
    return found


def _install(extra: str) -> str:
    return f"pip install '{PACKAGE}[{extra}]'"


def _cores(count: int) -> str:
    return "core" if count == 1 else "cores"
