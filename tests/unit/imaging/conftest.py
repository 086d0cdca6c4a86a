"""Fixtures of the imaging tests: made-up DICOM images of many kinds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def dicom_sources() -> ModuleType:
    """The module beside this file that writes small DICOM images; skipped without pydicom."""
    pytest.importorskip("pydicom")
    path = Path(__file__).with_name("dicom_sources.py")
    spec = importlib.util.spec_from_file_location("dicom_sources", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
