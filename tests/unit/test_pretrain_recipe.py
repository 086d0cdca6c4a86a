"""The recipe of the embedded model: scenes say the truth, the tokenizer covers any text, runs resume exactly."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlsm_adapter.errors import DataError, ModelError, TrainingError

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "pretrain_tiny"
TINY = Path(__file__).resolve().parents[2] / "src" / "vlsm_adapter" / "models" / "tiny"


@pytest.fixture(scope="module")
def recipe():
    """The recipe's modules; a recipe is a folder of scripts, not a package."""
    sys.path.insert(0, str(RECIPE))
    try:
        import averaging
        import corpus
        import measure
        import muon
        import network
        import phrases
        import plans
        import scenes
        import tokenizer
        import train

        yield SimpleNamespace(
            averaging=averaging,
            corpus=corpus,
            measure=measure,
            muon=muon,
            network=network,
            phrases=phrases,
            plans=plans,
            scenes=scenes,
            tokenizer=tokenizer,
            train=train,
        )
    finally:
        sys.path.remove(str(RECIPE))


@pytest.fixture(scope="module")
def small_tokenizer(recipe):
    return recipe.tokenizer.train_tokenizer(["red apple", "cat"], vocabulary=900, count=1500)


def write_corpus(root: Path) -> Path:
    """Three photos, one of them for validation, and one cut-out."""
    rng = np.random.default_rng(0)
    rows = []
    for number, (name, split) in enumerate((("cat", "train"), ("dog", "train"), ("cat", "val"))):
        pixels = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
        mask = np.zeros((60, 80), dtype=np.uint8)
        mask[10:40, 20:60] = 255
        Image.fromarray(pixels).save(root / f"{number}.png")
        Image.fromarray(mask).convert("1").save(root / f"{number}_mask.png")
        rows.append(
            {"image": f"{number}.png", "mask": f"{number}_mask.png", "text": name, "source": "s", "split": split}
        )
    (root / "records.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    cutout = np.zeros((32, 32, 4), dtype=np.uint8)
    cutout[4:28, 4:28] = (200, 20, 20, 255)
    Image.fromarray(cutout).save(root / "cut.png")
    (root / "cutouts.jsonl").write_text(json.dumps({"image": "cut.png", "text": "red apple"}), encoding="utf-8")
    return root


# --- scenes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 1])
def test_a_scene_and_its_prompts_follow_from_the_seed(recipe, level):
    def once():
        rng = np.random.default_rng([3, level])
        scene = recipe.scenes.render(64, rng, recipe.scenes.SceneStyle(level=level))
        return scene.image, [(p.text, p.mask.sum()) for p in recipe.phrases.prompts(scene, 4, rng, level)]

    first, second = once(), once()
    assert np.array_equal(first[0], second[0])
    assert first[1] == second[1]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), level=st.sampled_from([0, 1]))
def test_every_prompt_is_true_of_its_scene(recipe, seed, level):
    rng = np.random.default_rng(seed)
    scene = recipe.scenes.render(64, rng, recipe.scenes.SceneStyle(level=level))
    asked = recipe.phrases.prompts(scene, 4, rng, level)
    assert len(asked) == 4
    assert scene.image.shape == (64, 64, 3)
    assert scene.image.dtype == np.uint8
    for prompt in asked:
        found = recipe.phrases.resolve(scene.objects, prompt.phrase)
        assert found is not None
        expected = np.zeros((64, 64), dtype=bool)
        for obj in found:
            expected |= obj.mask
            if prompt.phrase.colour:
                assert obj.colour == prompt.phrase.colour
            rows, columns = np.nonzero(obj.mask)
            for word in (prompt.phrase.position or "").split():
                x, y = columns.mean() / 64, rows.mean() / 64
                if word == "center":
                    assert max(abs(x - 0.5), abs(y - 0.5)) < 0.2
                else:
                    assert {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}[word] < 0.48
        assert np.array_equal(prompt.mask, expected)
        if prompt.phrase.number and found:
            assert len(found) == prompt.phrase.number


def test_objects_do_not_share_pixels(recipe):
    for seed in range(10):
        scene = recipe.scenes.render(64, np.random.default_rng(seed), recipe.scenes.SceneStyle())
        if scene.objects:
            assert np.sum([obj.mask for obj in scene.objects], axis=0).max() == 1


