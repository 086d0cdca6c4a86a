"""CRIS behind the seams: stages, paddings, batch norm, adapters, its folder on disk, and published weights that do not fit.

Its numbers are checked in tests/parity/test_published_cris.py.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vlsm_adapter.adapters import DenseAdapterConfig, ShallowAdapterConfig, adapter_config
from vlsm_adapter.adapters.attach import attach, detach, without_adapter
from vlsm_adapter.adapters.config import AdapterConfig
from vlsm_adapter.adapters.folder import load_adapter, save_adapter
from vlsm_adapter.errors import AdapterError, ConfigError, ModelError
from vlsm_adapter.interop import from_published
from vlsm_adapter.interop.cris import published_state_dict
from vlsm_adapter.models import load_model
from vlsm_adapter.models.base import PromptSegmenter
from vlsm_adapter.models.cris import CRIS, CRISConfig
from vlsm_adapter.models.features import TextFeatures
from vlsm_adapter.models.preprocessing import CLIP_MEAN
from vlsm_adapter.models.saving import save_model
from vlsm_adapter.optimization import check_gradients

SMALL = CRISConfig(
    embed_dim=20,  # unlike the text width, as at full size
    image_resolution=32,
    vision_layers=(1, 1, 1, 1),
    vision_width=4,
    vision_heads=2,
    context_length=12,
    vocab_size=50,
    transformer_width=16,
    transformer_heads=2,
    transformer_layers=2,
    word_len=12,
    fpn_out=(8, 16, 12),
    num_layers=2,
    num_head=2,
    dim_ffn=24,
    img_size=64,
)
IDS = torch.tensor([[48, 5, 7, 49, 49], [48, 9, 3, 4, 49], [48, 1, 49, 49, 49]])
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def small(config: CRISConfig = SMALL, **changes: object) -> CRIS:
    """A random CRIS in which every part matters, whose batch norms have seen other images than those of the tests."""
    torch.manual_seed(0)
    model = CRIS(dataclasses.replace(config, **changes), base_id="in memory")  # type: ignore[arg-type]
    model.train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=(2 / parameter[0].numel()) ** 0.5)
        for _ in range(3):
            model(torch.randn(4, 3, 64, 64), torch.randint(1, 48, (4, 5)))
    return model.freeze()  # type: ignore[return-value]


@pytest.fixture(scope="module")
def _small() -> CRIS:
    return small()


@pytest.fixture
def cris(_small: CRIS) -> CRIS:
    return copy.deepcopy(_small)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.named_buffers()}


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# -- stages ----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_stages_compose_and_an_image_is_encoded_once(cris: CRIS, pixels: torch.Tensor) -> None:
    image, text = cris.encode_image(pixels[:1]), cris.encode_text(IDS, MASK)
    assert [tuple(each.shape) for each in image.activations] == [(1, 32, 8, 8), (1, 64, 4, 4), (1, 20, 2, 2)]
    assert image.grid == (2, 2)
    assert text.words is not None
    assert (text.condition.shape, text.words.shape) == ((3, 20), (3, 5, 16))
    together = cris.decode(image, text, torch.tensor([0, 0, 0]))
    assert together.shape == (3, 64, 64)
    assert torch.equal(together[:, None], cris(pixels[:1], IDS, MASK))
    for number in range(3):
        alone = cris(pixels[:1], IDS[number : number + 1], MASK[number : number + 1])[0]
        torch.testing.assert_close(together[number : number + 1], alone, atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_image_of_each_prompt(cris: CRIS, pixels: torch.Tensor) -> None:
    index = torch.tensor([2, 0, 2])
    several = cris(pixels, IDS, MASK, index)
    assert torch.allclose(several, cris(pixels[index], IDS, MASK), atol=1e-4)
    assert not torch.allclose(several, cris(pixels, IDS, MASK), atol=1e-2)


@torch.no_grad()
def test_output_has_its_own_size(cris: CRIS) -> None:
    assert cris(torch.randn(1, 3, 96, 32), IDS[:1], MASK[:1]).shape == (1, 1, 64, 64)


@pytest.mark.parametrize("side", [60, 16, 0])
def test_image_of_other_sides_is_refused(cris: CRIS, side: int) -> None:
    with pytest.raises(ModelError, match="multiples of 32") as caught:
        cris.encode_image(torch.zeros(1, 3, 64, side))
    one_line(caught)


@torch.no_grad()
def test_half_precision(cris: CRIS, pixels: torch.Tensor) -> None:
    exact = cris(pixels, IDS, MASK)
    rough = copy.deepcopy(cris).to(torch.bfloat16)(pixels, IDS, MASK)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().mean() < 0.1 * exact.std()


# -- text ------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_masked_padding_changes_nothing(cris: CRIS, pixels: torch.Tensor) -> None:
    short = cris(pixels[:1], IDS[2:, :3], MASK[2:, :3])
    for filler in (49, 0, 7):
        ids = torch.cat([IDS[2:, :3], torch.full((1, 9), filler)], 1)
        mask = torch.tensor([[1] * 3 + [0] * 9])
        torch.testing.assert_close(cris(pixels[:1], ids, mask), short, atol=1e-4, rtol=0)
    torch.testing.assert_close(cris(pixels, IDS), cris(pixels, IDS, MASK), atol=1e-4, rtol=0)


@torch.no_grad()
def test_joined_features_are_those_of_the_prompts_together(cris: CRIS, pixels: torch.Tensor) -> None:
    parts = [cris.encode_text(IDS[2:, :3], MASK[2:, :3]), cris.encode_text(IDS[1:2], MASK[1:2])]
    joined = cris.decode(cris.encode_image(pixels[:2]), TextFeatures.join(parts))
    torch.testing.assert_close(joined[:, None], cris(pixels[:2], IDS[[2, 1]], MASK[[2, 1]]), atol=1e-4, rtol=0)


@torch.no_grad()
def test_published_padding_is_seen_and_id_0_is_not(pixels: torch.Tensor) -> None:
    model = small(padding="published")
    whole = torch.cat([IDS, torch.full((3, 7), 49)], 1)
    assert torch.equal(model(pixels, IDS, MASK), model(pixels, whole))
    text = model.encode_text(torch.tensor([[48, 0, 5, 49]]))
    assert text.words_mask is not None
    assert text.words_mask.tolist() == [[True, False, *[True] * 10]]
    masked = CRIS(SMALL)
    masked.load_state_dict(model.state_dict())
    assert (masked(pixels, IDS, MASK) - model(pixels, IDS, MASK)).abs().max() > 1e-3


@pytest.mark.parametrize("padding", ["masked", "published"])
def test_tokenize(padding: str, model: PromptSegmenter) -> None:
    tokenizer = model.tokenizer
    assert tokenizer is not None
    config = dataclasses.replace(SMALL, vocab_size=len(tokenizer), sot=None, eot=None, padding=padding)
    cris = CRIS(config, tokenizer=tokenizer)
    end = tokenizer.eos_token_id
    assert config.eot == end
    ids, mask = cris.tokenize(["polyp", "small round skin lesion"])
    length = 12 if padding == "published" else 6
    assert ids.shape == mask.shape == (2, length)
    assert mask.sum(1).tolist() == [3, 6]
    assert (ids[mask == 0] == end).all()
    assert cris.encode_text(ids, mask).condition.shape == (2, 20)
    assert cris.tokenize(["polyp " * 30]).input_ids.shape == (1, 12)
    with pytest.raises(ModelError, match="no prompt given"):
        cris.tokenize([])


def test_prompts_the_model_cannot_read(cris: CRIS) -> None:
    with pytest.raises(ModelError, match="no tokenizer"):
        cris.tokenize(["polyp"])
    with pytest.raises(ModelError, match="prompts of 13 tokens: the model reads 1 to 12"):
        cris.encode_text(torch.full((1, 13), 5))
    with pytest.raises(ModelError, match="prompts of 0 tokens"):
        cris.encode_text(torch.zeros(1, 0, dtype=torch.long))
    for wrong in (50, -1):
        with pytest.raises(ModelError, match="the model knows 0 to 49"):
            cris.encode_text(torch.tensor([[48, wrong, 49]]))


# -- batch norm ------------------------------------------------------------------------------------------------------------


def test_batch_of_one_in_training_mode(cris: CRIS, pixels: torch.Tensor) -> None:
    """One prompt has no variance over the batch: its text branch takes the running statistics, the rest its own."""
    cris.unfreeze().train()
    before = buffers(cris)
    logits = cris(pixels[:1], IDS[:1], MASK[:1])
    logits.square().mean().backward()
    check_gradients(cris)
    assert torch.isfinite(logits).all()
    moved = {name for name, tensor in cris.named_buffers() if not torch.equal(tensor, before[name])}
    assert not [name for name in moved if "txt_proj" in name]
    assert "neck.norm_layer.0.running_mean" in moved
    one_pixel = cris(torch.randn(1, 3, 32, 32), IDS[:1], MASK[:1])  # of the deepest map
    assert torch.isfinite(one_pixel).all()


def test_training_mode_has_batch_statistics_and_dropout(pixels: torch.Tensor) -> None:
    model = small(dropout=0.0)
    still = model(pixels, IDS, MASK)
    model.train()
    before = buffers(model)
    assert not torch.allclose(model(pixels, IDS, MASK), still, atol=1e-3)
    moved = buffers(model)
    assert all(not torch.equal(moved[name], before[name]) for name in before)
    other = small(dropout=0.5)
    other.decoder.train()
    assert not torch.equal(other(pixels, IDS, MASK), other(pixels, IDS, MASK))


@pytest.mark.parametrize("config", [DenseAdapterConfig(3, parts="lc"), adapter_config("full")], ids=["dense", "full"])
def test_training_of_adapters_leaves_the_statistics(config: AdapterConfig, cris: CRIS, pixels: torch.Tensor) -> None:
    attach(cris, config)
    before = buffers(cris)
    assert any("running_mean" in name for name in before)
    cris(pixels, IDS, MASK).square().mean().backward()
    check_gradients(cris)
    after = buffers(cris)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_full_copies_have_statistics_of_their_own(cris: CRIS, pixels: torch.Tensor, tmp_path: Path) -> None:
    """In training mode the copies' statistics move, the base's do not, and the adapter folder carries the moved ones."""
    with torch.no_grad():
        base = cris(pixels, IDS, MASK)
    report = attach(cris, adapter_config("full"))
    assert report.total == sum(p.numel() for p in small().parameters())
    assert report.total - report.trainable == 1  # the temperature that nothing reads
    before = buffers(cris)
    cris.train()
    cris(pixels, IDS, MASK).square().mean().backward()
    cris.eval()
    moved = {name for name, tensor in cris.named_buffers() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(".adapter_copy.default." in name for name in moved)
    with torch.no_grad():
        adapted = cris(pixels, IDS, MASK)
        with without_adapter(cris):
            assert torch.equal(cris(pixels, IDS, MASK), base)
        save_adapter(cris, tmp_path / "adapter")
        again = load_adapter(tmp_path / "adapter", model=small())
        assert torch.equal(again(pixels, IDS, MASK), adapted)


def test_unfreeze_is_what_the_published_training_trains(cris: CRIS) -> None:
    assert cris.unfreeze() is cris
    assert [name for name, p in cris.named_parameters() if not p.requires_grad] == ["backbone.logit_scale"]
    assert not cris.training
    frozen = small(freeze_encoder=True).unfreeze()
    assert {name.split(".")[0] for name, p in frozen.named_parameters() if p.requires_grad} == {
        "neck",
        "decoder",
        "proj",
    }


# -- adapters --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["published", "residual"])
@pytest.mark.parametrize("parts", ["l", "lc"])
def test_dense_adapters_in_the_text_encoder(parts: str, variant: str, cris: CRIS, pixels: torch.Tensor) -> None:
    report = attach(cris, DenseAdapterConfig(3, parts=parts, variant=variant, condition_dim=4))
    sites = {"text.attn_out": 2, "text.mlp_out": 2}
    assert report.sites == sites | ({"condition": 1} if "c" in parts else {})
    cris(pixels, IDS, MASK).square().mean().backward()
    check_gradients(cris)


@pytest.mark.parametrize("parts", ["v", "vl", "vlc", "l", "lc"])
def test_shallow_adapters_between_encoders_and_decoder(parts: str, cris: CRIS, pixels: torch.Tensor) -> None:
    config = ShallowAdapterConfig(16, parts=parts, variant="published", condition_dim=16)  # few units could all be dead
    report = attach(cris, config)
    sites = {"v": ("image.skip", 3), "l": ("text.skip", 1), "c": ("condition", 1)}
    assert report.sites == dict(sites[part] for part in parts)
    assert {place.site.width for place in config.placements(cris) if place.site.name == "image.skip"} <= {32, 64, 20}
    cris(pixels, IDS, MASK).square().mean().backward()
    check_gradients(cris)
    weights = [p for p in cris.parameters() if p.requires_grad]
    assert all(weight.grad is not None and weight.grad.any() for weight in weights if weight.ndim == 2)


@pytest.mark.parametrize("parts", ["v", "vl", "vlc"])
def test_dense_adapters_in_images_have_no_place(parts: str, cris: CRIS) -> None:
    with pytest.raises(
        AdapterError, match=r"no site 'image.attn_out', 'image.mlp_out': it offers .*text.attn_out"
    ) as caught:
        attach(cris, DenseAdapterConfig(3, parts=parts))
    one_line(caught)


def test_parts_of_the_text_alone_on_a_clipseg(model: PromptSegmenter) -> None:
    dense = DenseAdapterConfig(3, parts="l", variant="published").placements(model)
    both = DenseAdapterConfig(3, parts="vl", variant="published").placements(model)
    assert dense == [place for place in both if place.site.name.startswith("text")]
    shallow = {place.site.name for place in ShallowAdapterConfig(3, parts="lc").placements(model)}
    assert shallow == {"text.skip", "condition"}
    with pytest.raises(ConfigError, match=r"parts='c': .*allowed: l, lc, v, vl, vlc"):
        DenseAdapterConfig(3, parts="c")


def test_decoder_only_trains_neck_decoder_and_projector(cris: CRIS, pixels: torch.Tensor) -> None:
    report = attach(cris, adapter_config("decoder_only"))
    assert report.trainable == sum(
        p.numel() for p in small(freeze_encoder=True).unfreeze().parameters() if p.requires_grad
    )
    cris(pixels, IDS, MASK).square().mean().backward()
    check_gradients(cris)


def test_low_rank_changes_of_the_text_encoder(cris: CRIS, pixels: torch.Tensor) -> None:
    assert attach(cris, adapter_config("lora", parts="l", rank=2)).sites == {"text.query": 2, "text.value": 2}
    cris(pixels, IDS, MASK).square().mean().backward()
    check_gradients(cris)
    with pytest.raises(AdapterError, match=r"no site 'image.query'"):
        attach(cris, adapter_config("lora", parts="vl"), "both")


@pytest.mark.parametrize("padding", ["masked", "published"])
def test_learned_words(padding: str, pixels: torch.Tensor) -> None:
    """CoOp's words stand behind the start token, in the decoder too, and leave that much less room for others."""
    model = small(padding=padding)
    attach(model, adapter_config("coop", tokens=3))
    assert model.context_length == 9
    text = model.encode_text(IDS, MASK)
    assert text.words is not None
    assert text.words_mask is not None
    own = [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]] if padding == "masked" else [[1] * 8] * 3
    assert text.words_mask.tolist() == [[True] * 4 + [bool(value) for value in row] for row in own]
    assert text.words.shape[1] == text.words_mask.shape[1]
    torch.testing.assert_close(
        model(pixels[:1], IDS[2:, :3], MASK[2:, :3]), model(pixels[:1], IDS[2:], MASK[2:]), atol=1e-4, rtol=0
    )
    model(pixels, IDS, MASK).square().mean().backward()
    check_gradients(model)
    with pytest.raises(ModelError, match="the model reads 12"):
        model.encode_text(torch.tensor([[48, *[5] * 8, 49]]))


