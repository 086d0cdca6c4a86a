"""Prompt sensitivity: 0 for a model deaf to words, 1 for one that listens, and what lies between."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlsm_adapter import files
from vlsm_adapter.data.describing.classes import Classes
from vlsm_adapter.data.describing.measure import POSITIONS, describe
from vlsm_adapter.data.describing.phrases import places_in
from vlsm_adapter.data.images import read_image, read_mask
from vlsm_adapter.data.probes import OPPOSITES, PAIRS
from vlsm_adapter.data.records import load_records
from vlsm_adapter.errors import DataError, UserError
from vlsm_adapter.evaluate import evaluate_model
from vlsm_adapter.evaluation_folder import EvaluationFolder
from vlsm_adapter.examples import EXAMPLES
from vlsm_adapter.models.base import PromptSegmenter
from vlsm_adapter.prober import Prober
from vlsm_adapter.report import write_report
from vlsm_adapter.sensitivity import LEAST_FOUND, PairScore, of_all_kinds, sensitivity
from vlsm_adapter.types import Record

Model = Callable[[Record, np.ndarray, str], np.ndarray]


def write_data(root: Path, *, two_classes: bool = False) -> Path:
    """Sixteen red discs on green, left and right, small and large; with ``two_classes`` another beside each; one is missing."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rows, columns = np.mgrid[:80, :100]
    lines = []
    for number in range(16):
        mask = np.hypot(rows - 40, columns - (20 if number % 2 else 79)) < (18.5 if number % 4 < 2 else 7)
        if number == 15:
            mask[:] = False
        image = np.full((80, 100, 3), (70, 150, 80), np.uint8)
        image[mask] = (190, 40, 40)
        Image.fromarray(mask.astype(np.uint8) * 255).save(root / "masks" / f"{number}.png")
        row = {"case_id": str(number), "image": f"images/{number}.png", "mask": f"masks/{number}.png"}
        row |= {"prompts": {"p1": "polyp", "p2": "round polyp"}, "split": "test", "group": f"g{number // 4}"}
        lines.append(row)
        if two_classes:
            other = np.hypot(rows - 40, columns - 50) < 8
            image[other] = (60, 60, 190)
            Image.fromarray(other.astype(np.uint8) * 255).save(root / "masks" / f"{number}b.png")
            lines.append(
                {**row, "case_id": f"{number}b", "mask": f"masks/{number}b.png", "prompts": {"p1": "instrument"}}
            )
        Image.fromarray(image).save(root / "images" / f"{number}.png")
    files.write_text(root / "records.jsonl", "\n".join(map(json.dumps, lines)) + "\n")
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "polyps")


def ask(records: list[Record], *models: Model, seed: int = 0) -> Prober:
    """A prober that has asked ``models`` (as "adapter" and "zero_shot") everything."""
    prober = Prober(records, records, Classes.load(), seed)
    for index, record in enumerate(records):
        truth = read_mask(record.mask, record.mask_value)  # type: ignore[arg-type]
        asked = record.prompts["p1"][0]
        texts = [asked, *prober.texts(index, asked, read_image(record.image), truth)]

        def answers(
            model: Model, record: Record = record, truth: np.ndarray = truth, texts: list[str] = texts
        ) -> Iterator:
            return ((text, model(record, truth, text)) for text in texts)

        for name, model in zip(("adapter", "zero_shot"), models, strict=False):
            prober.take(name, index, truth, answers(model))
    return prober


def deaf(record: Record, truth: np.ndarray, text: str) -> np.ndarray:
    """Marks the object, a little off, whatever is said."""
    return np.roll(truth, 4, axis=1)


def oracle(record: Record, truth: np.ndarray, text: str) -> np.ndarray:
    """Marks what the words are true of, and nothing where they are not."""
    masks = {"polyp": truth}
    if record.case_id.endswith("b"):
        masks = {"surgical instrument": truth, "instrument": truth, "polyp": _sibling(record, "")}
    elif _sibling(record, "b") is not None:
        masks["surgical instrument"] = _sibling(record, "b")
    named = next((name for name in masks if name in text), None)
    if named is None:
        return np.zeros_like(truth)
    mask = masks[named]
    words = describe(mask, read_image(record.image))
    said = places_in(text)
    true = {words.shape, words.colour, words.size}
    adjectives = set(text.split()) & (set(OPPOSITES) - set(POSITIONS))
    if (said and said != words.positions) or not adjectives <= true:
        return np.zeros_like(truth)
    return mask


