"""An audit of a data set: what is wrong with its files, its splits, its masks and its words, before a model learns it.

``run.check_data`` is the entry point and ``vlsm data check`` its command; ``docs/check-data.md`` lists every finding.
"""

from vlsm_adapter.data.audit.findings import Evidence, Finding
from vlsm_adapter.data.audit.run import Audit, check_data, write_audit, write_groups

__all__ = ["Audit", "Evidence", "Finding", "check_data", "write_audit", "write_groups"]
