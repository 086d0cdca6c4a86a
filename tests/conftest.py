"""Fixtures shared by all tests: a small random CLIPSeg in Hugging Face format, built once, and where the extras are."""

from __future__ import annotations

import copy
import importlib.util
import os
import sys
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vlsm_adapter.models import load_model
from vlsm_adapter.models.base import PromptSegmenter

_VISIBLE = {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES",) if name in os.environ}
_cuda_is_there = torch.cuda.is_available
_cuda_may_be_used = True  # while tests are collected: their marks ask


def _cuda_for_this_test() -> bool:
    return _cuda_may_be_used and _cuda_is_there()


torch.cuda.is_available = _cuda_for_this_test


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Only tests marked ``gpu`` see a GPU: the others compare bits, and what is said, on a CPU."""
    global _cuda_may_be_used
    _cuda_may_be_used = item.get_closest_marker("gpu") is not None
    if _cuda_may_be_used:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        os.environ.update(_VISIBLE)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of processes that a test starts


WORDS = ("polyp", "skin", "lesion", "tumor", "left", "heart", "the", "of", "image", "a", "in", "round", "small")
INPUT_SIZE = 32
PATCH = 8
CONTEXT = 12


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs of tests keep decoded images in a folder of the tests, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLSM_CACHE_DIR", str(tmp_path_factory.mktemp("case_cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    # Thousands of small files are written; none of them has to survive a power cut.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlsm_adapter.files.os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _quiet_and_narrow() -> Iterator[None]:
    # Small matrices are slower on many threads, and the order of sums should not depend on the machine.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder of large fixtures beside the checkout; a test that needs it is skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared (large fixtures, not part of the repository)")
    return folder


def small_config(**changes: object) -> dict:
    """``config.json`` of a CLIPSeg that runs in a millisecond; the last vision block is read by nothing."""
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "max_position_embeddings": CONTEXT,
    }
    vision = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 5,
        "num_attention_heads": 3,
        "image_size": INPUT_SIZE,
        "patch_size": PATCH,
    }
    values: dict = {
        "text_config": text,
        "vision_config": vision,
        "projection_dim": 16,
        "extract_layers": [0, 1, 3],
        "reduce_dim": 8,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16,
    }
    for key, value in changes.items():
        if isinstance(value, dict):
            values[key] = {**values[key], **value}
        else:
            values[key] = value
    return values


def build_clipseg(seed: int = 0, **changes: object):  # type: ignore[no-untyped-def]
    """A stock CLIPSegForImageSegmentation with random weights large enough that every part matters."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    torch.manual_seed(seed)
    stock = CLIPSegForImageSegmentation(CLIPSegConfig(**small_config(**changes))).eval()
    with torch.no_grad():
        for parameter in stock.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return stock


@pytest.fixture(scope="session")
def stock_clipseg() -> Callable[..., Any]:
    """``stock_clipseg(seed, **changes_of_config)``: transformers' own model."""
    return build_clipseg


def small_tokenizer():  # type: ignore[no-untyped-def]
    """A CLIP tokenizer whose merges know a few words; anything else falls into letters."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
    merges = list(dict.fromkeys(merges))
    vocabulary += [left + right for left, right in merges]
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(vocabulary)}, merges=merges, model_max_length=CONTEXT
    )


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random CLIPSeg with tokenizer and preprocessing, in Hugging Face format. Read only: copy it to change it."""
    from vlsm_adapter import files
    from vlsm_adapter.models.preprocessing import Preprocessing

    folder = tmp_path_factory.mktemp("base") / "small-clipseg"
    tokenizer = small_tokenizer()
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    text = {"vocab_size": len(tokenizer), "bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    build_clipseg(text_config=text).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    files.write_json(folder / "preprocessor_config.json", Preprocessing(size=(32, 32)).to_hugging_face())
    return folder


@pytest.fixture(scope="session")
def _loaded(base_folder: Path) -> PromptSegmenter:
    return load_model(base_folder)


@pytest.fixture
def model(_loaded: PromptSegmenter) -> PromptSegmenter:
    """The small model as loaded from ``base_folder``, the test's own."""
    return copy.deepcopy(_loaded)


@pytest.fixture
def inputs(model: PromptSegmenter) -> dict[str, torch.Tensor]:
    """Two images and two prompts of unequal length, as keyword arguments of the model."""
    tokens = model.tokenize(["polyp", "the small round skin lesion"])
    pixels = torch.randn(2, 3, INPUT_SIZE, INPUT_SIZE, generator=torch.Generator().manual_seed(1))
    return {"pixel_values": pixels, "input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}


@pytest.fixture(scope="session")
def save_random_adapter(base_folder: Path) -> Callable[..., None]:
    """``save_random_adapter(folder, seed, info)``: a dense adapter of the small model that answers otherwise than without it."""
    from vlsm_adapter import DenseAdapterConfig, attach, save_adapter

    def save(folder: Path, seed: int, info: object) -> None:
        model = load_model(base_folder)
        torch.manual_seed(seed)
        attach(model, DenseAdapterConfig(bottleneck_dim=8))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        save_adapter(model, folder, info=info)

    return save


@pytest.fixture(scope="session")
def built_once() -> Callable[[Hashable, Callable[[], PromptSegmenter]], PromptSegmenter]:
    """``built_once(key, build)``: a copy of what ``build()`` gave first; random numbers go on as after building."""
    kept: dict[Hashable, tuple[PromptSegmenter, torch.Tensor]] = {}

    def copied(key: Hashable, build: Callable[[], PromptSegmenter]) -> PromptSegmenter:
        if key not in kept:
            kept[key] = (build(), torch.get_rng_state())
        model, random_state = kept[key]
        torch.set_rng_state(random_state)
        return copy.deepcopy(model)

    return copied


@pytest.fixture(scope="session")
def new_model(built_once: Callable[..., PromptSegmenter]) -> Callable[..., PromptSegmenter]:
    """``new_model(**changes_of_config)``: an in-memory model, with the tokenizer's numbers of special tokens."""
    from vlsm_adapter.models.clipseg import CLIPSeg

    def build(seed: int = 0, **changes: object) -> PromptSegmenter:
        special = {"vocab_size": 50, "bos_token_id": 48, "eos_token_id": 49, "pad_token_id": 49}
        changes["text_config"] = {**special, **changes.get("text_config", {})}  # type: ignore[dict-item]
        return built_once(
            ("CLIPSeg", seed, repr(changes)), lambda: CLIPSeg(build_clipseg(seed, **changes), base_id="in memory")
        )

    return build


@pytest.fixture(scope="session")
def miniatures() -> ModuleType:
    """The module that builds a miniature of every public data set's archive, with generated pixels."""
    path = Path(__file__).parent / "unit" / "data" / "sources" / "miniatures.py"
    spec = importlib.util.spec_from_file_location("miniatures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["miniatures"] = module
    spec.loader.exec_module(module)
    return module