class TextStage(torch.nn.Module):
    """Ids and mask to words and their mask, for torch.export."""

    def __init__(self, model: CRIS) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.model.encode_text(ids, mask).tensors()


@pytest.mark.parametrize("padding", ["masked", "published"])
@torch.no_grad()
def test_learned_words_are_traced_for_any_number_of_prompts(padding: str) -> None:
    """As 'vlsm export' needs it."""
    model = small(padding=padding)
    attach(model, adapter_config("coop", tokens=3))
    stage, prompts = TextStage(model), {0: torch.export.Dim.DYNAMIC}
    traced = torch.export.export(stage, (IDS, MASK), dynamic_shapes=(prompts, prompts), strict=False).module()
    for count in (1, 2):
        for found, expected in zip(traced(IDS[:count], MASK[:count]), stage(IDS[:count], MASK[:count]), strict=True):
            torch.testing.assert_close(found, expected)


def test_every_site_is_called_and_takes_an_adapter(cris: CRIS, pixels: torch.Tensor) -> None:
    called: set[str] = set()
    sites = [
        site for site in cris.sites() if site.name != "text.tokens" or not site.index
    ]  # later ones change the first's
    for site in sites:
        module = cris.get_submodule(site.module)
        module.register_forward_hook(lambda *_, name=site.module: called.add(name))
    cris(pixels, IDS, MASK)
    assert called == {site.module for site in sites}
    held = {id(p) for site in cris.sites() if not site.width for p in cris.get_submodule(site.module).parameters()}
    assert {name for name, p in cris.named_parameters() if id(p) not in held} == {"backbone.logit_scale"}


