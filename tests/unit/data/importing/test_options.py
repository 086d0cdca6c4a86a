"""Options of an import: read from text, refused in one line, and the same in the identity of a set."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from vlsm_adapter.data.importing.options import Options, command_line
from vlsm_adapter.errors import ConfigError, DataError, UserError


def test_every_option_is_read(tmp_path: Path) -> None:
    options = Options.parse(
        {
            "classes": "1=liver",
            "images": str(tmp_path),
            "masks": str(tmp_path),
            "columns": "image=a,mask=b c",
            "keep": "age, sex,age",
            "empty": "0.25",
            "plane": "coronal",
            "window": "40,400",
            "frame": "3",
            "channel": "1",
            "group_by": "p([0-9]+)",
            "spacing": "0.5,0.25",
            "prompt": None,
        }
    )
    assert options.columns == {"image": "a", "mask": "b c"}
    assert options.keep == ("age", "sex")
    assert (options.empty, options.plane, options.window, options.frame, options.channel) == (
        0.25,
        "coronal",
        (40, 400),
        3,
        1,
    )
    assert options.spacing == (0.5, 0.25)
    assert options.group_of("x/p12_a.png", None) == "12"
    given = json.loads(json.dumps(options.given()))
    assert given["images"] == tmp_path.name, "no folder of this machine in the identity of a set"
    assert "prompt" not in given


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("prompt", "  ", "--prompt is empty"),
        ("images", "/nowhere", "no such folder"),
        ("masks", "/nowhere", "no such file or folder"),
        ("columns", "image", "is not OURS=THEIRS"),
        ("columns", "imge=a", "did you mean 'image'"),
        ("columns", "image=a,image=b", "stands twice"),
        ("keep", ",", "--keep is empty"),
        ("empty", "most", "give keep, drop"),
        ("empty", "1.5", "give keep, drop"),
        ("empty", "nan", "give keep, drop"),
        ("plane", "axal", "did you mean 'axial'"),
        ("window", "40", "level,width"),
        ("window", "40,0", "above 0"),
        ("window", "nan,1", "level,width"),
        ("percentiles", "99,1", "low < high"),
        ("percentiles", "-1,50", "low < high"),
        ("frame", "-1", "a number from 0"),
        ("frame", "9999999", "a number from 0"),
        ("channel", "T1", "a number from 0"),
        ("group_by", "(", "not a regular expression"),
        ("group_by", "", "is empty"),
        ("spacing", "a", "mm per pixel"),
        ("spacing", "0,1", "out of range"),
        ("spacing", "1,2,3", "mm per pixel"),
        ("nothing", "x", "unknown option"),
    ],
)
def test_bad_values_are_refused_in_one_line(name: str, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        Options.parse({name: text})
    assert "\n" not in str(caught.value)


def test_options_that_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--window and --percentiles"):
        Options.parse({"window": "1,2", "percentiles": "1,2"})
    with pytest.raises(ConfigError, match="--prompt and --classes"):
        Options.parse({"prompt": "a", "classes": "1=b"})


def test_groups() -> None:
    options = Options.parse({"group_by": "p[0-9]+|(s)x"})
    assert options.group_of("p12_3.png", "other") == "p12"
    assert options.group_of("sx.png", None) == "s"
    with pytest.raises(DataError, match="is not found in this name"):
        options.group_of("q.png", None)
    assert Options().group_of("q.png", "g") == "g"


def test_a_group_is_one_however_its_accents_are_written() -> None:
    forms = [unicodedata.normalize(form, "Müller_1.png") for form in ("NFC", "NFD")]
    for pattern in forms:
        options = Options.parse({"group_by": pattern[: pattern.index("_")]})
        assert {options.group_of(name, None) for name in forms} == {"Müller"}


def test_the_share_of_empty_cases_is_kept_by_a_hash() -> None:
    options = Options.parse({"empty": "0.3"})
    kept = [options.keeps_empty(f"case{number}", 1.0) for number in range(2000)]
    assert 0.25 < sum(kept) / len(kept) < 0.35
    assert kept == [options.keeps_empty(f"case{number}", 0.0) for number in range(2000)]
    more = Options.parse({"empty": "0.6"})
    assert all(more.keeps_empty(f"case{number}", 1.0) for number in range(2000) if kept[number]), "shares are nested"
    assert Options().keeps_empty("a", 1.0)
    assert not Options().keeps_empty("a", 0.0)


def test_the_command_names_no_folder_of_this_machine() -> None:
    given = {"classes": "1=a b,2=c", "masks": "/home/me/masks", "prompt": None, "group_by": "(p)"}
    command = command_line("x", given, out="o", skip_bad=True)
    assert command == "vlsm data import x --out o --classes '1=a b,2=c' --masks masks --group-by '(p)' --skip-bad"
