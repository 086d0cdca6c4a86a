"""The audit as a whole: its text, JSON and page; the real data where it is."""

from __future__ import annotations

import contextlib
import html.parser
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlsm_adapter.data.audit import Audit, check_data, write_audit
from vlsm_adapter.data.audit.findings import Evidence, Finding
from vlsm_adapter.data.audit.reading import DataSet
from vlsm_adapter.data.audit.run import SetAudit

POLYP = {"p1": "polyp", "p6": "one polyp, located in left of the image"}


class Page(html.parser.HTMLParser):
    """Collects what a browser would load, and the tags left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "data", "action", "srcset")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def small(folder: Callable[..., Path], picture: Any, round_mask: Any) -> Path:
    empty = np.zeros((80, 96), bool)
    right = round_mask(centre=(0.85, 0.5), radius=0.1)
    return folder(
        {
            "train": [
                *(
                    (f"t{i}", picture(i), round_mask(centre=(0.2, 0.5), radius=0.05 + 0.01 * i), POLYP)
                    for i in range(6)
                ),
                ("right", picture(20), right, POLYP),
                ("empty", picture(21), empty, {"p1": "no polyp"}),
            ],
            "test": [("copy", picture(0), round_mask(centre=(0.2, 0.5)), POLYP)],
        },
        name="<b>evil<b>",
    )


def test_everything_together(small: Path, tmp_path: Path) -> None:
    bars: list[tuple[str, int]] = []

    def bar(description: str, total: int) -> Any:
        bars.append((description, total))
        return contextlib.nullcontext(lambda done, note="": None)

    before = sorted(path.name for path in small.rglob("*"))
    audit = check_data(small, thumbnails=True, workers=2, bar=bar)
    assert bars == [("looking at <b>evil<b>", 9)]
    codes = {finding.code: finding for finding in audit.findings}
    assert codes["duplicate-across-splits"].cases == ("t0", "copy")
    assert codes["wrong-place"].cases == ("right",)
    assert codes["empty-masks"].cases == codes["reveals-emptiness"].cases == ("empty",)
    assert audit.findings[0].severity == "error"

    out = tmp_path / "out"
    page = write_audit(audit, out)
    assert sorted(path.name for path in out.iterdir()) == ["contact-sheet.png", "findings.json", "index.html"]
    assert json.loads((out / "findings.json").read_text()) == audit.to_json()
    with Image.open(out / "contact-sheet.png") as sheet:
        assert sheet.width == 8 * 180
    assert sorted(path.name for path in small.rglob("*")) == before

    text = page.read_text()
    parsed = Page(text)
    assert parsed.open == []
    assert parsed.loads
    assert all(one.startswith("data:image/jpeg;base64,") for one in parsed.loads)
    assert "b" not in parsed.tags  # names from the data are escaped
    assert "script" not in parsed.tags
    assert "default-src 'none'" in text
    lines = list(audit.lines())
    assert lines[0] == "<b>evil<b>: 9 cases (train 8, test 1)"
    assert lines[-1] == audit.summary()


def test_without_thumbnails_the_page_has_no_pictures(small: Path, tmp_path: Path) -> None:
    page = write_audit(check_data(small), tmp_path / "out")
    assert "img" not in Page(page.read_text()).tags
    assert not (tmp_path / "out" / "contact-sheet.png").exists()


def test_results_do_not_depend_on_threads(small: Path) -> None:
    assert check_data(small, workers=1).to_json() == check_data(small, workers=4).to_json()


def test_annotations_copied_between_sets(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / "sets" / name).mkdir(parents=True)
        rows = [
            {
                "img_name": f"{i}.png",
                "mask_name": f"{i}.png",
                "prompts": {"p1": "polyp", "p2": f"{name if name == 'three' else ''} {i} polyp"},
            }
            for i in range(30)
        ]
        (tmp_path / "sets" / name / "test.json").write_text(json.dumps(rows if name != "two" else rows[:12]))
    audit = check_data(tmp_path / "sets")
    (finding,) = audit.between
    assert (finding.code, finding.severity) == ("annotations-copied", "error")
    assert finding.message.startswith("12 entries of one (30 cases) and two (12 cases)")
    page = write_audit(audit, tmp_path / "out").read_text()
    assert Page(page).loads == ["#set0", "#set1", "#set2"]


def test_sound_data_has_nothing_but_notes(folder: Any, picture: Any, round_mask: Any) -> None:
    splits = {
        split: [
            (
                f"{split}{chr(97 + i)}",
                picture(1000 * number + i),
                round_mask(centre=(0.4 + 0.05 * number, 0.5), radius=0.1 + 0.004 * i),
                {"p1": "polyp"},
            )
            for i in range(20)
        ]
        for number, split in enumerate(("train", "val", "test"))
    }
    audit = check_data(folder(splits))
    assert [finding.code for finding in audit.findings] == ["class-constant"]
    assert audit.summary() == "0 errors, 0 warnings, 1 note"


# The real data, as far as it is there


def audited(shared_folder: Path, name: str) -> dict[str, Finding]:
    path = shared_folder / "data" / name
    if not path.is_dir():
        pytest.skip(f"needs ../shared/data/{name} (not part of the repository)")
    return _codes(check_data(path))


def _codes(audit: Audit) -> dict[str, Finding]:
    return {finding.code: finding for finding in audit.findings}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "isic",
            {"listed-across-splits": "3 in train and test", "one-sided-places": "right in 432 cases and left in 10"},
        ),
        ("isic", {"diagnosis-constant": "'skin melanoma'", "listed-twice": "1 case"}),
        ("clinicdb_polyp", {"neighbours-across-splits": "57 of 61 numbered test cases"}),
        (
            "bkai_polyp",
            {"listed-across-splits": "1 in train and test, 2 in train and val", "absent-but-there": "6 cases"},
        ),
        ("busi", {"reveals-emptiness": "test 13), exactly the 133 empty ones"}),
        ("chexlocalize", {"list-without-own": "434 cases of 2177"}),
        ("camus", {"name-across-splits": "600 file names"}),
        ("colondb_polyp", {"neighbours-across-splits": "37 of 360"}),
        ("etis_polyp", {"neighbours-across-splits": "36 of 176"}),
        ("dfu", {"one-sided-places": "the prompts say", "rare-words": "toe 17"}),
    ],
)
def test_published_annotations(shared_folder: Path, name: str, expected: dict[str, str]) -> None:
    path = shared_folder / "data" / "medvlsm-annotations" / name
    if not path.is_dir():
        pytest.skip("needs ../shared/data/medvlsm-annotations (not part of the repository)")
    messages = [f"{finding.code}: {finding.message}" for finding in check_data(path).findings]
    for code, part in expected.items():
        assert any(message.startswith(f"{code}: ") and part in message for message in messages), (code, messages)


@pytest.mark.slow
def test_real_breast_ultrasounds(shared_folder: Path) -> None:
    found = audited(shared_folder, "busi")
    assert "exactly the 63 empty ones" in found["reveals-emptiness"].message
    assert {"131_benign", "51_malignant", "34_normal", "437_benign"} <= set(found["duplicates-contradict"].cases)
    assert len(found["near-duplicate-across-splits"].evidence) >= 20
    assert not {"unreadable-image", "size-mismatch", "not-a-mask"} & set(found)


def test_a_long_reason_keeps_its_file_and_its_fix(tmp_path: Path) -> None:
    """File names first, the fix last: neither may be cut."""
    bad = tmp_path / "a-folder-of-a-long-name" / ("x" * 120 + ".png")
    reason = f"{bad}: has 640 x 480 pixels but its mask {bad.with_suffix('.tif')} has 480 x 640: rotate the mask"
    endless = "says 'begin " + "polyp " * 1000 + "end'"
    evidence = (Evidence(("case",), reason), Evidence(("other",), endless))
    data = DataSet("data", tmp_path, [])
    lines = list(Audit("data", [SetAudit(data, findings=[Finding("error", "bad-entry", "two", evidence)])]).lines())
    told = " ".join(" ".join(lines).split())
    assert f"case: {reason}" in told
    assert "says 'begin polyp" in told
    assert "polyp end'" in told
    assert sum(map(len, lines)) < 3000
    assert all(len(line) <= 160 for line in lines if str(tmp_path) not in line)
