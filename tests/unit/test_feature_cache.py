"""What is frozen is found, computed once for each image and text alone, and given to the model in place of its input."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vlsm_adapter.adapters import adapter_config
from vlsm_adapter.adapters.attach import attach, use_adapter
from vlsm_adapter.data.digests import FileDigests
from vlsm_adapter.data.loaders import CaseDataset, make_loader
from vlsm_adapter.errors import ModelError
from vlsm_adapter.feature_cache import FeatureCache
from vlsm_adapter.feature_probe import Frozen, frozen_image, probe
from vlsm_adapter.models.base import PromptSegmenter
from vlsm_adapter.models.clipseg import CLIPSeg
from vlsm_adapter.models.features import ImageFeatures, TextFeatures, Trunks
from vlsm_adapter.types import Batch, Record

SIDE = 32
ONE = 3 * 17 * 24 * 4  # bytes of the features of an image: three activations of 17 tokens


class Whole(CLIPSeg):
    """A model that does not split its encoders."""

    image_trunk = PromptSegmenter.image_trunk
    image_cuts = PromptSegmenter.image_cuts
    image_head = PromptSegmenter.image_head
    text_trunk = PromptSegmenter.text_trunk
    text_head = PromptSegmenter.text_head

    def encode_image(self, pixel_values: torch.Tensor) -> ImageFeatures:
        return CLIPSeg.image_head(self, CLIPSeg.image_trunk(self, pixel_values))

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> TextFeatures:
        return CLIPSeg.text_head(self, CLIPSeg.text_trunk(self, input_ids, attention_mask))


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Six cases of four images: the first two images have two cases each."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(6):
        image, mask = tmp_path / f"{number % 4}.png", tmp_path / f"m{number}.png"
        if not image.exists():
            Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(image)
        Image.fromarray(rng.random((SIDE, SIDE)) < 0.4).save(mask)
        made.append(Record(f"c{number}", image, mask, {"p1": ("the polyp" if number % 3 else "tumor",)}, "train"))
    return made


@pytest.fixture
def data(records: list[Record], model: PromptSegmenter) -> CaseDataset:
    return CaseDataset(records, model.preprocessing, epoch=0)


def batches(data: CaseDataset, model: PromptSegmenter, size: int = 6) -> list[Batch]:
    return list(make_loader(data, model.tokenize, batch_size=size, shuffle=False, seed=0))


def attached(model: PromptSegmenter, method: str, **settings: Any) -> PromptSegmenter:
    """``model`` with an adapter whose weights are not zero."""
    torch.manual_seed(0)
    attach(model, adapter_config(method, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and method != "decoder_only":
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def plain(model: PromptSegmenter, batch: Batch) -> torch.Tensor:
    """Logits the usual way: every case with an image of its own."""
    return model(batch.pixel_values[batch.image_index], batch.input_ids, batch.attention_mask)


# What stays the same


def image_probe(model: PromptSegmenter) -> Frozen:
    return probe(model, lambda: model.image_trunk(torch.zeros(1, 3, SIDE, SIDE)))


def text_probe(model: PromptSegmenter) -> Frozen:
    return probe(model, lambda: model.text_trunk(*model.tokenize(["polyp"])))


@pytest.mark.parametrize(
    ("method", "settings", "image", "text"),
    [
        ("decoder_only", {}, True, True),
        ("shallow", {"parts": "v"}, True, True),
        ("shallow", {"parts": "vl"}, True, True),
        ("shallow", {"parts": "vlc"}, True, True),
        ("dense", {"parts": "v"}, False, True),
        ("dense", {"parts": "vl"}, False, False),
        ("dense", {"parts": "vlc"}, False, False),
        ("full", {}, False, False),
    ],
)
def test_what_is_frozen_with_which_method(
    model: PromptSegmenter, method: str, settings: dict, image: bool, text: bool
) -> None:
    attached(model, method, **settings)
    state = torch.get_rng_state()
    assert (image_probe(model).features is not None, text_probe(model).features is not None) == (image, text)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_training_mode_and_weights_used_without_their_module_count(model: PromptSegmenter) -> None:
    vision = model.clipseg.clip.vision_model  # type: ignore[attr-defined]
    assert image_probe(model).features is not None
    vision.encoder.layers[2].mlp.train()
    assert image_probe(model).features is None
    model.eval()
    vision.encoder.layers[4].train()  # nothing reads it
    assert image_probe(model).features is not None
    model.eval()
    weight = nn.Parameter(torch.ones(()))
    wrapped = probe(model, lambda: ImageFeatures((model.image_trunk(torch.zeros(1, 3, 32, 32)).activations[0] * weight,), (4, 4)))  # fmt: skip
    assert wrapped.features is None
    flat = probe(model, lambda: ImageFeatures((torch.zeros(5, 3),), (4, 4)))
    assert flat.features is None


def pixels(count: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


def cut_of(model: PromptSegmenter) -> int | None:
    found = frozen_image(model, pixels()).features
    return None if found is None else found.cut


@pytest.mark.parametrize(
    ("method", "settings", "cut"),
    [
        ("dense", {}, 1),
        ("dense", {"variant": "published"}, 1),
        ("dense", {"last_blocks": 1}, 7),  # block 3 is the last that is read
        ("dense", {"last_blocks": 3}, 3),
        ("telescopic", {}, 1),
        ("adaptformer", {"parts": "v", "last_blocks": 2}, 5),
        ("lora", {"last_blocks": 2}, 4),
        ("ia3", {"last_blocks": 1}, 6),
        ("vpt", {}, None),
        ("lora", {}, None),
        ("full", {}, None),
    ],
)
def test_the_stem_ends_before_the_first_thing_that_trains(
    model: PromptSegmenter, method: str, settings: dict, cut: int | None
) -> None:
    attached(model, method, **settings)
    state = torch.get_rng_state()
    assert cut_of(model) == cut
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_whole_trunk_that_is_frozen_is_not_cut(model: PromptSegmenter) -> None:
    attached(model, "shallow")
    found = frozen_image(model, pixels()).features
    assert found is not None
    assert found.cut is None


def test_every_cut_gives_the_whole_and_its_gradients(model: PromptSegmenter) -> None:
    attached(model, "dense", parts="v", bottleneck_dim=3)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    assert model.image_cuts == (1, 2, 3, 4, 5, 6, 7)

    def answer(features: ImageFeatures) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor | None, ...]]:
        outputs = model.image_head(features).activations
        loss = sum((output * output.detach().cos()).sum() for output in outputs)
        return outputs, torch.autograd.grad(loss, weights, allow_unused=True)  # type: ignore[arg-type]

    whole, gradients = answer(model.image_trunk(pixels(2)))
    assert model.extract_layers == (0, 1, 3)  # type: ignore[attr-defined]
    tensors = {cut: len(model.image_stem(pixels(2), cut).tensors()) for cut in model.image_cuts}  # type: ignore[union-attr]
    assert tensors == {1: 2, 2: 1, 3: 2, 4: 2, 5: 3, 6: 3, 7: 4}  # a state that is read is kept once
    for cut in model.image_cuts:
        for checkpointing in (False, True):
            model.checkpointing = checkpointing
            stem = model.image_stem(pixels(2), cut)
            assert stem is not None
            again = stem.with_tensors(stem.tensors())
            assert again.cut == cut
            outputs, found = answer(ImageFeatures.join([again]))
            assert all(torch.equal(a, b) for a, b in zip(outputs, whole, strict=True))
            for one, other in zip(found, gradients, strict=True):
                if other is not None:
                    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_an_attention_that_someone_listens_to_is_not_cut(model: PromptSegmenter) -> None:
    attached(model, "dense", last_blocks=1)
    attention = model.clipseg.clip.vision_model.encoder.layers[3].self_attn  # type: ignore[attr-defined]
    for listen in (
        attention.register_forward_hook,
        attention.register_forward_pre_hook,
        attention.register_full_backward_hook,
    ):
        handle = listen(lambda *_: None)
        assert cut_of(model) == 6
        handle.remove()
    other = model.clipseg.clip.vision_model.encoder.layers[1].self_attn  # type: ignore[attr-defined]
    handle = other.register_forward_hook(lambda *_: None)
    assert cut_of(model) == 7
    handle.remove()
    attention.dropout = 0.5
    attention.train()
    assert cut_of(model) == 6
    attention.eval()
    assert cut_of(model) == 7


def test_stock_modules_are_cut_between_blocks(base_folder: Path) -> None:
    from transformers import CLIPSegForImageSegmentation

    model = CLIPSeg(CLIPSegForImageSegmentation.from_pretrained(base_folder))
    assert model.image_cuts == (2, 4, 6)
    attach(model, adapter_config("dense", last_blocks=1))
    found = frozen_image(model, pixels()).features
    assert found is not None
    assert found.cut == 6
    whole, cut = model.image_head(model.image_trunk(pixels())), model.image_head(found)
    assert all(torch.equal(a, b) for a, b in zip(whole.activations, cut.activations, strict=True))


def test_learned_tokens_go_through_no_cut(model: PromptSegmenter) -> None:
    attached(model, "vpt", depth=1)
    use_adapter(model, "default", trainable=False)
    model.eval()
    assert all(model.image_stem(pixels(), cut) is None for cut in model.image_cuts)
    assert frozen_image(model, pixels()).features is not None  # all of it


def test_an_adapter_that_is_frozen_in_the_trunk_is_not_named_by_the_base(
    model: PromptSegmenter, tmp_path: Path
) -> None:
    attached(model, "dense", bottleneck_dim=3)
    use_adapter(model, "default", trainable=False)
    model.eval()
    assert image_probe(model).adapted
    cache = FeatureCache(model, folder=tmp_path, shared=tmp_path / "shared", disk_bytes=1 << 20)
    assert cache._images is not None
    assert cache._images.store.shared is None


# In place of the input


@pytest.mark.parametrize("kind", [CLIPSeg, Whole])
@pytest.mark.parametrize("method", ["decoder_only", "shallow", "dense"])
def test_logits_are_those_of_the_usual_way(
    model: PromptSegmenter, data: CaseDataset, tmp_path: Path, method: str, kind: type
) -> None:
    model.__class__ = kind
    attached(model, method, **({} if method == "decoder_only" else {"bottleneck_dim": 3, "condition_dim": 4}))
    cache = FeatureCache(model, folder=tmp_path, memory_mb=1)
    (batch,) = batches(data, model)
    assert batch.image_index.tolist() == [0, 1, 2, 3, 0, 1]
    assert batch.pixel_values.shape[0] == len(batch.images) == 4
    with torch.no_grad():
        for _ in range(2):
            inputs = cache.inputs(batch, data)
            assert inputs["text_index"].tolist() == [0, 1, 1, 0, 1, 1]
            torch.testing.assert_close(model(**inputs), plain(model, batch), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("method", "kind"), [("shallow", CLIPSeg), ("dense", CLIPSeg), ("dense", Whole)])
def test_gradients_are_those_of_the_usual_way(
    model: PromptSegmenter, data: CaseDataset, tmp_path: Path, method: str, kind: type
) -> None:
    model.__class__ = kind
    attached(model, method, bottleneck_dim=3, condition_dim=4)
    cache = FeatureCache(model, folder=tmp_path, memory_mb=1)
    (batch,) = batches(data, model)
    found = []
    for logits in (model(**cache.inputs(batch, data)), plain(model, batch)):
        model.zero_grad()
        (logits[:, 0] * batch.masks).sum().backward()
        found.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=1e-3, rtol=1e-3, msg=name)


def test_each_image_and_text_alone_so_batches_do_not_matter(
    model: PromptSegmenter, data: CaseDataset, tmp_path: Path
) -> None:
    attached(model, "shallow", parts="vl", bottleneck_dim=3)
    found = []
    for size, on in ((6, True), (4, True), (1, False), (5, False)):
        cache = FeatureCache(model, folder=tmp_path, on=on)
        by_image: dict[str, tuple] = {}
        for batch in batches(data, model, size):
            trunks = cache.inputs(batch, data)["trunks"]
            for row, image in enumerate(batch.images):
                by_image[image] = tuple(activation[row] for activation in trunks.image.activations)
            for row, text in enumerate(dict.fromkeys(batch.prompts)):
                by_image[text] = tuple(tensor[row] for tensor in trunks.text.tensors())
        found.append(by_image)
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert all(torch.equal(a, b) for key in other for a, b in zip(other[key], found[0][key], strict=True))


def test_the_forward_takes_one_of_both(model: PromptSegmenter, inputs: dict[str, torch.Tensor]) -> None:
    trunks = Trunks(image=model.image_trunk(inputs["pixel_values"]))
    with torch.no_grad():
        expected = model(**inputs)
        without = {name: value for name, value in inputs.items() if name != "pixel_values"}
        assert torch.equal(model(**without, trunks=trunks), expected)
        texts = torch.tensor([1, 0, 1])
        many = model(**inputs, text_index=texts, image_index=torch.tensor([0, 1, 1]))
    assert many.shape[0] == 3
    torch.testing.assert_close(many[2], expected[1], atol=2e-5, rtol=1e-4)
    with pytest.raises(ModelError, match="pass pixel_values or"):
        model(**inputs, trunks=trunks)
    with pytest.raises(ModelError, match="pass pixel_values or"):
        model(**without)
    with pytest.raises(ModelError, match="3 prompts for 2 images"):
        model(**inputs, text_index=texts)


def test_text_features_travel_with_words_and_states() -> None:
    def one(length: int) -> TextFeatures:
        words = torch.randn(1, length, 4)
        return TextFeatures(torch.randn(1, 4), words, torch.ones(1, length, dtype=torch.bool), (torch.randn(1, 4),))

    parts = [one(2), one(3)]
    joined = TextFeatures.join(parts)
    for part in (joined, TextFeatures(torch.randn(2, 4)), TextFeatures(torch.randn(2, 4), states=(torch.ones(2, 4),))):
        again = part.with_tensors(part.tensors())
        assert len(again.tensors()) == len(part.tensors())
        assert all(a is b for a, b in zip(again.tensors(), part.tensors(), strict=True))
    picked = joined[torch.tensor([1, 1])]
    assert torch.equal(picked.states[0][0], parts[1].states[0][0])
    assert joined.words_mask is not None
    assert joined.words_mask.tolist() == [[True, True, False], [True, True, True]]


# The epochs


def count_calls(model: PromptSegmenter, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original: Callable = model.image_trunk
    monkeypatch.setattr(model, "image_trunk", lambda pixels: calls.append(len(pixels)) or original(pixels))
    return calls


def test_the_second_epoch_has_no_pixels(
    model: PromptSegmenter, data: CaseDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached(model, "decoder_only")
    cache = FeatureCache(model, folder=tmp_path, memory_mb=1)
    calls = count_calls(model, monkeypatch)
    cache.prepare(data)
    assert not data.encoded
    first = [cache.inputs(batch, data)["trunks"].image for batch in batches(data, model, 4)]
    assert calls == [1, 1, 1, 1]
    cache.prepare(data)
    assert set(data.encoded) == set(data.images)
    monkeypatch.setattr("vlsm_adapter.data.loaders.read_image", None)
    for expected, batch in zip(first, batches(data, model, 4), strict=True):
        assert batch.pixel_values.shape[0] == 0
        assert batch.masks is not None
        got = cache.inputs(batch, data)["trunks"].image
        assert all(torch.equal(a, b) for a, b in zip(expected.activations, got.activations, strict=True))
    assert calls == [1, 1, 1, 1]
    assert sum(item[0].shape == (SIDE, SIDE, 3) for item in data.cache._items.values()) == 0


def test_some_images_with_pixels_and_some_without(model: PromptSegmenter, data: CaseDataset, tmp_path: Path) -> None:
    attached(model, "shallow", parts="v", bottleneck_dim=3)
    whole = FeatureCache(model, folder=tmp_path, memory_mb=1)
    expected = whole.inputs(batches(data, model)[0], data)["trunks"].image
    cache = FeatureCache(model, folder=tmp_path, memory_mb=1)
    cache.inputs(batches(data, model, 2)[0], data)  # the first two images
    cache.prepare(data)
    (batch,) = batches(data, model)
    assert (batch.pixel_rows, batch.pixel_values.shape[0]) == ((2, 3), 2)
    got = cache.inputs(batch, data)["trunks"].image
    assert all(torch.equal(a, b) for a, b in zip(expected.activations, got.activations, strict=True))


def test_features_that_are_gone_after_all_are_computed_from_the_file(
    model: PromptSegmenter, data: CaseDataset, tmp_path: Path
) -> None:
    attached(model, "decoder_only")
    shared = tmp_path / "shared"
    cache = FeatureCache(model, folder=tmp_path, memory_mb=0, disk_bytes=1 << 20, shared=shared)
    expected = cache.inputs(batches(data, model)[0], data)["trunks"].image
    cache.prepare(data)
    assert len(data.encoded) == 4
    for number, entry in enumerate(sorted(shared.rglob("*.features"))):
        entry.write_bytes(entry.read_bytes()[:-7]) if number % 2 else entry.unlink()
    (batch,) = batches(data, model)
    assert batch.pixel_values.shape[0] == 0
    got = cache.inputs(batch, data)["trunks"].image
    assert all(torch.equal(a, b) for a, b in zip(expected.activations, got.activations, strict=True))


def test_other_weights_sizes_and_statistics_have_other_entries(
    model: PromptSegmenter, records: list[Record], tmp_path: Path
) -> None:
    shared = tmp_path / "shared"

    def entries(model: PromptSegmenter, **settings: Any) -> int:
        attached(model, "decoder_only")
        cache = FeatureCache(model, folder=tmp_path, disk_bytes=1 << 20, shared=shared, **settings)
        data = CaseDataset(records, model.preprocessing)
        cache.inputs(batches(data, model)[0], data)
        return len(list(shared.rglob("*.features")))

    fresh = copy.deepcopy(model)
    assert entries(copy.deepcopy(fresh)) == 4 + 2
    assert entries(copy.deepcopy(fresh)) == 4 + 2
    other = copy.deepcopy(fresh)
    with torch.no_grad():
        other.clipseg.clip.vision_model.encoder.layers[3].mlp.fc2.weight[0, 0] += 0.1  # type: ignore[attr-defined]
    assert entries(other) == 2 * 4 + 2 * 2  # its texts too: the hash is of all weights
    other = copy.deepcopy(fresh)
    other.preprocessing = replace(other.preprocessing, mean=(0.5, 0.5, 0.5))
    assert entries(other) == 3 * 4 + 2 * 2
    other = copy.deepcopy(fresh)
    other.preprocessing = replace(other.preprocessing, size=(48, 48))
    assert entries(other) == 4 * 4 + 2 * 2
    assert entries(copy.deepcopy(fresh), precision=lambda: torch.autocast("cpu", torch.bfloat16)) == 5 * 4 + 3 * 2
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(records[0].image)
    assert entries(copy.deepcopy(fresh)) == 5 * 4 + 1 + 3 * 2


def test_files_of_equal_content_share_their_features(
    model: PromptSegmenter, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "copy.png"
    copied.write_bytes(records[0].image.read_bytes())
    data = CaseDataset([records[0], replace(records[0], case_id="copy", image=copied)], model.preprocessing)
    attached(model, "decoder_only")
    cache = FeatureCache(model, folder=tmp_path, disk_bytes=1 << 20, shared=tmp_path / "shared")
    calls = count_calls(model, monkeypatch)
    cache.inputs(batches(data, model)[0], data)
    assert calls == [1]


@pytest.mark.parametrize("on", [True, False])
def test_no_file_is_read_for_its_digest_unless_features_are_shared(
    model: PromptSegmenter, data: CaseDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: bool
) -> None:
    attached(model, "decoder_only")
    monkeypatch.setattr(FileDigests, "of", None)
    shared = None if on else tmp_path / "shared"
    cache = FeatureCache(model, folder=tmp_path, memory_mb=1, disk_bytes=1 << 20, shared=shared, on=on)
    for _ in range(2):
        cache.prepare(data)
        for batch in batches(data, model):
            cache.inputs(batch, data)
    assert len(data.encoded) == (4 if on else 0)
    assert not (tmp_path / "shared").exists()


def test_without_a_digest_nothing_goes_to_the_shared_folder(
    model: PromptSegmenter, data: CaseDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached(model, "decoder_only")
    monkeypatch.setattr(FileDigests, "of", lambda *_: None)
    shared = tmp_path / "shared"
    cache = FeatureCache(model, folder=tmp_path, memory_mb=0, disk_bytes=1 << 20, shared=shared)
    cache.inputs(batches(data, model)[0], data)
    assert len(list(shared.rglob("*.features"))) == 2  # texts
    cache.prepare(data)
    assert len(data.encoded) == 4  # in the file of the run


@pytest.mark.parametrize("when", ["before the digest", "after the digest"])
def test_a_file_that_is_replaced_while_a_run_starts_never_has_the_features_of_the_other(
    model: PromptSegmenter, data: CaseDataset, tmp_path: Path, when: str
) -> None:
    attached(model, "decoder_only")
    settings = {"folder": tmp_path, "memory_mb": 0, "disk_bytes": 1 << 20, "shared": tmp_path / "shared"}
    cache = FeatureCache(model, **settings)
    for index in range(len(data)):
        data[index]  # decodes, and keeps
    path = data.records[0].image
    other = np.zeros((SIDE, SIDE, 3), np.uint8)
    if when == "before the digest":
        Image.fromarray(other).save(path)
    cache.prepare(data)
    if when == "after the digest":
        before = path.read_bytes()
        Image.fromarray(other).save(path)
    (batch,) = batches(data, model)
    cache.inputs(batch, data)
    if when == "after the digest":
        path.write_bytes(before)
        os.utime(path, (1, 1))
    fresh = CaseDataset(data.records, model.preprocessing)
    next_run = FeatureCache(model, **settings)
    next_run.prepare(fresh)
    assert len(fresh.encoded) == (4 if when == "before the digest" else 3)
    got = next_run.inputs(batches(fresh, model)[0], fresh)["trunks"].image
    alone = FeatureCache(model, folder=tmp_path, memory_mb=1)
    plain_data = CaseDataset(data.records, model.preprocessing)
    expected = alone.inputs(batches(plain_data, model)[0], plain_data)["trunks"].image
    assert all(torch.equal(a, b) for a, b in zip(expected.activations, got.activations, strict=True))


class Strided(CLIPSeg):
    """Gives maps with the channels last in memory, an order that ``torch.cat`` keeps."""

    def image_trunk(self, pixel_values: torch.Tensor) -> ImageFeatures:
        made = super().image_trunk(pixel_values)
        return made.with_tensors(
            [t.reshape(-1, 17, 4, 6).to(memory_format=torch.channels_last) for t in made.tensors()]
        )


def test_features_have_the_same_strides_wherever_they_come_from(
    model: PromptSegmenter, data: CaseDataset, tmp_path: Path
) -> None:
    model.__class__ = Strided
    attached(model, "decoder_only")
    (batch,) = batches(data, model)
    places = {
        "nowhere": {"on": False},
        "memory": {"memory_mb": 1},
        "file": {"memory_mb": 0, "disk_bytes": 1 << 20},
        "shared": {"memory_mb": 0, "disk_bytes": 1 << 20, "shared": tmp_path / "shared"},
    }
    found = {}
    for place, settings in places.items():
        cache = FeatureCache(model, folder=tmp_path, **settings)  # type: ignore[arg-type]
        for time in ("first", "again"):
            found[place, time] = cache.inputs(batch, data)["trunks"].image.activations
    for activations in found.values():
        for one, other in zip(activations, found["nowhere", "first"], strict=True):
            assert torch.equal(one, other)
            assert one.stride() == other.stride()
            assert one.is_contiguous()


def test_what_a_gpu_lacks_of_a_batch_is_computed_together(
    model: PromptSegmenter, data: CaseDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached(model, "shallow", parts="v", bottleneck_dim=3)
    (batch,) = batches(data, model)
    cache = FeatureCache(model, folder=tmp_path, memory_mb=1)
    expected = cache.inputs(batch, data)["trunks"].image
    cache = FeatureCache(model, folder=tmp_path, memory_mb=1)
    off = FeatureCache(model, folder=tmp_path, on=False)
    assert not cache._together
    cache._together = off._together = True
    calls = count_calls(model, monkeypatch)
    cache.inputs(batches(data, model, 1)[0], data)
    for _ in range(2):
        got = cache.inputs(batch, data)["trunks"].image
        for one, other in zip(expected.activations, got.activations, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
    assert calls == [1, 3]
    # Switched off, nothing stands between the batch and the model.
    values = off.inputs(batch, data)
    assert values["trunks"].image is None
    assert values["trunks"].text is None
    assert values["pixel_values"].shape[0] == 4
    assert calls == [1, 3]


# What is said


def said(model: PromptSegmenter, data: CaseDataset, folder: Path, **settings: Any) -> str:
    return FeatureCache(model, folder=folder, precision=nullcontext, **settings).describe(data, data)


def test_one_line_says_what_is_cached(
    model: PromptSegmenter, data: CaseDataset, records: list[Record], tmp_path: Path
) -> None:
    attached(model, "shallow", bottleneck_dim=3)
    line = said(model, data, tmp_path, memory_mb=64)
    assert line == (
        "image encoder frozen: features of 4 images cached, 20 kB in memory; text encoder frozen: each prompt encoded once"
    )
    assert "run for every batch, the cache is off (train.feature_cache)" in said(model, data, tmp_path, on=False)
    line = said(model, data, tmp_path, memory_mb=0, disk_bytes=3 * ONE)
    assert (
        f"features of 4 images cached, 15 kB on the disk of {tmp_path}, until the end of the run, 1 do not fit" in line
    )
    line = said(model, data, tmp_path, memory_mb=64, disk_bytes=10**9, shared=tmp_path / "shared")
    assert f"all of them in {tmp_path / 'shared'} (at most 1.0 GB)" in line
    line = said(model, data, tmp_path, memory_mb=0)
    assert line == (
        "image encoder frozen: images not cached: no room for features of 5 kB each (train.feature_cache_mb, "
        "train.feature_cache_gb); encoded every epoch; text encoder frozen: run for every batch"
    )
    augmented = CaseDataset(records, model.preprocessing, augment="light")
    line = FeatureCache(model, folder=tmp_path, memory_mb=64).describe(augmented, data)
    assert "augmentation changes the images: not cached; features of 4 validation images cached" in line


def test_a_folder_that_cannot_serve_is_replaced_by_the_file_and_not_claimed(
    model: PromptSegmenter, data: CaseDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attached(model, "decoder_only")
    (tmp_path / "file").write_text("in the way")
    for bound, shared in ((7 * ONE, tmp_path / "shared"), (1 << 20, tmp_path / "file" / "features")):
        cache = FeatureCache(model, folder=tmp_path, memory_mb=0, disk_bytes=bound, shared=shared)
        line = cache.describe(data, data)
        assert f"features of 4 images cached, 20 kB on the disk of {tmp_path}, until the end of the run;" in line
        cache.inputs(batches(data, model)[0], data)
        cache.prepare(data)
        assert len(data.encoded) == 4
    assert len(list((tmp_path / "shared").rglob("*.features"))) == 2  # texts are small enough
    assert caplog.text.count("cannot be written") == 1


def test_a_folder_that_does_not_hold_all_is_not_said_to(
    model: PromptSegmenter, records: list[Record], tmp_path: Path
) -> None:
    attached(model, "decoder_only")
    many = [replace(records[0], case_id=f"{n}", image=tmp_path / f"{n}.png") for n in range(12)]
    data = CaseDataset(many, model.preprocessing)
    line = said(model, data, tmp_path, memory_mb=0, disk_bytes=10 * ONE, shared=tmp_path / "shared")
    assert f"at most 49 kB of them in {tmp_path / 'shared'} (train.feature_cache_gb), what was used longest ago" in line
