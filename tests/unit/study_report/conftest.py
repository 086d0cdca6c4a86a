"""The writer of fake run folders, and a small study made by it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def fake() -> ModuleType:
    """The module ``fake_study``."""
    path = Path(__file__).parent / "fake_study.py"
    spec = importlib.util.spec_from_file_location("fake_study", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_study"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def study(fake: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six methods, three data sets, two seeds, all labels and a tenth, with probes and pictures. Read only."""
    root = tmp_path_factory.mktemp("fake") / "study"
    methods = ("decoder_only", "lora", "dense_v", "dense_vlc", "shallow_v", "shallow_vlc")
    fake.write_study(root, methods=methods, seeds=(41, 42), fractions=("100%", "10%"), sensitivity=True)
    for folder in sorted(root.glob("runs/*/*/*/*/100pct/s41/evaluation/*")):
        method = folder.parts[-5]
        fake.write_examples(folder, fake.METHODS[method][3], size=(60, 80))
    return root