# -- on disk ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(cris: CRIS, tmp_path: Path, model: PromptSegmenter) -> Path:
    return save_model(cris, tmp_path / "deep" / "cris")


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(cris: CRIS, saved: Path, pixels: torch.Tensor) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert sorted(saved.parent.iterdir()) == [saved]
    again = load_model(saved)
    assert isinstance(again, CRIS)
    assert again.config == cris.config
    assert again.preprocessing == cris.preprocessing
    assert (again.preprocessing.size, again.preprocessing.mean) == ((64, 64), CLIP_MEAN)
    assert again.base_hash == cris.base_hash  # in memory as on disk
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert torch.equal(again(pixels, IDS, MASK), cris(pixels, IDS, MASK))
    assert load_model(saved, dtype="bfloat16").dtype == torch.bfloat16


def test_statistics_are_part_of_the_hash(cris: CRIS) -> None:
    other = copy.deepcopy(cris)
    other.neck.txt_proj[1].running_mean.add_(1)  # type: ignore[operator]
    assert other.base_hash != cris.base_hash


def test_tokenizer_goes_with_the_model(model: PromptSegmenter, tmp_path: Path) -> None:
    tokenizer = model.tokenizer
    assert tokenizer is not None
    config = dataclasses.replace(SMALL, vocab_size=len(tokenizer), sot=None, eot=None, padding="published")
    save_model(CRIS(config, tokenizer=tokenizer), tmp_path / "cris")
    again = load_model(tmp_path / "cris")
    assert again.tokenize(["polyp"]).input_ids.shape == (1, 12)  # the padding is kept too
    values = json.loads((tmp_path / "cris" / "config.json").read_text())
    values["clip"]["vocab_size"], values["sot"], values["eot"] = 300, 298, 299
    (tmp_path / "cris" / "config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match="copy the tokenizer it was trained with"):
        load_model(tmp_path / "cris")


def test_folder_that_is_taken(cris: CRIS, saved: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in saved.iterdir()}
    for target in (saved, saved / "config.json"):
        with pytest.raises(ModelError, match="exists and is not empty"):
            save_model(cris, target)
    assert {path: path.read_bytes() for path in saved.iterdir()} == before
    (tmp_path / "empty").mkdir()
    assert load_model(save_model(cris, tmp_path / "empty")).base_hash == cris.base_hash
    with pytest.raises(ModelError, match="cannot be written"):
        save_model(cris, saved / "config.json" / "inside")


def test_what_is_not_saved(cris: CRIS, model: PromptSegmenter, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.clipseg\.save_pretrained"):
        save_model(model, tmp_path / "clipseg")
    attach(cris, DenseAdapterConfig(3, parts="l"), "mine")
    with pytest.raises(ModelError, match="carries adapters"):
        save_model(cris, tmp_path / "cris")
    assert not list(tmp_path.iterdir())
    detach(cris, "mine")
    assert save_model(cris, tmp_path / "cris").is_dir()


def test_damaged_folder(saved: Path) -> None:
    weights = saved / "model.safetensors"
    tensors = load_file(weights)
    for change, message in (
        ({"neck.aggr.0.weight": None}, r"missing \['neck.aggr.0.weight'\] \(1\)"),
        ({"more": torch.zeros(1)}, r"unknown \['more'\] \(1\)"),
        ({"neck.aggr.0.weight": torch.zeros(1)}, r"'neck.aggr.0.weight' has shape \(1,\), the model needs"),
        ({"proj.txt.bias": torch.full((73,), torch.nan)}, "not finite"),
        ({"proj.txt.bias": torch.zeros(73, dtype=torch.int32)}, "is of type torch.int32"),
    ):
        changed = {key: tensor for key, tensor in {**tensors, **change}.items() if tensor is not None}
        save_file(changed, weights)
        with pytest.raises(ModelError, match=message) as caught:
            load_model(saved)
        assert str(saved) in one_line(caught)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="truncated or not safetensors"):
        load_model(saved)
    weights.rename(saved / "pytorch_model.bin")
    with pytest.raises(ModelError, match="a pickle can run code"):
        load_model(saved)
    (saved / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"holds no model\.safetensors"):
        load_model(saved)


@pytest.mark.parametrize(
    ("group", "name", "value", "says"),
    [
        ("clip", "transformer_layers", 10**6, "transformer_layers 1000000 contradicts"),
        ("clip", "vision_layers", [1, 1, 10**6, 1], r"vision_layers\[2\] 1000000 contradicts"),
        ("cris", "num_layers", 10**6, "num_layers 1000000 contradicts"),
        ("clip", "image_resolution", 32 * 10**4, "image_resolution 320000 contradicts .*: 32 is allowed"),
        ("clip", "vocab_size", 10**6, "vocab_size 1000000 contradicts .*: 50 is allowed"),
        ("clip", "context_length", 10**6, "context_length 1000000 contradicts .*: 12 is allowed"),
        ("cris", "dim_ffn", 10**6, "dim_ffn 1000000 contradicts .*: 24 is allowed"),
        ("cris", "fpn_out", [10**6, 16, 12], r"fpn_out\[0\] 1000000 contradicts .*: 8 is allowed"),
    ],
)
def test_sizes_that_contradict_the_weights_are_refused_before_building(
    saved: Path,
    published: dict[str, torch.Tensor],
    group: str,
    name: str,
    value: object,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = changed(group, **{name: value})
    (saved / "config.json").write_text(json.dumps(values))
    with monkeypatch.context() as patched:
        patched.setattr(CRIS, "__init__", None)  # a million blocks take hours
        with pytest.raises(ModelError, match=says) as caught:
            load_model(saved)
        if "layers" in name:
            with pytest.raises(ModelError, match=f"config: {group}.{says} state_dict"):
                from_published(values, published, model="cris")
    assert one_line(caught).startswith(f"{saved / 'config.json'}: {group}.")
    assert str(saved / "model.safetensors") in one_line(caught)


def test_adapter_on_a_saved_model(cris: CRIS, saved: Path, pixels: torch.Tensor, tmp_path: Path) -> None:
    """An adapter trained on the model in memory loads onto its folder: they are the same base."""
    attach(cris, DenseAdapterConfig(3, parts="lc", variant="published"))
    save_adapter(cris, tmp_path / "adapter")
    again = load_adapter(tmp_path / "adapter", base=saved)
    with torch.no_grad():
        assert torch.equal(again(pixels, IDS, MASK), cris(pixels, IDS, MASK))


# -- configuration ---------------------------------------------------------------------------------------------------------


def test_configuration_reads_back() -> None:
    for config in (SMALL, CRISConfig(), dataclasses.replace(SMALL, padding="published", freeze_encoder=True)):
        values = json.loads(json.dumps(config.to_dict()))
        assert CRISConfig.from_dict(values) == config
        assert values["model_type"] == "cris"


def changed(group: str, **changes: object) -> dict:
    values = SMALL.to_dict()
    values[group] = {**values[group], **changes}
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "no 'clip'"),
        ({"clip": SMALL.to_dict()["clip"], "cris": 3}, "no 'cris'"),
        (changed("clip", vision_witdh=3), "did you mean 'vision_width'"),
        ({**SMALL.to_dict(), "clip": {}}, "clip.embed_dim is missing"),
        (changed("clip", vision_patch_size=16), "must be null"),
        (changed("clip", txt_length=7), "txt_length 7 must be word_len 12"),
        (changed("clip", vision_width=5), "vision_width 5 must be even"),
        (changed("clip", vision_layers=[1, 2, 3]), "vision_layers"),
        (changed("clip", vision_layers=3), "vision_layers=3"),
        (changed("clip", transformer_heads=3), "transformer_heads 3 must divide"),
        (changed("clip", transformer_width=32), "must be transformer_width 32"),
        (changed("clip", image_resolution=33), "image_resolution 33"),
        (changed("clip", vocab_size=40), "must rise below vocab_size 40"),
        (changed("clip", vocab_size=10**9), "vocab_size=1000000000"),
        (changed("clip", embed_dim="20"), "embed_dim='20'"),
        (changed("cris", intermediate=True), "intermediate must be false"),
        (changed("cris", word_len=13), "word_len 13"),
        (changed("cris", fpn_in=[1, 2, 3]), r"fpn_in=\(1, 2, 3\)"),
        (changed("cris", vis_dim=3), "vis_dim=3"),
        (changed("cris", num_head=3), "multiple of 4 and of num_head 3"),
        (changed("cris", dropout=1), "dropout=1"),
        (changed("cris", dropout=None), "dropout=None"),
        (changed("cris", img_size=100), "img_size 100"),
        (changed("cris", freeze_encoder="no"), "freeze_encoder='no'"),
        ({**SMALL.to_dict(), "padding": "mask"}, "did you mean 'masked'"),
        ({**SMALL.to_dict(), "vision_heads": 5}, "vision_heads 5 must divide"),
    ],
)
def test_configuration_that_cannot_be(values: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        CRISConfig.from_dict(values)
    one_line(caught)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
names = [(group, name) for group in ("clip", "cris") for name in SMALL.to_dict()[group]]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([*names, *((None, name) for name in ("clip", "cris", "sot", "eot", "vision_heads", "padding"))]),
    anything,
)
def test_any_value_is_read_or_refused(where: tuple[str | None, str], value: object) -> None:
    group, name = where
    values = {**SMALL.to_dict(), name: value} if group is None else changed(group, **{name: value})
    try:
        config = CRISConfig.from_dict(values)
    except ModelError as refused:
        lines = str(refused).count("\n")
        assert lines == 0
        return
    with torch.device("meta"):
        CRIS(config)


