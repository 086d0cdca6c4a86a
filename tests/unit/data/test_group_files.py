"""Group files: written, read back, joined with the groups of the data, and kept whole by every division."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlsm_adapter.data.group_files import GroupFile, check_target, connected, read_group_file, write_group_file
from vlsm_adapter.data.split_files import read_split_file, write_splits
from vlsm_adapter.errors import ConfigError, DataError
from vlsm_adapter.types import Record


def some(count: int, groups: dict[int, str] | None = None) -> list[Record]:
    return [Record(f"c{i}", Path(f"/d/{i}.png"), group=(groups or {}).get(i)) for i in range(count)]


def of(*groups: tuple[str, ...]) -> GroupFile:
    return GroupFile(Path("groups.json"), groups)


NAMES = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=4), max_size=8)


@given(NAMES)
def test_connected_sets_share_no_name_and_divide_none(sets: list[list[str]]) -> None:
    joined = connected(sets)
    assert sum(map(len, joined)) == len({name for names in joined for name in names})
    assert all(len(names) > 1 for names in joined)
    for names in sets:
        assert len(set(names)) < 2 or any(set(names) <= set(one) for one in joined)
    assert connected(reversed([names[::-1] for names in sets])) == joined


def test_files_read_back(tmp_path: Path) -> None:
    path = tmp_path / "groups.json"
    assert write_group_file(path, [("b", "a"), ("c", "b"), ("x",), ("e", "d")], "busi", {"made_by": "test"}) == 2
    assert read_group_file(path).groups == (("a", "b", "c"), ("d", "e"))
    assert write_group_file(path, [], "busi", {}) == 0
    assert read_group_file(path).groups == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ("[]", "not a group file"),
        ('{"format": "vlsm-split"}', "not a group file"),
        ('{"format": "vlsm-groups", "format_version": 2}', "format_version 2 is not known"),
        ('{"format": "vlsm-groups", "format_version": 1}', "not a list of lists"),
        ('{"format": "vlsm-groups", "format_version": 1, "groups": [["a"], "b"]}', "group 1 is not a list"),
        ('{"format": "vlsm-groups", "format_version": 1, "groups": [["a", 1]]}', "group 0 is not a list"),
    ],
)
def test_what_is_no_group_file_is_refused_and_kept(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "groups.json"
    path.write_text(text)
    with pytest.raises(DataError, match=says) as error:
        read_group_file(path)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="not replaced: choose another --groups"):
        check_target(path)
    with pytest.raises(DataError, match="not replaced"):
        write_group_file(path, [], "d", {})
    assert path.read_text() == text


def test_groups_are_joined_with_those_of_the_data() -> None:
    records = some(8, {0: "p1", 1: "p1", 2: "p2", 3: "p2", 7: "p3"})
    made = of(("c1", "c4"), ("c4", "c2"), ("c5", "c6")).apply(records, "DIR")
    names = [record.group for record in made]
    assert len({names[i] for i in (0, 1, 2, 3, 4)}) == 1  # through c4 both patients belong together
    assert names[5] == names[6] not in (None, names[0])
    assert names[7] == "p3"
    again = of(("c6", "c5"), ("c2", "c4"), ("c4", "c1")).apply(records[::-1], "DIR")
    assert again[::-1] == made
    assert of(("c0", "c1")).apply(records, "DIR") == records  # they are one patient already


def test_other_data_is_refused_and_what_was_left_out_is_not() -> None:
    with pytest.raises(DataError, match="names 2 cases that DIR does not have, the first is 'x'"):
        of(("c1", "x"), ("y", "c2")).apply(some(4), "DIR")
    made = of(("c1", "x"), ("x", "c2")).apply(some(4), "DIR", left_out={"x"})
    assert [record.case_id for record in made] == ["c0", "c1", "c2", "c3"]


@pytest.mark.parametrize("options", [{"folds": 4}, {"fractions": (0.5, 0.2, 0.3)}, {}])
@pytest.mark.parametrize("seed", range(4))
def test_every_division_keeps_them_whole(tmp_path: Path, options: dict, seed: int) -> None:
    records = some(60, {i: f"p{i // 2}" for i in range(20)})
    sets = [("c1", "c30"), ("c31", "c32", "c33"), ("c59", "c4"), ("c5", "c6")]
    written = write_splits(records, tmp_path / "out", groups=of(*sets), stratify=False, seed=seed, **options)
    for file in written:
        read = read_split_file(file.path)
        for names in (*sets, ("c0", "c1"), ("c4", "c5"), ("c6", "c7")):
            assert len({read.split_of[name] for name in names}) == 1
        assert read.about["groups"] == "groups.json (4 groups)"
        assert len(read.split_of) == 60
        assert json.loads(file.path.read_text())["train"]


def test_own_splits_that_divide_copies_are_refused(tmp_path: Path) -> None:
    records = [Record(f"c{i}", Path("/x"), split=("train", "val", "test")[i % 3]) for i in range(9)]
    with pytest.raises(ConfigError, match="divide 1 of its groups: give --fractions or --folds"):
        write_splits(records, tmp_path / "out", groups=of(("c0", "c1"), ("c2", "c5")), stratify=False)
    assert not (tmp_path / "out").exists()
    (own,) = write_splits(records, tmp_path / "out", groups=of(("c2", "c5")), stratify=False)
    assert read_split_file(own.path).about == {"splits": "the data's own", "groups": "groups.json (1 group)"}
