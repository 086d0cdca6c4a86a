"""Whatever is wrong with the input: exit code 2, one line that names it, and nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

Spoil = Callable[[Path], None]


def _edit(split: str, change: Callable[[list], object]) -> Spoil:
    def spoil(data: Path) -> None:
        file = data / "anns" / f"{split}.json"
        entries = json.loads(file.read_text())
        changed = change(entries)
        file.write_text(json.dumps(entries if changed is None else changed))

    return spoil


def _first(data: Path, kind: str) -> Path:
    entry = json.loads((data / "anns" / "train.json").read_text())[0]
    return data / ("images" if kind == "img" else "masks") / entry[f"{kind}_name"]


def _put(kind: str, make: Callable[[Path], object]) -> Spoil:
    return lambda data: make(_first(data, kind))  # type: ignore[return-value]


def _photo(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, np.asarray(Image.open(path)).shape[:2], dtype=np.uint8)
    Image.fromarray(noise).save(path)


SPOILED: dict[str, tuple[Spoil, str]] = {
    "image missing": (_put("img", Path.unlink), "images"),
    "image truncated": (_put("img", lambda path: path.write_bytes(path.read_bytes()[:-500])), "images"),
    "image of no bytes": (_put("img", lambda path: path.write_bytes(b"")), "images"),
    "image is text": (_put("img", lambda path: path.write_text("hello")), "images"),
    "mask of other size": (_put("mask", lambda path: Image.new("L", (7, 9)).save(path)), "7"),
    "mask is a photo": (_put("mask", _photo), "not a mask"),
    "path out of the root": (_edit("train", lambda e: e[0].update(img_name="../../etc/passwd")), "img_name"),
    "absolute path": (_edit("train", lambda e: e[0].update(mask_name="/etc/passwd")), "mask_name"),
    "entry without image": (_edit("val", lambda e: e[0].pop("img_name") and None), "img_name"),
    "not a list": (_edit("val", lambda e: {"a": 1}), "val.json"),
    "deep JSON": (lambda data: (data / "anns" / "val.json").write_text("[" * 100_000) and None, "val.json"),  # type: ignore[dict-item, return-value]
    "no JSON": (lambda data: (data / "anns" / "val.json").write_text("{") and None, "val.json"),  # type: ignore[dict-item, return-value]
    "empty training split": (_edit("train", lambda e: []), "train"),
    "level is missing": (_edit("train", lambda e: e[0]["prompts"].pop("p1") and None), "p1"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_spoiled_data_is_refused_before_anything_is_written(
    what: str, vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    spoil, says = SPOILED[what]
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    spoil(data)
    answer = vlsm("train", "--data", data, "--model", base_folder, "-o", tmp_path / "run", "--epochs", 1)
    assert answer.code == 2, answer.err
    assert len(answer.error.splitlines()) == 1, answer.err
    assert says in answer.error
    assert "Traceback" not in answer.err
    assert not (tmp_path / "run").exists()


def _pickle_model(base: Path, folder: Path) -> None:
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1)}, folder / "pytorch_model.bin")


def test_models_that_cannot_be_used(vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path) -> None:
    _pickle_model(base_folder, tmp_path / "pickle")
    shutil.copytree(base_folder, tmp_path / "short")
    weights = tmp_path / "short" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for name, says in (
        ("tiyn", "did you mean 'tiny'"),
        (tmp_path / "pickle", "a pickle can run code"),
        (tmp_path / "short", "short"),
        (phantoms, "no config.json"),
    ):
        answer = vlsm("train", "--data", phantoms, "--model", name, "-o", tmp_path / "run", "--epochs", 1)
        assert answer.code == 2, answer.err
        assert len(answer.error.splitlines()) == 1, answer.err
        assert says in answer.error
        assert not (tmp_path / "run").exists()


def test_a_run_whose_base_has_moved_says_where_to_write_its_new_place(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    run, base = tmp_path / "run", tmp_path / "base"
    run.mkdir()
    text = f"data:\n  path: {phantoms}\nmodel:\n  name: {base}\ntrain:\n  epochs: 1\n"
    (run / "config.yaml").write_text(text)
    answer = vlsm("train", "--resume", run)
    assert answer.code == 2, answer.err
    assert len(answer.error.splitlines()) == 1, answer.err
    assert f"{run / 'config.yaml'}: model.name: there is no folder '{base}' any more; write there" in answer.error
    text = text.replace(f"{base}", f"{base_folder}")
    (run / "config.yaml").write_text(text.replace(f"{phantoms}", f"{tmp_path / 'gone'}"))
    answer = vlsm("train", "--resume", run)
    assert answer.code == 2, answer.err
    assert f"data.path: there is no '{tmp_path / 'gone'}' any more; write there where the data are now" in answer.error
    (run / "config.yaml").write_text(text)
    assert vlsm("train", "--resume", run).code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train"], "data.path is missing"),
        (["train", "--data", "no/such/folder"], "no/such/folder"),
        (["train", "--data", "{data}", "--adapter", "dens"], "did you mean 'dense'"),
        (["train", "--data", "{data}", "--set", "train.lrr=1"], "did you mean 'lr'"),
        (["train", "--data", "{data}", "--config", "no.yaml"], "no.yaml"),
        (["train", "--resume", "no/run"], "not a run folder"),
        (["train", "--resume", "no/run", "--epochs", "3"], "leave the other options out"),
        (["train", "--epochs", "many"], "--epochs"),
        (["evaluate", "no/run"], "not a run folder"),
        (["evaluate"], "give a run folder"),
        (["predict", "no/run", "x.png", "--prompt", "polyp"], "x.png"),
        (["predict", "no/run", "{data}/images", "--prompt", "polyp"], "no/run"),
        (["predict", "no/run", "x.png"], "--prompt is missing"),
        (["trian"], "train"),
        (["data", "show", "{data}/images"], "{data}/images"),
    ],
)
def test_wrong_commands_say_what_is_wrong(arguments: list[str], says: str, vlsm: Callable, phantoms: Path) -> None:
    answer = vlsm(*(argument.format(data=phantoms) for argument in arguments))
    assert answer.code == 2, answer.err
    assert len(answer.error.splitlines()) == 1, answer.err
    assert says.format(data=phantoms) in answer.error
    assert "Traceback" not in answer.err


def test_a_fault_of_ours_is_one_line_and_exit_code_1(vlsm: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlsm_adapter import models

    def breaks() -> list[str]:
        raise ZeroDivisionError("one")

    monkeypatch.setattr(models, "embedded_models", breaks)
    monkeypatch.delenv("VLSM_DEBUG", raising=False)
    answer = vlsm("models")
    assert answer.code == 1
    assert "unexpected ZeroDivisionError: one" in answer.error
    assert "Traceback" not in answer.err


def test_an_evaluation_is_not_written_into_a_data_folder(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    before = sorted(path.name for path in data.rglob("*"))
    answer = vlsm("evaluate", "--model", base_folder, "--data", phantoms, "--out", data)
    assert answer.code == 2, answer.err
    assert "holds no evaluation" in answer.error
    assert sorted(path.name for path in data.rglob("*")) == before


def test_an_empty_prompt_is_refused_and_all_cases_can_be_scored(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    answer = vlsm("predict", "run", phantoms / "images", "--prompt", " ")
    assert answer.code == 2
    assert "--prompt is empty" in answer.error
    out = tmp_path / "evaluation"
    answer = vlsm("evaluate", "--model", base_folder, "--data", phantoms, "--split", "all", "--out", out)
    assert answer.code == 0, answer.err
    (table,) = out.glob("*cases.csv")
    assert len(table.read_text().splitlines()) == 1 + 10
