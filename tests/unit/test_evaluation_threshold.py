"""The threshold that --calibrate chooses: on validation cases alone, exactly as Dice is scored, stored for prediction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlsm_adapter import DenseAdapterConfig, Predictor, attach, files, load_adapter, save_adapter
from vlsm_adapter.adapters.folder import AdapterInfo, read_manifest
from vlsm_adapter.config import RunConfig
from vlsm_adapter.console import Console
from vlsm_adapter.errors import AdapterError, DataError, UserError
from vlsm_adapter.evaluate import evaluate_run
from vlsm_adapter.evaluation_folder import EvaluationFolder
from vlsm_adapter.evaluation_threshold import THRESHOLDS, dice_by_threshold, store_threshold
from vlsm_adapter.metrics import dice
from vlsm_adapter.models.base import PromptSegmenter
from vlsm_adapter.run_folder import RunFolder

SPLITS = {"train": [0, 1], "val": [2, 3, 4], "test": [5, 6]}


@given(st.integers(0, 2**32), st.floats(0, 1))
def test_dice_at_every_threshold_is_the_metric(seed: int, density: float) -> None:
    random = np.random.default_rng(seed)
    probability = random.random((6, 7), np.float32)
    probability[0, :3] = (0.5, 0.25, 0.01)  # on a threshold: not above it
    truth = random.random((6, 7)) < density
    thresholds = np.array(THRESHOLDS)
    found = dice_by_threshold(probability, truth, thresholds)
    for place in (0, 24, 49, 98):
        assert found[place] == pytest.approx(dice(probability > np.float32(thresholds[place]), truth))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    generator = np.random.default_rng(3)
    lines = []
    for split, numbers in SPLITS.items():
        for number in numbers:
            for folder in ("images", "masks"):
                (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (40, 56, 3), np.uint8)).save(root / f"images/{number}.png")
            mask = np.zeros((40, 56), np.uint8)
            mask[4 : 10 + 3 * number, 6:50] = 255
            Image.fromarray(mask).save(root / f"masks/{number}.png")
            names = {"case_id": f"case-{number}", "image": f"images/{number}.png", "mask": f"masks/{number}.png"}
            lines.append(json.dumps({**names, "prompts": {"p1": "polyp"}, "split": split}))
    files.write_text(root / "records.jsonl", "\n".join(lines) + "\n")
    return root


@pytest.fixture
def run(model: PromptSegmenter, data: Path, tmp_path: Path) -> RunFolder:
    config = RunConfig.load(None, {"data.path": str(data), "model.name": model.base_id})
    attach(model, DenseAdapterConfig(bottleneck_dim=4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    made = RunFolder(tmp_path / "run")
    files.write_text(made.config_file, config.to_yaml())
    splits = {split: [f"case-{number}" for number in numbers] for split, numbers in SPLITS.items()}
    files.write_json(made.data_file, {"path": str(data), "splits": splits, "skipped": []})
    save_adapter(model, made.adapter, info=AdapterInfo(threshold=0.9, scores={"validation Dice": 0.5}))
    return made


def test_the_best_threshold_is_stored_and_used(run: RunFolder, data: Path) -> None:
    weights = (run.adapter / "adapter_model.safetensors").read_bytes()
    before = json.loads((run.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    folder = EvaluationFolder(evaluate_run(run.path, calibrate=True, zero_shot=False))
    summary, info = folder.summary(), read_manifest(run.adapter).info
    # By hand, with the predictor and the metric.
    predictor = Predictor(load_adapter(run.adapter))
    means = np.zeros(len(THRESHOLDS))
    for number in SPLITS["val"]:
        predictor.set_image(data / f"images/{number}.png")
        (probability,) = predictor.probabilities(["polyp"])
        truth = np.asarray(Image.open(data / f"masks/{number}.png")) > 127
        means += [dice(probability > threshold, truth) / 3 for threshold in THRESHOLDS]
    assert means[THRESHOLDS.index(info.threshold)] == pytest.approx(means.max(), abs=1e-6)
    assert info.threshold != 0.9
    assert summary["split"] == "val"
    assert summary["threshold"] == info.threshold
    assert summary["adapter"]["metrics"]["dice"]["mean"] == pytest.approx(means.max(), abs=1e-6)
    assert summary["calibration"]["before"] == 0.9
    report = folder.report_file.read_text(encoding="utf-8")
    assert "The threshold was chosen on these cases" in report
    assert "3 validation cases" in report
    # The rest of the folder is as it was, and prediction uses the threshold.
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == weights
    after = json.loads((run.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    changed = ("threshold", "threshold_origin")
    assert {**after, "info": {key: value for key, value in after["info"].items() if key not in changed}} == {
        **before,
        "info": {key: value for key, value in before["info"].items() if key not in changed},
    }
    assert f"| threshold | {info.threshold:g}, chosen for mean Dice" in (run.adapter / "README.md").read_text("utf-8")
    assert Predictor.load(run.path).threshold == info.threshold
    # The test cases are scored with it, and the report says where it is from.
    tested = EvaluationFolder(evaluate_run(run.path, zero_shot=False))
    assert tested.summary()["threshold"] == info.threshold
    assert tested.summary()["calibration"] is None
    assert "chosen for mean Dice on 3 validation cases" in tested.report_file.read_text(encoding="utf-8")
    assert "flatters" not in tested.report_file.read_text(encoding="utf-8")


def test_calibrating_again_changes_nothing(run: RunFolder) -> None:
    evaluate_run(run.path, calibrate=True, zero_shot=False)
    first = read_manifest(run.adapter).info.threshold
    evaluate_run(run.path, calibrate=True, zero_shot=False)
    assert read_manifest(run.adapter).info.threshold == first


@pytest.mark.parametrize(
    "wrong", [{"split": "test"}, {"split": "all"}, {"split": "train"}, {"threshold": 0.4}, {"data": "x"}]
)
def test_other_cases_than_validation_are_refused(run: RunFolder, wrong: dict) -> None:
    before = (run.adapter / "adapter_config.json").read_bytes()
    with pytest.raises(UserError, match="--calibrate chooses the threshold on the run's own validation cases"):
        evaluate_run(run.path, calibrate=True, **wrong)
    assert (run.adapter / "adapter_config.json").read_bytes() == before


@pytest.mark.parametrize("split", ["train", "test"])
def test_cases_that_changed_sides_are_refused(run: RunFolder, split: str) -> None:
    recorded = json.loads(run.data_file.read_text(encoding="utf-8"))
    recorded["splits"][split].append("case-3")
    files.write_json(run.data_file, recorded)
    with pytest.raises(UserError, match=r"case-3 of split 'val' .* in this run"):
        evaluate_run(run.path, calibrate=True)
    assert read_manifest(run.adapter).info.threshold == 0.9


def test_bad_and_empty_cases(run: RunFolder, data: Path) -> None:
    (data / "masks/3.png").write_bytes((data / "masks/3.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"masks/3\.png"):
        evaluate_run(run.path, calibrate=True, zero_shot=False)
    folder = EvaluationFolder(evaluate_run(run.path, calibrate=True, zero_shot=False, skip_bad=True))
    assert folder.summary()["calibration"]["cases"] == 2
    assert [case["case_id"] for case in folder.summary()["skipped"]] == ["case-3"]
    for number in (2, 4):
        Image.fromarray(np.zeros((40, 56), np.uint8)).save(data / f"masks/{number}.png")
    with pytest.raises(DataError, match="no validation case has foreground"):
        evaluate_run(run.path, calibrate=True, zero_shot=False, skip_bad=True)


def test_a_run_in_training_is_left_alone(run: RunFolder) -> None:
    with run.locked(), pytest.raises(UserError, match="another process is training this run"):
        evaluate_run(run.path, calibrate=True, zero_shot=False)


def test_storing_is_all_or_nothing(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run.adapter / "adapter_config.json").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vlsm_adapter.files.os.fsync", full)
    with pytest.raises(UserError, match="cannot be written"):
        store_threshold(run.adapter, 0.3, "by hand")
    assert (run.adapter / "adapter_config.json").read_bytes() == before
    monkeypatch.undo()
    (run.adapter / "README.md").unlink()
    store_threshold(run.adapter, 0.3, "by hand")
    assert read_manifest(run.adapter).info.threshold_origin == "by hand"
    with pytest.raises(AdapterError):
        store_threshold(run.path, 0.3, "by hand")


def test_a_choice_on_a_handful_of_cases_is_said_to_be_chance(run: RunFolder) -> None:
    console, warned = Console(quiet=True), []
    console.warn = warned.append  # type: ignore[method-assign]
    evaluate_run(run.path, calibrate=True, zero_shot=False, console=console)
    said = "fewer than 10 validation cases is mostly chance: --threshold 0.9 predicts and scores with the one before"
    assert any(said in line for line in warned)
