"""The HTTP interface: what it answers, and how it refuses."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from vlsm_adapter import Predictor
from vlsm_adapter.serve.scratch import SHARED_MEMORY
from vlsm_adapter.serve.service import Service

needs_memory_folder = pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="needs /dev/shm")
TOKEN = "a-token-of-enough-characters"


def png_bytes(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def png_text(pixels: np.ndarray) -> str:
    return base64.b64encode(png_bytes(pixels)).decode()


def pixels_of(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


async def upload(http: httpx.AsyncClient, picture: np.ndarray) -> str:
    answer = await http.post("/v1/images", files={"file": ("Doe^Jane.png", png_bytes(picture))})
    assert answer.status_code == 200, answer.text
    return answer.json()["image_id"]


def run(call: Callable[[httpx.AsyncClient, Service], Any], serving: Callable[..., Any], **changes: Any) -> None:
    async def body() -> None:
        async with serving(**changes) as (http, service):
            await call(http, service)

    asyncio.run(body())


def refused(answer: httpx.Response, status: int, words: str = "", field: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "field"}
    assert words in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    if field is not None:
        assert answer.json()["field"] == field


def test_one_request_asks_several_adapters_and_the_base(
    serving: Callable, picture: np.ndarray, adapters: Path, base_folder: Path
) -> None:
    async def call(http: httpx.AsyncClient, _: Service) -> None:
        image = await upload(http, picture)
        queries = [
            {"prompt": "polyp", "adapter": "polyp"},
            {"prompt": "polyp", "adapter": None},
            {"prompt": "skin lesion", "adapter": "skin-run", "threshold": 0.25},
            {"prompt": "polyp", "adapter": "polyp", "threshold": 0},
        ]
        for form in ("probability", "mask"):
            answer = await http.post("/v1/segment", json={"image_id": image, "queries": queries, "return": form})
            assert answer.status_code == 200
            values = answer.json()
            assert (values["frame"], values["frames"]) == (0, 1)
            assert values["cached"] == (form == "mask")
            assert (values["milliseconds"]["encode"] == 0) == (form == "mask")
            for query, result in zip(queries, values["results"], strict=True):
                name, prompt = query["adapter"], query["prompt"]
                places = {"polyp": "polyp", "skin-run": "skin-run/adapter"}
                predictor = (
                    Predictor.zero_shot(base_folder)
                    if name is None
                    else Predictor.load(adapters / places[str(name)], base=base_folder)
                )
                predictor.set_image(picture)
                (right,) = predictor.predictions([str(prompt)], threshold=query.get("threshold"))  # type: ignore[arg-type]
                assert result["threshold"] == right.threshold
                assert result["area_px"] == pytest.approx(right.mask.sum(), abs=2)
                assert result["area_mm2"] is None
                shown = right.probability * 255 if form == "probability" else right.mask * 255.0
                difference = np.abs(pixels_of(result["png"]) - shown)
                assert difference.max() < 1 if form == "probability" else (difference > 0).sum() <= 2

    run(call, serving)


def test_upload_and_ask_in_one_request(serving: Callable, picture: np.ndarray) -> None:
    async def call(http: httpx.AsyncClient, _: Service) -> None:
        file = {"file": ("a.png", png_bytes(picture))}
        data = {"prompt": ["polyp", "tool"], "adapter": ["polyp", ""], "threshold": "0.3", "return": "mask"}
        values = (await http.post("/v1/segment/file", files=file, data=data)).json()
        asked = [(result["adapter"], result["prompt"], result["threshold"]) for result in values["results"]]
        assert asked == [("polyp", "polyp", 0.3), ("polyp", "tool", 0.3), (None, "polyp", 0.3), (None, "tool", 0.3)]
        assert set(np.unique(pixels_of(values["results"][0]["png"]))) <= {0, 255}
        for field, value in (("threshold", "2"), ("threshold", "nan"), ("frame", "-1"), ("return", "x"), ("nix", "1")):
            refused(await http.post("/v1/segment/file", files=file, data={**data, field: value}), 422, field=field)
        refused(await http.post("/v1/segment/file", files=file, data={"prompt": " "}), 422, field="prompt")
        refused(await http.post("/v1/segment/file", files=file), 422, "no prompt", "prompt")
        refused(await http.post("/v1/segment/file", data={"prompt": "a"}, files={"other": b""}), 422)

    run(call, serving)


@needs_memory_folder
def test_an_answer_says_which_frame_of_how_many(serving: Callable) -> None:
    pages = [Image.fromarray(np.full((12, 10), value, np.uint8)) for value in (10, 20, 30)]
    stream = io.BytesIO()
    pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:])

    async def call(http: httpx.AsyncClient, _: Service) -> None:
        for data, frame in (({}, 0), ({"frame": "2"}, 2)):
            asked = {"prompt": "polyp", "adapter": "polyp", **data}
            answer = await http.post("/v1/segment/file", files={"file": ("a.tif", stream.getvalue())}, data=asked)
            assert (answer.json()["frame"], answer.json()["frames"]) == (frame, 3)

    run(call, serving)


def test_adapters_are_listed_loaded_and_unloaded(serving: Callable, picture: np.ndarray) -> None:
    async def call(http: httpx.AsyncClient, _: Service) -> None:
        values = (await http.get("/v1/adapters")).json()
        assert values["zero_shot"]
        assert not values["corrections"]
        cards = {card["name"]: card for card in values["adapters"]}
        assert cards["polyp"] == {
            "name": "polyp",
            "loaded": True,
            "method": "dense",
            "threshold": 0.5,
            "classes": ["polyp"],
            "scores": {"dice": 0.5},
            "trained_on": "phantoms",
            "problem": None,
        }
        assert "malformed" in cards["broken"]["problem"]
        assert not cards["skin-run"]["loaded"]
        image = await upload(http, picture)
        body = {"image_id": image, "queries": [{"prompt": "a", "adapter": "skin-run"}]}
        refused(await http.post("/v1/segment", json=body), 409, "not loaded", "queries[0].adapter")
        refused(await http.post("/v1/adapters/skin-run"), 409, "at most 1")
        assert (await http.delete("/v1/adapters/polyp")).json() == {"name": "polyp", "loaded": False}
        assert (await http.post("/v1/adapters/skin-run")).json()["loaded"]
        assert (await http.post("/v1/segment", json=body)).status_code == 200
        refused(await http.delete("/v1/adapters/polyp"), 409, "not loaded")
        refused(await http.post("/v1/adapters/broken"), 409, "cannot be loaded")
        for name in ("nothing", "..%2Fpolyp", "%2e%2e", "polyp%00"):
            refused(await http.post(f"/v1/adapters/{name}"), 404)

    run(call, serving, load=["polyp"], most_adapters=1)


BAD_QUESTIONS = [
    ({"queries": []}, 422, "queries"),
    ({"queries": [{"prompt": ""}]}, 422, "queries[0].prompt"),
    ({"queries": [{"prompt": "  \n"}]}, 422, "queries[0].prompt"),
    ({"queries": [{"prompt": "\u200b\u00ad"}]}, 422, "queries[0].prompt"),
    ({"queries": [{"prompt": "po\0lyp"}]}, 422, "queries[0].prompt"),
    ({"queries": [{"prompt": "\x1b[31mpolyp"}]}, 422, "queries[0].prompt"),
    ({"queries": [{"prompt": "a"}, {"prompt": 5}]}, 422, "queries[1].prompt"),
    ({"queries": [{"prompt": "a", "threshold": True}]}, 422, "queries[0].threshold"),
    ({"queries": [{"prompt": "a", "threshold": "0.5"}]}, 422, "queries[0].threshold"),
    ({"frame": "0"}, 422, "frame"),
    ({"queries": [{"prompt": "x" * 501}]}, 422, "queries[0].prompt"),
    ({"queries": [{"prompt": "polyp " * 20}]}, 422, "prompt"),
    ({"queries": [{"prompt": "a"}] * 33}, 422, "queries"),
    ({"queries": [{"prompt": "a", "threshold": 1.5}]}, 422, "queries[0].threshold"),
    ({"queries": [{"prompt": "a", "adapter": "../x"}]}, 404, "adapter"),
    ({"queries": [{"prompt": "a", "model": "x"}]}, 422, "queries[0].model"),
    ({"return": "svg"}, 422, "return"),
    ({"frame": 1}, 422, "frame"),
    ({"frame": -1}, 422, "frame"),
    ({"frame": 10**30}, 422, "frame"),
    ({"image_id": "0" * 32}, 404, "image_id"),
    ({"image_id": "../x"}, 404, "image_id"),
    ({"extra": 1}, 422, "extra"),
]


def test_bad_questions(serving: Callable, picture: np.ndarray) -> None:
    async def call(http: httpx.AsyncClient, _: Service) -> None:
        image = await upload(http, picture)
        good = {"image_id": image, "queries": [{"prompt": "polyp", "adapter": "polyp"}]}
        for change, status, field in BAD_QUESTIONS:
            refused(await http.post("/v1/segment", json={**good, **change}), status, field=field)

    run(call, serving)


def test_bad_bodies(serving: Callable) -> None:
    async def call(http: httpx.AsyncClient, _: Service) -> None:
        json_type = {"content-type": "application/json"}
        refused(await http.post("/v1/segment", content=b"{", headers=json_type), 400, "not JSON")
        refused(await http.post("/v1/segment", content=b'{"a": NaN}', headers=json_type), 422)
        surrogate = b'{"image_id": "a", "queries": [{"prompt": "\\ud800"}]}'
        refused(await http.post("/v1/segment", content=surrogate, headers=json_type), 422)
        refused(await http.post("/v1/segment", content=b"[" * 100_000, headers=json_type), 400, "not JSON")
        refused(
            await http.post("/v1/segment", content=b'{"frame": ' + b"9" * 9999 + b"}", headers=json_type),
            400,
            "not JSON",
        )
        unknown = b'{"image_id": "a", "queries": [{"prompt": "a"}], "prompts": []}'
        refused(await http.post("/v1/segment", content=unknown, headers=json_type), 422, "unknown field")
        form = {"file": ("a.png", b"x")}
        refused(await http.post("/v1/segment/file", files=form, data={"prompt": "a\0"}), 422, "control", "prompt")
        refused(await http.post("/v1/segment/file", files=form, data={"prompt": "\u200b"}), 422, "empty", "prompt")
        refused(await http.post("/v1/segment", content=b"[]", headers=json_type), 422)
        refused(await http.post("/v1/segment", content=b"{}", headers={"content-type": "text/plain"}), 415)
        refused(await http.post("/v1/segment", data={"a": "b"}), 415, "application/json")
        refused(await http.post("/v1/images", json={}), 415, "multipart")
        multipart = {"content-type": "multipart/form-data"}
        refused(await http.post("/v1/images", content=b"x", headers=multipart), 400, "boundary")
        multipart = {"content-type": "multipart/form-data; boundary=b"}
        refused(await http.post("/v1/images", content=b"garbage", headers=multipart), 400)
        refused(await http.post("/v1/images", files=[("file", b"a"), ("file", b"b")]), 400, "Too many files")
        refused(await http.post("/v1/images", files={"file": ("a.png", b"")}), 422, "empty")
        refused(await http.get("/nothing"), 404)
        refused(await http.put("/v1/segment"), 405)

    run(call, serving)


def test_a_body_is_cut_off_where_it_grows_too_large(serving: Callable) -> None:
    """Also one that does not say how long it is; what comes after the limit is thrown away."""
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        for _ in range(1000):
            sent += 10_000
            yield b"x" * 10_000

    async def call(http: httpx.AsyncClient, service: Service) -> None:
        headers = {"content-type": "multipart/form-data; boundary=b"}
        refused(await http.post("/v1/images", content=chunks(), headers=headers), 413)
        assert sent < 10_000_000
        refused(await http.post("/v1/images", content=b"x" * 200_000, headers=headers), 413)
        refused(
            await http.post("/v1/segment", content=b"x" * 150_000, headers={"content-type": "application/json"}), 413
        )
        assert service.metrics.registry.get_sample_value("vlsm_request_body_bytes") == 0

    run(call, serving, most_body_bytes=100_000, most_waiting_bytes=150_000)


def test_bodies_of_all_requests_together_are_bounded(serving: Callable, picture: np.ndarray) -> None:
    async def call(http: httpx.AsyncClient, _: Service) -> None:
        answer = await http.post("/v1/images", files={"file": ("a.png", b"x" * 50_000)})
        refused(answer, 503, "at once")
        assert int(answer.headers["retry-after"]) >= 1

    run(call, serving, most_waiting_bytes=20_000)


def test_a_full_queue_says_when_to_come_again(serving: Callable, picture: np.ndarray) -> None:
    async def call(http: httpx.AsyncClient, service: Service) -> None:
        import threading

        image = await upload(http, picture)
        gate = threading.Event()
        service.worker.run(lambda: gate.wait(60))  # the model is busy
        body = {"image_id": image, "queries": [{"prompt": "polyp", "adapter": "polyp"}]}
        waiting = [asyncio.create_task(http.post("/v1/segment", json=body)) for _ in range(2)]
        while len(service.worker) < 2:
            await asyncio.sleep(0.01)
        answer = await http.post("/v1/segment", json=body)
        refused(answer, 503, "waiting")
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        refused(await http.get("/readyz"), 503, "full")
        gate.set()
        assert [(await one).status_code for one in waiting] == [200, 200]
        assert (await http.get("/readyz")).status_code == 200

    run(call, serving, queue=2)


async def post_raw(http: httpx.AsyncClient, path: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the application sends to a client that sends ``messages``, then waits for ever."""
    app = http._transport.app  # type: ignore[attr-defined]
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"}
    scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers, "root_path": ""}
    left, sent = list(messages), []

    async def receive() -> dict[str, Any]:
        return left.pop(0) if left else await asyncio.Future()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


