"""A service on the small random model with two adapters, without a socket: httpx asks the application in this process."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlsm_adapter import AdapterInfo, load_model

pytest.importorskip("fastapi")

import httpx

from vlsm_adapter.serve.api import make_app
from vlsm_adapter.serve.library import Library
from vlsm_adapter.serve.service import Service
from vlsm_adapter.serve.settings import ServeSettings


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory, save_random_adapter: Callable[..., None]) -> Path:
    """A folder with an adapter ``polyp``, a run ``skin-run``, a damaged adapter and things that are none. Read only."""
    folder = tmp_path_factory.mktemp("served")
    for seed, (name, place) in enumerate({"polyp": "polyp", "skin": "skin-run/adapter"}.items()):
        info = AdapterInfo(threshold=0.5 - 0.1 * seed, prompts=(name,), data="phantoms", scores={"dice": 0.5})
        save_random_adapter(folder / place, seed, info)
    (folder / "skin-run" / "config.yaml").write_text("")
    (folder / "broken").mkdir()
    (folder / "broken" / "adapter_config.json").write_text("{")
    (folder / "not-an-adapter").mkdir()
    (folder / "file").write_text("x")
    return folder


@pytest.fixture
def picture() -> np.ndarray:
    """uint8 (40, 56, 3)."""
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def png_bytes(pixels: np.ndarray, **options: Any) -> bytes:
    """A PNG of ``pixels``."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", **options)
    return stream.getvalue()


@pytest.fixture
def make_service(adapters: Path, base_folder: Path) -> Callable[..., Service]:
    """``make_service(queue=3)``: a service with both adapters loaded."""

    def make(**changes: Any) -> Service:
        names = changes.pop("load", ("polyp", "skin-run"))
        settings = ServeSettings(adapters=adapters, **changes)
        service = Service(settings, Library(adapters), load_model(base_folder))
        for name in names:
            folder = service.library.find(name).folder
            service.worker.run(lambda name=name, folder=folder: service.engine.load(name, folder)).result()
        return service

    return make


@pytest.fixture
def serving(make_service: Callable[..., Service]) -> Callable[..., Any]:
    """``async with serving(token="...") as (http, service)``: a client of the application."""

    @asynccontextmanager
    async def start(**changes: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Service]]:
        service = make_service(**changes)
        app = make_app(service)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                yield http, service
        finally:
            service.close()

    return start
