"""The web page in a real browser, against the real service: what a person sees, and what is sent."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from vlsm_adapter import DenseAdapterConfig, attach, load_model, save_adapter
from vlsm_adapter.console import Console

httpx = pytest.importorskip("httpx", reason="needs the extra [web]")
pytest.importorskip("fastapi", reason="needs the extra [web]")
pytest.importorskip("python_multipart", reason="needs the extra [web]")
uvicorn = pytest.importorskip("uvicorn", reason="needs the extra [web]")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

from vlsm_adapter.serve.api import make_app  # noqa: E402
from vlsm_adapter.serve.library import Library  # noqa: E402
from vlsm_adapter.serve.run import bound, make_service  # noqa: E402
from vlsm_adapter.serve.settings import ServeSettings  # noqa: E402

TOKEN = "a-token-for-tests-only-0123456789"
SKY_BLUE = np.array([86, 180, 233])
OPACITY = 0.45
HEIGHT, WIDTH = 96, 128


def picture(seed: int = 0) -> np.ndarray:
    """uint8 (96, 128, 3): a bright disc on a soft background."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    disc = (rows - 48) ** 2 + (columns - 60) ** 2 < 24**2
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(HEIGHT, WIDTH, 3)), (2, 2, 0)) * 60
    return np.clip(90 + 90 * disc[:, :, None] * [1, 0.6, 0.5] + noise, 0, 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@dataclass
class Served:
    """A running service."""

    url: str
    corrections: Path
    token: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def map(self, content: bytes, prompt: str, adapter: str | None, frame: int = 0) -> tuple[np.ndarray, float]:
        """Probability x 255, uint8 (H, W), as programs get it, and the threshold."""
        with httpx.Client(base_url=self.url, headers=self.headers) as http:
            uploaded = http.post("/v1/images", files={"file": ("x.png", content)}).raise_for_status().json()
            query = {"prompt": prompt, "adapter": adapter, "threshold": None}
            body = {"image_id": uploaded["image_id"], "frame": frame, "queries": [query], "return": "probability"}
            result = http.post("/v1/segment", json=body).raise_for_status().json()["results"][0]
        return np.array(Image.open(io.BytesIO(base64.b64decode(result["png"])))), result["threshold"]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of tiny that answer differently."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("alpha", "beta")):
        model = load_model("tiny")
        attach(model, DenseAdapterConfig(bottleneck_dim=8))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight += 0.02 * torch.randn(weight.shape, generator=generator)
        save_adapter(model, folder / name)
    return folder


def running(settings: ServeSettings) -> Iterator[Served]:
    service = make_service(settings, Library(settings.adapters), Console(quiet=True))
    with bound("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(make_app(service), log_config=None, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        assert settings.corrections is not None or settings.token
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        yield Served(url, settings.corrections or Path(), settings.token)
        server.should_exit = True
        thread.join(timeout=20)


@pytest.fixture(scope="module")
def server(adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    corrections = tmp_path_factory.mktemp("corrections") / "data"
    yield from running(ServeSettings(adapters=adapters, port=0, corrections=corrections))


@pytest.fixture(scope="module")
def guarded(adapters: Path) -> Iterator[Served]:
    """Wants a token, and keeps no corrections."""
    yield from running(ServeSettings(adapters=adapters / "alpha", port=0, token=TOKEN))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as play:
        one = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield one
        one.close()


@dataclass
class Seen:
    """What went over the wire and to the console of a page."""

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def count(self, path: str) -> int:
        return sum(urlsplit(url).path == path for url in self.requests)


@pytest.fixture
def visit(browser: Any, server: Served) -> Iterator[Callable[..., Any]]:
    """``visit()`` opens the page; at the end every request must have gone to its server, and no script have failed."""
    opened: list[tuple[Any, Seen, str]] = []

    def go(to: Served | None = None, *, width: int = 1100, height: int = 700, **options: Any) -> Any:
        url = (to or server).url
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(60_000)
        page = context.new_page()
        seen = Seen()
        page.seen = seen
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("pageerror", lambda error: seen.errors.append(str(error)))

        def told(message: Any) -> None:
            # Answers of 4xx are listed by the browser itself; what the page says of them is tested.
            if message.type == "error" and "Failed to load resource" not in message.text:
                seen.errors.append(message.text)

        page.on("console", told)
        opened.append((context, seen, url))
        page.goto(url)
        page.wait_for_selector("#model option", state="attached")
        return page

    yield go
    for context, seen, url in opened:
        context.close()
        assert seen.errors == []
        away = [one for one in seen.requests if not one.startswith((url, "blob:", "data:"))]
        assert away == []
        assert not any(TOKEN in one for one in seen.requests)


def upload(page: Any, content: bytes, name: str = "case.png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})
    page.wait_for_function("name => document.querySelector('#image-facts b')?.textContent === name", arg=name)


def ask(page: Any, prompt: str) -> None:
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")
    answered(page)


def answered(page: Any) -> None:
    """Waits until nothing is asked any more, and all is drawn."""
    page.wait_for_selector("body[data-settled=true]", state="attached")


def area(page: Any, row: int = 0) -> int:
    text = page.locator("#legend .area").nth(row).text_content()
    assert text.endswith(" px"), text
    return int(text.removesuffix(" px").replace(",", ""))


def canvas_pixels(page: Any, pane: int = 0) -> tuple[np.ndarray, int, int]:
    """uint8 (H, W, 3) of the image's place on the canvas at native size, and the place's corner."""
    page.mouse.move(2, 2)
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("n")
    answered(page)
    got = page.evaluate(
        """pane => {
            const canvas = document.querySelectorAll('#panes canvas')[pane];
            const { x, y, scale } = canvas.dataset;
            const [w, h] = [WIDTH, HEIGHT];
            const { data } = canvas.getContext('2d').getImageData(Number(x), Number(y), w, h);
            let text = '';
            for (const value of data) text += String.fromCharCode(value);
            return { x: Number(x), y: Number(y), scale: Number(scale), data: btoa(text) };
        }""".replace("WIDTH", str(WIDTH)).replace("HEIGHT", str(HEIGHT)),
        pane,
    )
    assert got["scale"] == 1
    raw = np.frombuffer(base64.b64decode(got["data"]), np.uint8)
    return raw.reshape(HEIGHT, WIDTH, 4)[:, :, :3], int(got["x"]), int(got["y"])


def slide(page: Any, selector: str, value: float) -> None:
    page.locator(selector).evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }", value
    )
    answered(page)


def downloaded(page: Any, form: str) -> tuple[str, bytes]:
    with page.expect_download() as caught:
        page.click(f"[data-format={form}]")
    return caught.value.suggested_filename, Path(caught.value.path()).read_bytes()


def middle(values: np.ndarray) -> float:
    """A threshold that divides a map: the sliders' steps are hundredths."""
    return max(0.02, round(float(np.quantile(values, 0.8)) / 255, 2))


def above(values: np.ndarray, threshold: float) -> np.ndarray:
    return values > np.floor(threshold * 255 + 1e-6)


def outlined(mask: np.ndarray) -> np.ndarray:
    """Pixels that the outline may touch: it runs along the mask's edge, and along the image's where the mask meets it."""
    square = np.ones((3, 3))
    inside = ndimage.binary_erosion(mask, square, iterations=3)
    return ndimage.binary_dilation(mask, square, iterations=3) & ~inside


def drawn_as(pixels: np.ndarray, image: np.ndarray, mask: np.ndarray, colour: np.ndarray = SKY_BLUE) -> None:
    """The canvas shows the mask's colour inside and the image outside; three pixels about the edge are the outline's."""
    near = outlined(mask)
    blend = image * (1 - OPACITY) + colour * OPACITY
    wanted = np.where(mask[:, :, None], blend, image)
    assert (mask & ~near).sum() > 20
    assert (~mask & ~near).sum() > 20
    assert np.abs(pixels - wanted)[~near].max() <= 2


def test_overlay_is_the_mask_of_the_interface(visit: Callable[..., Any], server: Served) -> None:
    image = picture()
    values, own = server.map(png(image), "polyp", "alpha")
    page = visit()
    upload(page, png(image))
    assert "128 × 96 px, no spacing: areas in px" in page.text_content("#image-facts")
    ask(page, "polyp")
    assert area(page) == above(values, own).sum()
    assert page.text_content("#legend .by") == "alpha"

    # The threshold moves in the browser, without another question.
    before = page.seen.count("/v1/segment")
    for threshold in (middle(values), round(middle(values) + 0.02, 2)):
        slide(page, "#threshold", threshold)
        assert area(page) == above(values, threshold).sum()
        pixels, _, _ = canvas_pixels(page)
        drawn_as(pixels, image, above(values, threshold))
    assert page.seen.count("/v1/segment") == before == 1
    page.click("#threshold-own")
    answered(page)
    assert area(page) == above(values, own).sum()

    # Without opacity, or hidden, the image is as it was.
    slide(page, "#threshold", middle(values))
    page.keyboard.press("x")
    pixels, _, _ = canvas_pixels(page)
    assert np.array_equal(pixels, image)
    page.keyboard.press("x")
    # Another colour of the palette.
    page.click("#colours [aria-label=vermilion]")
    pixels, _, _ = canvas_pixels(page)
    drawn_as(pixels, image, above(values, middle(values)), np.array([213, 94, 0]))


def test_first_overlay_of_an_example(visit: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    page = visit()
    assert page.is_visible("text=Drop an image here")
    page.click("[data-sample=endoscopy]")
    page.wait_for_selector("body[data-first-overlay]", state="attached")
    answered(page)
    assert page.text_content("#legend .prompt") == "polyp"
    assert re.match(r"polyp: .* answered in \d+\.\d\d s", page.text_content("#status"))
    with capsys.disabled():
        print(f"\nfirst overlay after {page.get_attribute('body', 'data-first-overlay')} s")


def test_prompts_have_a_legend(visit: Callable[..., Any], server: Served) -> None:
    image = picture()
    page = visit()
    ask(page, "kept until later")  # typed before there is an image: not lost
    assert page.text_content("#legend .area") == "waits for an image"
    upload(page, png(image))
    answered(page)
    ask(page, "  round   thing ")
    assert page.locator("#legend .prompt").all_text_contents() == ["kept until later", "round thing"]
    colours = page.locator("#legend .swatch").evaluate_all(
        "all => all.map(one => getComputedStyle(one).backgroundColor)"
    )
    assert len(set(colours)) == 2
    values, own = server.map(png(image), "round thing", "alpha")
    assert area(page, 1) == above(values, own).sum()

    page.click("#legend [aria-label='Hide round thing']")
    answered(page)
    assert page.locator("#legend li.hidden-layer").count() == 1
    page.click("#legend [aria-label='Remove kept until later']")
    answered(page)
    assert page.locator("#legend li").count() == 1
    page.click("#status-action")
    answered(page)
    assert page.locator("#legend .prompt").all_text_contents() == ["kept until later", "round thing"]

    # Another model for one prompt; each keeps its own line.
    page.click("#legend .pick >> nth=1")
    page.select_option("#layer-model", "beta")
    page.click("#legend [aria-label='Show round thing']")
    answered(page)
    values, own = server.map(png(image), "round thing", "beta")
    assert area(page, 1) == above(values, own).sum()


def test_compare_side_by_side(visit: Callable[..., Any], server: Served) -> None:
    image = picture()
    page = visit()
    upload(page, png(image))
    ask(page, "polyp")
    page.click("#compare")
    answered(page)
    labels = page.locator(".caption b").all_text_contents()
    assert labels[0] == "alpha"
    assert "zero-shot" in labels[1]
    page.check("#comparison-models input[value=beta]")
    answered(page)
    maps = [server.map(png(image), "polyp", name)[0] for name in ("alpha", None, "beta")]
    threshold = middle(np.stack(maps))
    slide(page, "#threshold", threshold)
    masks = [above(one, threshold) for one in maps]
    assert not np.array_equal(masks[0], masks[2])
    for pane, mask in enumerate(masks):
        pixels, _, _ = canvas_pixels(page, pane)
        drawn_as(pixels, image, mask)
    dice = 2 * (masks[0] & masks[2]).sum() / (masks[0].sum() + masks[2].sum())
    assert f"Dice with the first {dice:.3f}" in page.locator(".caption").nth(2).text_content()

    # One view for all: zoomed and moved together.
    box = page.locator("#panes canvas").nth(1).bounding_box()
    page.mouse.move(box["x"] + 40, box["y"] + 90)
    page.mouse.wheel(0, -200)
    page.mouse.down()
    page.mouse.move(box["x"] + 70, box["y"] + 110)
    page.mouse.up()
    answered(page)
    places = page.locator("#panes canvas").evaluate_all(
        "all => all.map(({ dataset: d }) => [d.scale, d.x, d.y].join())"
    )
    assert len(set(places)) == 1
    assert float(places[0].split(",")[0]) > 1
    page.click("#compare")
    answered(page)
    assert page.locator("#panes canvas").count() == 1


def test_correction_is_pixel_exact_and_saved(visit: Callable[..., Any], server: Served) -> None:
    image = picture(1)
    content = png(image)
    values, _ = server.map(content, "polyp", "alpha")
    threshold = middle(values)
    mask = above(values, threshold)
    page = visit()
    upload(page, content)
    ask(page, "polyp")
    slide(page, "#threshold", threshold)
    page.click("[data-tool=brush]")
    slide(page, "#brush", 9)
    _, x, y = canvas_pixels(page)
    box = page.locator("#panes canvas").bounding_box()
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]

    def disc(column: int, row: int) -> np.ndarray:
        return (columns + 0.5 - column) ** 2 + (rows + 0.5 - row) ** 2 <= 4.5**2

    page.mouse.click(box["x"] + x + 20, box["y"] + y + 12)
    page.keyboard.press("e")
    page.mouse.click(box["x"] + x + 60, box["y"] + y + 48)
    answered(page)
    painted = mask | disc(20, 12)
    wanted = painted & ~disc(60, 48)
    assert area(page) == wanted.sum()
    page.click("#undo")
    answered(page)
    assert area(page) == painted.sum()
    page.keyboard.press("Control+Shift+Z")
    answered(page)
    assert area(page) == wanted.sum()

    # The threshold still moves beneath the correction.
    slide(page, "#threshold", threshold + 0.05)
    assert area(page) == ((above(values, threshold + 0.05) | disc(20, 12)) & ~disc(60, 48)).sum()
    slide(page, "#threshold", threshold)
    assert "not saved yet" in page.text_content("#correction-text")
    page.click("#save")
    page.wait_for_selector("#status:has-text('correction saved')")
    records = [json.loads(line) for line in (server.corrections / "records.jsonl").read_text().splitlines()]
    record = next(one for one in records if one["text"] == "polyp")
    saved = np.array(Image.open(server.corrections / record["mask"]))
    assert np.array_equal(saved > 0, wanted)
    assert np.array_equal(np.array(Image.open(server.corrections / record["image"]).convert("RGB")), image)

    # A new image would lose what is not saved: the page asks first.
    page.keyboard.press("b")
    page.mouse.click(box["x"] + x + 100, box["y"] + y + 80)
    page.set_input_files("#file", {"name": "next.png", "mimeType": "image/png", "buffer": png(picture(2))})
    page.click("#leave button[value=stay]")
    assert page.text_content("#image-facts b") == "case.png"
    page.on("dialog", lambda dialog: dialog.accept())


def test_a_mask_that_is_right_as_it_is_can_be_saved(visit: Callable[..., Any], server: Served) -> None:
    content = png(picture(7))
    values, _ = server.map(content, "disc", "alpha")
    page = visit()
    upload(page, content)
    ask(page, "disc")
    assert page.text_content("#correction-title") == "Right as it is?"

    def saved(words: str) -> np.ndarray:
        page.click("#save")
        page.wait_for_selector("#correction-text:has-text(', saved.')")
        assert words in page.text_content("#status")
        assert page.is_disabled("#save")
        records = [json.loads(line) for line in (server.corrections / "records.jsonl").read_text().splitlines()]
        record = next(one for one in records if one["text"] == "disc")
        return np.array(Image.open(server.corrections / record["mask"])) > 0

    threshold = middle(values)
    slide(page, "#threshold", threshold)
    assert np.array_equal(saved("mask saved"), above(values, threshold))
    # A stroke, then the threshold beneath it: the mask is another one each time, and the status line says its area.
    page.click("[data-tool=brush]")
    page.locator("#panes canvas").click(position={"x": 300, "y": 200})
    answered(page)
    assert f"{area(page):,} px" in page.text_content("#status")
    first = saved("correction saved")
    slide(page, "#threshold", threshold + 0.1)
    page.wait_for_selector("#save:enabled")
    assert "not saved yet" in page.text_content("#correction-text")
    assert saved("correction saved").sum() < first.sum()
    # Taken back, the stroke is not what training reads for ever.
    page.click("#undo")
    page.wait_for_selector("#correction-title:has-text('Right as it is?')")
    assert np.array_equal(saved("mask saved"), above(values, threshold + 0.1))


def test_a_large_image_has_a_large_brush(visit: Callable[..., Any]) -> None:
    page = visit()
    upload(page, png(picture()))
    assert page.text_content("#brush-text") == "12 px"
    upload(page, png(np.zeros((2000, 2400, 3), np.uint8)), "large.png")
    page.wait_for_function("() => document.querySelector('#brush-text').textContent === '40 px'")
    assert page.get_attribute("#brush", "max") == "500"


def test_the_legend_shows_the_selected_prompt(visit: Callable[..., Any]) -> None:
    page = visit()
    upload(page, png(picture()))
    for number in range(12):
        ask(page, f"prompt {number}")
    inside = """row => {
        const [list, item] = [document.querySelector('#legend'), document.querySelectorAll('#legend li')[row]];
        const [a, b] = [list.getBoundingClientRect(), item.getBoundingClientRect()];
        return b.top >= a.top - 1 && b.bottom <= a.bottom + 1;
    }"""
    assert page.evaluate(inside, 11)
    assert page.is_visible("#threshold")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("1")
    answered(page)
    assert page.evaluate(inside, 0)


def test_downloads(visit: Callable[..., Any], server: Served, tmp_path: Path) -> None:
    content = png(picture())
    values, _ = server.map(content, "polyp", "alpha")
    threshold = middle(values)
    mask = above(values, threshold)
    page = visit()
    upload(page, content)
    page.click("[data-format=png]")
    assert "no mask to download" in page.text_content("#export-problem")
    ask(page, "polyp")
    slide(page, "#threshold", threshold)

    name, got = downloaded(page, "png")
    assert name.startswith("case")
    assert name.endswith(".png")
    assert np.array_equal(np.array(Image.open(io.BytesIO(got))), mask * 255)
    nibabel = pytest.importorskip("nibabel")
    name, got = downloaded(page, "nifti")
    (tmp_path / name).write_bytes(got)
    assert int((nibabel.load(tmp_path / name).get_fdata() > 0).sum()) == mask.sum()
    _, got = downloaded(page, "picture")
    assert Image.open(io.BytesIO(got)).size == (WIDTH, HEIGHT)
    _, got = downloaded(page, "csv")
    assert got.decode().splitlines()[1] == f"case.png,0,polyp,alpha,{threshold:g},false,{mask.sum()},"
    assert page.get_attribute("[data-format=seg]", "aria-disabled") == "true"
    assert "needs a DICOM image" in page.text_content("#seg-hint")


def test_dicom_has_millimetres_and_a_seg(visit: Callable[..., Any], tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    one = pydicom.Dataset()
    one.file_meta = pydicom.FileMetaDataset()
    one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    one.SOPClassUID, one.Modality = pydicom.uid.CTImageStorage, "CT"
    for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(one, name, pydicom.uid.generate_uid())
    one.PatientName, one.PatientID, one.PatientBirthDate, one.PatientSex = "Doe^Jane", "1", "", ""
    one.StudyDate = one.StudyTime = one.StudyID = one.AccessionNumber = one.ReferringPhysicianName = ""
    one.SeriesNumber = one.InstanceNumber = 1
    one.Manufacturer = one.PositionReferenceIndicator = ""
    one.ImageOrientationPatient, one.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
    one.PixelSpacing, one.SliceThickness = [0.5, 0.25], 1
    one.Rows, one.Columns, one.SamplesPerPixel, one.PhotometricInterpretation = HEIGHT, WIDTH, 1, "MONOCHROME2"
    one.BitsAllocated = one.BitsStored = 16
    one.HighBit, one.PixelRepresentation = 15, 0
    one.RescaleSlope, one.RescaleIntercept = 1, 0
    one.PixelData = (picture()[:, :, 0].astype("<u2") * 4).tobytes()
    one.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    page = visit()
    upload(page, (tmp_path / "x.dcm").read_bytes(), "x.dcm")
    ask(page, "polyp")
    slide(page, "#threshold", 0)
    pixels = int(page.text_content("#legend .share").removesuffix(" px").replace(",", ""))
    number, unit = page.text_content("#legend .area").split()
    assert float(number) * {"cm²": 100, "mm²": 1}[unit] == pytest.approx(pixels * 0.5 * 0.25, abs=0.6)
    _, got = downloaded(page, "seg")
    seg = pydicom.dcmread(io.BytesIO(got))
    assert seg.Modality == "SEG"
    assert int(seg.pixel_array.sum()) == pixels


def test_frames(visit: Callable[..., Any], server: Served) -> None:
    stream = io.BytesIO()
    pages = [Image.fromarray(picture(seed)) for seed in range(3)]
    pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:])
    content = stream.getvalue()
    page = visit()
    upload(page, content, "stack.tiff")
    ask(page, "polyp")
    assert page.text_content("#frame-text") == "1 / 3"
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press(".")
    page.wait_for_selector("#panes canvas[data-frame='1']")
    answered(page)
    values, own = server.map(content, "polyp", "alpha", frame=1)
    assert area(page) == above(values, own).sum()
    slide(page, "#threshold", middle(values))
    pixels, _, _ = canvas_pixels(page)
    drawn_as(pixels, picture(1), above(values, middle(values)))
    page.select_option("#which-frames", "all")
    _, got = downloaded(page, "png")
    with zipfile.ZipFile(io.BytesIO(got)) as archive:
        assert len(archive.namelist()) == 3
        middle_one = np.array(Image.open(io.BytesIO(archive.read(sorted(archive.namelist())[1]))))
    assert np.array_equal(middle_one > 0, above(values, middle(values)))


def test_errors_stand_where_they_happened(visit: Callable[..., Any], server: Served) -> None:
    page = visit()
    page.press("#prompt", "Enter")
    assert "Name what to find" in page.text_content("#ask-problem")
    for name, content in (("notes.txt", b"no image at all"), ("cut.png", png(picture())[:200]), ("none.png", b"")):
        page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})
        page.wait_for_selector(f"#file-problem:has-text('{name}')")
        assert page.is_visible("#empty")
    content = png(picture(3))
    upload(page, content)
    ask(page, "polyp")
    before = area(page)
    # A bad file leaves the image and its masks as they are.
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no image at all"})
    page.wait_for_selector("#stage-problem:has-text('notes.txt')")
    assert area(page) == before

    # Busy: tried again by itself.
    refusals = iter([503])

    def busy_once(route: Any) -> None:
        if next(refusals, None):
            route.fulfill(status=503, headers={"Retry-After": "1"}, json={"error": "the queue is full", "field": None})
        else:
            route.continue_()

    page.route("**/v1/segment", busy_once)
    page.fill("#prompt", "round")
    page.press("#prompt", "Enter")
    page.wait_for_selector("#status:has-text('busy')")
    answered(page)
    assert area(page, 1) >= 0
    page.unroute("**/v1/segment")

    # No network: said on the prompt's own line, and tried again on demand.
    page.route("**/v1/segment", lambda route: route.abort())
    page.fill("#prompt", "small")
    page.press("#prompt", "Enter")
    page.wait_for_selector("#legend .problem:has-text('cannot be reached')")
    page.unroute("**/v1/segment")
    page.click("#legend .problem button")
    answered(page)
    assert area(page, 2) >= 0

    # The server has forgotten the image: it is sent again, unasked.
    with httpx.Client(base_url=server.url) as http:
        uploaded = http.post("/v1/images", files={"file": ("x.png", content)}).json()
        http.delete(f"/v1/images/{uploaded['image_id']}").raise_for_status()
    ask(page, "heart")
    assert area(page, 3) >= 0
    # An adapter that was unloaded meanwhile is loaded again.
    with httpx.Client(base_url=server.url) as http:
        http.delete("/v1/adapters/beta").raise_for_status()
    page.select_option("#model", "beta")
    ask(page, "left")
    assert area(page, 4) >= 0
    assert page.locator("#legend .problem:visible").count() == 0