def test_questions_of_a_client_that_went_are_not_answered(
    serving: Callable, picture: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    async def call(http: httpx.AsyncClient, service: Service) -> None:
        import threading

        image = await upload(http, picture)
        gate = threading.Event()
        service.worker.run(lambda: gate.wait(60))
        body = json.dumps({"image_id": image, "queries": [{"prompt": "polyp", "adapter": "polyp"}]}).encode()
        whole = {"type": "http.request", "body": body, "more_body": False}
        part = {"type": "http.request", "body": body[:9], "more_body": True}
        gone = {"type": "http.disconnect"}
        with caplog.at_level(logging.INFO, logger="vlsm_adapter"):
            for messages in ([whole, gone], [part, gone]):
                assert await asyncio.wait_for(post_raw(http, "/v1/segment", messages), 30) == []
        gate.set()
        answer = await http.post("/v1/segment", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 200
        assert service.metrics.registry.get_sample_value("vlsm_questions_together_count") == 1
        assert service.metrics.registry.get_sample_value("vlsm_requests_under_way") == 0

    run(call, serving)
    assert [record.levelname for record in caplog.records if "499" in record.getMessage()] == ["INFO", "INFO"]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_stopping_does_not_wait_for_a_body_that_trickles(serving: Callable) -> None:
    async def call(http: httpx.AsyncClient, service: Service) -> None:
        service.stopping = True
        part = {"type": "http.request", "body": b"{", "more_body": True}
        sent = await asyncio.wait_for(post_raw(http, "/v1/segment", [part]), 30)
        assert sent[0]["status"] == 503

    run(call, serving)


def test_a_question_that_takes_too_long(serving: Callable, picture: np.ndarray) -> None:
    async def call(http: httpx.AsyncClient, service: Service) -> None:
        import threading

        image = await upload(http, picture)
        gate = threading.Event()
        service.worker.run(lambda: gate.wait(60))
        body = {"image_id": image, "queries": [{"prompt": "polyp", "adapter": "polyp"}]}
        refused(await http.post("/v1/segment", json=body), 503, "no answer within")
        gate.set()

    run(call, serving, timeout=0.3)


def test_stopping_refuses_new_questions(serving: Callable, picture: np.ndarray) -> None:
    async def call(http: httpx.AsyncClient, service: Service) -> None:
        image = await upload(http, picture)
        service.stopping = True
        body = {"image_id": image, "queries": [{"prompt": "polyp"}]}
        refused(await http.post("/v1/segment", json=body), 503, "stopping")
        refused(await http.get("/readyz"), 503, "stopping")
        assert (await http.get("/healthz")).status_code == 200

    run(call, serving)


def test_the_token(serving: Callable, picture: np.ndarray) -> None:
    async def call(http: httpx.AsyncClient, _: Service) -> None:
        for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz"):
            assert (await http.get(path)).status_code == 200
        wrong = (
            None,
            "",
            "Bearer",
            "Bearer x",
            f"Basic {TOKEN}",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            "Bearer ü",
        )
        for value in wrong:
            headers = {} if value is None else {"authorization": value.encode("latin-1")}
            for method, path in (("GET", "/v1/adapters"), ("GET", "/metrics"), ("POST", "/v1/segment"), ("GET", "/x")):
                answer = await http.request(method, path, headers=headers)  # type: ignore[arg-type]
                refused(answer, 401, "token")
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.headers["content-security-policy"]
        assert (await http.get("/v1/adapters", headers={"authorization": f"bearer {TOKEN}"})).status_code == 200
        # Not by another way.
        refused(await http.get(f"/v1/adapters?token={TOKEN}"), 401)

    run(call, serving, token=TOKEN)


def test_pages_of_other_sites_and_names_are_kept_out(serving: Callable) -> None:
    async def call(http: httpx.AsyncClient, _: Service) -> None:
        refused(await http.post("/v1/adapters/polyp", headers={"origin": "https://evil.example"}), 403, "another site")
        refused(await http.post("/v1/adapters/polyp", headers={"origin": "null"}), 403)
        assert (await http.post("/v1/adapters/polyp", headers={"origin": "http://127.0.0.1"})).status_code == 200
        for name in ("evil.example", "127.0.0.1.evil.example", "", "[::1", "localhost.evil"):
            refused(await http.get("/v1/adapters", headers={"host": name}), 421)
        for name in ("localhost:8000", "127.0.0.1:1", "[::1]:8000", "seg.ward.example"):
            assert (await http.get("/v1/adapters", headers={"host": name})).status_code == 200
        answer = await http.get("/v1/adapters")
        assert "access-control-allow-origin" not in answer.headers
        assert "access-control-allow-origin" not in (await http.options("/v1/adapters")).headers

    run(call, serving, hosts=("seg.ward.example",))


def test_headers(serving: Callable, picture: np.ndarray) -> None:
    async def call(http: httpx.AsyncClient, _: Service) -> None:
        image = await upload(http, picture)
        for path in ("/", "/docs", "/v1/adapters", "/nothing", f"/v1/images/{image}/picture"):
            headers = (await http.get(path)).headers
            assert "default-src 'self'" in headers["content-security-policy"]
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
        assert (await http.get("/v1/adapters")).headers["cache-control"] == "no-store"
        page = await http.get("/")
        assert page.headers["content-type"].startswith("text/html")
        for path in ("/", "/healthz", "/readyz"):
            assert (await http.head(path)).status_code == 200
        same = await http.get("/", headers={"if-none-match": page.headers["etag"]})
        assert same.status_code == 304
        for path in ("/static/../api.py", "/static/..%2fapi.py", "/static//etc/passwd", "/static/__init__.py"):
            assert (await http.get(path)).status_code == 404

    run(call, serving)


def test_pictures_and_forgetting(serving: Callable, picture: np.ndarray) -> None:
    async def call(http: httpx.AsyncClient, service: Service) -> None:
        image = await upload(http, picture)
        shown = await http.get(f"/v1/images/{image}/picture?frame=0")
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(shown.content))), picture)
        refused(await http.get(f"/v1/images/{image}/picture?frame=1"), 422, field="frame")
        body = {"image_id": image, "queries": [{"prompt": "polyp"}]}
        assert (await http.post("/v1/segment", json=body)).status_code == 200
        assert len(service.encodings) == 1
        assert (await http.delete(f"/v1/images/{image}")).status_code == 204
        assert len(service.encodings) == 0
        refused(await http.delete(f"/v1/images/{image}"), 404)
        refused(await http.post("/v1/segment", json=body), 404, "upload it again", "image_id")

    run(call, serving)


