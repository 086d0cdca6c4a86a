"""The installation: versions, extras, the environment variables that steer torch, folders, accelerators, the hub."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGE = "vlsm-adapter"
# What an extra is for, in the words of someone who wants it.
PURPOSES = {
    "dicom": "read DICOM and NIfTI, write DICOM SEG",
    "volumes": "import NIfTI volumes",
    "web": "vlsm serve",
    "export": "ONNX, int8, prediction without torch",
    "openvino": "OpenVINO: fast int8 and bf16 on Intel processors",
    "study": "vlsm compare on many cores or machines, figures",
    "monai": "text-free networks as references",
    "wandb": "log to Weights & Biases",
    "mlflow": "log to MLflow",
}
_NOT_FOR_USERS = {"dev"}
# Variables that change which code runs or on how many threads.
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_WAIT_POLICY",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "GOMP_CPU_AFFINITY",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_DEBUG_CPU_TYPE",
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "VLSM_CACHE_DIR",
)


@dataclass(frozen=True)
class Extra:
    """An optional part of the package.

    Attributes:
        name: as in ``pip install 'vlsm-adapter[NAME]'``.
        purpose: what it is for.
        missing: requirements that are not installed, or not in the version needed; none where it is installed.
    """

    name: str
    purpose: str
    missing: tuple[str, ...]

    @property
    def installed(self) -> bool:
        return not self.missing


@dataclass(frozen=True)
class Folder:
    """A place that files are written to.

    Attributes:
        use: what for.
        path: of the folder, which need not exist yet.
        free: bytes; None where unknown.
        writable: whether it, or the first folder above it that exists, can be written.
    """

    use: str
    path: str
    free: int | None
    writable: bool


def versions() -> dict[str, str]:
    """Versions of Python, the system, the package and what it needs; "missing" where it is not installed."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for name in (PACKAGE, *sorted({_name(line) for line in _requirements() if "extra ==" not in line})):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def unmet(lines: Iterable[str] | None = None) -> list[str]:
    """Requirements of the core that are not met: ``"peft>=0.21,<0.22 (0.30.1 is installed)"``."""
    lines = _requirements() if lines is None else lines
    return [told for line in lines if "extra ==" not in line and (told := _unmet(line)) is not None]


def extras(lines: Iterable[str] | None = None) -> list[Extra]:
    """Extras of the package, read from its metadata, and what is missing of each."""
    wanted: dict[str, list[str]] = {}
    for line in _requirements() if lines is None else lines:
        if (marked := re.search(r"extra\s*==\s*[\"']([^\"']+)[\"']", line)) and marked[1] not in _NOT_FOR_USERS:
            wanted.setdefault(marked[1], []).append(line)
    return [
        Extra(name, PURPOSES.get(name, ""), tuple(told for line in group if (told := _unmet(line)) is not None))
        for name, group in sorted(wanted.items())
    ]


def variables(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Those of :data:`VARIABLES` that are set."""
    environment = os.environ if environment is None else environment
    return {name: environment[name] for name in VARIABLES if name in environment}


def folders() -> list[Folder]:
    """Where the package writes beside what it is told to: caches, temporary files."""
    import tempfile

    from vlsm_adapter.data.disk_cache import cache_folder

    places: list[tuple[str, Path | None]] = [("decoded images, features", cache_folder("auto"))]
    with suppress(ImportError):
        from huggingface_hub.constants import HF_HUB_CACHE

        places.append(("models of the hub", Path(HF_HUB_CACHE)))
    with suppress(OSError):  # none can be written
        places.append(("temporary files", Path(tempfile.gettempdir())))
    return [_folder(use, path) for use, path in places if path is not None]


def accelerators() -> list[dict[str, Any]]:
    """GPUs that torch can use: name, memory in bytes (total and free), compute capability, whether bf16 is fast."""
    import torch

    found: list[dict[str, Any]] = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        one = {"device": f"cuda:{number}", "name": about.name, "memory": total, "free": free}
        found.append({**one, "capability": f"{about.major}.{about.minor}", "bf16": about.major >= 8})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU"})
    if torch.xpu.is_available():
        found.append({"device": "xpu", "name": torch.xpu.get_device_name(0)})
    return found


def unused_gpu(root: Path = Path("/")) -> bool:
    """Whether the system has an NVIDIA GPU (its driver is loaded) that this torch, built for the CPU, cannot use."""
    import torch

    there = (root / "proc/driver/nvidia/version").exists() or (root / "dev/nvidia0").exists()
    return there and torch.version.cuda is None and torch.version.hip is None


def hub(timeout: float = 5.0) -> dict[str, Any]:
    """Whether the hub answers: its address, and what went wrong, or None. Reads the network: only when asked for."""
    import urllib.error
    import urllib.request

    from huggingface_hub.constants import ENDPOINT

    told: str | None = None
    try:
        request = urllib.request.Request(ENDPOINT, method="HEAD", headers={"User-Agent": PACKAGE})
        with urllib.request.urlopen(request, timeout=timeout):
            pass
    except urllib.error.HTTPError as error:  # it answers
        told = None if error.code < 500 else f"HTTP {error.code}"
    except (OSError, ValueError) as error:
        told = str(getattr(error, "reason", error)) or type(error).__name__
    return {"endpoint": ENDPOINT, "error": told}


def _folder(use: str, path: Path) -> Folder:
    there = next((folder for folder in (path, *path.parents) if folder.exists()), None)
    free: int | None = None
    with suppress(OSError, TypeError):
        free = shutil.disk_usage(there).free  # type: ignore[arg-type]
    return Folder(use, str(path), free, there is not None and there.is_dir() and os.access(there, os.W_OK | os.X_OK))


def _requirements() -> list[str]:
    try:
        return metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return []


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0]


def _unmet(line: str) -> str | None:
    """The requirement in ``line`` without its marker, where it is not met."""
    requirement = line.split(";")[0].strip()
    name = _name(requirement)
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return requirement
    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ImportError:  # comes with transformers; without it versions cannot be compared
        return None
    try:
        allowed = Requirement(requirement).specifier
    except InvalidRequirement:
        return None
    return None if allowed.contains(version, prereleases=True) else f"{requirement} ({version} is installed)"
