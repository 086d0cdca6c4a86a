"""Our reader of tokenizer.json beside transformers' tokenizers on the same files."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from vlsm_adapter.models import base_folder, checkpoints
from vlsm_adapter.models.tokenizer import FileTokenizer, is_plain


@pytest.fixture(scope="module", params=["tiny", "clip"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "tiny":
        return Path(shutil.copytree(base_folder("tiny"), tmp_path_factory.mktemp("tiny") / "model"))
    return Path(request.getfixturevalue("base_folder"))


@pytest.fixture(scope="module")
def stock(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def ours(folder: Path) -> FileTokenizer:
    found = checkpoints.load_tokenizer(folder, "x")
    assert isinstance(found, FileTokenizer)
    return found


texts = st.text(max_size=60) | st.text(alphabet="polyp round\t\n'<|endoftext|>12é腫", max_size=60)
encodable = texts.filter(lambda text: not any("\ud800" <= char <= "\udfff" for char in text))


@settings(max_examples=150, deadline=None)
@given(
    asked=st.lists(encodable, min_size=1, max_size=3),
    length=st.integers(3, 20),
    padding=st.sampled_from(["longest", "max_length"]),
)
def test_ids_and_masks_are_those_of_transformers(
    ours: FileTokenizer, stock: Any, asked: list[str], length: int, padding: str
) -> None:
    how = {"padding": padding, "truncation": True, "max_length": length, "return_tensors": "pt"}
    own, theirs = ours(asked, **how), stock(asked, **how)  # type: ignore[arg-type]
    assert torch.equal(own["input_ids"], theirs["input_ids"])
    assert torch.equal(own["attention_mask"], theirs["attention_mask"])
    assert own["input_ids"].dtype == torch.int64


@settings(max_examples=150, deadline=None)
@given(text=encodable)
def test_one_text_gives_lists(ours: FileTokenizer, stock: Any, text: str) -> None:
    own, theirs = (one(text, return_offsets_mapping=True, verbose=False) for one in (ours, stock))
    assert own["input_ids"] == theirs["input_ids"]
    assert own["offset_mapping"] == [tuple(pair) for pair in theirs["offset_mapping"]]
    without = [one(text, add_special_tokens=False, verbose=False)["input_ids"] for one in (ours, stock)]
    assert without[0] == without[1]


def test_numbers_of_special_tokens(ours: FileTokenizer, stock: Any) -> None:
    assert len(ours) == len(stock)
    for name in ("bos", "eos", "pad"):
        assert getattr(ours, f"{name}_token") == getattr(stock, f"{name}_token")
        assert getattr(ours, f"{name}_token_id") == getattr(stock, f"{name}_token_id")
    assert ours.padding_side == stock.padding_side


def test_threads_do_not_disturb_each_other(ours: FileTokenizer) -> None:
    def ask(number: int) -> list[list[int]]:
        length = 3 + number % 7
        given = ours(["small round polyp", "polyp"], padding="longest", truncation=True, max_length=length)
        return [ids[:length] for ids in given["input_ids"]]

    expected = [ask(number) for number in range(7)]
    with ThreadPoolExecutor(8) as pool:
        for number, found in enumerate(pool.map(ask, range(700))):
            assert found == expected[number % 7]


def test_what_is_saved_is_the_same_tokenizer(ours: FileTokenizer, stock: Any, tmp_path: Path) -> None:
    ours.save_pretrained(tmp_path / "copy")
    again = AutoTokenizer.from_pretrained(tmp_path / "copy")
    assert again("round polyp")["input_ids"] == stock("round polyp")["input_ids"]
    assert FileTokenizer(tmp_path / "copy")("round polyp")["input_ids"] == stock("round polyp")["input_ids"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}'])
def test_damage_is_told_in_one_line(folder: Path, tmp_path: Path, content: str) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        damaged = tmp_path / name.partition(".")[0]
        ours = checkpoints.load_tokenizer(folder, "x")
        assert ours is not None
        ours.save_pretrained(damaged)
        (damaged / name).write_text(content)
        if name == "tokenizer_config.json" and content == '{"a": 1}':
            continue  # says nothing of its class: transformers decides
        with pytest.raises(checkpoints.ModelError) as caught:
            checkpoints.load_tokenizer(damaged, "x")
        assert "\n" not in str(caught.value)


def test_padding_needs_a_pad_token(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
    with pytest.raises(ValueError, match="names no pad_token"):
        FileTokenizer(tmp_path)(["a", "b"], padding="longest")


def test_other_tokenizers_are_left_to_transformers() -> None:
    assert is_plain({"tokenizer_class": "PreTrainedTokenizerFast"})
    assert is_plain({"tokenizer_class": "CLIPTokenizer", "backend": "tokenizers"})
    assert not is_plain({"tokenizer_class": "CLIPTokenizer"})  # of before transformers 5
    assert not is_plain({"tokenizer_class": "BertTokenizer", "backend": "tokenizers"})
    assert not is_plain({})


@pytest.mark.parametrize(
    "more",
    [
        {"additional_special_tokens": ["<foo>"]},
        {"extra_special_tokens": {"image_token": "<foo>"}},
        {"added_tokens_decoder": {"9999": {"content": "<foo>", "special": True}}},
        {"pad_token": "[PAD]"},
        {"pad_token": None},
        {"split_special_tokens": True},
    ],
    ids=lambda more: next(iter(more)),
)
def test_files_that_say_more_than_tokenizer_json_are_left_to_transformers(
    folder: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    shutil.copy(folder / "tokenizer.json", tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, **more}))
    assert not isinstance(checkpoints.load_tokenizer(tmp_path, "x"), FileTokenizer)


def test_it_saves_what_it_read(folder: Path, tmp_path: Path) -> None:
    first = Path(shutil.copytree(folder, tmp_path / "first"))
    tokenizer = FileTokenizer(first)
    tokenizer.save_pretrained(first)  # over itself
    shutil.rmtree(first)
    tokenizer.save_pretrained(tmp_path / "second")
    assert FileTokenizer(tmp_path / "second")("polyp") == tokenizer("polyp")