def test_downloads(serving: Callable, picture: np.ndarray) -> None:
    mask = np.zeros((40, 56), np.uint8)
    mask[5:20, 10:30] = 255
    deep = np.full(mask.shape, 65535, np.uint16)  # windowed to 8 bits, it would be an empty mask

    async def call(http: httpx.AsyncClient, _: Service) -> None:
        image = await upload(http, picture)
        body: dict[str, Any] = {
            "image_id": image,
            "format": "png",
            "masks": [{"prompt": "polyp", "png": png_text(mask)}],
        }
        answer = await http.post("/v1/download", json=body)
        assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''polyp.png"
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), mask)
        two = {**body, "masks": [*body["masks"], {"prompt": "a/../ü", "png": png_text(mask)}]}
        answer = await http.post("/v1/download", json=two)
        import zipfile

        names = zipfile.ZipFile(io.BytesIO(answer.content)).namelist()
        assert names[0] == "polyp.png"
        assert "/" not in names[1]
        refused(await http.post("/v1/download", json={**body, "format": "seg"}), 422, "DICOM", "format")
        twice = {**body, "masks": body["masks"] * 3}
        refused(await http.post("/v1/download", json=twice), 422, "twice")
        refused(await http.post("/v1/download", json={**body, "masks": body["masks"][:1] * 2}), 422, "twice")
        for text in (
            "###",
            base64.b64encode(b"x").decode(),
            png_text(mask[:-1]),
            png_text(np.tile(mask, (9, 9))),
            png_text(deep),
        ):
            wrong = {**body, "masks": [{"prompt": "polyp", "png": text}]}
            refused(await http.post("/v1/download", json=wrong), 422, "mask")

    run(call, serving)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs /dev/shm")
