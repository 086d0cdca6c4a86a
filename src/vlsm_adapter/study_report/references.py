"""What the rows of a table are tested against."""

from __future__ import annotations

from collections.abc import Sequence

from vlsm_adapter.errors import UserError, nearest
from vlsm_adapter.study_report.tables import Row, RowKey

DEFAULT_REFERENCE = "decoder_only"


def choose_references(rows: Sequence[Row], wanted: str | None) -> dict[RowKey, Row]:
    """Row key to the row to test it against.

    ``wanted`` is for all rows, and nothing is tested where it is not among them. By default each base model has its own:
    decoder_only, or where no model has that, the model's first row. A model without decoder_only, where another has it, is
    not tested.
    """
    if wanted is not None:
        chosen = next((row for row in rows if wanted in (row.label, row.name)), None)
        return {} if chosen is None else {row.key: chosen for row in rows}
    candidates = [row for row in rows if row.name == DEFAULT_REFERENCE] or rows
    of_base: dict[RowKey, Row] = {}
    for row in candidates:
        of_base.setdefault(row.base, row)
    return {row.key: of_base[row.base] for row in rows if row.base in of_base}


def check_reference(rows: Sequence[Row], wanted: str) -> None:
    """Refuse a reference that is no row, or several.

    Raises:
        UserError: with the rows there are.
    """
    found = [row for row in rows if row.label == wanted] or [row for row in rows if row.name == wanted]
    if not found:
        # Its name in the study is shorter to type than the label of the table; a run without a study has none.
        known = dict.fromkeys(row.name or row.label for row in rows)
        raise UserError(f"--reference '{wanted}': no such method; {nearest(wanted, known)}")
    if len(found) > 1:
        raise UserError(
            f"--reference '{wanted}' is {len(found)} rows: name one of them: {', '.join(row.label for row in found)}"
        )
