"""The machine as the operating system tells of it: cores, instruction sets, memory, load, and what limits them.

Linux says all of it in ``/proc`` and ``/sys``, macOS by ``sysctl``; what a system does not tell is None, never a guess.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# What speeds up matrix products, by the flag that the system calls it by (any of them).
_X86 = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "AVX-512 BF16": ("avx512_bf16",),
    "AVX-512 FP16": ("avx512_fp16",),
    "AMX BF16": ("amx_bf16",),
    "AMX INT8": ("amx_int8",),
}
_ARM = {
    "NEON": ("asimd", "hw.optional.AdvSIMD", "hw.optional.neon"),
    "SVE": ("sve",),
    "BF16": ("bf16", "hw.optional.arm.FEAT_BF16"),
    "I8MM": ("i8mm", "hw.optional.arm.FEAT_I8MM"),
    "SME": ("sme", "hw.optional.arm.FEAT_SME"),
}
_MAC_X86 = {"hw.optional.avx2_0": "avx2", "hw.optional.avx512f": "avx512f"}
BUSY = 0.3  # runnable processes per usable core beyond which a measurement is not to be trusted


@dataclass(frozen=True)
class Processor:
    """Cores and what they can do.

    Attributes:
        name: as the system calls it.
        logical: processors the system schedules on.
        physical: cores; None where unknown. With hyper-threading there are fewer than ``logical``.
        allowed: logical processors this process may run on (affinity).
        quota: processors' worth of time that a container may take (cgroup), or None without such a limit.
        usable: cores that training can keep busy: the least of the above, at least 1.
        instructions: name to whether the processor has it; empty where unknown.
        load: mean number of runnable processes of the last minute; None where unknown.
        governor: frequency governor, or None.
    """

    name: str
    logical: int
    physical: int | None
    allowed: int
    quota: float | None
    usable: int
    instructions: dict[str, bool]
    load: float | None
    governor: str | None

    @property
    def busy(self) -> bool:
        """Whether others use so much of the cores that measured speeds are low."""
        return self.load is not None and self.load > BUSY * self.usable


@dataclass(frozen=True)
class Memory:
    """Bytes of main memory: all, free now, and the limit of the container or session (None without one).

    ``shared`` is free in ``/dev/shm``, through which loader processes hand over batches; None where there is none.
    """

    total: int | None
    free: int | None
    limit: int | None
    shared: int | None


def processor(root: Path = Path("/")) -> Processor:
    """Examine the processor; ``root`` is where ``/proc`` and ``/sys`` hang."""
    logical = os.cpu_count() or 1
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(logical))
    facts = _cpuinfo(root)
    cores = _cores(root)
    physical = len(set(cores.values())) or None
    allowed_cores = len({core for cpu, core in cores.items() if cpu in affinity}) or len(affinity)
    quota = _quota(root)
    if not facts and platform.system() == "Darwin":
        facts, physical = _sysctl(), _number(_sysctl().get("hw.physicalcpu"))
        allowed_cores = physical or allowed_cores
    usable = min([allowed_cores, *([round(quota) or 1] if quota is not None else [])])
    return Processor(
        name=facts.get("model name") or facts.get("machdep.cpu.brand_string") or platform.processor() or "unknown",
        logical=logical,
        physical=physical,
        allowed=len(affinity),
        quota=quota,
        usable=max(1, usable),
        instructions=instruction_sets(facts),
        load=_load(),
        governor=_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    )


def instruction_sets(facts: dict[str, str]) -> dict[str, bool]:
    """Which of the instruction sets that matter the processor has; empty where the system does not say.

    Args:
        facts: of ``/proc/cpuinfo`` (``flags`` or ``Features``) or of ``sysctl hw.optional``.
    """
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    flags |= {key for key, value in facts.items() if key.startswith("hw.optional.") and value == "1"}
    flags |= {ours for theirs, ours in _MAC_X86.items() if theirs in flags}
    if not flags:
        return {}
    arm = "Features" in facts or "hw.optional.AdvSIMD" in flags or "hw.optional.neon" in flags
    return {name: not flags.isdisjoint(names) for name, names in (_ARM if arm else _X86).items()}


def memory(root: Path = Path("/")) -> Memory:
    """Examine main memory; ``root`` is where ``/proc``, ``/sys`` and ``/dev`` hang."""
    lines = (_text(root / "proc/meminfo") or "").splitlines()
    kilobytes = {line.split(":")[0]: _number(line.split()[1]) for line in lines if len(line.split()) > 1}
    total, free = kilobytes.get("MemTotal"), kilobytes.get("MemAvailable")
    total, free = (None if value is None else value << 10 for value in (total, free))
    if total is None:
        with suppress(ValueError, OSError, AttributeError):
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit: int | None = None
    for folder, names in _controls(root, "memory", ("memory.max", "memory.current"), _V1_MEMORY):
        bound, used = (_number(_text(folder / name)) for name in names)
        if bound is None or (total is not None and bound >= total):  # "max", or version 1's way to say so
            continue
        stat = (_text(folder / "memory.stat") or "").split()
        # Files that were read count as used, but give way to whoever wants memory.
        given = _number(dict(zip(stat[::2], stat[1::2], strict=False)).get("inactive_file")) or 0
        limit = bound if limit is None else min(limit, bound)
        if used is not None:
            left = max(0, bound - used + given)
            free = left if free is None else min(free, left)
    shared: int | None = None
    with suppress(OSError, AttributeError):
        about = os.statvfs(root / "dev/shm")
        shared = about.f_bavail * about.f_frsize
    return Memory(total, free, limit, shared)


_V1_MEMORY = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def _quota(root: Path) -> float | None:
    """Processors' worth of time that control groups grant; None without a limit."""
    found: list[float] = []
    for folder, names in _controls(root, "cpu", ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        numbers = [_number(word) for name in names for word in (_text(folder / name) or "").split()]
        if len(numbers) == 2 and numbers[0] is not None and numbers[1] and numbers[0] > 0:
            found.append(numbers[0] / numbers[1])
    return min(found, default=None)


def _controls(
    root: Path, controller: str, unified: tuple[str, ...], legacy: tuple[str, ...]
) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Folders of the control groups this process is in, the innermost first, with the names of the files to read."""
    for line in (_text(root / "proc/self/cgroup") or "0::/").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            base, names = root / "sys/fs/cgroup", unified
        elif controller in controllers.split(","):
            base, names = root / "sys/fs/cgroup" / controller, legacy
        else:
            continue
        inner = base / path.strip("/")
        for folder in (inner, *inner.parents):
            if folder.is_dir():
                yield folder, names
            if folder == base:
                break


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's lines of ``/proc/cpuinfo``."""
    facts: dict[str, str] = {}
    for line in (_text(root / "proc/cpuinfo") or "").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            facts.setdefault(key.strip(), value.strip())
    return facts


def _cores(root: Path) -> dict[int, tuple[str, str]]:
    """Logical processor to its socket and core."""
    found: dict[int, tuple[str, str]] = {}
    for folder in (root / "sys/devices/system/cpu").glob("cpu[0-9]*"):
        socket = _text(folder / "topology/physical_package_id")
        core = _text(folder / "topology/core_id")
        if core is not None and (number := _number(folder.name[3:])) is not None:
            found[number] = (socket or "0", core)
    return found


def _sysctl() -> dict[str, str]:
    """What macOS tells of its processor."""
    try:
        command = ["sysctl", "machdep.cpu.brand_string", "hw.physicalcpu", "hw.optional"]
        text = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _number(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
