"""Adaptation methods: one configuration class per method, and what can be done with any of them."""

from vlsm_adapter.adapters.config import ADAPTERS, AdapterConfig, Placement, adapter_config
from vlsm_adapter.adapters.decoder_only import DecoderOnlyConfig
from vlsm_adapter.adapters.dense import DenseAdapterConfig
from vlsm_adapter.adapters.full import FullConfig
from vlsm_adapter.adapters.shallow import ShallowAdapterConfig

__all__ = [
    "ADAPTERS",
    "AdapterConfig",
    "DecoderOnlyConfig",
    "DenseAdapterConfig",
    "FullConfig",
    "Placement",
    "ShallowAdapterConfig",
    "adapter_config",
]
