"""One exported folder of the small model, made once, and the model it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from vlsm_adapter.adapters import adapter_config
from vlsm_adapter.adapters.attach import attach
from vlsm_adapter.adapters.folder import AdapterInfo, save_adapter
from vlsm_adapter.models import load_model

pytest.importorskip("onnxruntime", reason="needs the extra [export]")
pytest.importorskip("onnxscript", reason="needs the extra [export]")


@dataclass(frozen=True)
class Exported:
    """An exported folder, and the adapter folder it was made from."""

    folder: Path
    adapter: Path


def make_adapter(base: Path, folder: Path, method: str, **settings: object) -> Path:
    """An adapter folder of the small model, its weights moved off the start."""
    torch.manual_seed(0)
    model = load_model(base)
    attach(model, adapter_config(method, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    info = AdapterInfo(threshold=0.4, prompt_level="p1", prompts=("polyp", "skin lesion"), licence="cc-by-4.0")
    return save_adapter(model.freeze(), folder, info=info)


@pytest.fixture(scope="session")
def exported(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """LoRA and its relatives fold, dense does not: one site of each kind would need two, so dense it is. Read only."""
    from vlsm_adapter.export.write import export

    folder = tmp_path_factory.mktemp("exported")
    adapter = make_adapter(base_folder, folder / "adapter", "dense", bottleneck_dim=4, condition_dim=4)
    return Exported(export(adapter, folder / "out"), adapter)
