"""The model with its adapters and the features it has computed; one thread alone may use it (see :mod:`.worker`)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from vlsm_adapter.adapters.attach import attached, detach, use_adapter, without_adapter
from vlsm_adapter.adapters.folder import load_adapter, read_manifest
from vlsm_adapter.errors import AdapterError
from vlsm_adapter.inference import decode, inferring
from vlsm_adapter.models.features import ImageFeatures, TextFeatures
from vlsm_adapter.models.preprocessing import Preprocessing
from vlsm_adapter.serve.caches import ByteCache
from vlsm_adapter.serve.problems import Refused
from vlsm_adapter.types import DEFAULT_THRESHOLD

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter

Picture = tuple[str, int]  # image id and frame


@dataclass(frozen=True)
class Loaded:
    """An adapter in memory; or, with ``name`` None, the base model as it is.

    Attributes:
        name: as clients call it.
        key: as the model calls it: another one at every load, so that nothing computed with other weights is taken for it.
        threshold: probability above which a pixel is foreground.
        preprocessing: what it was trained with; adapters on one base may differ in the size of their input.
    """

    name: str | None
    key: str
    threshold: float
    preprocessing: Preprocessing


@dataclass
class Answer:
    """What the model said to one question.

    Attributes:
        logits: float32 (P, h, w) at the network's resolution, in main memory.
        encode, decode: seconds; of questions answered together, what all of them took.
        cached: the image was encoded before.
        together: questions answered with this one, itself among them.
    """

    logits: torch.Tensor
    encode: float
    decode: float
    cached: bool
    together: int


@dataclass
class Question:
    """Prompts about one picture, for one adapter.

    Attributes:
        picture: which.
        adapter: which.
        prompts: different texts.
        pixels: float32 (1, 3, h, w), preprocessed; None where ``features`` are given.
        features: of the picture, if they are known.
        deadline: ``time.monotonic()`` after which nobody waits for the answer.
        future: where the answer goes.
    """

    picture: Picture
    adapter: Loaded
    prompts: list[str]
    pixels: torch.Tensor | None
    features: ImageFeatures | None
    deadline: float
    future: Future[Answer] = field(default_factory=Future)
    asked: float = field(default_factory=time.monotonic)


class Engine:
    """Answers questions; loads and unloads adapters.

    Args:
        model: the base model, without adapters, on its device.
        encodings: image features by (image id, frame, adapter key), shared with who prepares questions.
        text_bytes: how much of prompts' features is kept.

    Attributes:
        base: the base model as it is; None where its weights are random.
        loaded: adapters in memory by name. A new dictionary at every change: any thread may read it.
    """

    def __init__(
        self, model: PromptSegmenter, encodings: ByteCache[tuple[str, int, str], ImageFeatures], text_bytes: int
    ) -> None:
        self.model = model.freeze()
        self.encodings = encodings
        self.texts: ByteCache[tuple[str, str], TextFeatures] = ByteCache(text_bytes)
        self.base = Loaded(None, "", DEFAULT_THRESHOLD, model.preprocessing) if model.pretrained else None
        self.loaded: dict[str, Loaded] = {}
        self._own_preprocessing = model.preprocessing
        self._numbers = itertools.count(1)
        self._in_use: str | None = None

    # -- adapters --------------------------------------------------------------------------------------------------

    def load(self, name: str, folder: Path) -> Loaded:
        """Load an adapter under ``name``, in place of one loaded under it before.

        Raises:
            AdapterError: damaged, or for another base; what was loaded is as it was.
        """
        key = f"served-{next(self._numbers)}"
        manifest = read_manifest(folder)
        self._in_use = None
        try:
            # load_adapter compares the model's preprocessing with the adapter's; here each question brings its own.
            self.model.preprocessing = Preprocessing.from_dict(manifest.preprocessing)
            load_adapter(folder, model=self.model, name=key)
            loaded = Loaded(name, key, manifest.info.threshold, self.model.preprocessing)
        except BaseException:
            if key in attached(self.model):
                detach(self.model, key)
            raise
        finally:
            self.model.preprocessing = self._own_preprocessing
        before = self.loaded.get(name)
        self.loaded = {**self.loaded, name: loaded}
        if before is not None:
            self._take_off(before)
        return loaded

    def unload(self, name: str) -> None:
        """Forget an adapter and all that was computed with it.

        Raises:
            AdapterError: none of that name is loaded.
        """
        if name not in self.loaded:
            raise AdapterError(f"adapter '{name}' is not loaded")
        gone = self.loaded[name]
        self.loaded = {other: loaded for other, loaded in self.loaded.items() if other != name}
        self._take_off(gone)

    def _take_off(self, gone: Loaded) -> None:
        self._in_use = None
        detach(self.model, gone.key)
        self.encodings.drop(lambda key: key[2] == gone.key)
        self.texts.drop(lambda key: key[0] == gone.key)

    # -- questions -------------------------------------------------------------------------------------------------

    def answer(self, questions: Sequence[Question]) -> None:
        """Answer questions to one adapter together; an answer or an error stands in the future of each."""
        able = []
        for question in questions:
            try:
                self._check(question)
                able.append(question)
            except Exception as error:
                question.future.set_exception(error)
        try:
            if able:
                self._answer(able)
        except torch.OutOfMemoryError:
            self.encodings.drop(lambda _: True)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._one_by_one(able, Refused(503, "not enough memory for this question now; ask again", retry_after=5))
        except Exception as error:
            self._one_by_one(able, error)

    def _one_by_one(self, questions: Sequence[Question], error: Exception) -> None:
        """After a failure: nobody's question may fail for another's sake."""
        if len(questions) == 1:
            questions[0].future.set_exception(error)
            return
        for question in questions:
            if not question.future.done():
                self.answer([question])

    def _check(self, question: Question) -> None:
        adapter = question.adapter
        if adapter.name is not None and self.loaded.get(adapter.name) != adapter:
            raise Refused(
                409, f"adapter '{adapter.name}' was unloaded meanwhile: load it, then ask again", field="adapter"
            )
        tokenizer, most = self.model.tokenizer, self.model.context_length
        if tokenizer is None:
            return
        for prompt in question.prompts:
            if len(prompt) <= (most - 2) // 4 or self.texts.holds((adapter.key, prompt)):
                continue  # no character has more than four tokens
            count = len(tokenizer(prompt, verbose=False)["input_ids"])
            if count > most:
                raise Refused(
                    422, f"a prompt has {count} tokens, the model reads {most}: use fewer words", field="prompt"
                )

    def _answer(self, questions: list[Question]) -> None:
        adapter = questions[0].adapter
        if adapter.key and self._in_use != adapter.key:
            use_adapter(self.model, adapter.key)
            self._in_use = adapter.key
        with inferring(self.model):
            if adapter.key:
                self._ask(adapter, questions)
            else:
                with without_adapter(self.model):
                    self._ask(adapter, questions)

    def _ask(self, adapter: Loaded, questions: list[Question]) -> None:
        started = time.perf_counter()
        pictures: dict[Picture, ImageFeatures] = {}
        fresh: dict[Picture, torch.Tensor] = {}
        for question in questions:
            found = question.features or self.encodings.get((*question.picture, adapter.key), count=False)
            if found is not None:
                pictures[question.picture] = found
            elif question.picture not in fresh:
                assert question.pixels is not None
                fresh[question.picture] = question.pixels
        for picture, features in self._encode(fresh):
            self.encodings.put((*picture, adapter.key), features, tensor_bytes(features.tensors()))
            pictures[picture] = features
        self._wait_for_device()
        encoded = time.perf_counter()

        order = {picture: number for number, picture in enumerate(pictures)}
        # The same prompt on the same picture, asked by two, is decoded once.
        rows: dict[tuple[int, str], int] = {}
        for question in questions:
            for prompt in question.prompts:
                rows.setdefault((order[question.picture], prompt), len(rows))
        images = list(pictures.values())
        features = images[0] if len(images) == 1 else ImageFeatures.join(images)
        texts = self._texts(adapter, [prompt for _, prompt in rows])
        logits = decode(self.model, features, texts, [number for number, _ in rows]).cpu()
        decoded = time.perf_counter()
        for question in questions:
            chosen = [rows[order[question.picture], prompt] for prompt in question.prompts]
            cached = question.picture not in fresh
            question.future.set_result(
                Answer(
                    logits=logits if chosen == list(range(len(logits))) else logits[chosen],
                    encode=0.0 if cached else encoded - started,
                    decode=decoded - encoded,
                    cached=cached,
                    together=len(questions),
                )
            )

    def _encode(self, fresh: dict[Picture, torch.Tensor]) -> Iterator[tuple[Picture, ImageFeatures]]:
        """Features of each picture: on a GPU of all in one pass; on a CPU, where that saves nothing, one by one."""
        size = len(fresh) if self.model.device.type == "cuda" else 1
        waiting = list(fresh.items())
        for start in range(0, len(waiting), size or 1):
            chunk = waiting[start : start + size]
            pixels = torch.cat([one for _, one in chunk])
            features = self.model.encode_image(pixels.to(device=self.model.device, dtype=self.model.dtype))
            if len(chunk) == 1:
                yield chunk[0][0], features
                continue
            for row, (picture, _) in enumerate(chunk):
                # A copy: a view would keep the features of all of them in memory.
                yield picture, features.with_tensors([one[row : row + 1].clone() for one in features.tensors()])

    def _texts(self, adapter: Loaded, prompts: Sequence[str]) -> TextFeatures:
        found = {prompt: self.texts.get((adapter.key, prompt)) for prompt in dict.fromkeys(prompts)}
        for prompt, features in found.items():
            # One at a time: a prompt's features do not depend, in their last bits, on what it was asked beside.
            if features is None:
                ids, mask = self.model.tokenize([prompt])
                features = self.model.encode_text(ids.to(self.model.device), mask.to(self.model.device))
                self.texts.put((adapter.key, prompt), features, tensor_bytes(features.tensors()) + len(prompt) * 4)
                found[prompt] = features
        return TextFeatures.join([features for prompt in prompts if (features := found[prompt]) is not None])

    def _wait_for_device(self) -> None:
        if self.model.device.type == "cuda":  # its work is queued; times would else be those of the queueing
            torch.cuda.synchronize(self.model.device)


def tensor_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """Memory of ``tensors``."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def prepare(adapter: Loaded, picture: np.ndarray) -> torch.Tensor:
    """A picture uint8 (H, W, 3) as ``adapter`` is shown it: float32 (1, 3, h, w)."""
    return adapter.preprocessing(picture)[None]
