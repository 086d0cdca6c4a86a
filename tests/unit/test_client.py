"""The client against answers made up here: what it sends, how it waits, what it makes of errors."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("httpx")

import httpx

from vlsm_adapter import client as module
from vlsm_adapter.client import Client, ServiceError
from vlsm_adapter.errors import ConfigError, UserError

IMAGE = {"image_id": "a" * 32, "name": "x", "kind": "picture", "width": 6, "height": 4, "frames": 1, "spacing": None}
MASK = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10


def answer(prompts: int = 1) -> dict[str, Any]:
    stream = io.BytesIO()
    Image.fromarray(MASK).save(stream, "PNG")
    result = {"prompt": "p", "png": base64.b64encode(stream.getvalue()).decode()}
    return {
        "results": [result] * prompts,
        "milliseconds": {"encode": 1.0, "decode": 2.0, "total": 4.0},
        "cached": False,
    }


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Client, list[Any]]]:
    """``talk(answers)``: a client, and the requests it makes; each is given the next answer."""
    monkeypatch.setattr(module.time, "sleep", lambda _: None)

    def make(*answers: Any, **options: Any) -> tuple[Client, list[Any]]:
        requests: list[Any] = []
        left = list(answers)

        def handle(request: Any) -> Any:
            request.read()
            requests.append(request)
            one = left.pop(0)
            if isinstance(one, Exception):
                raise one
            return one if isinstance(one, httpx.Response) else httpx.Response(200, json=one)

        client = Client("http://127.0.0.1:8000/", **options)
        client._http = httpx.Client(base_url=client.url, transport=httpx.MockTransport(handle))
        return client, requests

    return make


def test_masks_and_probabilities(talk: Callable) -> None:
    client, requests = talk(IMAGE, answer(2), answer(), answer(), adapter="own")
    client.set_image(np.zeros((4, 6, 3), np.uint8))
    assert client.image_size == (4, 6)
    np.testing.assert_array_equal(client.predict(["a", "b"], threshold=0.3), np.stack([MASK > 127] * 2))
    np.testing.assert_allclose(client.probabilities(["a"], adapter=None), MASK[None] / 255, rtol=1e-6)
    client.predict(["a"], adapter="other", frame=2)
    bodies = [json.loads(request.content) for request in requests[1:]]
    assert [query["adapter"] for query in bodies[0]["queries"]] == ["own", "own"]
    assert bodies[0]["queries"][0]["threshold"] == 0.3
    assert (bodies[0]["return"], bodies[1]["return"]) == ("mask", "probability")
    assert bodies[1]["queries"][0]["adapter"] is None
    assert (bodies[2]["queries"][0]["adapter"], bodies[2]["frame"]) == ("other", 2)
    assert client.timing is not None
    assert client.timing.decode == 2.0


def test_an_image_that_was_forgotten_is_sent_again(talk: Callable) -> None:
    gone = httpx.Response(404, json={"error": "gone", "field": "image_id"})
    client, requests = talk(IMAGE, gone, IMAGE, answer())
    client.set_image(b"file")
    client.predict(["a"])
    assert [request.url.path for request in requests] == ["/v1/images", "/v1/segment"] * 2


def test_it_waits_while_the_service_is_busy_and_not_for_ever(talk: Callable) -> None:
    busy = httpx.Response(503, json={"error": "busy", "field": None}, headers={"retry-after": "2"})
    client, _ = talk(busy, busy, {"adapters": []}, retries=2)
    assert client.adapters() == []
    client, _ = talk(busy, busy, busy, retries=2)
    with pytest.raises(ServiceError, match="busy") as refused:
        client.adapters()
    assert refused.value.status == 503


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (httpx.ConnectError("refused"), "is 'vlsm serve' running"),
        (httpx.ReadTimeout("slow"), "larger timeout"),
        (httpx.Response(200, text="<html>"), "not an answer of 'vlsm serve'"),
        (httpx.Response(502, text="bad gateway"), "not an answer"),
        (httpx.Response(401, json={"error": "a token is needed", "field": None}), "a token is needed"),
    ],
)
def test_errors_are_one_line(talk: Callable, reply: Any, words: str) -> None:
    client, _ = talk(reply)
    with pytest.raises(ServiceError, match=words):
        client.adapters()


def test_a_failed_image_leaves_the_one_before(talk: Callable, tmp_path: Path) -> None:
    client, _ = talk(IMAGE, httpx.Response(422, json={"error": "damaged", "field": "file"}))
    client.set_image(Image.new("L", (6, 4)))
    with pytest.raises(ServiceError, match="damaged"):
        client.set_image(b"x")
    with pytest.raises(UserError, match="cannot be read"):
        client.set_image(tmp_path / "none.png")
    assert client.image == IMAGE


def test_misuse(talk: Callable) -> None:
    client, _ = talk(IMAGE)
    with pytest.raises(UserError, match="no image is set"):
        client.predict(["a"])
    for image in (np.zeros((4, 6)), np.zeros((4, 6, 4), np.uint8), 5):
        with pytest.raises(UserError, match="image"):
            client.set_image(image)  # type: ignore[arg-type]
    client.set_image(b"x")
    with pytest.raises(UserError, match="one string"):
        client.predict("polyp")
    with pytest.raises(UserError, match="no prompt"):
        client.predict([])
    with pytest.raises(UserError, match="bool"):
        client.correct("polyp", np.zeros((4, 6)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda client: client.predict(["a"], threshold=float("nan")), "threshold nan"),
        (lambda client: client.predict(["a"], threshold="high"), "threshold 'high'"),
        (lambda client: client.predict(["a"], frame=1.5), "frame 1.5"),
        (lambda client: client.probabilities(["a"], frame=-1), "frame -1"),
        (lambda client: client.predict([3]), "prompt 3"),
        (lambda client: client.predict(["\ud800"]), "not Unicode"),
        (lambda client: client.correct("a", np.zeros((0, 0), bool)), r"shape \(0, 0\), the image \(4, 6\)"),
        (lambda client: client.correct(None, np.zeros((4, 6), bool)), "prompt None"),
    ],
)
def test_what_cannot_be_sent(talk: Callable, call: Callable[[Client], object], words: str) -> None:
    client, requests = talk(IMAGE)
    client.set_image(b"x")
    with pytest.raises(UserError, match=words) as error:
        call(client)
    assert "\n" not in str(error.value)
    assert len(requests) == 1


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB", "PA", "RGBX", "RGBa", "La"])
def test_pillow_images_that_png_does_not_hold_are_converted(mode: str) -> None:
    start = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    between = {"RGBa": "RGBA", "La": "LA"}
    image = (start.convert(between[mode]) if mode in between else start).convert(mode)
    _, content = module._as_file(image)
    expected = image.convert({"La": "LA"}.get(mode, "RGBA")).convert("RGB")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")), np.asarray(expected))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pillow_images_of_large_numbers_are_refused(mode: str) -> None:
    with pytest.raises(UserError, match=f"mode '{mode}'.*give its file"):
        module._as_file(Image.new(mode, (8, 6)))


@pytest.mark.parametrize("url", ["http://[::1", "http://here:port"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="no address"):
        Client(url)


def test_numbers_of_numpy_are_numbers(talk: Callable) -> None:
    client, requests = talk(IMAGE, answer())
    client.set_image(b"x")
    client.predict(["a"], threshold=np.float32(0.5), frame=np.int64(2))
    body = json.loads(requests[1].content)
    assert (body["queries"][0]["threshold"], body["frame"]) == (0.5, 2)


def test_a_token_that_no_header_carries_is_refused_and_not_shown() -> None:
    for token in ("w\u00f6rter-und-zeichen", "two words of a token", "line\nline-line-line"):
        with pytest.raises(ConfigError, match="token") as error:
            Client(token=token)
        assert token not in str(error.value)


def test_names_of_adapters_stay_one_part_of_the_path(talk: Callable) -> None:
    client, requests = talk({}, {})
    client.load_adapter("../x")
    client.unload_adapter("a b")
    assert [request.url.raw_path for request in requests] == [b"/v1/adapters/..%2Fx", b"/v1/adapters/a%20b"]