# -- published weights -----------------------------------------------------------------------------------------------------


@pytest.fixture
def published(cris: CRIS) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in published_state_dict(cris).items()}


@torch.no_grad()
def test_published_weights_from_anywhere(
    cris: CRIS, published: dict[str, torch.Tensor], pixels: torch.Tensor, tmp_path: Path
) -> None:
    values = SMALL.to_dict()
    config = tmp_path / "config.json"
    config.write_text(json.dumps(values))
    save_file(published, tmp_path / "weights.safetensors")
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in published.items()}}, tmp_path / "best.pth")
    torch.save({f"net.{key}": tensor for key, tensor in published.items()}, tmp_path / "lightning.ckpt")
    expected = cris(pixels, IDS, MASK)
    for base, weights in (
        (values, published),
        (config, tmp_path / "weights.safetensors"),
        (str(tmp_path), str(tmp_path / "best.pth")),
        (values, tmp_path / "lightning.ckpt"),
    ):
        model = from_published(base, weights, model="cris", padding="masked")
        assert torch.equal(model(pixels, IDS, MASK), expected)
        assert model.base_hash == cris.base_hash


def test_published_weights_given_as_halves_and_kept_apart(published: dict[str, torch.Tensor]) -> None:
    halves = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in published.items()}
    model = from_published(SMALL.to_dict(), halves, model="cris")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    whole = from_published(SMALL.to_dict(), published, model="cris")
    kept = published["proj.txt.bias"].clone()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(1)
    assert torch.equal(published["proj.txt.bias"], kept)


