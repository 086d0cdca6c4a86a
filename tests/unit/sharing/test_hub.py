"""Which texts are hub ids, and that a folder of that name comes first."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsm_adapter.adapters import hub
from vlsm_adapter.adapters.hub import HubId, hub_errors, local_folder
from vlsm_adapter.errors import AdapterError
from vlsm_adapter.sharing.push import Parcel, send


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("acme/polyp", HubId("acme/polyp")),
        ("acme/polyp@v1.0", HubId("acme/polyp", "v1.0")),
        ("acme/polyp@refs/pr/1", HubId("acme/polyp", "refs/pr/1")),
        (Path("acme/polyp@main"), HubId("acme/polyp", "main")),
        ("A_c-me.x/p.o_l-yp", HubId("A_c-me.x/p.o_l-yp")),
    ],
)
def test_ids(text: str | Path, expected: HubId) -> None:
    assert HubId.parse(text) == expected
    assert str(expected) == str(text)


@pytest.mark.parametrize(
    "text",
    [
        "polyp", "a/b/c", "/a/b", "./a", "../b", "~/a", "a/..", "a..b/c", "acme/", "/polyp", "acme/polyp@", "acme/po lyp",
        "a--b/c", "acme/polyp@a b", "-a/b", "a/b-", "", "a/b@/x", "a" * 200 + "/b", "é/b", "a/b\n",
    ],
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    assert HubId.parse(text) is None


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_parsed_or_not(text: str) -> None:
    found = HubId.parse(text)
    assert found is None or str(found) == text


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme" / "polyp").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "fetch", lambda *_: pytest.fail("the hub was asked"))
    assert local_folder("acme/polyp", ("a",)) == Path("acme/polyp")
    assert local_folder(tmp_path / "gone", ("a",)) == tmp_path / "gone"  # absolute: never an id


def test_what_a_library_raises_becomes_one_line() -> None:
    with (
        pytest.raises(AdapterError, match=r"'acme/x': .* could not be used \(two lines\)") as caught,
        hub_errors("acme/x", HubId("acme/x")),
    ):
        raise RuntimeError("two\nlines")
    assert "\n" not in str(caught.value)
    with pytest.raises(AdapterError, match=r"^as it is$"), hub_errors("acme/x", HubId("acme/x")):
        raise AdapterError("as it is")


def test_without_a_network_nothing_is_sent_and_it_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.invalid")
    parcel = Parcel("acme/polyp", tmp_path / "weights", "{}", "card", facts=None)  # type: ignore[arg-type]
    with pytest.raises(AdapterError, match=r"'acme/polyp': https://hub\.invalid cannot be reached, nothing was sent"):
        send(parcel)