def test_token_is_asked_for_and_corrections_refused(browser: Any, guarded: Served) -> None:
    context = browser.new_context()
    page = context.new_page()
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    page.goto(guarded.url)
    page.fill("#token", "wrong-token-wrong-token")
    page.press("#token", "Enter")
    page.wait_for_selector("#token-problem:visible")
    # No header can carry this one; the dialog comes back as for any wrong one.
    page.fill("#token", "w\u00f6rter-\u2603")
    page.press("#token", "Enter")
    page.wait_for_function("() => document.querySelector('#token').value === ''")
    page.wait_for_selector("#token-problem:visible")
    page.fill("#token", TOKEN)
    page.click("#token-dialog button[value=ok]")
    page.wait_for_selector("#model option", state="attached")
    upload(page, png(picture()))
    ask(page, "polyp")
    assert area(page) >= 0
    page.keyboard.press("Tab")
    page.click("[data-tool=brush]")
    page.locator("#panes canvas").click()
    page.wait_for_selector("#correction-text:has-text('keeps no corrections')")
    assert page.is_hidden("#save")
    assert not any(TOKEN in url for url in urls)
    assert page.evaluate("[localStorage, sessionStorage].map(s => Object.values(s).join())") == ["", TOKEN]
    context.close()


def test_keyboard_alone(visit: Callable[..., Any], server: Served) -> None:
    page = visit()
    # Listened for from the start: on a busy machine the browser was told of a listener added at the key only after the key.
    page.on("filechooser", lambda chooser: None)
    seen = []
    for _ in range(30):
        page.keyboard.press("Tab")
        one = page.evaluate(
            """() => { const e = document.activeElement, s = getComputedStyle(e);
                return [e.id || e.dataset.sample || e.textContent.trim(), s.outlineStyle, parseFloat(s.outlineWidth)] }"""
        )
        seen.append(one[0])
        assert one[1] != "none", one
        assert one[2] >= 1, one
        if one[0] == "HTTP interface":  # the last; one further, the keys would go to the browser itself
            break
    assert len(seen) == len(set(seen))
    assert seen[:5] == ["Skip to the prompt", "open", "theme", "help-open", "prompt"]
    assert {"choose", "endoscopy"} <= set(seen)

    page.focus("#choose")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([{"name": "keys.png", "mimeType": "image/png", "buffer": png(picture(4))}])
    page.wait_for_selector("#image-facts b:has-text('keys.png')")
    page.keyboard.press("/")
    page.keyboard.type("polyp")
    page.keyboard.press("Enter")
    answered(page)
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    before = float(page.input_value("#threshold"))
    page.keyboard.press("ArrowRight")
    assert float(page.input_value("#threshold")) == pytest.approx(before + 0.01)

    # Paint with the crosshair: one pixel in the middle, then a line with the brush down.
    for key in ("b", *["["] * 40):
        page.keyboard.press(key)
    answered(page)
    assert page.text_content("#brush-text") == "1 px"
    values, _ = server.map(png(picture(4)), "polyp", "alpha")
    expected = above(values, before + 0.01)
    page.locator("#panes canvas").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    expected[48, 65] = True
    page.keyboard.press("p")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("p")
    expected[48:89, 65] = True
    answered(page)
    assert area(page) == expected.sum()
    page.keyboard.press("Control+s")
    page.wait_for_selector("#status:has-text('correction saved')")
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    assert page.is_hidden("#help")
    page.keyboard.press("m")
    page.locator("#panes canvas").focus()
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Space")
    page.keyboard.press("Escape")
    page.keyboard.press("Delete")
    answered(page)
    assert page.locator("#legend li").count() == 0
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, #panes canvas, [role=radio]')].filter(e =>
            !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)"""
    )
    assert nameless == []


def test_phone(visit: Callable[..., Any]) -> None:
    page = visit(width=320, height=640, has_touch=True, is_mobile=True, device_scale_factor=2)
    page.tap("[data-sample=dermoscopy]")
    page.wait_for_selector("body[data-first-overlay]", state="attached")
    page.tap("#compare")
    answered(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    page.tap("#compare")
    answered(page)
    page.locator("#panes canvas").scroll_into_view_if_needed()
    box = page.locator("#panes canvas").bounding_box()
    touch = page.context.new_cdp_session(page)

    def fingers(kind: str, *points: tuple[float, float]) -> None:
        at = [{"x": box["x"] + x, "y": box["y"] + y, "id": i} for i, (x, y) in enumerate(points)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    scale = "Number(document.querySelector('#panes canvas').dataset.scale)"
    before = page.evaluate(scale)
    fingers("touchStart", (100, 150), (160, 150))
    fingers("touchMove", (70, 150), (190, 150))
    fingers("touchEnd")
    answered(page)
    assert page.evaluate(scale) == pytest.approx(2 * before, rel=0.05)
    page.tap("[data-tool=brush]")
    page.locator("#panes canvas").scroll_into_view_if_needed()
    box = page.locator("#panes canvas").bounding_box()
    fingers("touchStart", (100, 120))
    fingers("touchMove", (130, 140))
    fingers("touchEnd")
    page.wait_for_selector("#correction-text:has-text('not saved yet')")
    assert page.evaluate("document.documentElement.scrollWidth") == 320


def test_dark_and_light(visit: Callable[..., Any]) -> None:
    page = visit(color_scheme="dark", reduced_motion="reduce")
    lightness = (
        "getComputedStyle(document.querySelector('header')).backgroundColor.match(/[0-9.]+/g).slice(0, 3).map(Number)"
    )
    assert max(page.evaluate(lightness)) < 60
    page.click("#theme")
    assert min(page.evaluate(lightness)) > 230
    page.reload()  # the choice is kept
    assert min(page.evaluate(lightness)) > 230
    page.click("#theme")
    assert max(page.evaluate(lightness)) < 60


def test_drop_and_paste(visit: Callable[..., Any]) -> None:
    page = visit()
    give = """([kind, name, data]) => {
        const bytes = Uint8Array.from(atob(data), one => one.charCodeAt(0));
        const carried = new DataTransfer();
        carried.items.add(new File([bytes], name, { type: 'image/png' }));
        const event = kind === 'paste'
            ? new ClipboardEvent('paste', { clipboardData: carried, bubbles: true, cancelable: true })
            : new DragEvent('drop', { dataTransfer: carried, bubbles: true, cancelable: true });
        document.body.dispatchEvent(event);
    }"""
    for kind, name in (("drop", "dropped.png"), ("paste", "pasted.png")):
        page.evaluate(give, [kind, name, base64.b64encode(png(picture())).decode()])
        page.wait_for_selector(f"#image-facts b:has-text('{name}')")
    ask(page, '<img src=x onerror="document.title=1">')  # what is typed is text, not markup
    assert page.text_content("#legend .prompt") == '<img src=x onerror="document.title=1">'
    assert page.title() == "vlsm-adapter"
