"""Adaptation methods: one configuration class per method, and what can be done with any of them."""

from vlsm_adapter.adapters.adaptformer import AdaptFormerConfig
from vlsm_adapter.adapters.bitfit import BitFitConfig, LayerNormConfig
from vlsm_adapter.adapters.config import ADAPTERS, AdapterConfig, Placement, adapter_config
from vlsm_adapter.adapters.coop import CoOpConfig
from vlsm_adapter.adapters.decoder_only import DecoderOnlyConfig
from vlsm_adapter.adapters.dense import DenseAdapterConfig
from vlsm_adapter.adapters.full import FullConfig
from vlsm_adapter.adapters.ia3 import IA3Config
from vlsm_adapter.adapters.lora import DoraConfig, LoraConfig, RsLoraConfig
from vlsm_adapter.adapters.maple import MaPLeConfig
from vlsm_adapter.adapters.shallow import ShallowAdapterConfig
from vlsm_adapter.adapters.telescopic import TelescopicConfig
from vlsm_adapter.adapters.vpt import VPTConfig
from vlsm_adapter.adapters.zero_shot import ZeroShotConfig

__all__ = [
    "ADAPTERS",
    "AdaptFormerConfig",
    "AdapterConfig",
    "BitFitConfig",
    "CoOpConfig",
    "DecoderOnlyConfig",
    "DenseAdapterConfig",
    "DoraConfig",
    "FullConfig",
    "IA3Config",
    "LayerNormConfig",
    "LoraConfig",
    "MaPLeConfig",
    "Placement",
    "RsLoraConfig",
    "ShallowAdapterConfig",
    "TelescopicConfig",
    "VPTConfig",
    "ZeroShotConfig",
    "adapter_config",
]
