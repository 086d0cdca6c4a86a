"""Evaluation: the same cases, the same words, native size; and what it leaves on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlsm_adapter import DenseAdapterConfig, Predictor, attach, files, save_adapter, without_adapter
from vlsm_adapter.adapters import AdapterConfig, TelescopicConfig, tuner
from vlsm_adapter.adapters.folder import AdapterInfo
from vlsm_adapter.checkpoint import Progress, save_state
from vlsm_adapter.config import RunConfig
from vlsm_adapter.console import Console
from vlsm_adapter.data.cases import load_cases
from vlsm_adapter.data.prompts import choose_prompt
from vlsm_adapter.data.records import load_records
from vlsm_adapter.errors import ConfigError, DataError, ModelError, UserError
from vlsm_adapter.evaluate import evaluate_cases, evaluate_model, evaluate_run
from vlsm_adapter.evaluation_folder import EvaluationFolder, read_scores, write_scores
from vlsm_adapter.metrics import score_case
from vlsm_adapter.models.base import PromptSegmenter
from vlsm_adapter.pictures import pick
from vlsm_adapter.resume_from import weights_hash
from vlsm_adapter.run_folder import RunFolder
from vlsm_adapter.seen_cases import images_before, kept_for_later, trained_on
from vlsm_adapter.sharing.facts import gather
from vlsm_adapter.types import CaseScore, Record

SIZES = ((40, 56), (64, 48), (33, 71))


def write_data(root: Path) -> Path:
    """Ten cases of three sizes: an image with two masks, an empty mask, known spacing, groups, two prompt levels."""
    generator = np.random.default_rng(3)
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    lines = []
    for number in range(10):
        height, width = SIZES[number % 3]
        shared = number == 4  # asks another thing of the image of case 3
        image = f"images/{3 if shared else number}.png"
        if shared:
            height, width = SIZES[0]
        else:
            Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)).save(root / image)
        mask = np.zeros((height, width), np.uint8)
        if number != 5:
            mask[4 : 10 + 2 * number, 6:30] = 255
        Image.fromarray(mask).save(root / f"masks/{number}.png")
        row = {
            "case_id": f"case-{number}",
            "image": image,
            "mask": f"masks/{number}.png",
            "prompts": {
                "p1": "no polyp" if number == 5 else "polyp",
                "p2": ["small polyp", "round polyp", "left polyp"],
            },
            "split": "train" if number < 2 else "val" if number == 2 else "test",
            "group": f"patient-{number // 2}",
        }
        if number == 6:
            row["spacing"] = [0.5, 0.25]
        lines.append(json.dumps(row))
    files.write_text(root / "records.jsonl", "\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "polyps")


@pytest.fixture
def records(data: Path) -> list[Record]:
    return [record for record in load_records(data)[0] if record.split == "test"]


@pytest.fixture
def make_run(model: PromptSegmenter, tmp_path: Path) -> Callable[..., Path]:
    """``make_run(data, **changes)``: a run as training leaves it, with an adapter that changes what the model says."""

    def make(data: Path, adapter: AdapterConfig | None = None, **changes: object) -> Path:
        config = RunConfig.load(None, {"data.path": str(data), "model.name": model.base_id, **changes})
        attach(model, adapter or DenseAdapterConfig(bottleneck_dim=4))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
        run = RunFolder(tmp_path / "run")
        files.write_text(run.config_file, config.to_yaml())
        cases = {"train": ["case-0", "case-1"], "val": ["case-2"], "test": [f"case-{n}" for n in range(3, 10)]}
        files.write_json(run.data_file, {"path": str(data), "splits": cases, "skipped": []})
        files.write_text(
            run.metrics_file, "epoch,train_loss,val_loss,val_dice\n1,1.5,1.4,0.3\n2,1.2,1.25,0.5\n3,1.1,nan,0.6\n"
        )
        save_adapter(model, run.adapter, info=AdapterInfo(threshold=0.45))
        return run.path

    return make


def same(one: CaseScore, other: CaseScore) -> bool:
    return one.row() == other.row()


def test_a_run_in_place_of_its_evaluation_names_it(tmp_path: Path) -> None:
    (tmp_path / "run" / "evaluation" / "test-p1").mkdir(parents=True)
    files.write_json(tmp_path / "run" / "evaluation" / "test-p1" / "summary.json", {})
    with pytest.raises(UserError, match=r"run: not an evaluation, .*; give '.*run/evaluation/test-p1'$"):
        EvaluationFolder(tmp_path / "run").summary()


def test_data_of_one_name_keep_their_evaluations_apart(
    make_run: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    run = make_run(data)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = tmp_path / "a" / "site.v1", tmp_path / "b" / "site.v1"
    shutil.copytree(data, first)
    shutil.copytree(data, second)
    folders = [evaluate_run(run, data=place, zero_shot=False) for place in (first, second, first, second)]
    assert folders[0].name == "site.v1-test-p1"
    assert folders[1].name.startswith("site.v1-test-p1-")
    assert folders[2:] == folders[:2]
    told = [EvaluationFolder(folder).summary()["data"]["path"] for folder in folders[:2]]
    assert told == [str(first), str(second)]


def test_data_that_have_moved_are_still_the_runs_own(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write_data(here)
    rows = [json.loads(line) for line in (here / "records.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("split"), row.pop("group")
    files.write_text(here / "records.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    run = RunFolder(make_run(here, **{"data.prompt": "small polyp", "data.fold": "2/5"}))
    cases = load_cases(here, division=run.config().data.division())
    splits = {name: [r.case_id for r in cases.all if r.split == name] for name in ("train", "val", "test")}
    training = [record for record in cases.all if record.split == "train"]
    files.write_json(
        run.data_file, {"path": str(here), "splits": splits, "skipped": [], **kept_for_later(run, training)}
    )
    shutil.copytree(here, there)
    assert evaluate_run(run.path, zero_shot=False).name == "test-p1"
    copied = EvaluationFolder(
        evaluate_run(run.path, data=there, zero_shot=False)
    )  # other data, as long as both are there
    assert copied.path.name == "there-test-p1"
    shutil.rmtree(here)
    with pytest.raises(DataError, match=r"here: the run's data are no longer there; say where they are: --data DIR$"):
        evaluate_run(run.path)
    moved = EvaluationFolder(evaluate_run(run.path, data=there, zero_shot=False))
    assert moved.path.name == "test-p1"
    assert [score.case_id for score in read_scores(moved.cases_file)[0]] == splits["test"]
    assert {score.prompt for score in read_scores(moved.cases_file)[0]} == {"small polyp"}
    assert moved.summary()["training_cases"] == {"seen_in_training": 0, "copies_of_training": 0, "new": 0, "gone": 0}
    assert evaluate_run(run.path, data=there, calibrate=True, zero_shot=False).name == "val-p1"
    # Another image under the name of a training case: other data.
    changed = there / "images" / training[0].image.name
    with Image.open(changed) as picture:
        picture.transpose(Image.Transpose.ROTATE_180).save(changed)
    assert evaluate_run(run.path, data=there, prompt="polyp", zero_shot=False).name == "there-test-p1"


@pytest.mark.parametrize(
    ("progress", "told", "kept"),
    [
        (
            Progress(epoch=2, best_epoch=1),
            "2 of 30 epochs are done; the adapter is the best so far, of epoch 1",
            (2, 1),
        ),
        (Progress(epoch=1), "1 of 30 epochs are done; the adapter is the one it began from", (1, 0)),
        (Progress(epoch=30, best_epoch=3, finished="all 30 epochs"), None, None),
        (None, None, None),
    ],
)
def test_a_run_that_is_not_finished_says_so(
    make_run: Callable[..., Path],
    data: Path,
    progress: Progress | None,
    told: str | None,
    kept: tuple[int, int] | None,
) -> None:
    run = RunFolder(make_run(data))
    layer = torch.nn.Linear(1, 1)
    if progress is None:
        run.state_file.write_bytes(b"damaged: of no use for scores")
    else:
        save_state(run.state_file, layer, torch.optim.SGD(layer.parameters(), lr=0.1), progress)
    heard: list[str] = []
    console = Console(quiet=True)
    console.warn = heard.append  # type: ignore[method-assign]
    folder = EvaluationFolder(evaluate_run(run.path, zero_shot=False, console=console))
    so_far = folder.summary()["unfinished"]
    report = folder.report_file.read_text()
    if told is None:
        assert so_far is None
        assert not any("not finished" in line for line in heard)
        assert "not finished" not in report
    else:
        assert so_far == {"epochs_done": kept[0], "epochs": 30, "best_epoch": kept[1]}  # type: ignore[index]
        (line,) = [line for line in heard if "not finished" in line]
        assert told in line
        assert f"vlsm train --resume {run.path}" in line
        assert "**Training was not finished**" in report


# -- scores --------------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_predictor_case_by_case(model: PromptSegmenter, records: list[Record]) -> None:
    done: list[int] = []
    scores = evaluate_cases(model, records, level="p1", threshold=0.48, batch_size=3, progress=done.append)
    assert [score.case_id for score in scores] == [record.case_id for record in records]
    assert done == sorted(done)
    assert done[-1] == len(records) == 7
    predictor = Predictor(model, 0.48)
    for record, score in zip(records, scores, strict=True):
        predictor.set_image(record.image)
        text = record.prompts["p1"][0]
        assert record.mask is not None
        truth = np.asarray(Image.open(record.mask)) > 127
        expected = score_case(
            predictor.predict([text])[0], truth, case_id=record.case_id, prompt=text, spacing=record.spacing
        )
        assert score.prompt == text
        assert score.unit == ("mm" if record.case_id == "case-6" else "px")
        assert score.emptiness == expected.emptiness
        for metric, value in expected.values.items():
            assert score.values[metric] == pytest.approx(value, abs=0.02 if metric != "hd95" else 1.5)


def test_the_batch_size_does_not_matter(model: PromptSegmenter, records: list[Record]) -> None:
    one = evaluate_cases(model, records, batch_size=1)
    all_at_once = evaluate_cases(model, records, batch_size=64)
    for a, b in zip(one, all_at_once, strict=True):
        assert a.values["dice"] == pytest.approx(b.values["dice"], abs=0.01)


def test_an_image_of_several_masks_is_encoded_once(
    model: PromptSegmenter, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    evaluate_cases(model, records, batch_size=4)
    assert encoded == [4, 2]  # seven cases of six images


def test_words_are_chosen_by_case_and_seed_alone(model: PromptSegmenter, records: list[Record]) -> None:
    first = {score.case_id: score.prompt for score in evaluate_cases(model, records, level="p2")}
    again = {score.case_id: score.prompt for score in evaluate_cases(model, records[::-1], level="p2", batch_size=2)}
    assert again == first
    assert len(set(first.values())) > 1
    with pytest.raises(DataError, match=r"no prompt level 'p9'"):
        evaluate_cases(model, records, level="p9")


def test_a_case_without_mask_cannot_be_scored(model: PromptSegmenter, records: list[Record]) -> None:
    with pytest.raises(DataError, match="has no mask"):
        evaluate_cases(model, [Record("x", records[0].image, prompts={"p1": ("polyp",)})])
    with pytest.raises(UserError, match="batch size"):
        evaluate_cases(model, records, batch_size=0)
    assert evaluate_cases(model, []) == []


# -- a run ---------------------------------------------------------------------------------------------------------------


def test_a_run_is_scored_beside_its_base(
    make_run: Callable[..., Path], data: Path, model: PromptSegmenter, records: list[Record]
) -> None:
    run = make_run(data)
    folder = EvaluationFolder(evaluate_run(run))
    assert folder.path == run / "evaluation" / "test-p1"
    adapter, groups = read_scores(folder.cases_file)
    zero_shot, _ = read_scores(folder.zero_shot_file)
    expected = evaluate_cases(model, records, threshold=0.45)
    assert all(same(a, b) for a, b in zip(adapter, expected, strict=True))
    with without_adapter(model):
        expected = evaluate_cases(model, records, threshold=0.45)
    assert all(same(a, b) for a, b in zip(zero_shot, expected, strict=True))
    assert groups["case-8"] == "patient-4"

    summary = folder.summary()
    assert (summary["split"], summary["level"], summary["threshold"]) == ("test", "p1", 0.45)
    assert summary["adapter"]["n_cases"] == summary["zero_shot"]["n_cases"] == 7
    assert summary["adapter"]["bootstrap"]["resampled"] == "group"
    assert summary["adapter"]["n_groups"] == 4
    assert summary["adapter"]["metrics"]["hd95"]["unit"] == "mixed"
    gain = summary["paired_difference"]["dice"]
    assert gain["mean_difference"] == pytest.approx(
        summary["adapter"]["metrics"]["dice"]["mean"] - summary["zero_shot"]["metrics"]["dice"]["mean"]
    )
    assert summary["paired_difference_truth_foreground"]["dice"]["n"] == 6
    assert summary["prompts"]["leaks"] is False
    assert summary["prompts"]["reveal_emptiness"] == summary["prompts"]["reveal_emptiness_truly_empty"] == 1
    assert summary["base"]["sha256"] == model.base_hash
    trainable = sum(tensor.numel() for name, tensor in model.named_parameters() if ".default." in name)
    assert summary["trained_adapter"]["trainable_parameters"] == trainable
    assert summary["trained_adapter"]["sha256"] == weights_hash(run / "adapter")
    assert summary["base"]["parameters"] == sum(tensor.numel() for tensor in model.parameters()) - trainable
    assert summary["training_cases"] == {"seen_in_training": 0, "copies_of_training": 0, "new": 0, "gone": 0}
    assert summary["versions"]["torch"] == torch.__version__
    assert summary["seconds"] > 0

    report = folder.report_file.read_text(encoding="utf-8")
    for text in (
        "adapter",
        "zero-shot",
        "| Dice (higher is better) |",
        "## Empty masks",
        "images/best.png",
        "HD95 (mm",
    ):
        assert text in report
    ranks = {"best", "median", "worst"}
    assert {picture["rank"] for picture in summary["pictures"]} == ranks
    for rank in ranks:
        with Image.open(folder.images / f"{rank}.png") as picture:
            assert picture.width > 4 * 256
    assert "case-5" not in {picture["case_id"] for picture in summary["pictures"]}  # nothing to see there
    assert (folder.images / "learning_curve.svg").is_file()


def test_options_change_what_they_say(make_run: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    run = make_run(data, **{"data.eval_level": "p2"})
    folder = EvaluationFolder(evaluate_run(run, split="val", threshold=0.6, zero_shot=False, nsd_tolerance=4))
    assert folder.path.name == "val-p2"
    summary = folder.summary()
    assert (summary["threshold"], summary["nsd_tolerance"], summary["prompts"]["leaks"]) == (0.6, 4, True)
    assert "zero_shot" not in summary
    assert "paired_difference" not in summary
    assert not folder.zero_shot_file.exists()
    report = folder.report_file.read_text(encoding="utf-8")
    assert "may have been drawn from the true mask" in report
    assert "zero-shot" not in report
    other = write_data(tmp_path / "elsewhere")
    assert evaluate_run(run, data=other, level="p1").name == "elsewhere-test-p1"
    assert evaluate_run(run, level="p1", out=tmp_path / "mine") == tmp_path / "mine"


def test_in_8_bits_the_scores_stand_beside_those_of_float32(make_run: Callable[..., Path], data: Path) -> None:
    run = make_run(data)
    exact, fast = evaluate_run(run, zero_shot=False), evaluate_run(run, zero_shot=False, precision="int8")
    assert fast.name == f"{exact.name}-int8"
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (exact, fast)]
    assert [summary["precision"].split(":")[0] for summary in summaries] == ["fp32", "int8"]
    assert "answers in int8" in (fast / "report.md").read_text(encoding="utf-8")
    with pytest.raises(ModelError, match="precision 'int4' is unknown"):
        evaluate_run(run, precision="int4")


def test_a_later_evaluation_leaves_nothing_of_an_earlier_one(
    make_run: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    run = make_run(data)
    folder = EvaluationFolder(evaluate_run(run))
    assert folder.zero_shot_file.exists()
    evaluate_run(run, zero_shot=False)
    assert not folder.zero_shot_file.exists()
    assert "paired_difference" not in folder.summary()
    before = folder.summary_file.read_bytes()
    with pytest.raises(DataError):  # and one that fails leaves the earlier one whole
        evaluate_run(run, level="p9", out=folder.path)
    assert folder.summary_file.read_bytes() == before


def test_an_evaluation_killed_while_its_files_took_their_places_is_made_anew(
    make_run: Callable[..., Path], data: Path
) -> None:
    run = make_run(data)
    folder = EvaluationFolder(evaluate_run(run, zero_shot=False))
    (folder.path / ".new-abc").mkdir()
    folder.summary_file.unlink()
    evaluate_run(run, zero_shot=False, out=folder.path)
    assert folder.summary()["adapter"]


def test_a_full_disk_leaves_the_earlier_evaluation(
    make_run: Callable[..., Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(data)
    folder = evaluate_run(run)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    write = files.write_json

    def full(path: Path, value: object) -> None:
        if path.name == "summary.json":
            raise UserError(f"{path}: cannot be written (No space left on device)")
        write(path, value)

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(UserError, match="No space left"):
        evaluate_run(run, threshold=0.6)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    assert not list(folder.glob(".new-*"))


def test_the_level_random_asks_every_case_one_level_for_ever_and_leaks(
    make_run: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    run = make_run(data, **{"data.eval_level": "random"})
    first, second = evaluate_run(run), evaluate_run(run, out=tmp_path / "again")
    assert first.name == "test-random"
    assert (first / "cases.csv").read_bytes() == (second / "cases.csv").read_bytes()
    asked = {score.case_id: score.prompt for score in read_scores(EvaluationFolder(first).cases_file)[0]}
    cases = [record for record in load_records(data)[0] if record.split == "test"]
    assert asked == {record.case_id: choose_prompt(record, "random") for record in cases}
    assert {len(prompt.split()) for prompt in asked.values()} == {1, 2}  # p1 and p2
    prompts = EvaluationFolder(first).summary()["prompts"]
    assert (prompts["level"], prompts["leaks"]) == ("random", True)


def test_arguments_are_checked(make_run: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    run = make_run(data)
    for options, says in (
        ({"split": "tset"}, "did you mean 'test'"),
        ({"threshold": 3}, "from 0 to 1"),
        ({"nsd_tolerance": -1}, "tolerance"),
        ({"batch_size": 0}, "batch size"),
        ({"data": tmp_path / "absent"}, "no such folder"),
        ({"out": run / "config.yaml"}, "is a file"),
    ):
        with pytest.raises(UserError, match=says) as error:
            evaluate_run(run, **options)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="not a run folder"):
        evaluate_run(tmp_path / "absent")
    files.write_text(run / "data.json", "{")
    with pytest.raises(UserError, match=r"data\.json: damaged"):
        evaluate_run(run)


def test_bad_cases_stop_it_or_are_listed(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "polyps")
    run = make_run(data)
    broken = data / "images" / "7.png"
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2])  # the header is sound
    with pytest.raises(DataError, match=r"7\.png"):
        evaluate_run(run)
    assert not EvaluationFolder(run / "evaluation" / "test-p1").summary_file.exists()
    folder = EvaluationFolder(evaluate_run(run, skip_bad=True))
    summary = folder.summary()
    assert summary["adapter"]["n"] == summary["zero_shot"]["n"] == 6
    assert [case["case_id"] for case in summary["skipped"]] == ["case-7"]
    assert "7.png" in summary["skipped"][0]["reason"]
    assert "case-7" in folder.report_file.read_text(encoding="utf-8")
    for number in (3, 5, 6, 8, 9):
        (data / "images" / f"{number}.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"no usable case"):
        evaluate_run(run, skip_bad=True)


def test_cases_that_were_trained_on_are_counted(make_run: Callable[..., Path], data: Path) -> None:
    run = make_run(data)
    values = json.loads((run / "data.json").read_text())
    values["splits"]["train"].append("case-9")
    values["splits"]["test"].remove("case-9")
    files.write_json(run / "data.json", values)
    folder = EvaluationFolder(evaluate_run(run, zero_shot=False))
    assert folder.summary()["training_cases"] == {"seen_in_training": 1, "copies_of_training": 0, "new": 1, "gone": 0}
    assert "**1 case of this split were trained on**" in folder.report_file.read_text(encoding="utf-8")


def test_copies_of_training_images_in_the_own_test_split_are_counted(make_run: Callable[..., Path], data: Path) -> None:
    run = make_run(data)
    records = {record.case_id: record for record in load_records(data)[0]}
    values = json.loads((run / "data.json").read_text())
    splits = values["splits"]
    values["training_images"] = [hashlib.sha256(records[one].image.read_bytes()).hexdigest() for one in splits["train"]]
    files.write_json(run / "data.json", values)
    before = records[splits["test"][0]].image.read_bytes()
    try:
        shutil.copyfile(records[splits["train"][0]].image, records[splits["test"][0]].image)
        folder = EvaluationFolder(evaluate_run(run, zero_shot=False))
    finally:
        records[splits["test"][0]].image.write_bytes(before)
    training = folder.summary()["training_cases"]
    shared = sum(
        records[one].image == records[splits["test"][0]].image for one in splits["test"]
    )  # cases of that image
    assert (training["seen_in_training"], training["copies_of_training"]) == (0, shared)
    assert "an image that was trained on under another name**" in folder.report_file.read_text(encoding="utf-8")
    (run / "metrics.csv").unlink()  # of another form than training's
    assert [one.seen for one in gather(run).evaluations] == [shared]


def test_cases_of_given_data_that_were_trained_on_are_counted_and_not_shared_as_external(
    make_run: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    run = make_run(data)
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    for given, split, count in ((data, "all", 2), (copy, "all", 2), (data, "test", 0)):
        folder = EvaluationFolder(evaluate_run(run, data=given, split=split, zero_shot=False))
        assert folder.summary()["trained_on"] == count
        told = "of this data were trained on**" in folder.report_file.read_text(encoding="utf-8")
        assert told == bool(count)
    (run / "metrics.csv").unlink()  # of another form than training's
    shared = [(one.split, one.seen, one.held_out, one.own_data) for one in gather(run).evaluations]
    assert sorted(shared) == [("all", 2, False, True), ("all", 2, False, True), ("test", 0, True, True)]
    # Of an image that was trained on and has gone, nobody can say whether a case shows it.
    case = json.loads((run / "data.json").read_text())["splits"]["train"][0]
    image = next(record.image for record in load_records(data)[0] if record.case_id == case)
    kept = image.read_bytes()
    image.unlink()
    folder = EvaluationFolder(evaluate_run(run, data=copy, split="all", zero_shot=False))
    assert (folder.summary()["trained_on"], folder.summary()["trained_on_known"]) == (1, False)
    assert "it may have seen more of these cases" in folder.report_file.read_text(encoding="utf-8")
    image.write_bytes(kept)
    # Where the run's own data has gone, nothing is known.
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace(str(data), str(tmp_path / "gone")))
    folder = EvaluationFolder(evaluate_run(run, data=copy, split="all", zero_shot=False))
    assert folder.summary()["trained_on"] is None
    assert "it may have seen some of these cases" in folder.report_file.read_text(encoding="utf-8")
    # The first evaluation was of another folder, when the data was there.
    again = next(one for one in gather(run).evaluations if one.data == "copy")
    assert (again.seen, again.held_out) == (None, False)


def test_validation_cases_of_other_data_are_those_of_training(
    make_run: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    other = write_data(tmp_path / "other")
    rows = [json.loads(line) for line in (other / "records.jsonl").read_text().splitlines()]
    for row, split in ((rows[2], "test"), (rows[4], "val")):
        row["split"] = split
    (other / "records.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    run = make_run(data, **{"data.val_path": str(other)})
    values = json.loads((run / "data.json").read_text())
    values["splits"]["val"] = ["val-case-4"]  # as training calls it: there is a case-4 among its own
    files.write_json(run / "data.json", values)
    folder = EvaluationFolder(evaluate_run(run, split="val", zero_shot=False))
    assert [score.case_id for score in read_scores(folder.cases_file)[0]] == ["val-case-4"]
    assert folder.summary()["training_cases"]["gone"] == folder.summary()["training_cases"]["new"] == 0


def test_images_that_training_kept_are_known_whatever_becomes_of_its_data(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    data = write_data(tmp_path / "polyps")
    run = RunFolder(make_run(data))
    records = load_records(data)[0]
    training = [record for record in records if record.case_id in run.data()["splits"]["train"]]
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    before, first = run.data(), training[0]
    files.write_json(run.data_file, {**before, **kept_for_later(run, training)})
    Image.fromarray(np.full((40, 56, 3), 9, np.uint8)).save(first.image)  # another image under the old name
    given = load_records(copy)[0]

    def seen() -> tuple[int | None, bool]:
        found = trained_on(run, given, Console(quiet=True))
        return found.count, found.known

    assert seen() == (len(training), True)
    # The same of a run of before images were kept: what has been trained on is not found.
    kept = run.data()
    files.write_json(run.data_file, before)
    assert seen() == (len(training) - 1, True)
    # A resumed run has seen both, one that begins anew only what is there now.
    files.write_json(run.data_file, kept)
    files.write_text(run.state_file, "")
    assert len(kept_for_later(run, training)["training_images"]) == len(training) + 1
    assert kept_for_later(run, training)["training_images_complete"] is True
    files.write_json(run.data_file, before)  # an older version did not keep what the run has seen so far
    assert kept_for_later(run, training)["training_images_complete"] is False
    files.write_json(run.data_file, kept)
    run.state_file.unlink()
    assert len(kept_for_later(run, training)["training_images"]) == len(training)
    first.image.unlink()
    assert kept_for_later(run, training)["training_images_complete"] is False
    shutil.rmtree(data)
    assert seen() == (len(training), True)
    lines = (copy / "records.jsonl").read_text().splitlines(keepends=True)
    files.write_text(copy / "records.jsonl", "".join(lines[1:]))  # without a case of training: other data
    folder = EvaluationFolder(evaluate_run(run.path, data=copy, split="test", zero_shot=False))
    assert (folder.summary()["trained_on"], folder.summary()["trained_on_known"]) == (0, True)
    files.write_json(run.data_file, {**kept, "training_images_complete": False})
    assert seen() == (len(training), False)
    for damaged in ("no list", [1], ["zz"], ["00"]):  # as if nothing were kept
        files.write_json(run.data_file, {**kept, "training_images": damaged})
        assert seen() == (None, False)


def test_cases_that_the_parent_was_trained_on_are_counted(
    make_run: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    first = make_run(data)
    parent, child = tmp_path / "parent", tmp_path / "child"
    shutil.copytree(first, parent)
    shutil.copytree(first, child)
    corrected = write_data(tmp_path / "corrected")  # the child is trained on one image of its own
    Image.fromarray(np.full((40, 56, 3), 7, np.uint8)).save(corrected / "images" / "0.png")
    values = json.loads((child / "data.json").read_text())
    values["splits"]["train"] = ["case-0"]
    files.write_json(child / "data.json", values)
    began = {
        "adapter.resume_from": str(parent / "adapter"),
        "adapter.parent": {"sha256": weights_hash(parent / "adapter")},
        "data.path": str(corrected),
    }
    config = RunConfig.load(child / "config.yaml", began)
    files.write_text(child / "config.yaml", config.to_yaml())

    def seen(given: Path) -> tuple[int | None, int]:
        warned.clear()
        found = trained_on(RunFolder(child), load_records(given)[0], console)
        return found.count, found.before

    warned: list[str] = []
    console = Console(quiet=True)
    console.warn = console.say = warned.append  # type: ignore[method-assign, assignment]
    assert seen(data) == (2, 2)
    assert warned == [
        "2 of 10 cases were trained on (2 of them by the adapter that training began from): give data that training has "
        "not seen"
    ]
    assert seen(corrected) == (2, 1)
    folder = EvaluationFolder(evaluate_run(child, data=data, split="all", zero_shot=False))
    assert (folder.summary()["trained_on"], folder.summary()["trained_on_before"]) == (2, 2)
    assert "trained on**, 2 of them by the adapter" in folder.report_file.read_text(encoding="utf-8")
    # What training kept of it is enough, wherever the parent is by then.
    kept = sorted(digest.hex() for digest in images_before(RunFolder(child)).digests)
    assert len(kept) == 2
    shutil.rmtree(parent)
    assert seen(data) == (0, 0)
    assert "is not known here" in warned[0]
    folder = EvaluationFolder(evaluate_run(child, data=corrected, split="test", zero_shot=False))
    assert (folder.summary()["trained_on"], folder.summary()["trained_on_known"]) == (0, False)
    assert "it may have seen some of these cases" in folder.report_file.read_text(encoding="utf-8")
    own = EvaluationFolder(evaluate_run(child, zero_shot=False))
    assert "it may have seen some of these cases" in own.report_file.read_text(encoding="utf-8")
    (child / "metrics.csv").unlink()
    assert [(one.seen, one.held_out) for one in gather(child).evaluations if one.split == "test"] == [(None, False)] * 2
    for complete in (True, False):
        files.write_json(child / "data.json", {**values, "parent_images": kept, "parent_images_complete": complete})
        assert seen(data) == (2, 2)
        assert any("is not known here" in line for line in warned) != complete
        assert trained_on(RunFolder(child), load_records(corrected)[0], console).known == complete


def test_own_cases_that_the_parent_was_trained_on_are_counted(
    make_run: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    run = make_run(data, **{"adapter.resume_from": "acme/polyp", "adapter.parent": {}})
    values = json.loads((run / "data.json").read_text())
    (run / "metrics.csv").unlink()
    for numbers, seen in (((0, 6, 7), 2), ((0, 1), 0)):  # 0 and 1 were trained on by the run, too
        digests = [hashlib.sha256((data / "images" / f"{number}.png").read_bytes()).hexdigest() for number in numbers]
        files.write_json(run / "data.json", {**values, "parent_images": digests})
        folder = EvaluationFolder(evaluate_run(run, zero_shot=False))
        (one,) = gather(run).evaluations
        assert (one.seen, one.held_out) == (seen, not seen)
        report = folder.report_file.read_text(encoding="utf-8")
        assert ("**2 cases of this split were trained on by the adapter" in report) == bool(seen)
        assert "may have seen" not in report


# -- a base model alone --------------------------------------------------------------------------------------------------


def test_a_base_alone_scores_as_zero_shot_beside_an_adapter(
    make_run: Callable[..., Path], data: Path, base_folder: Path, tmp_path: Path, model: PromptSegmenter
) -> None:
    run = make_run(data)
    beside, _ = read_scores(EvaluationFolder(evaluate_run(run, threshold=0.5)).zero_shot_file)
    alone = EvaluationFolder(evaluate_model(base_folder, data, out=tmp_path / "alone"))
    assert not alone.cases_file.exists()
    scores, _ = read_scores(alone.zero_shot_file)
    assert all(same(a, b) for a, b in zip(scores, beside, strict=True))
    summary = alone.summary()
    assert summary["trained_adapter"] is None
    assert "adapter" not in summary
    assert "(zero-shot)" in alone.report_file.read_text(encoding="utf-8")
    loaded = EvaluationFolder(evaluate_model(model, data, out=tmp_path / "loaded"))  # its adapter is put out of use
    scores, _ = read_scores(loaded.zero_shot_file)
    assert all(same(a, b) for a, b in zip(scores, beside, strict=True))


def test_the_default_folder_of_a_base_is_named_after_what_it_holds(
    data: Path, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = evaluate_model(base_folder, data, split="val")
    assert folder == Path("evaluation") / "polyps-small-clipseg-val-p1"
    with pytest.raises(ConfigError, match="split"):
        evaluate_model(base_folder, data, split="dev")


# -- small parts ---------------------------------------------------------------------------------------------------------


def score(case_id: str, dice: float, truth: int = 10) -> CaseScore:
    return CaseScore(case_id, 'a, "b"\n|', {"dice": dice, "iou": dice / 3}, "px", "none", truth, 5)


def test_best_median_and_worst_have_something_to_find() -> None:
    scores = [score("b", 0.5), score("a", 0.5), score("empty", 1.0, truth=0), score("c", 0.9), score("d", 0.1)]
    assert {rank: one.case_id for rank, one in pick(scores).items()} == {"best": "c", "median": "a", "worst": "d"}
    assert list(pick(scores[:2])) == ["best", "worst"]
    assert list(pick(scores[:1])) == ["best"]
    assert pick([score("e", 1.0, truth=0)])["best"].case_id == "e"
    assert pick([]) == {}


def test_a_table_of_scores_reads_back_equal(tmp_path: Path) -> None:
    scores = [score("a,\n", 1 / 3), score("ö", 1e-17)]
    write_scores(tmp_path / "cases.csv", scores, {"ö": "patient"})
    read, groups = read_scores(tmp_path / "cases.csv")
    assert read == scores
    assert groups == {"a,\n": None, "ö": "patient"}
    write_scores(tmp_path / "empty.csv", [])
    assert read_scores(tmp_path / "empty.csv") == ([], {})


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "case_id,prompt,dice,unit,emptiness,truth_area,predicted_area\na,b,x,px,none,1,1\n"]
)
def test_another_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(UserError, match=r"cases\.csv"):
        read_scores(tmp_path / "cases.csv")
    with pytest.raises(UserError, match="no such file"):
        read_scores(tmp_path / "absent.csv")


def test_running_statistics_are_no_trainable_parameters(
    data: Path, make_run: Callable[..., Path], model: PromptSegmenter
) -> None:
    run = make_run(data, TelescopicConfig(variant="published"))
    summary = EvaluationFolder(evaluate_run(run, zero_shot=False)).summary()
    trainable = sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)
    assert summary["trained_adapter"]["trainable_parameters"] == trainable
    held = tuner.state_dict(model, "default")
    assert sum(tensor.numel() for tensor in held.values()) > trainable  # it has buffers