def test_absent_objects_are_asked_for_and_have_empty_masks(recipe):
    empty = total = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scene = recipe.scenes.render(64, rng, recipe.scenes.SceneStyle())
        for prompt in recipe.phrases.prompts(scene, 4, rng, absent=0.3):
            total += 1
            empty += not prompt.mask.any()
    assert 0.1 < empty / total < 0.5


def test_a_borderline_object_makes_a_phrase_unusable(recipe):
    mask = np.ones((4, 4), dtype=bool)

    def thing(shape, x):
        return recipe.phrases.SceneObject(shape, "red", "plain", None, False, mask, x, 0.5, 0.05)

    phrase = recipe.phrases.Phrase(noun="circle", position="left")
    assert recipe.phrases.resolve([thing("circle", 0.42)], phrase) is None
    assert recipe.phrases.resolve([thing("circle", 0.2)], phrase)
    assert recipe.phrases.resolve([thing("circle", 0.8)], phrase) == []
    assert recipe.phrases.resolve([thing("ellipse", 0.2)], phrase) is None  # an ellipse may pass for a circle


@pytest.mark.parametrize(
    ("one", "many"), [("circle", "circles"), ("box", "boxes"), ("round shape", "round shapes"), ("body", "bodies")]
)
def test_plural(recipe, one, many):
    assert recipe.phrases.plural(one) == many


# --- tokenizer -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_has_tokens_between_start_and_end(recipe, small_tokenizer, text):
    ids = small_tokenizer.encode(text).ids
    size = small_tokenizer.get_vocab_size()
    assert ids[0] == size - 2
    assert ids[-1] == size - 1
    assert all(0 <= token < size for token in ids)
    normal = small_tokenizer.normalizer.normalize_str(text)
    if normal:
        assert small_tokenizer.decode(ids[1:-1]).strip() == normal.strip()


def test_case_and_spaces_do_not_matter(small_tokenizer):
    assert small_tokenizer.encode("Red  apple ").ids == small_tokenizer.encode("red apple").ids


def test_long_texts_are_cut_to_the_context_and_keep_their_end(recipe, small_tokenizer):
    ids = recipe.corpus.encode_texts(small_tokenizer, ["x" * 500, "cat"])
    assert ids.shape == (2, 77)
    assert ids[0, -1] == small_tokenizer.get_vocab_size() - 1


# --- corpus ----------------------------------------------------------------------------------------------------------


def test_a_batch_is_the_same_whenever_it_is_rendered(recipe, small_tokenizer, tmp_path):
    mixture = recipe.corpus.Mixture(size=48, images=6, photos=0.4, cutouts=0.3)
    batches = recipe.corpus.Batches(recipe.corpus.Corpus(write_corpus(tmp_path)), small_tokenizer, mixture, 1, 0)
    first, other, again = batches[5], batches[6], batches[5]
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["pixels"], other["pixels"])
    assert first["masks"].shape == (len(first["image_index"]), 48, 48)
    assert first["text_index"].max() < len(first["input_ids"])


