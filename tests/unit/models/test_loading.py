"""load_model: what it takes, and the one line it answers with otherwise. Tokenizers and base hashes."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vlsm_adapter.errors import ModelError
from vlsm_adapter.models import base, checkpoints, embedded_models, load_model
from vlsm_adapter.models.base import PromptSegmenter


@pytest.fixture
def folder(base_folder: Path, tmp_path: Path) -> Path:
    """A copy of the base that a test may spoil."""
    return Path(shutil.copytree(base_folder, tmp_path / "copy"))


def message_of(*args: object, **kwargs: object) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(*args, **kwargs)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_unknown_name_shows_the_nearest() -> None:
    message = message_of("tinny")
    assert "'tinny'" in message
    assert "did you mean 'tiny'?" in message


def test_missing_path_is_named() -> None:
    assert "/no/such/folder" in message_of("/no/such/folder")


def test_folder_without_config(tmp_path: Path) -> None:
    assert "no config.json found" in message_of(tmp_path)


def test_adapter_folder_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "load_adapter" in message_of(tmp_path)


def test_base_with_an_adapter_beside_it_is_not_loaded_unawares(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "holds a base model and an adapter" in message_of(folder)


def test_family_that_is_not_supported(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "model_type": "clipsegg"}))
    message = message_of(folder)
    assert "'clipsegg' is not supported" in message
    assert "did you mean 'clipseg'?" in message


@pytest.mark.parametrize("content", ["{", "[]", "null", "\ud800".encode("utf-8", "surrogatepass")])
def test_config_that_is_no_json_object(folder: Path, content: str | bytes) -> None:
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert "config.json" in message_of(folder)


VALUES = st.none() | st.integers(-2, 3) | st.text(max_size=3) | st.lists(st.integers(-2, 9), max_size=3) | st.floats()
FIELDS = ("extract_layers", "reduce_dim", "projection_dim", "conditional_layer", "decoder_num_attention_heads")
NESTED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size", "hidden_act")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=2), st.sampled_from(NESTED), VALUES)
def test_config_with_any_value_loads_or_is_a_one_line_error(
    base_folder: Path, tmp_path: Path, outer: dict, name: str, value: object
) -> None:
    values = json.loads((base_folder / "config.json").read_text())
    values.update(outer)
    values["vision_config"][name] = value
    (tmp_path / "config.json").write_text(json.dumps(values))
    shutil.copy(base_folder / "model.safetensors", tmp_path)
    try:
        load_model(tmp_path)
    except ModelError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


def test_pickle_is_refused_unread(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02this would be a pickle")
    message = message_of(folder)
    assert "pytorch_model.bin" in message
    assert "refused" in message


def test_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in message_of(folder)


@pytest.mark.parametrize("keep", [0, 7, 100, 4000, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:keep])
    assert "cannot be loaded" in message_of(folder)


def test_missing_weight_is_named(folder: Path, capfd: pytest.CaptureFixture) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["decoder.film_mul.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "decoder.film_mul.weight" in message_of(folder)
    assert capfd.readouterr() == ("", "")  # the message is all there is


def test_weight_of_another_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["decoder.film_mul.weight"] = torch.zeros(2, 2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert str(folder) in message_of(folder)


def test_hub_id_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    message = message_of("nobody/no-such-model")
    assert "'nobody/no-such-model'" in message
    assert "that this machine can reach" in message


@pytest.mark.parametrize("name", ["a b/c d", "x--y/..", "é/ü"])
def test_malformed_hub_id(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest.importorskip("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)
    assert f"'{name}'" in message_of(name)


def test_unknown_dtype(base_folder: Path) -> None:
    message = message_of(base_folder, dtype="float23")
    assert "did you mean 'float32'?" in message
    assert "bfloat16" in message


def test_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer cannot be read" in message_of(folder)


def test_damaged_preprocessing(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text('{"size": "large"}')
    assert "preprocessor_config.json" in message_of(folder)


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ({"height": 33, "width": 32}, "size 33 x 32: both sides must be multiples of 8"),
        (33, "size 33 x 33: both sides must be multiples of 8"),
        ([32, 32, 99], "needs size"),
        (32.5, "side 32.5 is no whole number of pixels"),
    ],
)
def test_size_that_the_model_does_not_take(folder: Path, size: object, says: str) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": size}))
    message = message_of(folder)
    assert str(folder) in message
    assert "preprocessor_config.json" in message
    assert says in message


def test_folder_gives_its_own_preprocessing(model: PromptSegmenter, folder: Path) -> None:
    assert model.preprocessing.size == (32, 32)
    (folder / "preprocessor_config.json").unlink()
    assert load_model(folder).preprocessing.size == (352, 352)


# -- tokenizer -------------------------------------------------------------------------------------------------------------


def test_tokens_end_with_the_end_token(model: PromptSegmenter) -> None:
    tokens = model.tokenize(["polyp", "small polyp"])
    assert tokens.input_ids.dtype == tokens.attention_mask.dtype == torch.int64
    assert tokens.input_ids.shape == (2, 4)
    end = model.clipseg.config.text_config.eos_token_id  # type: ignore[union-attr]
    assert tokens.input_ids[0, 2] == tokens.input_ids[1, 3] == end
    assert tokens.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    input_ids, attention_mask = tokens
    assert input_ids is tokens.input_ids
    assert attention_mask is tokens.attention_mask


def test_long_prompt_is_cut_and_told_once(model: PromptSegmenter, caplog: pytest.LogCaptureFixture) -> None:
    fits = " ".join(["polyp"] * 10)
    with caplog.at_level(logging.WARNING, "vlsm_adapter"):
        assert model.tokenize([fits]).input_ids.shape == (1, 12)
        assert not caplog.records
        tokens = model.tokenize([f"{fits} left heart", "polyp"])
        model.tokenize([f"{fits} left heart"])
    assert tokens.input_ids.shape == (2, 12)
    assert tokens.input_ids[0, -1] == model.clipseg.config.text_config.eos_token_id  # type: ignore[union-attr]
    [record] = [record for record in caplog.records if record.name.startswith("vlsm_adapter")]
    assert "has 14 tokens, the model reads 12" in record.getMessage()
    assert "left heart" in record.getMessage().split("cut off")[1]


def test_one_text_is_not_read_as_a_prompt_per_letter(model: PromptSegmenter) -> None:
    with pytest.raises(ModelError, match=r"prompts 'polyp': must be a list, e\.g\. \['polyp'\]"):
        model.tokenize("polyp")


def test_no_prompt(model: PromptSegmenter) -> None:
    with pytest.raises(ModelError, match="no prompt"):
        model.tokenize([])


def test_model_without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    model = load_model(folder)
    with pytest.raises(ModelError, match="has no tokenizer"):
        model.tokenize(["polyp"])


# -- identity ----------------------------------------------------------------------------------------------------------------


def test_hash_ignores_layout_and_neighbours(folder: Path, model: PromptSegmenter) -> None:
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    assert checkpoints.hash_folder(folder) == model.base_hash
    save_file({"x": torch.ones(1)}, folder / "adapter_model.safetensors")  # somebody keeps an adapter beside the base
    assert checkpoints.hash_folder(folder) == model.base_hash
    (folder / "model.safetensors").unlink()
    half = len(names) // 2
    save_file({name: weights[name] for name in names[half:]}, folder / "model-00001-of-00002.safetensors")
    save_file({name: weights[name] for name in names[:half]}, folder / "model-00002-of-00002.safetensors")
    assert checkpoints.hash_folder(folder) == model.base_hash


@pytest.mark.parametrize("change", ["value", "name", "type", "shape"])
def test_hash_sees_any_change(folder: Path, model: PromptSegmenter, change: str) -> None:
    weights = load_file(folder / "model.safetensors")
    key = "decoder.film_mul.weight"
    if change == "value":
        weights[key][0, 0] = torch.nextafter(weights[key][0, 0], torch.tensor(9.0))
    elif change == "name":
        weights["decoder.film_mul.weights"] = weights.pop(key)
    elif change == "type":
        weights[key] = weights[key].view(torch.int32)
    else:
        weights[key] = weights[key].reshape(-1)
    save_file(weights, folder / "model.safetensors")
    assert checkpoints.hash_folder(folder) != model.base_hash


def test_describe_parameters() -> None:
    layer = torch.nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert base.describe_parameters(layer) == {"total": 8, "trainable": 6, "share": 0.75}
    assert base.describe_parameters(torch.nn.Identity())["share"] == 0.0


def test_tiny_model_comes_with_the_package() -> None:
    folder = Path(checkpoints.__file__).parent / "tiny"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("the tiny model's weights are not there")
    assert "tiny" in embedded_models()
    model = load_model("tiny")
    logits = model(model.preprocess([torch.zeros(9, 9, 3, dtype=torch.uint8).numpy()]), *model.tokenize(["polyp"]))
    assert logits.shape == (1, 1, *model.preprocessing.size)
    assert logits.isfinite().all()


def test_a_base_whose_files_have_gone_has_no_hash(base_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base_folder, folder)
    model = load_model(folder)
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="the weights that the model was loaded from are gone"):
        _ = model.base_hash
