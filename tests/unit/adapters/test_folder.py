"""The adapter folder, format version 1: strict round trips, and the one line that any damage is answered with."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vlsm_adapter import files
from vlsm_adapter.adapters import DenseAdapterConfig, ShallowAdapterConfig, tuner
from vlsm_adapter.adapters.attach import active, attach, attached, detach
from vlsm_adapter.adapters.folder import (
    CARD_NAME,
    CONFIG_NAME,
    WEIGHTS_NAME,
    AdapterInfo,
    load_adapter,
    read_manifest,
    read_weights,
    save_adapter,
)
from vlsm_adapter.errors import AdapterError, ConfigError, ModelError, UserError
from vlsm_adapter.models.base import PromptSegmenter

CONFIG = ShallowAdapterConfig(5, parts="vlc", condition_dim=4)
INFO = AdapterInfo(
    threshold=0.4,
    prompt_level="p1",
    prompts=("polyp",),
    data="phantoms",
    split={"train": 3, "val": 2},
    scores={"dice": 0.75, "hd95": math.inf},
    seed=41,
    licence="CC-BY-4.0",
)


def shake(model: PromptSegmenter, name: str = "default") -> None:
    for key, parameter in model.named_parameters():
        if ".adapter_" in key and f".{name}." in key:
            parameter.data.normal_(generator=torch.Generator().manual_seed(len(key)))


@pytest.fixture
def adapted(model: PromptSegmenter) -> PromptSegmenter:
    attach(model, CONFIG)
    shake(model)
    return model


@pytest.fixture
def folder(adapted: PromptSegmenter, tmp_path: Path) -> Path:
    return save_adapter(adapted, tmp_path / "adapter", info=INFO)


def fails(folder: Path, **kwargs: object) -> str:
    """The message with which loading fails; a given model is left as it was."""
    model = kwargs.get("model")
    before = None
    if isinstance(model, PromptSegmenter):
        before = [(name, parameter.requires_grad) for name, parameter in model.named_parameters()]
        names, used = attached(model), [list(layer.active_adapters) for layer in tuner.layers(model)]
    with pytest.raises(AdapterError) as caught:
        load_adapter(folder, **kwargs)  # type: ignore[arg-type]
    if isinstance(model, PromptSegmenter):
        assert [(name, parameter.requires_grad) for name, parameter in model.named_parameters()] == before
        assert attached(model) == names
        assert [list(layer.active_adapters) for layer in tuner.layers(model)] == used
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


# -- round trip ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_folder_alone_rebuilds_the_model(adapted: PromptSegmenter, folder: Path, inputs: dict) -> None:
    loaded = load_adapter(folder)
    assert torch.equal(loaded(**inputs), adapted(**inputs))
    assert loaded.preprocessing == adapted.preprocessing
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert sorted(path.name for path in folder.iterdir()) == sorted([CARD_NAME, CONFIG_NAME, WEIGHTS_NAME])


@torch.no_grad()
def test_loads_under_another_name_beside_others(adapted: PromptSegmenter, folder: Path, inputs: dict) -> None:
    expected = adapted(**inputs)
    attach(adapted, DenseAdapterConfig(3), "dense")
    shake(adapted, "dense")
    load_adapter(folder, model=adapted, name="again")
    assert attached(adapted) == ["default", "dense", "again"]
    assert active(adapted) == "again"
    assert torch.equal(adapted(**inputs), expected)
    again = tuner.state_dict(adapted, "again")
    assert all(torch.equal(tensor, again[key]) for key, tensor in tuner.state_dict(adapted, "default").items())


@torch.no_grad()
def test_saving_again_gives_the_same_bytes(adapted: PromptSegmenter, folder: Path, tmp_path: Path) -> None:
    model = load_adapter(folder, name="x")
    again = save_adapter(model, tmp_path / "again", name="x", info=read_manifest(folder).info)
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_manifest_says_it_all(adapted: PromptSegmenter, folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest.config == CONFIG
    assert (manifest.base_id, manifest.base_family, manifest.base_hash) == (
        adapted.base_id,
        "clipseg",
        adapted.base_hash,
    )
    assert manifest.preprocessing == adapted.preprocessing.to_dict()
    info = manifest.info
    assert math.isnan(info.scores["hd95"])  # JSON has no infinity
    assert info.scores["dice"] == 0.75
    assert AdapterInfo(**{**vars(info), "scores": {}}) == AdapterInfo(**{**vars(INFO), "scores": {}})
    json.loads((folder / CONFIG_NAME).read_text(), parse_constant=pytest.fail)


def test_card_says_what_a_user_must_know(adapted: PromptSegmenter, folder: Path) -> None:
    card = (folder / CARD_NAME).read_text()
    count = sum(tensor.numel() for tensor in tuner.state_dict(adapted, "default").values())
    for fact in (
        adapted.base_hash,
        f"{count:,}",
        "0.4",
        "p1",
        "'polyp'",
        "3 train, 2 val",
        "0.7500",
        "41",
        "CC-BY-4.0",
    ):
        assert fact in card


def test_weights_file_is_plain_safetensors(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS_NAME)
    expected = {
        f"{site}.adapter_{half}.{kind}"
        for site in (*(f"{tower}_skip.{j}" for tower in ("image", "text") for j in range(3)), "condition")
        for half in ("down", "up")
        for kind in ("weight", "bias")
    }
    assert weights.keys() == expected


def test_moved_base_is_given(adapted: PromptSegmenter, base_folder: Path, folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(base_folder, tmp_path / "moved")
    change_json(folder, ["base", "id"], "/gone/away")
    with pytest.raises(ModelError, match="/gone/away"):
        load_adapter(folder)
    assert load_adapter(folder, base=moved).base_id == str(moved)


def test_a_base_that_is_nowhere_is_said_with_the_folder_and_the_way_out(folder: Path) -> None:
    manifest = json.loads((folder / CONFIG_NAME).read_text())
    manifest["base"]["id"] = "/no/such/base"
    (folder / CONFIG_NAME).write_text(json.dumps(manifest))
    with pytest.raises(
        ModelError, match=r"its base model cannot be loaded .*/no/such/base.*say where it is now: --model"
    ) as caught:
        load_adapter(folder)
    assert str(caught.value).startswith(str(folder))


def test_weights_that_diverged_do_not_replace_good_ones(adapted: PromptSegmenter, folder: Path) -> None:
    before = {file: file.read_bytes() for file in folder.iterdir()}
    with torch.no_grad():
        next(value for value in adapted.parameters() if value.requires_grad).fill_(float("nan"))
    with pytest.raises(AdapterError, match=r"not written, .* not finite"):
        save_adapter(adapted, folder)
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_numbers_that_are_none_in_single_precision_are_refused(folder: Path, model: PromptSegmenter) -> None:
    weights = load_file(folder / WEIGHTS_NAME)
    key = next(iter(weights))
    weights[key] = torch.full(weights[key].shape, 1e300, dtype=torch.float64)
    save_file(weights, folder / WEIGHTS_NAME)
    with pytest.raises(AdapterError, match="not finite"):
        load_adapter(folder, model=model)


def test_nothing_to_save(model: PromptSegmenter, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="attach one first"):
        save_adapter(model, tmp_path / "x")
    with pytest.raises(AdapterError, match="no adapter 'x'"):
        save_adapter(model, tmp_path / "x", name="x")
    assert not (tmp_path / "x").exists()


def test_base_models_folder_is_not_written_into(adapted: PromptSegmenter, base_folder: Path, tmp_path: Path) -> None:
    both = Path(shutil.copytree(base_folder, tmp_path / "both"))
    with pytest.raises(AdapterError, match="a folder of its own"):
        save_adapter(adapted, both)
    assert not (both / CONFIG_NAME).exists()


def test_folder_that_cannot_be_written(adapted: PromptSegmenter, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        save_adapter(adapted, tmp_path / "file")


def test_full_disk_leaves_the_old_folder(
    adapted: PromptSegmenter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", no_space)
    shake(adapted)
    with pytest.raises(UserError, match="No space left on device"):
        save_adapter(adapted, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# -- damage ----------------------------------------------------------------------------------------------------------------


def change_json(folder: Path, keys: list[str], value: object) -> None:
    values = json.loads((folder / CONFIG_NAME).read_text())
    part = values
    for key in keys[:-1]:
        part = part[key]
    if value is ...:
        del part[keys[-1]]
    else:
        part[keys[-1]] = value
    (folder / CONFIG_NAME).write_text(json.dumps(values))


def test_other_base_is_refused(folder: Path, new_model, adapted: PromptSegmenter) -> None:  # type: ignore[no-untyped-def]
    other = new_model(seed=3)
    message = fails(folder, model=other)
    assert adapted.base_hash[:12] in message
    assert other.base_hash[:12] in message


def test_other_preprocessing_is_refused(folder: Path, model: PromptSegmenter) -> None:
    change_json(folder, ["preprocessing", "size"], [64, 64])
    assert "(64, 64)" in fails(folder, model=model)


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ([33, 33], "multiples of 8"),
        ([32, 32, 99], "too many values"),
        ([32], "not enough values"),
        ([32.5, 32], "32.5"),
    ],
)
@pytest.mark.parametrize("fresh", [False, True], ids=["on a model", "alone"])
def test_size_that_the_base_does_not_take(
    folder: Path, model: PromptSegmenter, size: list, says: str, fresh: bool
) -> None:
    change_json(folder, ["preprocessing", "size"], size)
    message = fails(folder) if fresh else fails(folder, model=model)
    assert CONFIG_NAME in message
    assert says in message


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_unknown_format_version(folder: Path, model: PromptSegmenter, version: object) -> None:
    change_json(folder, ["format_version"], version)
    assert f"format_version {version!r}" in fails(folder, model=model)


@pytest.mark.parametrize(
    ("keys", "value", "part"),
    [
        (["format"], "peft", "format is 'peft'"),
        (["adapter", "method"], "dens", "did you mean 'dense'"),
        (["adapter", "method"], ..., "method"),
        (["adapter", "parts"], "x", "parts='x'"),
        (["adapter", "colour"], 1, "colour"),
        (["adapter", "bottleneck_dim"], 6, "has shape (5,), the adapter needs (6,)"),
        (["adapter", "bottleneck_dim"], 65536, "has shape"),
        (["adapter", "parts"], "vl", "unknown"),
        (["adapter"], ..., "malformed"),
        (["base"], [], "malformed"),
        (["base", "sha256"], "0" * 64, "000000000000"),
        (["preprocessing"], {"size": 3}, "preprocessing"),
        (["preprocessing"], 3, "malformed"),
        (["info", "threshold"], 1.5, "threshold=1.5"),
        (["info", "threshold"], "high", "threshold='high'"),
        (["info", "prompts"], "polyp", "prompts="),
        (["info", "prompts"], [1], "prompts="),
        (["info", "scores"], {"dice": "good"}, "scores="),
        (["info", "colour"], 1, "colour"),
        (["info"], [1], "malformed"),
    ],
)
def test_wrong_values_in_the_manifest(
    folder: Path, model: PromptSegmenter, keys: list[str], value: object, part: str
) -> None:
    change_json(folder, keys, value)
    assert part in fails(folder, model=model)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b"[" * 100_000, b"{}"])
def test_manifest_that_is_no_json_object(folder: Path, model: PromptSegmenter, content: bytes) -> None:
    (folder / CONFIG_NAME).write_bytes(content)
    assert CONFIG_NAME in fails(folder, model=model)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PLACES = [
    [key] for key in ("format", "format_version", "adapter", "base", "preprocessing", "info")
] + [
    ["adapter", "method"], ["adapter", "scale"], ["adapter", "condition_dim"], ["adapter", "activation"],
    ["base", "id"], ["base", "sha256"], ["preprocessing", "size"], ["preprocessing", "mean"],
    ["info", "threshold"], ["info", "prompts"], ["info", "split"], ["info", "scores"], ["info", "seed"],
]  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLACES), ANY)
def test_any_value_anywhere_reads_or_is_a_one_line_error(folder: Path, keys: list[str], value: object) -> None:
    before = (folder / CONFIG_NAME).read_bytes()
    try:
        change_json(folder, keys, value)
        read_manifest(folder)
    except AdapterError as error:
        message = str(error)
    else:
        message = ""
    finally:
        (folder / CONFIG_NAME).write_bytes(before)
    assert "\n" not in message


def test_not_an_adapter_folder(tmp_path: Path, model: PromptSegmenter) -> None:
    assert CONFIG_NAME in fails(tmp_path / "nowhere", model=model)
    (tmp_path / "file").touch()
    assert CONFIG_NAME in fails(tmp_path / "file", model=model)


def test_missing_weights(folder: Path, model: PromptSegmenter) -> None:
    (folder / WEIGHTS_NAME).unlink()
    assert WEIGHTS_NAME in fails(folder, model=model)


@pytest.mark.parametrize("keep", [0, 4, 8, 200, -1])
def test_truncated_weights(folder: Path, model: PromptSegmenter, keep: int) -> None:
    file = folder / WEIGHTS_NAME
    file.write_bytes(file.read_bytes()[:keep])
    assert "truncated or not safetensors" in fails(folder, model=model)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40), st.integers(0, 40))
def test_any_bytes_read_or_are_a_one_line_error(tmp_path: Path, head: bytes, length: int) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(struct.pack("<Q", length) + head)
    try:
        read_weights(file)
    except AdapterError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


class Malicious:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return Path.touch, (self.witness,)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_renamed_pickle_is_refused_unread(folder: Path, model: PromptSegmenter, protocol: int) -> None:
    witness = folder.parent / "was-run"
    (folder / WEIGHTS_NAME).write_bytes(pickle.dumps({"x": Malicious(witness)}, protocol=protocol))
    assert "a pickle, which can run code, is refused" in fails(folder, model=model)
    assert not witness.exists()


def test_renamed_torch_file_is_refused_unread(folder: Path, model: PromptSegmenter) -> None:
    torch.save({"x": torch.zeros(3)}, folder / WEIGHTS_NAME)
    assert "a pickle, which can run code, is refused" in fails(folder, model=model)


@pytest.mark.parametrize("header", [0x0280, 0x0480, 0x4B50])
def test_header_length_that_looks_like_a_pickle_is_read(tmp_path: Path, header: int) -> None:
    # A safetensors file begins with its header's length: these lengths are the first bytes of a pickle and of a zip.
    file = tmp_path / "w.safetensors"
    save_file({"x": torch.ones(2)}, file)
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    file.write_bytes(struct.pack("<Q", header) + content[8 : 8 + size].ljust(header) + content[8 + size :])
    assert file.read_bytes()[:2] in (b"\x80\x02", b"\x80\x04", b"PK")
    assert torch.equal(read_weights(file)["x"], torch.ones(2))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda w: w.pop("condition.adapter_up.bias"), "missing ['condition.adapter_up.bias'] (1)"),
        (lambda w: w.update({"condition.extra": torch.zeros(1)}), "unknown ['condition.extra'] (1)"),
        (lambda w: w.update({"condition.adapter_up.bias": torch.zeros(3)}), "shape (3,), the adapter needs (16,)"),
        (lambda w: w.update({"condition.adapter_up.bias": torch.full((16,), torch.nan)}), "not finite"),
        (lambda w: w.update({"condition.adapter_up.bias": torch.zeros(16, dtype=torch.int32)}), "torch.int32"),
        (lambda w: w.clear(), "missing"),
    ],
    ids=["missing", "extra", "shape", "not a number", "integers", "empty"],
)
def test_weights_that_do_not_fit(folder: Path, adapted: PromptSegmenter, change, part: str) -> None:  # type: ignore[no-untyped-def]
    weights = load_file(folder / WEIGHTS_NAME)
    change(weights)
    save_file(weights, folder / WEIGHTS_NAME)
    adapted.train()
    attach(adapted, DenseAdapterConfig(3), "dense")
    assert part in fails(folder, model=adapted, name="again")
    assert adapted.training
    detach(adapted, "dense")


def test_name_in_use_leaves_its_weights(folder: Path, adapted: PromptSegmenter) -> None:
    before = {key: tensor.clone() for key, tensor in tuner.state_dict(adapted, "default").items()}
    with pytest.raises(AdapterError, match="attached already"):
        load_adapter(folder, model=adapted)
    assert all(torch.equal(before[key], tensor) for key, tensor in tuner.state_dict(adapted, "default").items())


@pytest.mark.parametrize(
    "values",
    [
        {"threshold": 2},
        {"threshold": True},
        {"threshold": float("nan")},
        {"prompts": ["polyp"]},
        {"scores": {"dice": None}},
        {"split": 3},
        {"seed": 1.5},
        {"licence": 5},
    ],
)
def test_info_is_checked_where_it_is_made(values: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        AdapterInfo(**values)