def test_only_training_photos_are_trained_on(recipe, tmp_path):
    corpus = recipe.corpus.Corpus(write_corpus(tmp_path))
    assert [photo.image.name for photo in corpus.by_name["cat"]] == ["0.png"]
    assert [photo.image.name for photo in corpus.photos["val"]] == ["2.png"]
    assert corpus.all_names == ["cat", "dog", "red apple"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[]", "no text under image"),
        ('{"image": 3, "mask": "0_mask.png", "text": "cat", "source": "s", "split": "train"}', "no text under image"),
        ('{"image": "0.png", "mask": "0_mask.png", "text": "a", "source": "s", "split": "x"}', "split 'x'"),
        ('{"image": "no.png", "mask": "0_mask.png", "text": "a", "source": "s", "split": "train"}', "missing"),
        ('{"image": "../x", "mask": "0_mask.png", "text": "a", "source": "s", "split": "train"}', "outside"),
    ],
)
def test_bad_records_are_named(recipe, tmp_path, line, message):
    write_corpus(tmp_path)
    (tmp_path / "records.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        recipe.corpus.Corpus(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_folder_and_unreadable_picture_are_named(recipe, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        recipe.corpus.Corpus(tmp_path / "none")
    corpus = recipe.corpus.Corpus(write_corpus(tmp_path))
    (tmp_path / "0.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"0\.png: cannot be read as an image"):
        corpus.picture(corpus.by_name["cat"][0].image, "RGB")


def test_the_command_answers_bad_input_on_one_line(recipe, tmp_path, capsys):
    assert recipe.train.main(["--corpus", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert recipe.measure.main(["--model", str(tmp_path / "none")]) == 2


# --- network and training --------------------------------------------------------------------------------------------


@pytest.fixture
def run_for(recipe, small_tokenizer, monkeypatch):
    """A function that begins a run in a folder, with stages small enough for a test."""
    mixture = recipe.corpus.Mixture(size=32, images=2, prompts=2, level=0)
    later = recipe.corpus.Mixture(size=48, images=2, prompts=2)
    plan = recipe.plans.Plan((recipe.plans.Stage(0.5, mixture), recipe.plans.Stage(0.5, later)))
    monkeypatch.setitem(recipe.plans.PLANS, "test", plan)

    def begin(folder: Path, seed: int = 0, start: Path | None = None):
        folder.mkdir(exist_ok=True)
        options = SimpleNamespace(out=folder, seed=seed, plan="test", start=start, learning_rate=None)
        return recipe.train.Run(options, small_tokenizer)

    return begin


def test_every_parameter_has_a_gradient_from_the_first_step(recipe, run_for, small_tokenizer, tmp_path):
    run = run_for(tmp_path)
    batch = recipe.corpus.Batches(None, small_tokenizer, run.stages[1].mixture, 0, 0)[0]
    loss, values = recipe.train.losses(run.staged, batch)
    loss.backward()
    assert not [name for name, parameter in run.model.named_parameters() if parameter.grad is None]
    assert all(np.isfinite(value) for name, value in values.items() if name != "iou")


def test_the_start_has_calm_logits(recipe, run_for, small_tokenizer, tmp_path):
    staged = run_for(tmp_path).staged
    with torch.inference_mode():
        image = staged.encode_image(torch.randn(2, 3, 192, 192))
        logits = staged.decode(image, staged.encode_text(torch.tensor([[898, 5, 899], [898, 9, 899]])))
    assert logits.std() < 3  # transformers' own initialisation: near 100
    assert -4 < logits.mean() < 0


def test_ctrl_c_and_resume_end_in_the_same_weights(recipe, run_for, tmp_path, monkeypatch):
    train = recipe.train
    budget, team = train.Budget(1.0, steps=4), train.Team()
    straight = run_for(tmp_path / "a")
    assert train.fit(straight, None, budget, team, 0)

    plain = train.losses
    calls = []

    def interrupting(model, batch):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(model, batch)

    broken = run_for(tmp_path / "b")
    monkeypatch.setattr(train, "losses", interrupting)
    assert not train.fit(broken, None, budget, team, 0)
    broken.save()
    monkeypatch.setattr(train, "losses", plain)
    resumed = run_for(tmp_path / "b")
    assert resumed.resume()
    assert 0 < resumed.step < 4
    assert train.fit(resumed, None, budget, team, 0)
    for one, other in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    for name, value in straight.average.values.items():
        assert torch.equal(value, resumed.average.values[name])


def test_a_damaged_or_foreign_checkpoint_is_refused(run_for, tmp_path):
    run = run_for(tmp_path)
    assert not run.resume()
    run.save()
    with pytest.raises(DataError, match="--seed 0"):
        run_for(tmp_path, seed=1).resume()
    (tmp_path / "state.pt").write_bytes(b"\x80broken")
    with pytest.raises(DataError, match="cannot be resumed from"):
        run.resume()


def test_a_loss_that_is_not_a_number_stops_the_run(recipe, run_for, tmp_path):
    run = run_for(tmp_path)
    with torch.no_grad():
        run.model.clip.text_projection.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="not a number"):
        recipe.train.fit(run, None, recipe.train.Budget(1.0, steps=2), recipe.train.Team(), 0)


def test_rows_logged_after_the_checkpoint_are_dropped_on_resuming(recipe, run_for, tmp_path):
    run = run_for(tmp_path)
    for step in (25, 50, 75):
        run.log(dict.fromkeys(recipe.train.COLUMNS, 0) | {"step": step})
    run.step = 50
    run.trim_log()
    with (tmp_path / "log.csv").open(encoding="utf-8") as handle:
        assert [row["step"] for row in csv.DictReader(handle)] == ["25", "50"]


def test_schedule(recipe):
    rate = recipe.plans.learning_rate
    assert rate(0.0, 1.0) < rate(0.01, 1.0) < rate(0.02, 1.0) == pytest.approx(1.0)
    assert rate(1.0, 1.0) == pytest.approx(0.01, abs=1e-4)
    stages = recipe.plans.PLANS["first"].stages
    assert [recipe.plans.stage_at(x, stages) for x in (0.0, 0.5, 1.0)] == [0, 1, 2]
    assert recipe.train.Budget(2.0).progress(999, 60.0) == 0.5
    assert recipe.train.Budget(2.0, steps=10).progress(5, 0.0) == 0.5


def test_plans_add_up(recipe):
    for plan in recipe.plans.PLANS.values():
        assert sum(stage.share for stage in plan.stages) == pytest.approx(1.0)
        assert all(stage.mixture.size % recipe.network.PATCH == 0 for stage in plan.stages)


def test_a_model_goes_on_with_larger_pictures(recipe, tmp_path):
    small, large = recipe.network.build(300, 96), recipe.network.build(300, 128)
    tokenizer = recipe.tokenizer.train_tokenizer(["cat"])
    recipe.network.export(small, tokenizer, tmp_path / "small")
    recipe.network.load_weights(large, tmp_path / "small")
    name = "clip.vision_model.embeddings.position_embedding.weight"
    table, before = large.get_parameter(name), small.get_parameter(name)
    assert table.shape == (1 + 8 * 8, recipe.network.VISION_WIDTH)
    assert torch.allclose(table[0], before[0], atol=1e-3)
    assert torch.allclose(table[1:].mean(0), before[1:].mean(0), atol=0.02)  # the same positions, more of them
    recipe.network.export(large, tokenizer, tmp_path / "large")
    sides = json.loads((tmp_path / "large" / "preprocessor_config.json").read_text())["size"]
    assert sides == {"height": 128, "width": 128}


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 3), rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 1000))
def test_updates_of_muon_are_nearly_orthogonal(recipe, count, rows, columns, seed):
    # Singular values near zero may stay small; those of a random square matrix are kept away from it.
    matrices = torch.randn(count, rows, columns, generator=torch.Generator().manual_seed(seed))
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    made = recipe.muon.orthogonalise(u @ torch.diag_embed(torch.linspace(0.2, 3, u.shape[2]).expand(count, -1)) @ v)
    assert made.shape == matrices.shape
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.5
    assert values.max() < 1.3
    assert (torch.einsum("nij,nij->n", made, u @ v) > 0).all()  # the nearest one, not its opposite


