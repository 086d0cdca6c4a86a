"""Bad cases are refused, or listed and counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlsm_adapter.data.checks import check_record, check_records, require_split
from vlsm_adapter.errors import DataError
from vlsm_adapter.types import Record


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """A good case, one with a missing mask file, one of unequal sizes, one truncated, one whose mask is a photo."""
    made = []
    rng = np.random.default_rng(0)
    for name in ("good", "missing", "sizes", "cut", "photo"):
        image, mask = tmp_path / f"{name}.jpg", tmp_path / f"{name}_m.png"
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(image)
        Image.fromarray(np.eye(40, 50, dtype=bool)).save(mask)
        made.append(Record(name, image, mask))
    (tmp_path / "missing_m.png").unlink()
    Image.new("1", (51, 40)).save(tmp_path / "sizes_m.png")
    content = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    Image.fromarray(rng.integers(0, 255, (40, 50), dtype=np.uint8)).save(tmp_path / "photo_m.png")
    return made


def test_headers_find_the_missing_and_the_unequal(records: list[Record]) -> None:
    seen: list[int] = []
    good, bad = check_records(records, skip_bad=True, progress=seen.append)
    assert [record.case_id for record in good] == ["good", "cut", "photo"]
    assert [case.case_id for case in bad] == ["missing", "sizes"]
    assert "no such file" in bad[0].reason
    assert "50 x 40" in bad[1].reason
    assert "51 x 40" in bad[1].reason
    assert seen == [1, 2, 3, 4, 5]


def test_decoding_finds_the_truncated_and_the_photo(records: list[Record]) -> None:
    good, bad = check_records(records, skip_bad=True, decode=True)
    assert [record.case_id for record in good] == ["good"]
    assert "truncated" in bad[2].reason
    assert "not a mask" in bad[3].reason
    assert bad[2].path.endswith("cut.jpg")


def test_the_first_is_raised_with_the_count(records: list[Record]) -> None:
    with pytest.raises(DataError) as error:
        check_records(records)
    assert "missing_m.png" in str(error.value)
    assert "2 of 5 cases are bad" in str(error.value)
    assert "--skip-bad" in str(error.value)
    assert "\n" not in str(error.value)


def test_unlabelled(records: list[Record]) -> None:
    unlabelled = Record("u", records[0].image)
    for decode in (False, True):
        with pytest.raises(DataError, match="no mask"):
            check_record(unlabelled, decode=decode)
        check_record(unlabelled, decode=decode, labelled=False)
    assert check_records([unlabelled], skip_bad=True, headers=False)[0] == []
    assert check_records(records, headers=False)[0] == records
    with pytest.raises(DataError, match="truncated"):
        check_record(Record("c", records[3].image), decode=True, labelled=False)


def test_empty_split() -> None:
    records = [Record(str(i), Path("/x"), split="train" if i else "val") for i in range(4)]
    assert len(require_split(records, "train", "DIR")) == 3
    with pytest.raises(DataError, match=r"split 'test' of DIR is empty: it has train 3, val 1"):
        require_split(records, "test", "DIR")
    with pytest.raises(DataError, match="no case at all"):
        require_split([], "test", "DIR")
