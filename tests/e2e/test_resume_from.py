"""The annotate-train loop: a new run from an adapter's weights, on a handful of corrected cases."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlsm_adapter.adapters.folder import WEIGHTS_NAME, read_manifest
from vlsm_adapter.data.records import load_records
from vlsm_adapter.resume_from import weights_hash

FAST = ("--epochs", 2, "--batch-size", 4, "--set", "log.tensorboard=false")


@pytest.fixture
def parent(vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path) -> Path:
    run = tmp_path / "parent"
    answer = vlsm(
        "train", "--data", phantoms, "--model", base_folder, "--adapter", "lora", "-o", run, *FAST, "--lr", 0.01,
        "--set", "adapter.settings.rank=4",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    return run


def corrections(phantoms: Path, folder: Path, count: int, split: str = "train") -> Path:
    """As the server writes them: images, masks, a manifest without splits, the image's hash as group."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    records = [record for record in load_records(phantoms)[0] if record.split == split][:count]
    lines = []
    for record in records:
        shutil.copy(record.image, folder / "images" / f"{record.case_id}.png")
        shutil.copy(record.mask, folder / "masks" / f"{record.case_id}.png")  # type: ignore[arg-type]
        row = {"image": f"images/{record.case_id}.png", "mask": f"masks/{record.case_id}.png", "text": "polyp"}
        lines.append(json.dumps({"case_id": f"c_{record.case_id}", **row, "group": record.case_id}))
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_two_commands_from_corrections_to_an_adapter(
    vlsm: Callable, phantoms: Path, parent: Path, tmp_path: Path
) -> None:
    data = corrections(phantoms, tmp_path / "corrected", 5)
    answer = vlsm("train", "--resume-from", parent, "--data", data, "-o", tmp_path / "child", *FAST)
    assert answer.code == 0, answer.err
    assert "training begins from another adapter" in answer.err
    assert "before training: validation loss" in answer.err
    config = yaml.safe_load((tmp_path / "child" / "config.yaml").read_text())
    assert config["adapter"]["method"] == "lora"
    assert config["adapter"]["settings"]["rank"] == 4
    splits = json.loads((tmp_path / "child" / "data.json").read_text())["splits"]
    assert {name: len(cases) for name, cases in splits.items()} == {"train": 4, "val": 1, "test": 0}
    trained = json.loads((parent / "data.json").read_text())["splits"]["train"]
    images = [record.image.read_bytes() for record in load_records(phantoms)[0] if record.case_id in trained]
    kept = json.loads((tmp_path / "child" / "data.json").read_text())["parent_images"]
    assert kept == sorted({hashlib.sha256(image).hexdigest() for image in images})
    own = json.loads((tmp_path / "child" / "data.json").read_text())
    sums = {file.stem: hashlib.sha256(file.read_bytes()).hexdigest() for file in (data / "images").iterdir()}
    assert own["training_images"] == sorted(sums[case.removeprefix("c_")] for case in own["splits"]["train"])
    assert own["training_images_complete"] is True
    info = read_manifest(tmp_path / "child" / "adapter").info
    digest = weights_hash(parent / "adapter")
    assert info.parent == {"sha256": digest, "data": "data"}
    assert digest in (tmp_path / "child" / "adapter" / "README.md").read_text()
    # A grandchild, from the adapter folder of the child, validated on the data that the first was trained on.
    again = vlsm(
        "train", "--resume-from", tmp_path / "child" / "adapter", "--data", data, "--val-data", phantoms,
        "-o", tmp_path / "grandchild", *FAST,
    )  # fmt: skip
    assert again.code == 0, again.err
    splits = json.loads((tmp_path / "grandchild" / "data.json").read_text())["splits"]
    assert {name: len(cases) for name, cases in splits.items()} == {"train": 5, "val": 2, "test": 0}
    own = read_manifest(tmp_path / "grandchild" / "adapter").info.parent
    assert own == {"sha256": weights_hash(tmp_path / "child" / "adapter"), "data": "corrected"}


def _put(values: dict[str, Any], key: str, value: object) -> None:
    """Set ``key`` wherever it stands."""
    for name, held in values.items():
        if name == key:
            values[name] = value
        elif isinstance(held, dict):
            _put(held, key, value)


def test_what_is_no_better_leaves_the_parent_as_it_is(
    vlsm: Callable, phantoms: Path, parent: Path, tmp_path: Path
) -> None:
    data = corrections(phantoms, tmp_path / "corrected", 5)
    run = tmp_path / "child"
    manifest = parent / "adapter" / "adapter_config.json"
    calibrated = json.loads(manifest.read_text())
    _put(calibrated, "threshold", 0.3)
    manifest.write_text(json.dumps(calibrated))
    answer = vlsm("train", "--resume-from", parent, "--data", data, "-o", run, *FAST, "--lr", 1e-12)
    assert answer.code == 0, answer.err
    assert "its threshold of 0.3 was chosen for these weights" in answer.err
    assert read_manifest(run / "adapter").info.threshold == 0.3  # so its masks are those of the parent
    assert "before training: no epoch was better" in answer.err
    assert (run / "adapter" / WEIGHTS_NAME).read_bytes() == (parent / "adapter" / WEIGHTS_NAME).read_bytes()
    # Finished runs, and runs with a saved state, no longer need the parent.
    shutil.rmtree(parent)
    assert "finished already" in vlsm("train", "--resume", run).err