def _sibling(record: Record, ending: str) -> Any:
    assert record.mask is not None
    file = record.mask.with_name(f"{record.case_id.removesuffix('b')}{ending}.png")
    return read_mask(file) if file.is_file() else None


def stumbler(record: Record, truth: np.ndarray, text: str) -> np.ndarray:
    """Knows one phrase, and finds a third of the object with any other."""
    if text == "polyp":
        return truth
    flat = np.flatnonzero(truth)
    mask = np.zeros_like(truth)
    mask.ravel()[flat[: len(flat) // 3]] = True
    return mask


# -- the extremes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("two_classes", [False, True])
def test_a_deaf_model_scores_0_and_an_oracle_1(tmp_path: Path, two_classes: bool) -> None:
    records, _ = load_records(write_data(tmp_path / "x", two_classes=two_classes))
    prober = ask(records, oracle, deaf)
    groups = {record.case_id: record.group for record in records}
    values = prober.summary(groups, n_boot=200)
    assert values["n_cases"] == len(records)
    assert values["n_with_object"] == len(records) - 1  # one mask is empty
    assert values["bootstrap"]["resampled"] == "group"
    one, other = values["variants"]["adapter"], values["variants"]["zero_shot"]
    assert one["score"] == {"value": 1.0, "ci_low": 1.0, "ci_high": 1.0, "kinds": list(PAIRS)}
    assert other["score"] == {"value": 0.0, "ci_low": 0.0, "ci_high": 0.0, "kinds": list(PAIRS)}
    assert values["difference"] == {"value": 1.0, "ci_low": 1.0, "ci_high": 1.0}
    for probe in PAIRS:
        assert one["components"][probe]["n"] > 0
        assert one["components"][probe]["value"] == 1
        assert one["components"][probe]["dice_true"] == 1
        assert one["components"][probe]["dice_with_right_answer"] == 1
        assert other["components"][probe]["value"] == 0
        assert other["components"][probe]["n_empty_answers"] == 0
    assert one["components"]["absent_object"]["n_empty_answers"] == values["n_with_object"]
    assert other["paraphrase"]["agreement_with_own"] == other["empty"]["agreement_with_own"] == 1
    assert one["empty"]["n_empty_answers"] == values["n_with_object"]
    by_kind = one["contradictory_by_kind"]
    assert set(by_kind) == {"position", "shape", "colour", "size"}
    assert by_kind["position"]["value"] == by_kind["size"]["value"] == 1
    if not two_classes:  # all are red: what "blue" does by itself cannot be told apart
        assert by_kind["colour"]["value"] is None
        assert by_kind["colour"]["n"] > by_kind["colour"]["n_compared"] == 0
    json.dumps(values, allow_nan=False)


def test_stumbling_over_new_words_is_not_listening(data: Path) -> None:
    records, _ = load_records(data)
    values = ask(records, stumbler).summary(n_boot=50)["variants"]["adapter"]
    assert values["score"]["value"] == 0
    assert values["asked"]["dice"] == 1
    assert 0.4 < values["paraphrase"]["dice"] < 0.6
    assert values["paraphrase"]["agreement_with_own"] == pytest.approx(values["paraphrase"]["dice"])


def test_a_model_that_finds_nothing_has_no_score(data: Path) -> None:
    records, _ = load_records(data)

    def blind(record: Record, truth: np.ndarray, text: str) -> np.ndarray:
        return np.zeros_like(truth)

    values = ask(records, blind, oracle).summary(n_boot=20)
    assert values["variants"]["adapter"]["score"] == {"value": None, "ci_low": None, "ci_high": None, "kinds": []}
    assert values["difference"] is None
    assert values["variants"]["zero_shot"]["score"]["value"] == 1


def test_a_poor_outline_does_not_lower_the_score_of_a_listener(data: Path) -> None:
    records, _ = load_records(data)

    def sloppy(record: Record, truth: np.ndarray, text: str) -> np.ndarray:
        return np.roll(oracle(record, truth, text), 6, axis=0)

    values = ask(records, sloppy).summary(n_boot=20)["variants"]["adapter"]
    assert values["score"]["value"] == 1
    assert values["asked"]["dice"] < 0.8


def test_what_a_word_does_by_itself_is_not_listening(data: Path) -> None:
    records, _ = load_records(data)

    def timid(record: Record, truth: np.ndarray, text: str) -> np.ndarray:
        """Never finds anything small, or on the left, be it there or not."""
        return np.zeros_like(truth) if "small" in text or "left" in text else truth

    found = ask(records, timid).summary(n_boot=20)["variants"]["adapter"]
    about = found["components"]["contradictory"]
    assert about["n_compared"] > 10
    assert about["value"] < 0.2
    for kind in ("size", "position"):
        assert found["contradictory_by_kind"][kind]["value"] in (0, pytest.approx(0, abs=0.15))
    # Met one way only, the same answers would look like listening.
    large = [record for record in records if int(record.case_id) % 4 < 2]
    one_way = ask(large, timid).summary(n_boot=20)["variants"]["adapter"]["contradictory_by_kind"]["size"]
    assert one_way["value"] is None
    assert one_way["n"] == len(large)


# -- the formula -----------------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    scores = [
        PairScore("a", "contradictory", 0.8, 0.8, ("left", "right")),
        PairScore("b", "contradictory", 0.6, 0.4, ("left", "right")),
        PairScore("b", "contradictory", 0.3, 0.1, ("right", "left")),
        PairScore("c", "contradictory", 1.0, 0.0, ("top", "bottom")),  # never met the other way round
        PairScore("a", "absent_object", 0.5, 0.0),
        PairScore("b", "absent_object", 0.5, 0.6),
        PairScore("c", "swapped_class", LEAST_FOUND / 2, 0.0),
    ]
    found = sensitivity(scores, n_boot=100)
    components = found["components"]
    assert components["contradictory"]["value"] == pytest.approx(1 - (0.6 + 0.1) / (0.7 + 0.3))
    assert components["contradictory"]["dice_true"] == pytest.approx((0.7 + 0.3) / 2)
    assert (components["contradictory"]["n"], components["contradictory"]["n_compared"]) == (4, 3)
    assert components["absent_object"]["value"] == pytest.approx(0.4)
    assert components["swapped_class"]["value"] is None
    assert components["swapped_class"]["dice_true"] == LEAST_FOUND / 2
    assert found["score"]["value"] == pytest.approx((0.3 + 0.4) / 2)
    assert sensitivity([])["score"] == {"value": None, "ci_low": None, "ci_high": None, "kinds": []}
    alone = sensitivity([PairScore("a", "absent_object", 0.8, 0.8)])
    # One case has no interval.
    assert alone["score"] == {"value": 0.0, "ci_low": None, "ci_high": None, "kinds": ["absent_object"]}
    assert of_all_kinds(alone["score"]) == " (1 of 3 kinds of probes)"
    assert found["score"]["kinds"] == ["contradictory", "absent_object"]
    assert of_all_kinds({"kinds": list(PAIRS)}) == of_all_kinds({"kinds": []}) == ""


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(PAIRS), st.floats(0, 1), st.floats(0, 1)), max_size=40),
    st.booleans(),
)
def test_values_are_in_their_range_whatever_the_answers(
    rows: list[tuple[int, str, float, float]], grouped: bool
) -> None:
    unique = {(number, probe): PairScore(str(number), probe, a, b) for number, probe, a, b in rows}
    scores = list(unique.values())
    groups = {str(number): f"g{number % 3}" for number in range(31)} if grouped else None
    found = sensitivity(scores, groups=groups, n_boot=30)
    parts = [found["score"], *found["components"].values()]
    for part in parts:
        for key in ("value", "ci_low", "ci_high"):
            assert part[key] is None or 0 <= part[key] <= 1
        if part["ci_low"] is not None:
            assert part["ci_low"] <= part["ci_high"]
    known = [part["value"] for part in parts[1:] if part["value"] is not None]
    assert (found["score"]["value"] is None) == (not known)
    if known:
        assert found["score"]["value"] == pytest.approx(np.mean(known))
    again = sensitivity(scores, groups=groups, n_boot=30)
    assert {key: found[key] for key in ("score", "components")} == {key: again[key] for key in ("score", "components")}
    swapped = [PairScore(s.case_id, s.probe, s.true, s.true) for s in scores]
    assert sensitivity(swapped, n_boot=5)["score"]["value"] in (0, None)