def test_tokenizer_beside_the_published_sizes(
    model: PromptSegmenter, tmp_path: Path, published: dict[str, torch.Tensor]
) -> None:
    assert model.tokenizer is not None
    model.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SMALL.to_dict()))
    read = from_published(tmp_path / "config.json", published, model="cris")
    assert read.tokenize(["polyp"]).input_ids.shape == (1, 12)


def test_published_weights_that_do_not_fit(published: dict[str, torch.Tensor], tmp_path: Path) -> None:
    stacked = "decoder.layers.0.self_attn.in_proj_weight"
    for change, message in (
        ({stacked: None}, rf"missing \['{stacked}'\] \(1\)"),
        ({stacked: torch.zeros(47, 16)}, r"has shape \(47, 16\), the model needs \(48, 16\)"),
        ({stacked: torch.zeros(())}, "has shape"),
        ({"neck.more": torch.zeros(1)}, r"unknown \['neck.more'\]"),
        ({stacked: 3}, "is no tensor by name"),
        ({3: torch.zeros(1)}, "3 is no tensor by name"),
    ):
        given: dict = {**published, **change}
        weights = {key: tensor for key, tensor in given.items() if tensor is not None}
        with pytest.raises(ModelError, match=message) as caught:
            from_published(SMALL.to_dict(), weights, model="cris")
        one_line(caught)
    with pytest.raises(ModelError, match=r"padding='mask': did you mean 'masked'"):
        from_published(SMALL.to_dict(), published, model="cris", padding="mask")
    with pytest.raises(ModelError, match="missing"):
        from_published(SMALL.to_dict(), {}, model="cris")
    with pytest.raises(ModelError, match="not readable JSON"):
        from_published(tmp_path / "none.json", published, model="cris")
    with pytest.raises(AdapterError, match="no such file"):
        from_published(SMALL.to_dict(), tmp_path / "none.pth", model="cris")
    with pytest.raises(ConfigError, match="did you mean 'cris'"):
        from_published(SMALL.to_dict(), published, model="criss")
