"""The service without HTTP: uploads, questions, adapters, corrections; every answer is bytes or a plain dictionary."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from vlsm_adapter.errors import UserError
from vlsm_adapter.models.features import ImageFeatures
from vlsm_adapter.serve.answers import Asked, Form, mask_of, png, results
from vlsm_adapter.serve.caches import ByteCache
from vlsm_adapter.serve.corrections import Corrections
from vlsm_adapter.serve.engine import Answer, Engine, Loaded, Question, prepare
from vlsm_adapter.serve.images import Images, Upload
from vlsm_adapter.serve.library import Library
from vlsm_adapter.serve.metrics import Metrics
from vlsm_adapter.serve.problems import Refused, busy
from vlsm_adapter.serve.scratch import Scratch
from vlsm_adapter.serve.settings import ServeSettings
from vlsm_adapter.serve.worker import Worker

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter

logger = logging.getLogger("vlsm_adapter")
T = TypeVar("T")


@dataclass(frozen=True)
class Query:
    """A prompt, the adapter it is asked of (None: the base model as it is), and the threshold (None: the adapter's)."""

    prompt: str
    adapter: str | None = None
    threshold: float | None = None


class Service:
    """Owns the model's thread, the threads that decode and encode pictures, and everything kept in memory.

    Args:
        settings: limits and folders.
        library: the adapters that may be loaded.
        model: the base model, on its device.

    Attributes:
        stopping: set when the process was told to end: what runs is finished, nothing new is taken.
    """

    def __init__(self, settings: ServeSettings, library: Library, model: PromptSegmenter) -> None:
        self.settings = settings
        self.library = library
        self.stopping = False
        self.corrections = Corrections(settings.corrections) if settings.corrections else None
        self.base_id, self.base_hash = model.base_id, model.base_hash
        self.encodings: ByteCache[tuple[str, int, str], ImageFeatures] = ByteCache(settings.encoding_cache_bytes)
        self.engine = Engine(model, self.encodings, settings.text_cache_bytes)
        self.scratch = Scratch()
        self.images = Images(settings, self.scratch)
        caches: dict[str, ByteCache[Any, Any]] = {
            "uploads": self.images.uploads,
            "pictures": self.images.pictures,
            "encodings": self.encodings,
            "texts": self.engine.texts,
        }
        self.metrics = Metrics(caches, lambda: len(self.worker), lambda: len(self.engine.loaded))
        self.worker = Worker(self.engine.answer, settings.queue, on_batch=self.metrics.batch)
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="vlsm-pictures")
        self._share_cores()

    def _share_cores(self) -> None:
        """One core for each thread that handles pictures: a map is quickly resized, and split over cores that the model
        uses too it waits a hundred times as long for the last of them."""
        together = threading.Barrier(self.settings.threads)

        def alone() -> None:
            together.wait(60)  # else the first thread would take all of these
            torch.get_num_threads()  # at its first use in a thread torch sets the number of the process
            torch.set_num_threads(1)

        cores = torch.get_num_threads()
        wait([self._pool.submit(alone) for _ in range(self.settings.threads)])
        # OpenMP keeps the number by thread, MKL for all of them: the model, which alone uses MKL, says its own last.
        self.worker.run(lambda: torch.set_num_threads(cores)).result()

    def warm_up(self) -> None:
        """Ask something once, so that the first client does not wait for what is made ready at the first use."""
        adapter = self.engine.base or next(iter(self.engine.loaded.values()))
        size = adapter.preprocessing.size
        pixels = prepare(adapter, np.zeros((*size, 3), np.uint8))
        question = Question(("warm-up", 0), adapter, ["warm-up"], pixels, None, time.monotonic() + 600)
        self.worker.ask([question])
        answer = question.future.result()
        list(results([Asked("warm-up", None, 0.5, answer.logits[0])], size, None, "probability"))
        self.encodings.drop(lambda _: True)

    # -- adapters --------------------------------------------------------------------------------------------------

    async def adapters(self) -> dict[str, Any]:
        """The base model and every adapter in the folder."""
        shelved = await self.in_pool(lambda: self.library.all(self.base_hash))
        loaded = self.engine.loaded
        cards = [one.card(loaded=one.name in loaded) for one in shelved]
        return {"base": self.base_id, "zero_shot": self.engine.base is not None, "adapters": cards}

    async def load(self, name: str) -> dict[str, Any]:
        """Load an adapter, or load it anew from its folder.

        Raises:
            Refused: 404 there is none of that name; 409 it cannot be loaded, or too many are.
        """
        shelved = await self.in_pool(lambda: self.library.find(name, self.base_hash))
        if shelved.problem is not None:
            raise Refused(409, f"adapter '{name}' cannot be loaded: {shelved.problem}", field="adapter")

        def load() -> Loaded:
            if name not in self.engine.loaded and len(self.engine.loaded) >= self.settings.most_adapters:
                raise Refused(
                    409,
                    f"{len(self.engine.loaded)} adapters are loaded, at most {self.settings.most_adapters} may be: unload one",
                )
            return self.engine.load(name, shelved.folder)

        try:
            await asyncio.wrap_future(self.worker.run(load))
        except UserError as error:
            message = str(error).replace(f"{shelved.folder}/", "").replace(str(shelved.folder), name)
            raise Refused(409, f"adapter '{name}' cannot be loaded: {message}", field="adapter") from None
        logger.info("adapter %s loaded", name)
        return shelved.card(loaded=True)

    async def unload(self, name: str) -> dict[str, Any]:
        """Take an adapter out of memory.

        Raises:
            Refused: 404 there is none of that name; 409 it is not loaded.
        """
        loaded = name in self.engine.loaded  # also one whose folder is gone
        shelved = None if loaded else await self.in_pool(lambda: self.library.find(name, self.base_hash))
        try:
            await asyncio.wrap_future(self.worker.run(lambda: self.engine.unload(name)))
        except UserError:
            raise Refused(
                409, f"adapter '{shelved.name if shelved else name}' is not loaded", field="adapter"
            ) from None
        logger.info("adapter %s unloaded", name)
        return {"name": name, "loaded": False}

    def _adapter(self, name: str | None, field: str) -> Loaded:
        if name is None:
            if self.engine.base is None:
                raise Refused(422, f"the base model '{self.base_id}' has random weights: ask an adapter", field=field)
            return self.engine.base
        found = self.engine.loaded.get(name)
        if found is None:
            shelved = self.library.find(name, self.base_hash)
            raise Refused(409, f"adapter '{shelved.name}' is not loaded: POST /v1/adapters/{shelved.name}", field=field)
        return found

    # -- images ----------------------------------------------------------------------------------------------------

    async def upload(self, content: bytes, name: str) -> dict[str, Any]:
        """Keep an image; what the client is told of it.

        Raises:
            Refused: it cannot be read.
        """
        self._take_new()
        upload = await self.in_pool(lambda: self.images.add(content, name))
        return upload.told(name)

    async def picture(self, image_id: str, frame: int) -> bytes:
        """A picture as the model is shown it, as PNG.

        Raises:
            Refused: it is not held.
        """
        upload = self.images.require(image_id, frame)
        return await self.in_pool(lambda: png(self.images.picture(upload, frame)))

    async def forget(self, image_id: str) -> None:
        """Let go of an image and of what was computed from it.

        Raises:
            Refused: it is not held.
        """
        await self.in_pool(lambda: self.images.forget(image_id))
        self.encodings.drop(lambda key: key[0] == image_id)

    # -- questions -------------------------------------------------------------------------------------------------

    async def segment(self, image_id: str, frame: int, queries: Sequence[Query], form: Form) -> bytes:
        """The answer to all ``queries``, as JSON.

        Raises:
            Refused: the image is not held, an adapter not loaded, a limit passed, or the queue full.
        """
        self._take_new()
        started = time.monotonic()
        deadline = started + self.settings.timeout
        upload = self.images.require(image_id, frame)
        pixels = len(queries) * upload.size[0] * upload.size[1]
        if pixels > self.settings.most_answer_pixels:
            raise Refused(
                413,
                f"the answer would have {pixels} pixels, at most {self.settings.most_answer_pixels}: ask fewer prompts at once",
                field="queries",
            )
        adapters = {
            query.adapter: self._adapter(query.adapter, f"queries[{number}].adapter")
            for number, query in reversed(list(enumerate(queries)))  # so that the field is the first that asks for it
        }
        prompts = {
            name: list(dict.fromkeys(query.prompt for query in queries if query.adapter == name)) for name in adapters
        }
        questions = await self.in_pool(lambda: self._questions(upload, frame, adapters, prompts, deadline))
        self.worker.ask(questions)
        answers: dict[str | None, Answer] = {}
        try:
            for question in questions:
                left = deadline - time.monotonic()
                answers[question.adapter.name] = await asyncio.wait_for(asyncio.wrap_future(question.future), left)
        except TimeoutError:
            raise busy(f"no answer within {self.settings.timeout:g} s: the service is busy, ask again", 10) from None
        finally:
            for question in questions:
                question.future.cancel()  # those that are answered do not mind
        for answer in answers.values():
            self.metrics.decode.observe(answer.decode)
            if not answer.cached:
                self.metrics.encode.observe(answer.encode)
        asked = [
            Asked(
                query.prompt,
                query.adapter,
                adapters[query.adapter].threshold if query.threshold is None else query.threshold,
                answers[query.adapter].logits[prompts[query.adapter].index(query.prompt)],
            )
            for query in queries
        ]
        return await self.in_pool(
            lambda: _finish(asked, upload, frame, form, list(answers.values()), started, deadline)
        )

    def _questions(
        self,
        upload: Upload,
        frame: int,
        adapters: dict[str | None, Loaded],
        prompts: dict[str | None, list[str]],
        deadline: float,
    ) -> list[Question]:
        """A question per adapter; the picture is decoded and resized here, and only where its encoding is not kept."""
        questions = []
        prepared: dict[Any, Any] = {}
        for name, adapter in adapters.items():
            features = self.encodings.get((upload.image_id, frame, adapter.key))
            pixels = None
            if features is None:
                if adapter.preprocessing not in prepared:
                    prepared[adapter.preprocessing] = prepare(adapter, self.images.picture(upload, frame))
                pixels = prepared[adapter.preprocessing]
            questions.append(Question((upload.image_id, frame), adapter, prompts[name], pixels, features, deadline))
        return questions

    # -- corrections -----------------------------------------------------------------------------------------------

    async def correct(self, image_id: str, frame: int, prompt: str, adapter: str | None, mask: str) -> dict[str, Any]:
        """Save a corrected mask, base64 of a PNG.

        Raises:
            Refused: 403 the service saves none; 404, 422 image or mask cannot be used; 503 the folder cannot be written.
        """
        corrections = self.corrections
        if corrections is None:
            raise Refused(403, "this service saves no corrections: start it with --corrections DIR")
        upload = self.images.require(image_id, frame)
        if adapter is not None and adapter not in self.engine.loaded:
            self.library.find(adapter)  # a name that was never there is a slip

        def save() -> tuple[str, int]:
            return corrections.save(
                image_id=image_id,
                frame=frame,
                picture=self.images.picture(upload, frame),
                mask=mask_of(mask, upload.size, "png"),
                prompt=prompt,
                adapter=adapter,
                spacing=upload.spacing,
            )

        try:
            record, count = await self.in_pool(save)
        except UserError as error:
            logger.error("a correction could not be saved: %s", error)
            raise busy("the correction could not be written: see the server's log", 10) from None
        self.metrics.corrections.inc()
        return {"record": record, "saved": count}

    # -- life ------------------------------------------------------------------------------------------------------

    def ready(self) -> str | None:
        """Why no question should be sent now, or None."""
        if self.stopping:
            return "stopping"
        if not self.worker.alive:
            return "the model's thread has ended"
        return "the queue is full" if len(self.worker) >= self.settings.queue else None

    async def tidy(self) -> None:
        """Forget, every minute, images that nobody asked about for long; runs until cancelled."""
        seconds = self.settings.keep_minutes * 60
        while True:
            await asyncio.sleep(min(60.0, seconds))
            gone = await self.in_pool(lambda: self.images.forget_unused(seconds))
            self.encodings.drop_unused(seconds)
            if gone:
                logger.info("%d images that nobody asked about were forgotten", gone)

    def close(self) -> None:
        """Finish what is queued, then let go of everything."""
        self.stopping = True
        self.worker.stop()
        self._pool.shutdown()
        self.images.close()
        self.scratch.close()

    def _take_new(self) -> None:
        if self.stopping:
            raise busy("the service is stopping", 5)

    async def in_pool(self, call: Callable[[], T]) -> T:
        """``call`` done by a thread for pictures, so that the loop goes on."""
        future: Future[T] = self._pool.submit(call)
        return await asyncio.wrap_future(future)


def _finish(
    asked: Sequence[Asked],
    upload: Upload,
    frame: int,
    form: Form,
    answers: Sequence[Answer],
    started: float,
    deadline: float,
) -> bytes:
    rows = []
    for row in results(asked, upload.size, upload.spacing, form):
        rows.append(row)
        if time.monotonic() > deadline:
            raise busy("the answer took too long: ask fewer prompts at once", 10)
    encode, decode = sum(one.encode for one in answers), sum(one.decode for one in answers)
    milliseconds = {"encode": encode, "decode": decode, "total": time.monotonic() - started}
    return json.dumps(
        {
            "frame": frame,
            "frames": upload.count,
            "results": rows,
            "milliseconds": {name: round(seconds * 1000, 2) for name, seconds in milliseconds.items()},
            "cached": all(answer.cached for answer in answers),
        },
        separators=(",", ":"),
    ).encode()