def test_groups_are_resampled_whole() -> None:
    # Within a group all answers are alike: as many cases as one likes tell no more than the two groups do.
    scores = [PairScore(f"{number}", "absent_object", 0.5, 0.5 * (number % 2)) for number in range(200)]
    by_case = sensitivity(scores, n_boot=400)["score"]
    groups = {str(number): f"g{number % 2}" for number in range(200)}
    by_group = sensitivity(scores, groups=groups, n_boot=400)["score"]
    assert by_case["value"] == by_group["value"] == pytest.approx(0.5)
    assert by_case["ci_high"] - by_case["ci_low"] < 0.2
    assert (by_group["ci_low"], by_group["ci_high"]) == (0, 1)


# -- within an evaluation ----------------------------------------------------------------------------------------------------


def test_an_evaluation_with_probes(
    model: PromptSegmenter, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = type(model).encode_image

    def counting(self: PromptSegmenter, pixels: torch.Tensor) -> Any:
        encoded.append(len(pixels))
        return encode(self, pixels)

    plain = evaluate_model(model, data, out=tmp_path / "plain")
    monkeypatch.setattr(type(model), "encode_image", counting)
    folder = EvaluationFolder(evaluate_model(model, data, out=tmp_path / "probed", probes=True))
    assert encoded[:2] == [8, 8]  # every image once, for all prompts
    assert encoded[2:] == [1] * len(encoded[2:])  # the pictures of best, median and worst; the examples
    assert len(encoded[2:]) <= 3 + EXAMPLES
    # The evaluation itself is as without probes.
    without, with_probes = EvaluationFolder(plain).summary(), folder.summary()
    assert without["zero_shot"]["metrics"]["dice"] == pytest.approx(with_probes["zero_shot"]["metrics"]["dice"])
    values = folder.sensitivity()
    assert values is not None
    assert [level["level"] for level in values["levels"]] == ["p0", "p1", "p2"]
    assert [level["leaks"] for level in values["levels"]] == [False, False, True]
    dice = with_probes["zero_shot"]["metrics"]["dice"]
    assert values["levels"][1]["zero_shot"]["dice"] == pytest.approx(dice["mean"], abs=1e-6)
    assert values["bootstrap"]["resampled"] == "group"
    with folder.probes_file.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    for row in rows:
        assert 0 <= float(row["dice_with_object"]) <= 1
        assert row["group"].startswith("g")
    assert {row["asked"] for row in rows} == {"asked", "p0", "p1", "p2", "paraphrase", *PAIRS}
    pairs = [row for row in rows if row["asked"] == "absent_object"]
    assert len(pairs) == 2 * 15
    report = folder.report_file.read_text()
    assert "## Does it listen to words?" in report
    assert "| p2 | yes |" in report
    assert report.index("| p1 | no |") < report.index("| p2 | yes |")
    again = folder.report_file.read_bytes()
    write_report(folder.path)
    assert folder.report_file.read_bytes() == again


def test_a_leaking_level_is_headlined_by_the_leak_free_one(model: PromptSegmenter, data: Path, tmp_path: Path) -> None:
    folder = EvaluationFolder(evaluate_model(model, data, level="p2", out=tmp_path / "e", probes=True))
    values = folder.sensitivity()
    assert values is not None
    shown = f"{values['levels'][1]['zero_shot']['dice']:.4f}"
    report = folder.report_file.read_text()
    opening, free, leaking = report.split("## Scores", 2)
    assert f"Leak-free (level p1, measured by the probes, on the same cases): mean Dice {shown} [" in opening
    assert opening.index("Leak-free") < opening.index("**Level p2 leaks: its words are drawn from the ground truth.**")
    assert free.startswith(", leak-free level p1\n")
    assert f"| Dice (higher is better) | {shown} [" in free
    assert leaking.startswith(f", LEAKING level p2: drawn from the ground truth; leak-free p1: Dice {shown} [")
    without = EvaluationFolder(evaluate_model(model, data, level="p2", out=tmp_path / "f" / "test-p2"))
    report = without.report_file.read_text()
    assert "## Scores, LEAKING level p2: drawn from the ground truth; leak-free p1: not evaluated" in report
    assert "No leak-free result was found" in report.split("## Scores")[0]
    # A leak-free evaluation beside it, of the same cases, comes first from then on.
    evaluate_model(model, data, out=tmp_path / "f" / "test-p1")
    again = EvaluationFolder(evaluate_model(model, data, level="p2", out=tmp_path / "f" / "test-p2"))
    report = again.report_file.read_text()
    assert "Leak-free (level p1, evaluated apart, in `test-p1`): mean Dice 0." in report.split("## Scores")[0]
    assert "| HD95 (px, lower is better) |" in report.split("## Scores")[1]
    write_report(again.path)
    assert again.report_file.read_text() == report
    p1 = EvaluationFolder(tmp_path / "f" / "test-p1").report_file.read_text()
    assert "LEAKING" not in p1
    assert p1.count("## Scores") == 1


def test_an_ideal_model_listens_where_classes_overlap(tmp_path: Path) -> None:
    """Every disc lies in a larger one of another class, and an instrument is beside both."""
    root = write_data(tmp_path / "x", two_classes=True)
    lines = [json.loads(line) for line in (root / "records.jsonl").read_text().splitlines()]
    for line in [line for line in lines if not line["case_id"].endswith("b")]:
        mask = read_mask(root / line["mask"])
        wider = mask | np.roll(mask, 3, axis=0) | np.roll(mask, -3, axis=0)
        file = f"masks/{line['case_id']}c.png"
        Image.fromarray(wider.astype(np.uint8) * 255).save(root / file)
        lines.append({**line, "case_id": f"{line['case_id']}c", "mask": file, "prompts": {"p1": "tumor"}})
    files.write_text(root / "records.jsonl", "\n".join(map(json.dumps, lines)) + "\n")
    records, _ = load_records(root)
    masks: dict[object, dict[str, np.ndarray]] = {}
    for record in records:
        named = Classes.load().of(record.prompts["p1"][0]).name
        masks.setdefault(record.image, {})[named] = read_mask(record.mask)  # type: ignore[arg-type]

    measured = {
        (image, name): describe(mask, read_image(image))  # type: ignore[arg-type]
        for image, named in masks.items()
        for name, mask in named.items()
    }

    def ideal(record: Record, truth: np.ndarray, text: str) -> np.ndarray:
        name = next((name for name in masks[record.image] if name in text), None)
        if name is None:
            return np.zeros_like(truth)
        mask, words = masks[record.image][name], measured[record.image, name]
        adjectives = set(text.split()) & (set(OPPOSITES) - set(POSITIONS))
        placed = places_in(text) in ((), words.positions)
        return mask if placed and adjectives <= {words.shape, words.colour, words.size} else np.zeros_like(truth)

    prober = ask(records, ideal, deaf)
    values = prober.summary(n_boot=20)["variants"]
    assert values["adapter"]["components"]["swapped_class"]["n"] > 30
    assert values["adapter"]["components"]["swapped_class"]["value"] == 1
    assert values["adapter"]["score"]["value"] == 1
    assert values["zero_shot"]["score"]["value"] == 0


def test_a_damaged_mask_costs_its_own_case_alone(model: PromptSegmenter, tmp_path: Path) -> None:
    root = write_data(tmp_path / "x", two_classes=True)
    file = root / "masks" / "3b.png"
    file.write_bytes(file.read_bytes()[:60])  # the header is sound, the pixels are not
    with pytest.raises(DataError, match=r"3b"):
        evaluate_model(model, root, out=tmp_path / "e", probes=True)
    folder = EvaluationFolder(evaluate_model(model, root, out=tmp_path / "e", probes=True, skip_bad=True))
    assert [case["case_id"] for case in folder.summary()["skipped"]] == ["3b"]
    with folder.probes_file.open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["asked"] == "swapped_class" and row["side"] == "false"]
    assert {row["case_id"] for row in rows if "polyp" not in row["prompt"]} >= {"1", "2"}
    assert "instrument" not in next((row["prompt"] for row in rows if row["case_id"] == "3"), "")


