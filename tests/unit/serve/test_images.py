"""Uploads: what is read, what is refused and how, what is kept and forgotten."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlsm_adapter.serve.images import Images, clean_name
from vlsm_adapter.serve.problems import Refused
from vlsm_adapter.serve.scratch import SHARED_MEMORY, Scratch
from vlsm_adapter.serve.settings import ServeSettings

NOISE = np.random.default_rng(0).integers(0, 255, (30, 40), dtype=np.uint8)
needs_memory_folder = pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="needs /dev/shm")


def as_file(pixels: np.ndarray, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, **options)  # type: ignore[arg-type]
    return stream.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Images]:
    scratch = Scratch(tmp_path)
    images = Images(ServeSettings(tmp_path, most_pixels=10_000, most_frames=5, image_cache_bytes=400_000), scratch)
    yield images
    images.close()
    scratch.close()
    assert not list(tmp_path.iterdir())


def refusal(images: Images, content: bytes, name: str = "x.png") -> Refused:
    with pytest.raises(Refused) as refused:
        images.add(content, name)
    assert "\n" not in refused.value.message
    return refused.value


def test_a_picture_is_kept_under_the_hash_of_its_bytes(images: Images, picture: np.ndarray) -> None:
    content = as_file(picture)
    upload = images.add(content, "a.png")
    assert images.add(content, "b.png") is upload
    assert upload.told("b.png") == {
        "image_id": upload.image_id,
        "name": "b.png",
        "kind": "picture",
        "width": 56,
        "height": 40,
        "frames": 1,
        "spacing": None,
    }
    np.testing.assert_array_equal(images.picture(images.require(upload.image_id), 0), picture)
    images.forget(upload.image_id)
    with pytest.raises(Refused) as refused:
        images.require(upload.image_id)
    assert (refused.value.status, refused.value.field) == (404, "image_id")


def test_orientation_is_applied(images: Images, picture: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upload = images.add(as_file(picture, "JPEG", exif=exif, quality=95), "a.jpg")
    assert upload.size == (56, 40)


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 422, "empty"),
        (b"hello", 422, "not an image"),
        (as_file(NOISE)[:800], 422, "x.png"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, "not an image"),
        (as_file(np.zeros((200, 200), np.uint8)), 413, "at most 10000"),
    ],
    ids=["empty", "text", "cut", "svg", "postscript", "large"],
)
def test_what_is_no_picture_is_refused(images: Images, content: bytes, status: int, words: str) -> None:
    refused = refusal(images, content)
    assert refused.status == status
    assert words in refused.message
    assert refused.field == "file"


def test_a_decompression_bomb_is_refused_by_its_header(images: Images) -> None:
    """A PNG of 50,000 x 50,000 pixels in a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10_000_000))
    refused = refusal(images, bomb)
    assert refused.status == 413


def test_the_memory_is_bounded(images: Images) -> None:
    rng = np.random.default_rng(0)
    ids = [images.add(as_file(rng.integers(0, 255, (90, 100, 3), dtype=np.uint8)), "a.png").image_id for _ in range(20)]
    assert images.uploads.bytes <= 300_000
    with pytest.raises(Refused):
        images.require(ids[0])
    images.require(ids[-1])


def test_frames_out_of_range(images: Images, picture: np.ndarray) -> None:
    upload = images.add(as_file(picture), "a.png")
    with pytest.raises(Refused, match="0 alone"):
        images.require(upload.image_id, 1)
    with pytest.raises(Refused):
        images.require("../../etc/passwd")


@needs_memory_folder
def test_pages_of_a_tiff(images: Images) -> None:
    pages = [Image.fromarray(np.full((12, 10), value, np.uint8)) for value in (10, 20, 30)]
    stream = io.BytesIO()
    pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:])
    upload = images.add(stream.getvalue(), "a.tif")
    assert (upload.kind, upload.count, upload.size) == ("pages", 3, (12, 10))
    assert [int(images.picture(upload, frame).mean()) for frame in range(3)] == [10, 20, 30]
    too_many = io.BytesIO()
    pages[0].save(too_many, "TIFF", save_all=True, append_images=pages * 2)
    refused = refusal(images, too_many.getvalue(), "b.tif")
    assert refused.status == 413
    assert "at most 5" in refused.message


