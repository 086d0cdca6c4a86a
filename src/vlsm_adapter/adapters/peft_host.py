"""PEFT and this package on one model: PEFT's functions know our layers, and save and load what they hold.

Imported once PEFT is (:func:`.tuner.layers` sees to it, and :mod:`.peft_watch` to what comes later); importing it imports PEFT. PEFT's list of method names is closed,
so ours is entered in PEFT's mappings by hand; ``tests/contract/test_peft_hooks.py`` guards the hooks used.
"""

from __future__ import annotations

import re
from typing import Any

import peft.mapping
from peft import get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

from vlsm_adapter.adapters.site_layer import NamedAdapters, SiteLayer
from vlsm_adapter.adapters.tuner import KIND, PREFIX, SiteConfig

__all__ = ["BaseTunerLayer", "SiteTuner", "get_peft_model_state_dict"]

BaseTunerLayer.register(NamedAdapters)  # it has what PEFT's functions read and call


class SiteTuner(BaseTuner):
    """What PEFT's functions ask about our method. Never built: :mod:`.tuner` puts the layers on."""

    prefix = PREFIX
    tuner_layer_cls = SiteLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  # PEFT's class attribute, read only

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT looks for the name before the last part of a key only; a copied module may have modules inside.
        return re.sub(rf"\.({PREFIX}[a-z]+)\.{re.escape(adapter_name)}\.", r".\1.", key)


def _register() -> None:
    mappings: tuple[tuple[dict[Any, Any], Any], ...] = (
        (peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING, SiteConfig),
        (peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING, SiteTuner),
        (peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING, PREFIX),
    )
    for mapping, value in mappings:
        mapping[KIND] = value


_register()
