"""What must not leave the machine is found wherever it stands; what only looks like it is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsm_adapter.errors import UserError
from vlsm_adapter.sharing.private import local_path, refuse_paths, texts_in

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-", min_size=1, max_size=8)


@pytest.mark.parametrize(
    "text",
    [
        "/home/ann/scan.png",
        "trained on /data/P12/ct",
        "(`/srv/x/y`)",
        "~/polyps/a",
        r"C:\Users\ann",
        "D:/scans/a.png",
        r"\\server\share\a",
        "file:///etc/passwd",
        "path=/a/b",
    ],
)
def test_places_are_found(text: str) -> None:
    assert local_path(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/acme/polyp",
        "acme/polyp",
        "and/or",
        "3.2 images/s",
        "1/2/3",
        "(0.8 / 0.1 / 0.2)",
        "</td>",
        "a: b",
        "note: see arXiv:2405.06196",
        "masks = predictor.predict(['polyp'])  # bool (1, H, W)",
        "",
    ],
)
def test_prose_and_addresses_are_not(text: str) -> None:
    assert local_path(text) is None


@settings(deadline=None)
@given(st.lists(NAMES, min_size=2, max_size=5), st.sampled_from(["", " ", "(", "`", "'", '"', "=", "| "]))
def test_any_absolute_path_is_found_after_any_separator(parts: list[str], before: str) -> None:
    path = "/" + "/".join(parts)
    assert local_path(f"seen{before if before else ' '}{path} there") is not None


def test_texts_of_json_carry_their_place() -> None:
    value = {"a": [{"b": "x"}, 3], "/k/ey": None}
    assert ("a[0].b", "x") in list(texts_in(value))
    assert ("", "/k/ey") in list(texts_in(value))


def test_a_path_is_refused_in_one_line_that_names_its_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"c\.json \(info\.data\): holds '/data/p12/ct'") as caught:
        refuse_paths("c.json", texts_in({"info": {"data": "/data/p12/ct"}}), whole=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="holds '/data'"):
        refuse_paths("c.json", texts_in({"data": "/data"}), whole=True)
    refuse_paths("README.md", [("", "either/or")], whole=False)


def test_a_known_folder_is_refused_in_any_form() -> None:
    place = Path("/opt/case series/P 12")
    with pytest.raises(UserError, match="P 12"):
        refuse_paths("README.md", [("", f"see{place}!")], [place], whole=False)
