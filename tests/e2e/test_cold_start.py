"""A prediction imports what it needs: torch, and none of the libraries whose import takes longer than the prediction."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from vlsm_adapter import attach, load_model, save_adapter
from vlsm_adapter.adapters import DenseAdapterConfig

NOT_NEEDED = ("transformers", "peft", "scipy", "torch._dynamo", "lightning_fabric", "monai", "pandas", "matplotlib")


def test_predict_imports_torch_and_little_else(base_folder: Path, phantoms: Path, tmp_path: Path) -> None:
    model = load_model(base_folder)
    attach(model, DenseAdapterConfig(4))
    adapter = save_adapter(model, tmp_path / "adapter")
    image = next(phantoms.rglob("*.png"))
    script = f"""
import sys
from vlsm_adapter.cli import main
sys.argv = ["vlsm", "predict", {str(adapter)!r}, {str(image)!r}, "--prompt", "polyp", "--out", {str(tmp_path / "out")!r}]
try:
    main()
except SystemExit as stopped:
    assert not stopped.code, stopped.code
assert "torch" in sys.modules
found = [name for name in {NOT_NEEDED} if name in sys.modules]
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").glob("*.png"))
