"""Adapters come from one folder, by the names they have there, and by no other way."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlsm_adapter.errors import UserError
from vlsm_adapter.serve.library import Library
from vlsm_adapter.serve.problems import Refused


def test_adapters_and_runs_are_found_the_rest_is_not(adapters: Path) -> None:
    library = Library(adapters)
    assert library.names() == ["broken", "polyp", "skin-run"]
    assert library.find("skin-run").folder == adapters / "skin-run" / "adapter"


def test_a_damaged_one_says_so_without_telling_where_it_lies(adapters: Path) -> None:
    (broken,) = [one for one in Library(adapters).all() if one.name == "broken"]
    assert broken.problem is not None
    assert "malformed" in broken.problem
    assert str(adapters) not in broken.problem
    assert broken.card(loaded=False)["method"] is None


def test_one_for_another_base_says_so(adapters: Path) -> None:
    problems = {one.name: one.problem for one in Library(adapters).all("0" * 64)}
    assert "another base" in str(problems["polyp"])


def test_a_single_adapter_or_run(adapters: Path) -> None:
    assert Library(adapters / "polyp").names() == ["polyp"]
    library = Library(adapters / "skin-run")
    assert library.names() == ["skin-run"]
    assert library.find("skin-run").folder == adapters / "skin-run" / "adapter"


@pytest.mark.parametrize(
    "name",
    ["../polyp", "polyp/../polyp", "..", ".", "", "/etc", "polyp/", "skin-run/adapter", "polyp\0", "POLYP", "pol\nyp"],
)
def test_tricks_with_paths(adapters: Path, name: str) -> None:
    with pytest.raises(Refused) as refused:
        Library(adapters).find(name)
    assert refused.value.status == 404
    assert "\n" not in refused.value.message


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(name=st.text(max_size=30))
def test_any_other_name_is_refused(adapters: Path, name: str) -> None:
    if name not in ("polyp", "skin-run", "broken"):
        with pytest.raises(Refused):
            Library(adapters).find(name)


def test_links_out_of_the_folder_are_not_followed(adapters: Path, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / "outside").symlink_to(adapters / "polyp")
    (shelf / "run").mkdir()
    (shelf / "run" / "adapter").symlink_to(adapters / "polyp")
    assert Library(shelf).names() == []


def test_an_adapter_put_there_later_is_found(adapters: Path, tmp_path: Path) -> None:
    import shutil

    library = Library(tmp_path)
    assert library.names() == []
    shutil.copytree(adapters / "polyp", tmp_path / "late")
    assert library.names() == ["late"]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        Library(tmp_path / "nowhere")


def test_names_with_blanks_and_umlauts_are_served_under_safe_ones(
    adapters: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import re
    import shutil

    caplog.set_level("INFO", "vlsm_adapter")
    odd = ["my ultrasound-tiny", "my_ultrasound-tiny", "müller", "my  ultrasound-tiny", "超音波", "-x", "n" * 120]
    for name in odd:
        shutil.copytree(adapters / "polyp", tmp_path / name)
    shutil.copytree(adapters / "polyp", tmp_path / ".half-written")
    library = Library(tmp_path)
    names = library.names()
    assert len(names) == len(odd)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) for name in names)
    assert {library.find(name).folder for name in names} == {tmp_path / name for name in odd}
    (served,) = [name for name in names if name.startswith("muller-")]
    with pytest.raises(Refused):
        library.find("müller")  # by the listed names alone
    assert caplog.text.count(f"müller: served as {served}") == 1


def test_a_folder_never_takes_the_name_of_another(
    adapters: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    from vlsm_adapter.serve.library import served_name

    for name in ("a b", served_name("a b")):
        shutil.copytree(adapters / "polyp", tmp_path / name)
    library = Library(tmp_path)
    assert library.find(served_name("a b")).folder == tmp_path / served_name("a b")
    assert library.names() == [served_name("a b")]
    assert "a b: passed over" in caplog.text