def test_validation_cases_that_are_trained_on_are_left_out(
    vlsm: Callable, phantoms: Path, parent: Path, tmp_path: Path
) -> None:
    data = corrections(phantoms, tmp_path / "corrected", 1, split="val")
    answer = vlsm(
        "train", "--resume-from", parent, "--data", data, "--val-data", phantoms, "-o", tmp_path / "child", *FAST
    )
    assert answer.code == 0, answer.err
    about = json.loads((tmp_path / "child" / "data.json").read_text())
    assert {name: len(cases) for name, cases in about["splits"].items()} == {"train": 1, "val": 1, "test": 0}
    assert about["skipped"][0]["reason"] == "its image is trained on"


def test_hostile_and_mistaken_requests(vlsm: Callable, phantoms: Path, parent: Path, tmp_path: Path) -> None:
    one = corrections(phantoms, tmp_path / "one", 1)
    out = tmp_path / "child"
    for arguments, says in (
        (("--resume-from", parent, "--data", one), "--val-data DIR"),
        (("--resume-from", parent, "--data", phantoms, "--adapter", "dense"), "is 'lora'"),
        (("--resume-from", parent, "--data", phantoms, "--image-size", 64), "32 x 32"),
        (("--resume-from", parent, "--data", phantoms, "--model", "tiny"), "--model"),
        (("--resume-from", parent), "data.path is missing"),
        (("--resume-from", tmp_path, "--data", phantoms), "neither an adapter folder"),
    ):
        answer = vlsm("train", *arguments, "-o", out, *FAST)
        assert answer.code == 2, answer.err
        assert says in answer.error
        assert len(answer.error.splitlines()) == 1
        assert not out.exists()
    answer = vlsm("train", "--resume", parent, "--resume-from", parent)
    assert answer.code == 2
    assert "takes the run's own configuration" in answer.error


# -- data that names no splits -------------------------------------------------------------------------------------------


@pytest.fixture
def undivided(phantoms: Path, tmp_path: Path) -> Path:
    """The phantoms as a manifest without splits, so that runs divide them."""
    folder = tmp_path / "undivided"
    shutil.copytree(phantoms, folder / "files")
    lines = []
    for record in load_records(phantoms)[0]:
        image, mask = (f"files/{Path(str(file)).relative_to(phantoms)}" for file in (record.image, record.mask))
        lines.append(json.dumps({"case_id": record.case_id, "image": image, "mask": mask, "text": "polyp"}) + "\n")
    (folder / "records.jsonl").write_text("".join(lines))
    return folder


def splits_of(run: Path) -> dict[str, set[str]]:
    return {name: set(cases) for name, cases in json.loads((run / "data.json").read_text())["splits"].items()}


def test_the_parents_test_cases_stay_test_cases(
    vlsm: Callable, phantoms: Path, undivided: Path, base_folder: Path, tmp_path: Path
) -> None:
    parent, child = tmp_path / "parent", tmp_path / "child"
    asked = ("--model", base_folder, "--set", "data.split_seed=3", "-o", parent, *FAST)
    assert vlsm("train", "--data", undivided, *asked).code == 0
    before = splits_of(parent)
    data = corrections(phantoms, tmp_path / "corrected", 2, split="test")
    assert not {row["group"] for row in rows(data)} & before["val"]
    given = ("train", "--resume-from", parent, "--data")
    answer = vlsm(*given, data, "--val-data", undivided, "-o", child, *FAST)
    assert answer.code == 0, answer.err
    assert splits_of(child)["val"] == before["val"]
    answer = vlsm("evaluate", child, "--data", undivided, "--split", "test", "--no-zero-shot")
    assert answer.code == 0, answer.err
    (table,) = child.glob("evaluation/*/cases.csv")
    assert {line.split(",")[0] for line in table.read_text().splitlines()[1:]} == before["test"]
    # The grandchild knows it from the child, and the same data again is divided as before.
    answer = vlsm(
        "train", "--resume-from", child, "--data", data, "--val-data", undivided, "-o", tmp_path / "next", *FAST
    )
    assert answer.code == 0, answer.err
    assert splits_of(tmp_path / "next")["val"] == before["val"]
    answer = vlsm(*given, undivided, "-o", tmp_path / "same", *FAST)
    assert answer.code == 0, answer.err
    assert splits_of(tmp_path / "same") == before


def rows(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
