"""The process behind ``vlsm serve``: the address, the model, the signals that end it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from vlsm_adapter.errors import AdapterError, ConfigError, UserError, one_line
from vlsm_adapter.serve.settings import ServeSettings

if TYPE_CHECKING:
    from vlsm_adapter.console import Console
    from vlsm_adapter.models.base import PromptSegmenter
    from vlsm_adapter.serve.library import Library, Shelved
    from vlsm_adapter.serve.service import Service

TOKEN_VARIABLE = "VLSM_SERVE_TOKEN"
_NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
_FINISH_SECONDS = 30  # beyond a request's own time, for answers that are on their way


def serve(settings: ServeSettings, console: Console) -> None:
    """Serve until the process is told to stop (SIGTERM, SIGINT), then finish what runs.

    Raises:
        ConfigError: the extra ``web`` is not installed.
        UserError: no adapters, the address cannot be used, or the model cannot be loaded.
    """
    check_installed()
    from vlsm_adapter.serve.api import make_app
    from vlsm_adapter.serve.library import Library

    library = Library(settings.adapters)
    with bound(settings.host, settings.port) as listening:
        # The address is ours, but nobody can connect before the model is there.
        service = make_service(settings, library, console)
        address = listening.getsockname()
        name = f"[{address[0]}]" if ":" in address[0] else address[0]
        if not settings.loopback and settings.token is None:
            console.warn(
                f"anyone who can reach {name} may use this service and see what it holds: give it a token "
                f"({TOKEN_VARIABLE} or --token-file), or leave --host out"
            )
        try:
            app = make_app(service)
        except BaseException:
            service.close()
            raise
        _run(app, service, listening, lambda: console.say(f"serving on http://{name}:{address[1]} (Ctrl-C stops)"))
    console.say("stopped")


def check_installed() -> None:
    """Check that what the service stands on is there.

    Raises:
        ConfigError: it is not.
    """
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise ConfigError(f"the service needs {', '.join(missing)}: pip install 'vlsm-adapter[web]'")


def token_from(file: Path | None) -> str | None:
    """The token of a file, or of the environment; never of the command line, which other users of the machine can read.

    Raises:
        ConfigError: the file cannot be read or is empty.
    """
    if file is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip() or None
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: the token cannot be read ({one_line(error)})") from None
    if not token:
        raise ConfigError(f"{file}: holds no token; make one with: openssl rand -hex 24 > {file}")
    return token


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket bound to the address.

    Raises:
        UserError: the name is unknown, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: no such address ({one_line(error)})") from None
    with socket.socket(family, kind, protocol) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
        except OSError as error:
            raise UserError(
                f"{host}:{port} cannot be used ({error.strerror or error}): choose another --port, or 0 for any free one"
            ) from None
        yield listening


def make_service(settings: ServeSettings, library: Library, console: Console) -> Service:
    """The base model with the first adapters of the folder loaded.

    Raises:
        UserError: no adapter says which base model, or the model cannot be loaded.
    """
    from vlsm_adapter.inference import choose_device
    from vlsm_adapter.serve.service import Service

    shelved = library.all()
    device = choose_device(settings.device)
    model = _base(settings, library, shelved).to(device)
    service = Service(settings, library, model)
    try:
        usable = []
        for one in library.all(service.base_hash):
            if one.problem is not None:
                console.warn(f"adapter {one.name} left out: {one.problem}")
            else:
                usable.append(one)
        for one in usable[: settings.most_adapters]:
            try:
                service.worker.run(lambda one=one: service.engine.load(one.name, one.folder)).result()  # type: ignore[misc]
            except UserError as error:
                console.warn(f"adapter {one.name} left out: {error}")
        loaded = list(service.engine.loaded)
        if len(usable) > settings.most_adapters:
            console.warn(
                f"{len(usable)} adapters, of which {settings.most_adapters} are loaded (--max-adapters); clients may load others"
            )
        if not loaded and service.engine.base is None:
            raise AdapterError(
                f"{library.root}: no adapter can be loaded, and the base has random weights: train one first"
            )
        service.warm_up()
        console.say(f"base {model.base_id} on {device}; adapters: {', '.join(loaded) or 'none (zero-shot only)'}")
    except BaseException:
        service.close()
        raise
    return service


def _base(settings: ServeSettings, library: Library, shelved: list[Shelved]) -> PromptSegmenter:
    from vlsm_adapter.models import load_model

    if settings.model is not None:
        return load_model(settings.model)
    bases = {one.manifest.base_hash: one.manifest.base_id for one in shelved if one.manifest is not None}
    if not bases:
        reason = f" ({shelved[0].name}: {shelved[0].problem})" if shelved else ""
        raise AdapterError(
            f"{library.root}: holds no adapter that can be read{reason}; give a folder of adapters or runs, or --model NAME "
            "to serve a base model alone"
        )
    if len(bases) > 1:
        raise AdapterError(
            f"{library.root}: its adapters are for {len(bases)} base models ({', '.join(sorted(set(bases.values())))}); "
            "choose one with --model NAME"
        )
    return load_model(next(iter(bases.values())))


def _run(app: Any, service: Service, listening: socket.socket, on_start: Callable[[], None]) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:  # from now on it takes connections, and signals
                on_start()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            service.stopping = True  # at once; connections are looked at only some time after
            super().handle_exit(sig, frame)

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            # As uvicorn's own, which raises the signal once more at the end: being told to stop is no failure here.
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for sig, handler in before.items():
                    signal.signal(sig, handler)

    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,  # the guard logs routes, without what clients put into them
        server_header=False,
        date_header=True,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=round(service.settings.timeout) + _FINISH_SECONDS,
        backlog=1024,
        limit_concurrency=4 * service.settings.most_requests,  # connections, those that send nothing among them
        h11_max_incomplete_event_size=64 * 1024,
    )
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # not a line for whatever knocks at the port
    # Readers of images quote odd values of headers, a patient's name among them.
    warnings.simplefilter("ignore")
    for reader in ("pydicom", "highdicom", "nibabel", "PIL", "python_multipart"):
        logging.getLogger(reader).setLevel(logging.CRITICAL)
    Server(config).run(sockets=[listening])
