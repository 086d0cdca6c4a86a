"""Corrected masks, saved as a data folder that ``vlsm train --data`` reads (docs/data.md, docs/serve.md).

::

    DIR/records.jsonl                 a line per picture and prompt, the newest mask of each
        images/ID_fFRAME.png          the picture as the model was shown it, without the metadata of its file
        masks/ID_fFRAME_KEY_r1.png    0 and 255; KEY stands for the prompt
        masks/ID_fFRAME_KEY_r2.png    a later correction; the earlier file stays, its name under "earlier"

The record is written last and atomically: a crash leaves at most a picture or a mask that no record names.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from vlsm_adapter import files
from vlsm_adapter.errors import UserError
from vlsm_adapter.serve.answers import png

MANIFEST = "records.jsonl"
ORIGIN = "vlsm serve"  # what a record of ours says of itself


class Corrections:
    """A folder of corrected masks; nothing is written outside it.

    Args:
        folder: made at the first correction.
        now: the time.

    Raises:
        UserError: the folder holds a data set that does not come from here, or cannot be read or written.
    """

    def __init__(self, folder: str | Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.folder = Path(folder)
        self._now = now
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{folder}: is a file; give a folder for corrections")
        if self.folder.is_dir() and any(self.folder.iterdir()) and not self._manifest.is_file():
            raise UserError(f"{folder}: is not empty and holds no corrections: give a new folder")
        there = next(place for place in (self.folder, *self.folder.absolute().parents) if place.exists())
        if not os.access(there, os.W_OK | os.X_OK):  # said now, not to whoever has just corrected a mask
            raise UserError(f"{there}: cannot be written; choose another folder for corrections")
        self._records()

    @property
    def _manifest(self) -> Path:
        return self.folder / MANIFEST

    def save(
        self,
        *,
        image_id: str,
        frame: int,
        picture: np.ndarray,
        mask: np.ndarray,
        prompt: str,
        adapter: str | None,
        spacing: tuple[float, float] | None,
    ) -> tuple[str, int]:
        """Save a mask; another of the same picture and prompt is superseded, its file stays. The same again changes nothing.

        Args:
            image_id, frame: which picture; all pictures of one upload form a group, which no split divides.
            picture: uint8 (H, W, 3).
            mask: bool (H, W); an empty one says that there is nothing to find.
            prompt: what the mask shows.
            adapter: whose answer was corrected; None for the base model's.
            spacing: (row, column) in mm.

        Returns:
            The case id of the record, and how many records there are.

        Raises:
            UserError: the folder cannot be written, or another process keeps it busy.
        """
        text = " ".join(prompt.split())
        base = f"{image_id}_f{frame}"
        case_id = f"{base}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        with self._alone():
            records = self._records()
            before = records.get(case_id)
            content = png(mask.astype(np.uint8) * 255)
            if before and before.get("adapter") == adapter and self._holds(before["mask"], content):
                return case_id, len(records)
            revision = before["revision"] + 1 if before else 1
            # A crash may have left a mask without a record; it is no revision, and nothing is written over it.
            while (self.folder / f"masks/{case_id}_r{revision}.png").exists():
                revision += 1
            record: dict[str, Any] = {
                "case_id": case_id,
                "image": f"images/{base}.png",
                "mask": f"masks/{case_id}_r{revision}.png",
                "text": text,
                "group": image_id,
                **({"spacing": list(spacing)} if spacing else {}),
                "adapter": adapter,
                "saved": self._now().isoformat(timespec="seconds"),
                "revision": revision,
                "earlier": [*before["earlier"], before["mask"]] if before else [],
                "origin": ORIGIN,
            }
            if not (self.folder / record["image"]).exists():
                files.write_bytes(self.folder / record["image"], png(picture))
            files.write_bytes(self.folder / record["mask"], content)
            records[case_id] = record
            lines = [json.dumps(value, ensure_ascii=False, allow_nan=False) for value in records.values()]
            files.write_text(self._manifest, "\n".join(lines) + "\n")
            return case_id, len(records)

    def _holds(self, name: str, content: bytes) -> bool:
        try:
            return (self.folder / name).read_bytes() == content
        except OSError:
            return False

    def _records(self) -> dict[str, dict[str, Any]]:
        """Records by case id, in order of their first saving."""
        if not self._manifest.is_file():
            return {}
        try:
            lines = self._manifest.read_text(encoding="utf-8").splitlines()
            values = [json.loads(line) for line in lines if line.strip()]
            foreign = [value for value in values if value.get("origin") != ORIGIN]
            records = {str(value["case_id"]): value for value in values}
            for record in records.values():
                _ = record["revision"] + 1, [*record["earlier"]], record["mask"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if not isinstance(error, KeyError):
                raise UserError(
                    f"{self._manifest}: cannot be read ({error}); restore it, or give a new folder"
                ) from None
            foreign = [{}]
        if foreign:
            raise UserError(
                f"{self._manifest}: a data set that 'vlsm serve' did not make; give corrections a folder of their own"
            )
        return records

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """A lock against other servers on the same folder; they hold it for milliseconds."""
        busy = f"{self.folder}: another process is writing corrections; try again"
        with contextlib.ExitStack() as held:
            end = time.monotonic() + 5
            while True:
                try:
                    held.enter_context(files.locked(self.folder / ".lock", busy))
                    break
                except UserError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.02)
                except OSError as error:
                    raise UserError(f"{self.folder}: cannot be written ({error.strerror or error})") from None
            yield
