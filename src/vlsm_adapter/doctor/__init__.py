"""``vlsm doctor``: what the machine and the installation are, what they reach, and what would make them faster."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from vlsm_adapter.doctor.advice import Finding, findings
from vlsm_adapter.doctor.machine import Memory, Processor, memory, processor
from vlsm_adapter.doctor.software import (
    Extra,
    Folder,
    accelerators,
    extras,
    folders,
    hub,
    unmet,
    unused_gpu,
    variables,
    versions,
)
from vlsm_adapter.doctor.speeds import Speeds, measure

__all__ = ["Choices", "Examination", "Finding", "Speeds", "choices", "examine"]


@dataclass(frozen=True)
class Choices:
    """What the package decides on this machine where nothing is said.

    Attributes:
        device: that computes.
        training: precision of training, by Fabric's name.
        prediction: precision of prediction, by the name that ``--precision`` has.
        attention: how attention is computed.
    """

    device: str
    training: str
    prediction: str
    attention: str


@dataclass(frozen=True)
class Examination:
    """All that was found; :meth:`to_dict` gives it as plain values."""

    processor: Processor
    memory: Memory
    accelerators: list[dict[str, Any]]
    unused_gpu: bool
    threads: int
    capability: str
    onednn: bool
    variables: dict[str, str]
    versions: dict[str, str]
    unmet: list[str]
    extras: list[Extra]
    folders: list[Folder]
    choices: Choices
    speeds: Speeds | None
    hub: dict[str, Any] | None
    findings: list[Finding] = field(default_factory=list)

    @property
    def problems(self) -> int:
        """How many findings are problems."""
        return sum(one.kind == "problem" for one in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: plain values, sizes in bytes, speeds per second, times in milliseconds."""
        return asdict(self)


def choices() -> Choices:
    """What training and prediction choose here; the one place that asks the rest of the package."""
    from vlsm_adapter.inference import choose_device
    from vlsm_adapter.optimization import choose_precision

    return Choices(str(choose_device("auto")), choose_precision("auto"), "fp32", "sdpa")


def examine(*, speed: bool = True, network: bool = False, seconds: float = 4.0) -> Examination:
    """Examine machine and installation.

    Args:
        speed: also measure; without it the answer comes as fast as torch is imported.
        network: also ask whether the hub can be reached; nothing else here uses the network.
        seconds: for the measurements, about.
    """
    # Before our own work raises it.
    cores = processor()
    import torch

    gpus = accelerators()
    chosen = choices()
    seen = Examination(
        processor=cores,
        memory=memory(),
        accelerators=gpus,
        unused_gpu=unused_gpu(),
        threads=torch.get_num_threads(),
        capability=torch.backends.cpu.get_cpu_capability(),
        onednn=bool(torch.backends.mkldnn.is_available()),
        variables=variables(),
        versions=versions(),
        unmet=unmet(),
        extras=extras(),
        folders=folders(),
        choices=chosen,
        speeds=measure(chosen.device, seconds, busy=cores.busy) if speed else None,
        hub=hub() if network else None,
    )
    seen.findings.extend(findings(seen))
    return seen
