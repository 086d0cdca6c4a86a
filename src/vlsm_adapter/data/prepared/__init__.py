"""Writing a prepared data set: what foreign material of any kind becomes, and what ``load_records`` reads as a manifest.

``OUT/images/`` holds each image once, ``OUT/masks/`` one 0/255 PNG a case, ``OUT/records.jsonl`` the cases,
``OUT/dataset.json`` where they come from, ``OUT/README.md`` the same for people. Until all of it is there the folder has
``records.jsonl.partial`` instead of ``records.jsonl``: the journal of finished cases, from which the same call goes
on. Nothing reads such a folder as a data set.
"""

from vlsm_adapter.data.prepared.card import About, Summary
from vlsm_adapter.data.prepared.cases import ImageFile, RawCase
from vlsm_adapter.data.prepared.journal import PARTIAL
from vlsm_adapter.data.prepared.write import write_prepared

__all__ = ["PARTIAL", "About", "ImageFile", "RawCase", "Summary", "write_prepared"]
