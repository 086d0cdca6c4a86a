"""Images of every mode, masks of every kind, and damaged files of both."""

from __future__ import annotations

import contextlib
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from vlsm_adapter.data.images import check_same_size, header_size, read_image, read_labels, read_mask, read_pair
from vlsm_adapter.errors import DataError
from vlsm_adapter.types import Record

ORIENTATION = 0x0112
SHARED = Path(__file__).parents[3] / ".." / "shared" / "data"
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def ellipse(width: int = 96, height: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return ((x - 0.4 * width) / (0.3 * width)) ** 2 + ((y - 0.5 * height) / (0.35 * height)) ** 2 <= 1


def dice(one: np.ndarray, other: np.ndarray) -> float:
    total = one.sum() + other.sum()
    return 1.0 if total == 0 else float(2 * (one & other).sum() / total)


def one_line(error: pytest.ExceptionInfo[DataError], *parts: str) -> str:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return message


# Images


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_8_bit_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGB", (7, 5), (255, 255, 255)).convert(mode)
    path = tmp_path / ("x.jpg" if mode in ("CMYK", "YCbCr") else "x.png")
    picture.save(path)
    image = read_image(path)
    assert image.shape == (5, 7, 3)
    assert image.dtype == np.uint8
    assert image.min() >= 250
    assert image.flags.writeable


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_is_windowed_from_its_lowest_to_its_highest_value(tmp_path: Path, ending: str) -> None:
    values = np.array([[1000, 2000], [3000, 5000]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"x.{ending}")
    assert read_image(tmp_path / f"x.{ending}")[..., 0].tolist() == [[0, 64], [128, 255]]


def test_16_bit_file_with_8_bit_values_is_kept(tmp_path: Path) -> None:
    Image.fromarray(np.array([[3, 200]], np.uint16)).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png")[..., 2].tolist() == [[3, 200]]


def test_32_bit_and_float_tiff(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-5, 0], [5, 5]], np.int32)).save(tmp_path / "i.tif")
    assert read_image(tmp_path / "i.tif")[..., 0].tolist() == [[0, 128], [255, 255]]
    Image.fromarray(np.array([[0.0, 0.5], [1.0, np.nan]], np.float32)).save(tmp_path / "f.tif")
    assert read_image(tmp_path / "f.tif")[..., 1].tolist() == [[0, 128], [255, 0]]
    Image.fromarray(np.full((2, 2), 70000.5, np.float32)).save(tmp_path / "c.tif")
    assert not read_image(tmp_path / "c.tif").any()


def test_transparent_parts_are_laid_on_black(tmp_path: Path) -> None:
    pixels = np.full((2, 2, 4), 200, np.uint8)
    pixels[0, :, 3] = 0
    pixels[1, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png")[..., 0].tolist() == [[0, 0], [200, 200]]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "p.png", transparency=0)
    assert read_image(tmp_path / "p.png").tolist() == [[[0, 0, 0], [40, 50, 60]]]


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_image_mask_and_header_alike(tmp_path: Path, orientation: int, ending: str) -> None:
    stored = np.zeros((16, 32), np.uint8)
    stored[:8, :8] = 255
    path = tmp_path / f"x.{ending}"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if ending == "webp" else {"quality": 95} if ending == "jpg" else {}
    Image.fromarray(stored).save(path, exif=exif, **options)
    image, mask = read_image(path)[..., 0] > 127, read_mask(path)
    assert image.shape == ((32, 16) if orientation >= 5 else (16, 32))
    assert (image == mask).all()
    assert header_size(path) == (mask.shape[1], mask.shape[0])
    top = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    assert mask[0 if top[0] == "t" else -1, 0 if top[1] == "l" else -1]
    assert mask.sum() == 64


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("form", ["exif", "profile", "xmp"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_wherever_a_png_states_its_orientation_the_header_is_turned_as_the_pixels(
    tmp_path: Path, orientation: int, form: str, behind: bool
) -> None:
    buffer = BytesIO()
    noise = np.random.default_rng(0).integers(
        0, 255, (300, 500), np.uint8
    )  # its pixels reach further back than the search
    Image.fromarray(noise).save(buffer, format="PNG")
    plain = buffer.getvalue()
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    block = exif.tobytes()
    content = {
        "exif": (b"eXIf", block.removeprefix(b"Exif\0\0")),
        "profile": (
            b"zTXt",
            b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()),
        ),
        "xmp": (
            b"iTXt",
            f'XML:com.adobe.xmp\0\0\0\0\0<rdf:Description tiff:Orientation="{orientation}"/>'.encode(),
        ),
    }[form]
    at = plain.rindex(b"IEND") - 4 if behind else plain.index(b"IDAT") - 4
    path = tmp_path / "x.png"
    path.write_bytes(plain[:at] + png_chunk(*content) + plain[at:])
    image = read_image(path)
    assert image.shape[:2] == ((500, 300) if orientation == 6 else (300, 500))
    assert header_size(path) == (image.shape[1], image.shape[0])


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), value) for value in (200, 10)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "x.gif").max() == 200


