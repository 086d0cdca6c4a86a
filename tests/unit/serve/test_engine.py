"""The model behind the service: answers are those of the library, whoever asks beside; adapters come and go."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vlsm_adapter import Predictor, load_model
from vlsm_adapter.adapters.attach import attached
from vlsm_adapter.errors import UserError
from vlsm_adapter.inference import probability_at_size
from vlsm_adapter.serve.caches import ByteCache
from vlsm_adapter.serve.engine import Engine, Loaded, Question, prepare
from vlsm_adapter.serve.problems import Refused

PLACES = {"polyp": "polyp", "skin-run": "skin-run/adapter"}


@pytest.fixture
def engine(adapters: Path, base_folder: Path) -> Engine:
    engine = Engine(load_model(base_folder), ByteCache(10_000_000), 1_000_000)
    for name, place in PLACES.items():
        engine.load(name, adapters / place)
    return engine


@pytest.fixture
def ask(engine: Engine, picture: np.ndarray) -> Callable[..., Question]:
    def make(adapter: Loaded | None, prompts: list[str], image: int = 0) -> Question:
        assert adapter is not None
        shifted = np.roll(picture, image, axis=0)
        return Question(("x", image), adapter, prompts, prepare(adapter, shifted), None, time.monotonic() + 60)

    return make


def expected(adapters: Path, base: Path, name: str | None, picture: np.ndarray, prompt: str) -> np.ndarray:
    predictor = Predictor.zero_shot(base) if name is None else Predictor.load(adapters / PLACES[name], base=base)
    predictor.set_image(picture)
    return predictor.probabilities([prompt])[0]


@pytest.mark.parametrize("name", [None, *PLACES])
def test_answers_are_those_of_the_library(
    engine: Engine, ask: Callable, adapters: Path, base_folder: Path, picture: np.ndarray, name: str | None
) -> None:
    question = ask(engine.loaded[name] if name else engine.base, ["polyp", "skin lesion"])
    engine.answer([question])
    answer = question.future.result(timeout=0)
    assert answer.logits.shape == (2, 32, 32)
    for row, prompt in enumerate(question.prompts):
        right = expected(adapters, base_folder, name, picture, prompt)
        np.testing.assert_allclose(probability_at_size(answer.logits[row], picture.shape[:2]), right, atol=1e-5)


def test_questions_answered_together_get_each_its_own(
    engine: Engine, ask: Callable, adapters: Path, base_folder: Path, picture: np.ndarray
) -> None:
    polyp = engine.loaded["polyp"]
    wanted = [(0, ["polyp"]), (1, ["polyp", "a lesion"]), (0, ["skin", "polyp"]), (2, ["left"]), (1, ["polyp"])]
    questions = [ask(polyp, prompts, image) for image, prompts in wanted]
    engine.answer(questions)
    for (image, prompts), question in zip(wanted, questions, strict=True):
        answer = question.future.result(timeout=0)
        assert answer.together == 5
        shifted = np.roll(picture, image, axis=0)
        for row, prompt in enumerate(prompts):
            right = expected(adapters, base_folder, "polyp", shifted, prompt)
            np.testing.assert_allclose(probability_at_size(answer.logits[row], (40, 56)), right, atol=1e-5)


def test_the_second_prompt_does_not_encode_the_image(
    engine: Engine, ask: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    polyp = engine.loaded["polyp"]
    first, second = ask(polyp, ["polyp"]), ask(polyp, ["skin"])
    engine.answer([first])
    monkeypatch.setattr(engine.model, "encode_image", lambda *_: pytest.fail("encoded again"))
    second.pixels = None
    engine.answer([second])
    assert not first.future.result().cached
    assert second.future.result().cached
    assert second.future.result().encode == 0


def test_adapters_do_not_see_each_others_encodings(engine: Engine, ask: Callable) -> None:
    logits = []
    for adapter in (*engine.loaded.values(), engine.base):
        question = ask(adapter, ["polyp"])
        engine.answer([question])
        logits.append(question.future.result().logits)
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)
    assert not torch.allclose(logits[0], logits[2], atol=1e-3)


def test_unloading_forgets_and_loading_anew_computes_anew(engine: Engine, ask: Callable, adapters: Path) -> None:
    old = engine.loaded["polyp"]
    engine.answer([ask(old, ["polyp"])])
    assert len(engine.encodings) == 1
    engine.unload("polyp")
    assert len(engine.encodings) == 0
    assert len(engine.texts) == 0
    assert attached(engine.model) == [engine.loaded["skin-run"].key]
    late = ask(old, ["polyp"])
    engine.answer([late])
    with pytest.raises(Refused, match="unloaded meanwhile"):
        late.future.result()
    engine.load("polyp", adapters / "polyp")
    assert engine.loaded["polyp"].key != old.key
    with pytest.raises(UserError, match="not loaded"):
        engine.unload("nothing")


def test_a_failed_load_leaves_all_as_it_was(engine: Engine, ask: Callable, adapters: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(adapters / "polyp", tmp_path / "cut")
    file = tmp_path / "cut" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    before = dict(engine.loaded)
    with pytest.raises(UserError):
        engine.load("polyp", tmp_path / "cut")
    assert engine.loaded == before
    assert len(attached(engine.model)) == 2
    question = ask(engine.loaded["polyp"], ["polyp"])
    engine.answer([question])
    assert question.future.result().logits.shape == (1, 32, 32)


def test_an_adapter_of_another_input_size(
    engine: Engine, adapters: Path, base_folder: Path, tmp_path: Path, picture: np.ndarray
) -> None:
    """Each adapter is shown pictures as it was trained with them, on the same base in memory."""
    import json
    import shutil

    shutil.copytree(adapters / "polyp", tmp_path / "large")
    file = tmp_path / "large" / "adapter_config.json"
    values = json.loads(file.read_text())
    values["preprocessing"]["size"] = [48, 48]
    file.write_text(json.dumps(values))
    large = engine.load("large", tmp_path / "large")
    question = Question(("x", 0), large, ["polyp"], prepare(large, picture), None, time.monotonic() + 60)
    engine.answer([question])
    predictor = Predictor.load(tmp_path / "large", base=base_folder)
    predictor.set_image(picture)
    right = predictor.probabilities(["polyp"])[0]
    answer = probability_at_size(question.future.result().logits[0], (40, 56))
    np.testing.assert_allclose(answer, right, atol=1e-5)
    assert engine.model.preprocessing.size == (32, 32)


def test_a_prompt_too_long_for_the_model_fails_alone(engine: Engine, ask: Callable) -> None:
    polyp = engine.loaded["polyp"]
    long, good = ask(polyp, ["polyp " * 30]), ask(polyp, ["polyp"])
    engine.answer([long, good])
    with pytest.raises(Refused, match=r"tokens, the model reads 12"):
        long.future.result()
    assert good.future.result().together == 1


def test_a_failure_of_one_does_not_fail_the_others(
    engine: Engine, ask: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine.model.decode

    def decode(image, text, index=None):  # type: ignore[no-untyped-def]
        if len(text) != 1:
            raise torch.OutOfMemoryError("too much")
        return real(image, text, index)

    monkeypatch.setattr(engine.model, "decode", decode)
    polyp = engine.loaded["polyp"]
    one, two, both = ask(polyp, ["polyp"]), ask(polyp, ["skin"]), ask(polyp, ["left", "skin"])
    engine.answer([one, two, both])
    assert one.future.result().logits.shape == two.future.result().logits.shape
    with pytest.raises(Refused, match="memory") as refused:
        both.future.result()
    assert refused.value.status == 503
