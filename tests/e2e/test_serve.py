"""``vlsm serve`` as a process of its own: asked by the client, ended by signals, never in the way of another."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlsm_adapter import AdapterInfo, Predictor
from vlsm_adapter.data.images import read_image
from vlsm_adapter.data.records import load_records

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

import httpx

from vlsm_adapter.client import Client, ServiceError

TOKEN = "a-token-of-enough-characters"


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, save_random_adapter: Callable[..., None]) -> Path:
    """A folder with the adapters ``one`` and ``two``."""
    folder = tmp_path_factory.mktemp("served")
    for seed, name in enumerate(("one", "two")):
        save_random_adapter(folder / name, seed, AdapterInfo(threshold=0.45))
    return folder


class Server:
    """A server process, given as what starts commands; ``told`` is what it has said."""

    def __init__(self, start: Callable[..., Any], *options: object, **environment: str) -> None:
        self.process = start("serve", *options, environment=environment)

    @property
    def told(self) -> list[str]:
        return self.process.told.splitlines()

    @property
    def url(self) -> str:
        """Waits until it serves."""
        end = time.monotonic() + 240
        while time.monotonic() < end and self.process.poll() is None:
            if match := re.search(r"serving on (http://\S+)", "".join(self.told)):
                return match[1]
            time.sleep(0.05)
        raise AssertionError(f"did not start: {''.join(self.told)}")

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """Its exit code."""
        self.process.send_signal(sig)
        return self.process.wait(timeout=240)


@pytest.fixture
def serve(served: Path, start: Callable[..., Any]) -> Callable[..., Server]:
    """``serve("--token-file", file)``: a server on a free port, ended with the test."""

    def begin(*options: object, folder: Path = served, **environment: str) -> Server:
        return Server(start, folder, "--port", 0, *options, **environment)

    return begin


def test_the_client_gets_the_answers_of_the_library(
    serve: Callable[..., Server], served: Path, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    files = sorted((phantoms / "images").rglob("*.*"))[:2]
    server = serve("--corrections", tmp_path / "corrected", folder=served)
    with Client(server.url) as client:
        assert [(card["name"], card["loaded"]) for card in client.adapters()] == [("one", True), ("two", True)]
        for file in files:
            client.set_image(file)
            size = read_image(file).shape[:2]
            assert client.image_size == size
            for name in ("one", "two", None):
                predictor = Predictor.load(served / name) if name else Predictor.zero_shot(base_folder)
                predictor.set_image(file)
                masks = client.predict(["polyp", "skin lesion"], adapter=name)
                right = predictor.predict(["polyp", "skin lesion"])
                assert masks.shape == (2, *size)
                assert (masks != right).mean() < 1e-3
                difference = np.abs(client.probabilities(["polyp"], adapter=name) - predictor.probabilities(["polyp"]))
                assert difference.max() < 0.0021  # half a step of 1/255
                assert client.timing is not None
                assert client.timing.cached
        # What the service has forgotten is sent again.
        assert client.image is not None
        httpx.delete(f"{server.url}/v1/images/{client.image['image_id']}", trust_env=False)
        client.predict(["polyp"], adapter="one")
        client.unload_adapter("two")
        with pytest.raises(ServiceError, match="not loaded") as refused:
            client.predict(["polyp"], adapter="two")
        assert (refused.value.status, refused.value.field) == (409, "queries[0].adapter")
        client.load_adapter("two")
        record = client.correct("polyp", np.ones(size, bool), adapter="two")
    assert server.stop() == 0
    assert "stopped" in server.told[-1]
    assert "Traceback" not in "".join(server.told)
    ((case,), _) = load_records(tmp_path / "corrected")
    assert case.case_id == record


def test_it_finishes_what_runs_and_refuses_what_is_new(serve: Callable[..., Server], phantoms: Path) -> None:
    image = next(iter(sorted((phantoms / "images").rglob("*.*"))))
    server = serve()
    url = server.url
    answers: list[int] = []
    with httpx.Client(base_url=url, timeout=240, trust_env=False) as http:
        held = http.post("/v1/images", files={"file": ("a.png", image.read_bytes())}).json()["image_id"]
    queries = [{"prompt": f"polyp {number}", "adapter": "one"} for number in range(3)]

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=240, trust_env=False) as http:
            try:
                answers.append(http.post("/v1/segment", json={"image_id": held, "queries": queries}).status_code)
            except httpx.HTTPError:  # it came when nobody listened any more
                answers.append(503)

    # A request that is on its way when the signal comes: its body is half sent.
    body = b'{"image_id": "%s", "queries": [{"prompt": "polyp", "adapter": "one"}]}' % held.encode()
    port = int(url.rpartition(":")[2])
    slow = socket.create_connection(("127.0.0.1", port))
    head = f"POST /v1/segment/file HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    slow.sendall(head.replace("/file", "").encode() + b"Content-Type: application/json\r\n\r\n" + body[:20])
    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    while not answers:
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(timeout=240)
    assert set(answers) <= {200, 503}
    assert 200 in answers
    slow.sendall(body[20:])
    slow.settimeout(240)
    assert slow.recv(100).split()[1] in (b"200", b"503")
    slow.close()
    assert server.process.wait(timeout=240) == 0
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_ctrl_c_ends_it_in_peace(serve: Callable[..., Server]) -> None:
    server = serve()
    assert server.url
    assert server.stop(signal.SIGINT) == 0
    assert "Traceback" not in "".join(server.told)


def test_token_and_address(serve: Callable[..., Server], tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    server = serve("--token-file", file, "--max-body", 0.2)
    with Client(server.url, retries=0) as client, pytest.raises(ServiceError, match="token") as refused:
        client.adapters()
    assert refused.value.status == 401
    with Client(server.url, token=TOKEN) as client:
        assert client.adapters()
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "multipart/form-data; boundary=b"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=240, trust_env=False) as http:
        for content in (b"x" * 400_000, (b"x" * 10_000 for _ in range(40))):  # with and without Content-Length
            answer = http.post("/v1/images", content=content)
            assert answer.status_code == 413
            assert "0.2 MiB" in answer.json()["error"]
    port = int(server.url.rpartition(":")[2])
    # On the loopback interface alone.
    address = next((one[4][0] for one in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)), "127.0.0.1")
    if not address.startswith("127."):
        with pytest.raises(OSError):
            socket.create_connection((address, port), timeout=5)
    second = serve("--port", port)
    assert second.process.wait(timeout=240) == 2
    assert "cannot be used" in "".join(second.told)


def test_a_warning_where_all_may_reach_it(serve: Callable[..., Server]) -> None:
    server = serve("--host", "0.0.0.0", VLSM_SERVE_TOKEN="")
    assert server.url.startswith("http://0.0.0.0:")
    assert "anyone who can reach" in "".join(server.told)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["{empty}"], "holds no adapter"),
        (["{empty}/nowhere"], "no such folder"),
        (["{served}", "--token-file", "{empty}/none"], "token cannot be read"),
        (["{served}", "--port", "99999"], "allowed are 1 to 65535"),
        (["{served}", "--host", "no.such.name.invalid"], "no such address"),
        (["{served}", "--corrections", "{served}"], "holds no corrections"),
        (["{served}", "--model", "{empty}"], "config.json"),
        (["{served}", "--queue", "0"], "'--queue': Input should be greater than or equal to 1"),
    ],
)
def test_bad_starts(vlsm: Callable, served: Path, tmp_path: Path, options: list[str], words: str) -> None:
    # Port 8000, the default, may be taken on this machine.
    answer = vlsm("serve", "--port", "0", *(option.format(served=served, empty=tmp_path) for option in options))
    assert answer.code == 2
    assert words in answer.error
    assert len(answer.error.splitlines()) == 1


def test_a_short_token_is_refused(vlsm: Callable, served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLSM_SERVE_TOKEN", "short")
    assert "at least 16" in vlsm("serve", served).error