def test_muon_takes_the_matrices_and_adamw_the_rest(recipe, run_for, tmp_path):
    run = run_for(tmp_path)
    muon, adam = run.optimizers
    taken = [p for optimizer in (muon, adam) for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in taken} == {id(p) for p in run.model.parameters()}
    assert len(taken) == len({id(p) for p in taken})
    embedding = run.model.clip.text_model.embeddings.token_embedding.weight
    assert any(p is embedding for p in adam.param_groups[0]["params"])
    with pytest.raises(ValueError, match="two dimensions"):
        recipe.muon.Muon([torch.nn.Parameter(torch.zeros(3))])


def test_the_average_follows_and_the_export_holds_it(recipe, run_for, tmp_path):
    from safetensors.torch import load_file

    run = run_for(tmp_path)
    assert recipe.train.fit(run, None, recipe.train.Budget(1.0, steps=3), recipe.train.Team(), 0)
    name = "decoder.film_mul.weight"
    last = dict(run.model.named_parameters())[name].detach().clone()
    average = run.average.values[name]
    assert not torch.equal(average, last)
    run.export()
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert torch.equal(stored[name], average.half())
    assert torch.equal(dict(run.model.named_parameters())[name], last)  # training goes on from the last weights


def test_a_run_starts_from_the_weights_of_another(recipe, run_for, small_tokenizer, tmp_path):
    first = run_for(tmp_path / "a")
    first.export()
    second = run_for(tmp_path / "b", seed=7, start=tmp_path / "a" / "model")
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one.half(), other.half())
    with pytest.raises(ModelError, match="cannot start from it"):
        run_for(tmp_path / "c", start=tmp_path)
    with pytest.raises(ModelError, match="cannot start from it"):
        recipe.tokenizer.load_tokenizer(tmp_path)