def nifti(shape: tuple[int, ...], *, voxels: bool = True) -> bytes:
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(0).integers(0, 255, shape if voxels else (1, 1, 1), dtype=np.uint8)
    image = nibabel.Nifti1Image(values, np.diag([0.5, 0.75, 3, 1]))
    if not voxels:
        image.header.set_data_shape(shape)
        return gzip.compress(image.header.binaryblock + b"\0" * 1000)
    return gzip.compress(image.to_bytes())


@needs_memory_folder
def test_nifti(images: Images) -> None:
    upload = images.add(nifti((10, 12, 4)), "scan.nii.gz")
    assert (upload.kind, upload.count) == ("nifti", 4)
    assert upload.spacing is not None
    assert sorted(upload.spacing) == [0.5, 0.75]
    assert images.picture(upload, 3).shape == (*upload.size, 3)


@needs_memory_folder
@pytest.mark.parametrize(
    "content",
    [nifti((4000, 4000, 4000), voxels=False), gzip.compress(b"\0" * 5_000_000), nifti((10, 12, 4))[:400], b"\x1f\x8b"],
    ids=["huge", "zeros", "cut", "stub"],
)
def test_damaged_and_absurd_volumes(images: Images, content: bytes) -> None:
    refused = refusal(images, content, "scan.nii.gz")
    assert refused.status in (413, 415, 422)
    assert "vlsm-serve" not in refused.message  # nor anything else of where it lay


@needs_memory_folder
def test_dicom(images: Images) -> None:
    pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    path = Path(str(get_testdata_file("CT_small.dcm")))
    images._settings = ServeSettings(path.parent)
    images.uploads.most_bytes = 10_000_000
    upload = images.add(path.read_bytes(), "Müller^Anna.dcm")
    assert (upload.kind, upload.count) == ("dicom", 1)
    assert upload.spacing is not None
    assert images.picture(upload, 0).dtype == np.uint8
    refused = refusal(images, path.read_bytes()[:2000], "cut.dcm")
    assert refused.status == 422


@needs_memory_folder
def test_deflated_dicom_counts_unpacked(images: Images) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    def deflated(frames: int) -> bytes:
        found = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        found.NumberOfFrames, found.PixelData = frames, bytes(frames * 128 * 128 * 2)
        found.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        stream = io.BytesIO()
        found.save_as(stream)
        return stream.getvalue()

    images._settings = ServeSettings(Path())
    images.uploads.most_bytes = 200_000
    content = deflated(3)
    assert len(content) < 10_000
    assert images.add(content, "small.dcm").size_bytes > 3 * 128 * 128 * 2
    refused = refusal(images, deflated(20), "bomb.dcm")
    assert (refused.status, refused.field) == (413, "file")
    assert "bomb.dcm: inflates to more than 200000 bytes" in refused.message


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("a.png", "a.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\x.jpg", "x.jpg"),
        ("a\r\nSet-Cookie: x", "aSet-Cookie: x"),
        ("", "upload"),
        (None, "upload"),
        ("/", "upload"),
        ("\u202egnp.exe", "gnp.exe"),
    ],
)
def test_names_are_cleaned(name: str | None, clean: str) -> None:
    assert clean_name(name) == clean
    assert len(clean_name("x" * 1000)) <= 100


def test_what_a_killed_server_left_is_removed(tmp_path: Path) -> None:
    dead = tmp_path / f"vlsm-serve-{__import__('os').getuid()}-dead"
    dead.mkdir()
    (dead / ".lock").touch()
    (dead / "patient.dcm").touch()
    alive = Scratch(tmp_path)
    folder = alive.folder()
    assert not dead.exists()
    other = Scratch(tmp_path)
    other.folder()
    assert folder.exists()
    other.close()
    alive.close()