def test_an_evaluation_without_probes_leaves_none_of_an_earlier_one(
    model: PromptSegmenter, data: Path, tmp_path: Path
) -> None:
    folder = EvaluationFolder(evaluate_model(model, data, out=tmp_path / "e", probes=True))
    assert folder.sensitivity() is not None
    evaluate_model(model, data, out=tmp_path / "e")
    assert folder.sensitivity() is None
    assert not folder.probes_file.exists()
    assert "listen" not in folder.report_file.read_text()


def test_damage_and_what_cannot_be_probed(model: PromptSegmenter, data: Path, tmp_path: Path) -> None:
    folder = EvaluationFolder(evaluate_model(model, data, out=tmp_path / "e", probes=True))
    for text, message in (("{", "damaged"), ("[]", "not of the format"), ('{"format": "x"}', "not of the format")):
        folder.sensitivity_file.write_text(text)
        with pytest.raises(UserError, match=message):
            write_report(folder.path)
    lines = [json.loads(line) for line in (data / "records.jsonl").read_text().splitlines()]
    for line in lines:
        line["prompts"].pop("p1")
    (data / "records.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match="no p1 that names its class"):
        evaluate_model(model, data, level="p2", out=tmp_path / "g", probes=True)
    assert not (tmp_path / "g" / "summary.json").exists()