# Damaged files


def test_missing_empty_folder_and_text(tmp_path: Path) -> None:
    for read in (read_image, read_mask, header_size):
        with pytest.raises(DataError) as error:
            read(tmp_path / "none.png")
        one_line(error, "none.png", "no such file")
        with pytest.raises(DataError) as error:
            read(tmp_path)
        one_line(error, "is a folder")
        (tmp_path / "zero.png").touch()
        with pytest.raises(DataError) as error:
            read(tmp_path / "zero.png")
        one_line(error, "zero.png", "0 bytes")
        (tmp_path / "text.png").write_text("no image")
        with pytest.raises(DataError) as error:
            read(tmp_path / "text.png")
        one_line(error, "text.png", "convert it to PNG")


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "gif", "bmp", "webp"])
def test_truncated(tmp_path: Path, ending: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = tmp_path / f"whole.{ending}"
    Image.fromarray(noise).save(whole)
    cut = tmp_path / f"cut.{ending}"
    content = whole.read_bytes()
    # A TIFF's directory stands at its end; cut behind it there is nothing left to find.
    cut.write_bytes(content[: len(content) // 2])
    for read in (read_image, read_mask):
        with pytest.raises(DataError) as error:
            read(cut)
        one_line(error, f"cut.{ending}")


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(content)
    for read in (read_image, read_mask, header_size):
        with pytest.raises(DataError) as error:
            read(tmp_path / "bomb.png")
        one_line(error, "bomb.png", "178956970")


@quick
@given(st.binary(max_size=200), st.integers(0, 400), st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "WEBP"]))
def test_any_damage_is_a_data_error_or_a_picture(tmp_path: Path, junk: bytes, at: int, kind: str) -> None:
    buffer = BytesIO()
    Image.fromarray(ellipse().astype(np.uint8) * 255).save(buffer, kind)
    content = buffer.getvalue()
    path = tmp_path / "x.bin"
    path.write_bytes(content[:at] + junk + content[at + len(junk) :])
    for read in (read_image, read_mask, header_size):
        with contextlib.suppress(DataError):
            read(path)


# Masks


def save_mask(path: Path, mask: np.ndarray, kind: str) -> None:
    grey = mask.astype(np.uint8)
    if kind == "0/255":
        picture = Image.fromarray(grey * 255)
    elif kind == "0/1":
        picture = Image.fromarray(grey)
    elif kind == "0/128":
        picture = Image.fromarray(grey * 128)
    elif kind == "1-bit":
        picture = Image.fromarray(mask)
    elif kind == "16-bit":
        picture = Image.fromarray(grey.astype(np.uint16) * 65535)
    elif kind == "16-bit 0/1":
        picture = Image.fromarray(grey.astype(np.uint16))
    elif kind in ("palette", "palette inverted", "palette colours"):
        colours = {"palette": [0, 0, 0, 128, 0, 0], "palette inverted": [255, 255, 255, 0, 0, 0]}.get(
            kind, [90, 90, 200, 200, 90, 90]
        )
        picture = Image.fromarray((1 - grey) if kind == "palette inverted" else grey, "P")
        picture.putpalette(colours)
    elif kind == "rgb":
        picture = Image.fromarray(np.repeat(grey[..., None] * 255, 3, axis=2))
    elif kind == "rgb 0/1":
        picture = Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
    elif kind == "red on black":
        picture = Image.fromarray(grey[..., None] * np.array([200, 10, 10], np.uint8))
    elif kind in ("alpha white", "alpha black", "alpha half"):
        layers = np.full((*mask.shape, 4), 0 if kind == "alpha black" else 255, np.uint8)
        layers[..., 3] = grey * (128 if kind == "alpha half" else 255)
        picture = Image.fromarray(layers)
    elif kind == "rgba opaque":
        picture = Image.fromarray(
            np.dstack([np.repeat(grey[..., None] * 255, 3, axis=2), np.full(mask.shape, 255, np.uint8)])
        )
    elif kind == "la":
        picture = Image.merge("LA", (Image.new("L", mask.shape[::-1], 255), Image.fromarray(grey * 255)))
    else:
        raise ValueError(kind)
    picture.save(path)


KINDS = ("0/255", "0/1", "0/128", "1-bit", "16-bit", "16-bit 0/1", "palette", "palette inverted", "palette colours")
KINDS += ("rgb", "rgb 0/1", "red on black", "alpha white", "alpha black", "alpha half", "rgba opaque", "la")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_binary_mask_comes_back_exactly(tmp_path: Path, kind: str) -> None:
    truth = ellipse()
    save_mask(tmp_path / "m.png", truth, kind)
    mask = read_mask(tmp_path / "m.png")
    assert mask.dtype == bool
    assert mask.flags.owndata or mask.base is not None
    assert (mask == truth).all()


def save_16_bit(path: Path, values: np.ndarray, channels: int) -> None:
    """A PNG of 16 bits a channel, 2 to 4 channels, which Pillow cannot write; alpha is opaque."""
    pixels = np.repeat(values[..., None], channels, axis=2).astype(">u2")
    if channels != 3:
        pixels[..., -1] = 65535
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_16_bits_are_read_where_the_upper_eight_say_all_and_else_refused(
    tmp_path: Path, channels: int
) -> None:
    path, truth = tmp_path / "m.png", ellipse()
    for value in (65535, 32768):
        save_16_bit(path, truth * value, channels)
        assert (read_mask(path) == truth).all()
    for value in (1, 255):  # an empty mask, to the upper bits
        save_16_bit(path, truth * value, channels)
        for read in (read_mask, read_labels):
            with pytest.raises(DataError) as error:
                read(path)
            one_line(error, "colours of 16 bits", "save it as 8-bit PNG")
    if channels == 2:
        return
    save_16_bit(path, truth * 0, channels)
    assert not read_mask(path).any()
    labels = truth.astype(int)
    labels[0, 0] = 2
    for factor in (257, 256):
        save_16_bit(path, labels * factor, channels)
        assert (read_labels(path) == labels).all()
        assert (read_mask(path, 1) == truth).all()
    save_16_bit(path, labels + 300, channels)
    for read in (read_labels, lambda file: read_mask(file, 1)):
        with pytest.raises(DataError, match="colours of 16 bits"):
            read(path)


@pytest.mark.parametrize("kind", ["0/255", "0/1", "1-bit", "16-bit", "palette", "rgb"])
def test_an_empty_mask_is_empty(tmp_path: Path, kind: str) -> None:
    save_mask(tmp_path / "m.png", np.zeros((5, 6), bool), kind)
    assert read_mask(tmp_path / "m.png").shape == (5, 6)
    assert not read_mask(tmp_path / "m.png").any()


@pytest.mark.parametrize("kind", ["0/255", "0/1", "1-bit", "16-bit", "palette", "rgb"])
def test_a_full_mask_is_full(tmp_path: Path, kind: str) -> None:
    save_mask(tmp_path / "m.png", np.ones((5, 6), bool), kind)
    assert read_mask(tmp_path / "m.png").all()


@st.composite
def shapes(draw: st.DrawFn) -> np.ndarray:
    """One to three ellipses, boxes or triangles, none thinner than a quarter of the picture."""
    width, height = draw(st.integers(64, 200)), draw(st.integers(64, 200))
    picture = Image.new("1", (width, height))
    pen = ImageDraw.Draw(picture)
    for _ in range(draw(st.integers(1, 3))):
        w, h = draw(st.integers(width // 3, width)), draw(st.integers(height // 3, height))
        x, y = draw(st.integers(0, width - w // 2)), draw(st.integers(0, height - h // 2))
        kind = draw(st.sampled_from(["ellipse", "box", "triangle"]))
        if kind == "ellipse":
            pen.ellipse((x, y, x + w, y + h), fill=1)
        elif kind == "box":
            pen.rectangle((x, y, x + w, y + h), fill=1)
        else:
            pen.polygon([(x, y), (x + w, y), (x, y + h)], fill=1)
    mask = np.array(picture)
    return ~mask if draw(st.booleans()) and 0.05 < mask.mean() < 0.95 else mask


@quick
@given(shapes(), st.integers(50, 95), st.sampled_from(["grey", "rgb", "red"]))
def test_jpeg_halos_do_not_count(tmp_path: Path, truth: np.ndarray, quality: int, colour: str) -> None:
    # A small red mask of many edges, strongly compressed, may be refused as a colour picture, which is no wrong mask.
    assume((0.1 if colour == "red" else 0.05) < truth.mean() < 0.95 and (colour != "red" or quality >= 75))
    grey = truth.astype(np.uint8) * 255
    if colour == "red":
        pixels = grey[..., None] * np.array([1, 0, 0], np.uint8)
    else:
        pixels = grey if colour == "grey" else np.repeat(grey[..., None], 3, axis=2)
    Image.fromarray(pixels).save(tmp_path / "m.jpg", quality=quality)
    # Saved again without loss, the halos stay.
    with Image.open(tmp_path / "m.jpg") as again:
        again.save(tmp_path / "again.png")
    mask = read_mask(tmp_path / "m.jpg")
    # Half the resolution of the colour channels costs the edge of a red mask some pixels.
    assert dice(mask, truth) >= (0.97 if colour == "red" else 0.99)
    # A handful of values with strays near 0 alone could be labels: those are refused, not guessed.
    try:
        again = read_mask(tmp_path / "again.png")
    except DataError as error:
        assert "mask_value" in str(error)  # noqa: PT017 (either outcome is right)
        with Image.open(tmp_path / "again.png") as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) <= 64
    else:
        assert (again == mask).all()


@quick
@given(shapes(), st.floats(0.3, 2.5))
def test_smoothed_edges_are_cut_in_the_middle(tmp_path: Path, truth: np.ndarray, scale: float) -> None:
    assume(0.1 < truth.mean() < 0.9)
    picture = Image.fromarray(truth.astype(np.uint8) * 255)
    size = (max(64, round(picture.width * scale)), max(64, round(picture.height * scale)))
    smooth = picture.resize(size, Image.Resampling.BILINEAR)
    smooth.save(tmp_path / "m.png")
    if len(np.unique(np.asarray(smooth))) > 8:
        assert (read_mask(tmp_path / "m.png") == (np.asarray(smooth) > 127)).all()


def test_labels_need_mask_value(tmp_path: Path) -> None:
    labels = np.zeros((40, 40), np.uint8)
    labels[:10], labels[10:20] = 1, 2
    Image.fromarray(labels).save(tmp_path / "l.png")
    with pytest.raises(DataError) as error:
        read_mask(tmp_path / "l.png")
    one_line(error, "l.png", "(0, 1, 2)", "mask_value")
    assert read_mask(tmp_path / "l.png", mask_value=2).sum() == 400
    assert not read_mask(tmp_path / "l.png", mask_value=9).any()
    palette = Image.fromarray(labels, "P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "p.png")
    with pytest.raises(DataError) as error:
        read_mask(tmp_path / "p.png")
    one_line(error, "mask_value")
    assert (read_mask(tmp_path / "p.png", 1) == (labels == 1)).all()
    Image.fromarray(labels > 0).save(tmp_path / "b.png")
    assert (read_mask(tmp_path / "b.png", 1) == (labels > 0)).all()


def test_colour_labels_are_chosen_by_their_number(tmp_path: Path) -> None:
    pixels = np.zeros((30, 30, 3), np.uint8)
    pixels[:10, :, 0], pixels[10:20, :, 1] = 255, 255
    Image.fromarray(pixels).save(tmp_path / "c.png")
    with pytest.raises(DataError) as error:
        read_mask(tmp_path / "c.png")
    one_line(error, "65280 = #00ff00", "16711680 = #ff0000")
    assert read_mask(tmp_path / "c.png", 0x00FF00).sum() == 300
    Image.fromarray(pixels).save(tmp_path / "c.jpg")
    with pytest.raises(DataError) as error:
        read_mask(tmp_path / "c.jpg")
    one_line(error, "several colours", "PNG")
    with pytest.raises(DataError, match="lossy"):
        read_mask(tmp_path / "c.jpg", 0xFF0000)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ([0, 1, 255], "mask_value"),  # 255 is "not annotated" with many programs
        ([0, 128, 255], "mask_value"),
        ([1, 2], "mask_value"),
        ([1, 255], "mask_value"),
        ([17], "every pixel is 17"),
        (list(range(100)), "not a mask"),
        (list(range(40)), "mask_value"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path: Path, values: list[int], part: str) -> None:
    Image.fromarray(np.resize(np.array(values, np.uint8), (30, 30))).save(tmp_path / "m.png")
    with pytest.raises(DataError) as error:
        read_mask(tmp_path / "m.png")
    one_line(error, "m.png", part)


def test_254_beside_255_is_rounding(tmp_path: Path) -> None:
    Image.fromarray(np.resize(np.array([0, 254, 255], np.uint8), (3, 30))).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").mean() == pytest.approx(2 / 3)


def test_a_0_1_mask_in_a_jpeg_is_refused(tmp_path: Path) -> None:
    Image.fromarray(ellipse().astype(np.uint8)).save(tmp_path / "m.jpg", quality=100, subsampling=0)
    with pytest.raises(DataError) as error:
        read_mask(tmp_path / "m.jpg")
    one_line(error, "m.jpg", "PNG")


@pytest.mark.parametrize("kind", ["gradient", "noise", "colour", "bright", "dark"])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_picture_is_no_mask(tmp_path: Path, kind: str, ending: str) -> None:
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:120, :160]
    if kind == "gradient":
        pixels = (x * 255 / 159).astype(np.uint8)
    elif kind == "noise":
        pixels = rng.normal(110, 40, (120, 160)).clip(0, 255).astype(np.uint8)
    elif kind == "colour":
        pixels = np.stack([x, y, 200 - y], axis=2).astype(np.uint8)
    elif kind == "bright":
        pixels = rng.normal(190, 12, (120, 160)).clip(0, 255).astype(np.uint8)
    else:  # fluorescence: black, with cells that glow at all strengths
        pixels = (rng.gamma(1.2, 2, (120, 160)) + 220 * np.exp(-((x - 80) ** 2 + (y - 60) ** 2) / 600)).clip(0, 255)
        pixels = pixels.astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"m.{ending}")
    with pytest.raises(DataError) as error:
        read_mask(tmp_path / f"m.{ending}")
    one_line(error, f"m.{ending}")


def test_float_masks(tmp_path: Path) -> None:
    truth = ellipse()
    Image.fromarray(truth.astype(np.float32)).save(tmp_path / "m.tif")
    assert (read_mask(tmp_path / "m.tif") == truth).all()
    Image.fromarray(np.where(truth, np.nan, 0).astype(np.float32)).save(tmp_path / "n.tif")
    with pytest.raises(DataError, match="not finite"):
        read_mask(tmp_path / "n.tif")
    Image.fromarray(np.where(truth, -1, 0).astype(np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(DataError, match="negative"):
        read_mask(tmp_path / "i.tif")


# Pairs


def test_pair_and_different_sizes(tmp_path: Path) -> None:
    Image.new("RGB", (96, 64)).save(tmp_path / "i.png")
    save_mask(tmp_path / "m.png", ellipse(), "0/255")
    record = Record("a", tmp_path / "i.png", tmp_path / "m.png")
    image, mask = read_pair(record)
    assert image.shape[:2] == mask.shape == (64, 96)
    save_mask(tmp_path / "m.png", ellipse(64, 96), "0/255")
    with pytest.raises(DataError) as error:
        read_pair(record)
    one_line(error, "i.png has 96 x 64", "m.png has 64 x 96", "EXIF")
    with pytest.raises(DataError) as error:
        check_same_size(record, (96, 64), (95, 64))
    assert "EXIF" not in one_line(error, "96 x 64", "95 x 64")
    with pytest.raises(DataError, match="no mask"):
        read_pair(Record("a", tmp_path / "i.png"))


# Real files


@pytest.mark.parametrize("name", ["kvasir_polyp", "busi", "isic", "nuclei"])
def test_real_masks_are_masks_and_real_images_are_not(name: str) -> None:
    if not SHARED.is_dir():
        pytest.skip("the real images are not beside this checkout")
    for path in sorted((SHARED / name / "masks").iterdir())[::40]:
        assert read_mask(path).dtype == bool
    for path in sorted((SHARED / name / "images").iterdir())[::40]:
        with pytest.raises(DataError):
            read_mask(path)
