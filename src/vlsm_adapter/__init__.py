"""vlsm-adapter: fine-tune text-promptable medical image segmentation with small adapters on a frozen model.

The names below are the public interface; each is imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "load_model": "vlsm_adapter.models",
    "attach": "vlsm_adapter.adapters.attach",
    "detach": "vlsm_adapter.adapters.attach",
    "use_adapter": "vlsm_adapter.adapters.attach",
    "without_adapter": "vlsm_adapter.adapters.attach",
    "save_adapter": "vlsm_adapter.adapters.folder",
    "load_adapter": "vlsm_adapter.adapters.folder",
    "AdapterInfo": "vlsm_adapter.adapters.folder",
    "DenseAdapterConfig": "vlsm_adapter.adapters",
    "ShallowAdapterConfig": "vlsm_adapter.adapters",
    "Predictor": "vlsm_adapter.predict",
    "UserError": "vlsm_adapter.errors",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from vlsm_adapter.adapters import DenseAdapterConfig as DenseAdapterConfig
    from vlsm_adapter.adapters import ShallowAdapterConfig as ShallowAdapterConfig
    from vlsm_adapter.adapters.attach import attach as attach
    from vlsm_adapter.adapters.attach import detach as detach
    from vlsm_adapter.adapters.attach import use_adapter as use_adapter
    from vlsm_adapter.adapters.attach import without_adapter as without_adapter
    from vlsm_adapter.adapters.folder import AdapterInfo as AdapterInfo
    from vlsm_adapter.adapters.folder import load_adapter as load_adapter
    from vlsm_adapter.adapters.folder import save_adapter as save_adapter
    from vlsm_adapter.errors import UserError as UserError
    from vlsm_adapter.models import load_model as load_model
    from vlsm_adapter.predict import Predictor as Predictor


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'vlsm_adapter' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