def test_a_volume_of_more_slices_than_prompts_are_allowed(serving: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask on each of its slices, as the page sends them for all frames, is one prompt."""
    nibabel = pytest.importorskip("nibabel")
    import gzip
    import zipfile

    values = np.random.default_rng(0).random((6, 5, 9)).astype(np.float32)
    content = nibabel.Nifti1Image(values, np.eye(4)).to_bytes()

    async def call(http: httpx.AsyncClient, _: Service) -> None:
        held = (await http.post("/v1/images", files={"file": ("ct.nii", content)})).json()
        full = png_text(np.full((5, 6), 255, np.uint8))
        masks = [{"prompt": text, "png": full, "frame": frame} for text in ("liver", "lung") for frame in range(9)]
        body = {"image_id": held["image_id"], "masks": masks[:9], "format": "nifti"}
        answer = await http.post("/v1/download", json=body)
        assert answer.status_code == 200, answer.text
        volume = nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.content))
        assert int(np.asarray(volume.dataobj).astype(bool).sum()) == values.size
        answer = await http.post("/v1/download", json={**body, "masks": masks, "format": "png"})
        assert len(zipfile.ZipFile(io.BytesIO(answer.content)).namelist()) == 18
        third = [*masks, {**masks[0], "prompt": "heart"}]
        refused(await http.post("/v1/download", json={**body, "masks": third}), 422, "3 prompts; at most 2", "masks")
        long = [*masks, {**masks[0], "prompt": "liver " * 100}]
        refused(await http.post("/v1/download", json={**body, "masks": long[-2:]}), 422, "599", "masks[1].prompt")
        monkeypatch.setattr("vlsm_adapter.serve.downloads.MAX_VOXELS", 269)
        refused(await http.post("/v1/download", json=body), 413, "at most 269", "format")

    run(call, serving, most_prompts=2)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs /dev/shm")
def test_a_dicom_file_is_answered_in_kind(serving: Callable) -> None:
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    from pydicom.data import get_testdata_file

    content = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()

    async def call(http: httpx.AsyncClient, service: Service) -> None:
        held = (await http.post("/v1/images", files={"file": ("ct", content)})).json()
        assert held["kind"] == "dicom"
        row, column = held["spacing"]
        body = {"image_id": held["image_id"], "queries": [{"prompt": "polyp", "adapter": "polyp"}], "return": "mask"}
        (result,) = (await http.post("/v1/segment", json=body)).json()["results"]
        assert result["area_mm2"] == pytest.approx(result["area_px"] * row * column, abs=1e-3)
        masks = [{"prompt": "polyp", "png": result["png"], "adapter": "polyp"}]
        wanted = {"image_id": held["image_id"], "masks": masks}
        seg = await http.post("/v1/download", json={**wanted, "format": "seg"})
        assert seg.headers["content-type"] == "application/dicom"
        read = pydicom.dcmread(io.BytesIO(seg.content))
        source = pydicom.dcmread(io.BytesIO(content))
        assert read.Modality == "SEG"
        assert read.StudyInstanceUID == source.StudyInstanceUID
        assert int(read.pixel_array.astype(bool).sum()) == result["area_px"]
        nifti = await http.post("/v1/download", json={**wanted, "format": "nifti"})
        nibabel = pytest.importorskip("nibabel")
        import gzip

        volume = nibabel.Nifti1Image.from_bytes(gzip.decompress(nifti.content))
        assert int(np.asarray(volume.dataobj).astype(bool).sum()) == result["area_px"]
        folder = service.images.require(held["image_id"]).folder
        assert folder is not None
        assert [path.name for path in folder.iterdir()] == ["upload.dcm"]
        assert (await http.delete(f"/v1/images/{held['image_id']}")).status_code == 204
        assert not folder.exists()

    run(call, serving)


def test_corrections(serving: Callable, picture: np.ndarray, tmp_path: Path) -> None:
    mask = np.zeros((40, 56), np.uint8)
    mask[5:20, 10:30] = 255

    async def call(http: httpx.AsyncClient, _: Service) -> None:
        image = await upload(http, picture)
        body = {"image_id": image, "prompt": "polyp", "adapter": "polyp", "png": png_text(mask)}
        first = (await http.post("/v1/corrections", json=body)).json()
        assert first["saved"] == 1
        assert (await http.post("/v1/corrections", json=body)).json() == first
        refused(await http.post("/v1/corrections", json={**body, "png": png_text(mask[1:])}), 422, "pixels", "png")
        refused(await http.post("/v1/corrections", json={**body, "adapter": "../x"}), 404)
        refused(await http.post("/v1/corrections", json={**body, "prompt": " "}), 422)
        assert (await http.get("/v1/adapters")).json()["corrections"]

    run(call, serving, corrections=tmp_path / "corrected")
    assert len((tmp_path / "corrected" / "records.jsonl").read_text().splitlines()) == 1

    async def none(http: httpx.AsyncClient, _: Service) -> None:
        image = await upload(http, picture)
        body = {"image_id": image, "prompt": "polyp", "png": png_text(mask)}
        refused(await http.post("/v1/corrections", json=body), 403, "--corrections")

    run(none, serving)


def test_metrics_and_no_words_of_patients_in_the_log(
    serving: Callable,
    picture: np.ndarray,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("vlsm_adapter"), "propagate", True)

    async def call(http: httpx.AsyncClient, _: Service) -> None:
        image = await upload(http, picture)
        for _ in range(2):
            body = {"image_id": image, "queries": [{"prompt": "lesion of Jane Doe", "adapter": "polyp"}]}
            await http.post("/v1/segment", json=body)
        await http.get("/v1/secret-of-jane")
        await http.post("/v1/images", files={"file": ("Doe^Jane.png", b"x")})
        text = (await http.get("/metrics")).text
        assert 'vlsm_request_seconds_count{method="POST",route="/v1/segment",status="200"} 2.0' in text
        assert 'vlsm_cache_hits_total{cache="encodings"} 1.0' in text
        assert "vlsm_encode_seconds_count 1.0" in text
        assert 'route="unknown"' in text
        assert "jane" not in text.lower()

    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.INFO, "vlsm_adapter"):
        run(call, serving)
    # The client of this test, in the same process, logs what it asks.
    ours = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("http"))
    assert "POST /v1/segment 200" in ours
    assert "jane" not in ours.lower()
    assert "doe" not in ours.lower()


def test_the_description_is_complete(serving: Callable) -> None:
    async def call(http: httpx.AsyncClient, _: Service) -> None:
        description = (await http.get("/openapi.json")).json()
        assert description["openapi"].startswith("3.")
        operations = [
            (path, method, operation)
            for path, methods in description["paths"].items()
            for method, operation in methods.items()
        ]
        assert len(operations) == 13
        for path, method, operation in operations:
            assert operation.get("description"), (path, method)
            assert {"4XX", "503"} <= set(operation["responses"]), (path, method)
        page = await http.get("/docs")
        for path, _, _ in operations:
            assert path in page.text
        assert "<script" not in page.text
        json.dumps(description)

    run(call, serving)


def test_threads_for_pictures_leave_the_cores_to_the_model(serving: Callable) -> None:
    import torch

    async def call(_: httpx.AsyncClient, service: Service) -> None:
        numbers = await asyncio.gather(*(service.in_pool(torch.get_num_threads) for _ in range(8)))
        assert set(numbers) == {1}
        assert service.worker.run(torch.get_num_threads).result() == torch.get_num_threads()

    run(call, serving)
