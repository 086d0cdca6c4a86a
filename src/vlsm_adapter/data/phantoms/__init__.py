"""Phantoms: generated medical-looking images with exact masks and true prompts, the data of the demo and the tests.

Four modalities, one file each; ``words`` says what every word of a prompt means; ``generate`` makes one case and
``write`` a data set in the published layout.
"""

from vlsm_adapter.data.phantoms.generate import MODALITIES, Phantom, make_phantom
from vlsm_adapter.data.phantoms.words import Lesion
from vlsm_adapter.data.phantoms.write import GENERATOR_VERSION, write_phantoms

__all__ = ["GENERATOR_VERSION", "MODALITIES", "Lesion", "Phantom", "make_phantom", "write_phantoms"]
