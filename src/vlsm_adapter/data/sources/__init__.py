"""Public data sets: one file each, from the archive as its owners ship it to cases.

A new set is one file with an ``add(Source(...))`` and its line below.
"""

from vlsm_adapter.data.sources import (  # noqa: F401 (each registers itself)
    bkai_polyp,
    busi,
    camus,
    chexlocalize,
    clinicdb_polyp,
    colondb_polyp,
    cvc300_polyp,
    dfu,
    etis_polyp,
    isic,
    kvasir_polyp,
)
from vlsm_adapter.data.sources.base import SOURCES, Reading, Source

__all__ = ["SOURCES", "Reading", "Source"]