def test_a_checkpoint_of_another_plan_is_refused(run_for, tmp_path):
    run = run_for(tmp_path)
    run.save()
    run.plan = "first"
    with pytest.raises(DataError, match="--plan test"):
        run.resume()


def test_things_are_cut_out_of_photos_along_their_masks(recipe, tmp_path):
    corpus = recipe.corpus.Corpus(write_corpus(tmp_path))
    made = [corpus.thing(np.random.default_rng(seed)) for seed in range(20)]
    # The masks of the made corpus are 30 x 40 px: below 32 px a thing is left out.
    assert made == [None] * 20
    mask = np.zeros((60, 80), dtype=np.uint8)
    mask[10:50, 20:60] = 255
    mask[10:20, 20:30] = 0
    for number in range(2):
        Image.fromarray(mask).save(tmp_path / f"{number}_mask.png")
    picture, name = recipe.corpus.Corpus(tmp_path).thing(np.random.default_rng(0))
    assert name in ("cat", "dog")
    assert picture.shape == (40, 40, 4)
    assert not picture[:10, :10, 3].any()
    assert (picture[10:, 10:, 3] == 255).all()


def test_the_exported_folder_is_stock_hugging_face_format(recipe, run_for, small_tokenizer, tmp_path):
    from transformers import AutoTokenizer, CLIPSegForImageSegmentation

    run = run_for(tmp_path)
    recipe.network.export(run.model, small_tokenizer, tmp_path / "model")
    loaded, info = CLIPSegForImageSegmentation.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.dtype == torch.float32
    tokens = AutoTokenizer.from_pretrained(tmp_path / "model")(["red apple", "cat"], padding=True, return_tensors="pt")
    assert tokens["input_ids"][0, 0] == 898
    with torch.inference_mode():
        logits = loaded(**tokens, pixel_values=torch.zeros(2, 3, 192, 192)).logits
    assert logits.shape == (2, 192, 192)


def test_measures_run_on_scenes_and_photos(recipe, run_for, small_tokenizer, tmp_path):
    from vlsm_adapter.models.clipseg import CLIPSeg

    recipe.network.export(run_for(tmp_path / "run").model, small_tokenizer, tmp_path / "model")
    model = CLIPSeg.from_pretrained(tmp_path / "model", "model", torch.float32)
    (tmp_path / "corpus").mkdir()
    corpus = recipe.corpus.Corpus(write_corpus(tmp_path / "corpus"))
    scenes = recipe.measure.measure_scenes(model, 4, 1, 192)
    assert scenes["right_prompts"] > 0
    assert 0 <= scenes["right_iou"] <= 1
    assert recipe.measure.measure_photos(model, corpus, 192)["pairs"] == 1


# --- the embedded model ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    from transformers import CLIPSegForImageSegmentation

    return CLIPSegForImageSegmentation.from_pretrained(TINY).eval()


def test_tiny_is_small_and_complete():
    assert {path.name for path in TINY.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= 12e6


def test_tiny_fits_every_published_variant(tiny):
    config = tiny.config
    assert config.extract_layers == [3, 6, 9]
    assert config.vision_config.num_hidden_layers == 10  # none beyond the last one read
    assert config.text_config.num_hidden_layers >= 10
    assert config.text_config.hidden_size == config.projection_dim
    assert config.text_config.max_position_embeddings == 77
    assert config.text_config.eos_token_id == config.text_config.vocab_size - 1


def test_tiny_tokenizer_is_compact_on_medical_prompts():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    prompts = ("polyp", "one small pink round polyp located in top left of the image", "benign tumor, regular shape")
    words = sum(len(prompt.replace(",", " ,").split()) for prompt in prompts)
    assert sum(len(tokenizer(prompt)["input_ids"]) - 2 for prompt in prompts) <= 1.3 * words
    assert tokenizer.unk_token is None
    assert len(tokenizer("息肉 🙂")["input_ids"]) > 4


def test_tiny_listens_to_words(recipe, tiny):
    """Zero-shot means something: the right prompt scores well above another prompt of the same picture."""
    from vlsm_adapter.models.clipseg import CLIPSeg

    model = CLIPSeg.from_pretrained(TINY, "tiny", torch.float32)
    scores = recipe.measure.measure_scenes(model, 25, 0, model.preprocessing.size[0])
    assert scores["right_iou"] > 2 * scores["swapped_iou"] > 0
