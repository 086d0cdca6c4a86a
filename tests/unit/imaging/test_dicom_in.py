"""DICOM files as stacks: what belongs together, geometry, and the grey-scale pipeline against values worked out by hand."""

from __future__ import annotations

import itertools
import pickle
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset  # noqa: E402
from pydicom.uid import (  # noqa: E402
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from vlsm_adapter.errors import DataError  # noqa: E402
from vlsm_adapter.imaging import dicom_headers  # noqa: E402
from vlsm_adapter.imaging.dicom_headers import NoPicture, is_dicom, read_header  # noqa: E402
from vlsm_adapter.imaging.dicom_in import DicomStack, stacks_of_headers  # noqa: E402
from vlsm_adapter.imaging.dicom_pixels import codestream_size  # noqa: E402
from vlsm_adapter.imaging.options import ReadOptions, Window  # noqa: E402

ROW = np.array([0, 10, 20, 30, 40, 50], np.int16)


def stacks(paths: list[Path], **options: Any) -> list[DicomStack]:
    return stacks_of_headers([read_header(path) for path in paths], ReadOptions(**options))[0]


def changed(path: Path, **elements: Any) -> Path:
    """The file with other values of elements, or (VR, value) where that depends on others; None removes one."""
    found = pydicom.dcmread(path)
    for name, value in elements.items():
        if value is None:
            del found[name]
        elif isinstance(value, tuple):
            found.add_new(name, *value)
        else:
            setattr(found, name, value)
    found.save_as(path)
    return path


@pytest.fixture
def grey(tmp_path: Path, dicom_sources: ModuleType) -> Path:
    """One slice of CT, 2 x 6, that stores 0, 10, ... 50 in each row, without rescaling."""
    path = dicom_sources.slices(tmp_path / "one", count=1, size=(2, 6))[0]
    return changed(path, PixelData=np.stack([ROW, ROW]).tobytes(), RescaleIntercept=0, RescaleSlope=1)


def shown(path: Path, **options: Any) -> list[int]:
    picture = stacks([path], **options)[0].picture(0)
    assert (picture == picture[:1, :, :1]).all()
    return picture[0, :, 0].tolist()


def test_a_window_of_the_file(grey: Path) -> None:
    # PS3.3 C.11.2.1.2.1, c = 25, w = 51: (x - 24.5) / 50 + 0.5 of 255.
    changed(grey, WindowCenter=[25, 99], WindowWidth=[51, 99])
    expected = np.rint(np.clip((ROW - 24.5) / 50 + 0.5, 0, 1) * 255).astype(int).tolist()
    assert shown(grey) == expected
    changed(grey, VOILUTFunction="LINEAR_EXACT", WindowCenter=25, WindowWidth=50)
    assert shown(grey) == [0, 51, 102, 153, 204, 255]
    changed(grey, VOILUTFunction="SIGMOID")
    expected = np.rint(255 / (1 + np.exp(-4 * (ROW - 25.0) / 50))).astype(int).tolist()
    assert shown(grey) == expected
    changed(grey, VOILUTFunction=None, WindowCenter=20.5, WindowWidth=1)  # a step
    assert shown(grey) == [0, 0, 0, 255, 255, 255]


def test_a_window_of_the_user_is_that_of_rescaled_values(grey: Path) -> None:
    changed(grey, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=7, WindowWidth=7)  # -100, -80, ... 0
    assert shown(grey, window=Window(-50, 100)) == [0, 51, 102, 153, 204, 255]
    assert shown(grey, window=Window(percentiles=(0, 100))) == [0, 51, 102, 153, 204, 255]


def test_without_a_window_percentiles_of_the_whole_series(tmp_path: Path, dicom_sources: ModuleType) -> None:
    paths = dicom_sources.slices(tmp_path, count=3, size=(2, 6))
    for number, path in enumerate(paths):
        changed(path, PixelData=np.full((2, 6), 100 * number, np.int16).tobytes())
    stack = stacks(paths)[0]
    assert [int(stack.picture(index)[0, 0, 0]) for index in range(3)] == [0, 127, 255]


def test_monochrome1_is_turned_round_and_padding_is_black(grey: Path) -> None:
    changed(grey, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=("SS", 0))
    assert shown(grey, window=Window(25, 50)) == [0, 204, 153, 102, 51, 0]


def test_padding_that_the_header_writes_with_the_wrong_sign(grey: Path) -> None:
    """63536 stands for the -2000 of signed pixels: the same 16 bits."""
    values = np.array([-2000, 0, 10, 20, 30, 40], np.int16)
    changed(
        grey, PixelData=np.stack([values, values]).tobytes(), PixelRepresentation=1, PixelPaddingValue=("US", 63536)
    )
    assert shown(grey, window=Window(percentiles=(0, 100))) == [0, 0, 64, 128, 191, 255]
    whole = values.astype(np.uint16)
    changed(grey, PixelData=np.stack([whole, whole]).tobytes(), PixelRepresentation=0, PixelPaddingValue=("SS", -2000))
    assert shown(grey, window=Window(percentiles=(0, 100))) == [0, 0, 64, 128, 191, 255]


def test_a_modality_lut_and_a_voi_lut(grey: Path) -> None:
    modality, interest = Dataset(), Dataset()
    modality.ModalityLUTType = "US"
    modality.add_new("LUTDescriptor", "US", [51, 0, 16])
    modality.add_new("LUTData", "US", [2 * value for value in range(51)])
    interest.add_new("LUTDescriptor", "US", [101, 0, 8])
    interest.add_new("LUTData", "US", [255 - value for value in range(101)])
    changed(grey, PixelRepresentation=0, RescaleSlope=None, RescaleIntercept=None, ModalityLUTSequence=[modality])
    assert shown(grey, window=Window(50, 100)) == [0, 51, 102, 153, 204, 255]
    changed(grey, VOILUTSequence=[interest])
    assert shown(grey) == [255, 235, 215, 195, 175, 155]


def test_bytes_are_kept_as_they_are(grey: Path) -> None:
    changed(
        grey,
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelRepresentation=0,
        PixelData=np.stack([ROW, ROW]).astype(np.uint8).tobytes(),
    )
    assert shown(grey) == ROW.tolist()


def test_colours_and_palettes(tmp_path: Path, dicom_sources: ModuleType) -> None:
    path = dicom_sources.photograph(tmp_path, size=(2, 2))[0]
    red = np.zeros((2, 2, 3), np.uint8)
    red[0, 0] = 255, 0, 0
    changed(path, PixelData=red.tobytes())
    stack = stacks([path])[0]
    np.testing.assert_array_equal(stack.picture(0), red)
    assert stack.spacing is None
    assert "px" in stack.notes[0]
    changed(path, PhotometricInterpretation="YBR_FULL", PixelData=np.tile(np.uint8([76, 85, 255]), 4).tobytes())
    np.testing.assert_allclose(stacks([path])[0].picture(0), np.broadcast_to([254, 0, 0], (2, 2, 3)), atol=2)
    table = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour, end in (("Red", 65535), ("Green", 0), ("Blue", 32768))
        for part, value in (("Descriptor", ("US", [2, 0, 16])), ("Data", np.array([0, end], "<u2").tobytes()))
    }
    changed(
        path,
        SamplesPerPixel=1,
        PhotometricInterpretation="PALETTE COLOR",
        PlanarConfiguration=None,
        PixelData=b"\0\1\1\0",
        **table,
    )
    assert stacks([path])[0].picture(0)[0].tolist() == [[0, 0, 0], [255, 0, 128]]


def test_slices_stand_in_their_order_in_space(tmp_path: Path, dicom_sources: ModuleType) -> None:
    paths = dicom_sources.mr(tmp_path, count=4, gap=2.5)
    for number, path in enumerate(paths):
        changed(path, InstanceNumber=10 - number)
    stack = stacks([paths[2], paths[0], paths[3], paths[1]])[0]
    assert list(stack.paths) == paths
    assert stack.frames == ((0, 1), (1, 1), (2, 1), (3, 1))
    assert stack.spacing is not None
    assert (stack.spacing.row, stack.spacing.column) == (0.7, 0.5)
    assert stack.spacing.slice == pytest.approx(2.5, abs=1e-3)
    found = pydicom.dcmread(paths[3])
    row, column = np.array(found.ImageOrientationPatient[:3]), np.array(found.ImageOrientationPatient[3:])
    # Column 4, row 2 of the last slice (PS3.3 C.7.6.2.1.1), in RAS.
    place = np.array(found.ImagePositionPatient) + row * 0.5 * 4 + column * 0.7 * 2
    assert stack.affine is not None
    np.testing.assert_allclose((stack.affine @ [4, 2, 3, 1])[:3], place * [-1, -1, 1], atol=1e-3)
    assert all("PixelData" not in one for one in stack.datasets())
    assert pickle.loads(pickle.dumps(stack)).picture(1).shape == (9, 14, 3)


def test_slices_that_say_they_have_one_frame(tmp_path: Path, dicom_sources: ModuleType) -> None:
    stack = stacks([changed(path, NumberOfFrames=1) for path in dicom_sources.slices(tmp_path, count=3)])[0]
    assert (stack.count, stack.multi_frame) == (3, False)


def test_a_missing_slice_gives_no_volume(tmp_path: Path, dicom_sources: ModuleType) -> None:
    paths = dicom_sources.slices(tmp_path, count=5)
    stack = stacks([*paths[:2], *paths[3:]])[0]
    assert stack.count == 4
    assert stack.spacing is not None
    assert (stack.affine, stack.spacing.slice) == (None, None)
    assert "not evenly spaced" in stack.notes[0]


def test_what_does_not_belong_together_is_apart(tmp_path: Path, dicom_sources: ModuleType) -> None:
    paths = dicom_sources.slices(tmp_path / "a", count=3)
    series = str(pydicom.dcmread(paths[0]).SeriesInstanceUID)
    turned = [
        changed(path, SeriesInstanceUID=series) for path in dicom_sources.mr(tmp_path / "b", count=2, modality="CT")
    ]
    small = [
        changed(path, SeriesInstanceUID=series) for path in dicom_sources.slices(tmp_path / "c", count=2, size=(4, 4))
    ]
    other = dicom_sources.slices(tmp_path / "d", count=2)
    assert sorted(stack.count for stack in stacks([*paths, *turned, *small, *other])) == [2, 2, 2, 3]


def test_phases_of_one_place_are_stacks_of_their_own(tmp_path: Path, dicom_sources: ModuleType) -> None:
    found = stacks(dicom_sources.slices(tmp_path, count=3, phases=2))
    assert [stack.count for stack in found] == [3, 3]
    times = [{float(one.TriggerTime) for one in stack.datasets()} for stack in found]
    assert sorted(map(tuple, times)) == [(0.0,), (10.0,)]


def test_copies_are_left_out_but_not_pictures_of_one_careless_uid(tmp_path: Path, dicom_sources: ModuleType) -> None:
    paths = dicom_sources.slices(tmp_path / "a", count=2)
    copy = tmp_path / "copy.dcm"
    copy.write_bytes(paths[0].read_bytes())
    found, notes = stacks_of_headers([read_header(path) for path in [*paths, copy]], ReadOptions())
    assert [stack.count for stack in found] == [2]
    assert "is a copy of" in notes[0]
    changed(paths[1], SOPInstanceUID=str(pydicom.dcmread(paths[0]).SOPInstanceUID))
    assert stacks(paths)[0].count == 2


def test_without_positions_order_and_modality_decide(tmp_path: Path, dicom_sources: ModuleType) -> None:
    paths = dicom_sources.slices(tmp_path, count=3)
    for number, path in enumerate(paths):
        changed(path, ImagePositionPatient=None, InstanceNumber=[3, 1, 2][number])
    stack = stacks(paths)[0]
    assert list(stack.paths) == [paths[1], paths[2], paths[0]]
    for path in paths:
        changed(path, Modality="CR")
    assert [one.count for one in stacks(paths)] == [1, 1, 1]


def test_frames_of_one_file(tmp_path: Path, dicom_sources: ModuleType) -> None:
    path = dicom_sources.enhanced(tmp_path, count=4, backwards=True)[0]
    stack = stacks([path])[0]
    assert stack.frames == ((0, 1), (0, 2), (0, 3), (0, 4))
    assert stack.multi_frame
    assert stack.affine is not None
    assert stack.spacing is not None
    assert stack.spacing.slice == pytest.approx(2.5, abs=1e-3)
    stored = pydicom.dcmread(path).pixel_array
    low, high = np.percentile(stored, (0.5, 99.5))
    for index in (3, 0):
        expected = np.rint(np.clip((stored[index] - low) * 255 / (high - low), 0, 255))
        np.testing.assert_allclose(stack.picture(index)[:, :, 0], expected, atol=1)
    # Each frame's own rescale and window.
    found = pydicom.dcmread(path)
    for number, group in enumerate(found.PerFrameFunctionalGroupsSequence):
        scale, window = Dataset(), Dataset()
        scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = 1, 1000 * number, "US"
        window.WindowCenter, window.WindowWidth, window.VOILUTFunction = 1000 * number + 1000, 2000, "LINEAR_EXACT"
        group.PixelValueTransformationSequence, group.FrameVOILUTSequence = [scale], [window]
    found.save_as(path)
    stack = stacks([path])[0]
    for index in range(4):
        expected = np.rint(stored[index] * (255 / 2000))
        np.testing.assert_allclose(stack.picture(index)[:, :, 0], expected, atol=1)


def test_a_cine_loop_has_no_slices(tmp_path: Path, dicom_sources: ModuleType) -> None:
    path = dicom_sources.ultrasound(tmp_path, count=5)[0]
    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
    changed(path, SequenceOfUltrasoundRegions=[region])
    stack = stacks([path])[0]
    assert (stack.count, stack.affine) == (5, None)
    assert stack.spacing is not None
    assert (stack.spacing.row, stack.spacing.column, stack.spacing.slice) == (
        pytest.approx(0.3),
        pytest.approx(0.2),
        None,
    )
    np.testing.assert_array_equal(stack.picture(4), pydicom.dcmread(path).pixel_array[4])


def test_spacing_of_radiographs(grey: Path) -> None:
    changed(grey, PixelSpacing=None, ImagerPixelSpacing=[0.2, 0.1], Modality="DX", ImagePositionPatient=None)
    stack = stacks([grey])[0]
    assert stack.spacing is not None
    assert (stack.spacing.row, stack.spacing.column) == (0.2, 0.1)
    assert "detector" in stack.notes[0]
    changed(grey, EstimatedRadiographicMagnificationFactor=2.0)
    stack = stacks([grey])[0]
    assert stack.spacing is not None
    assert (stack.spacing.row, stack.notes) == (0.1, ())


@pytest.mark.parametrize("syntax", [RLELossless, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_transfer_syntaxes(tmp_path: Path, dicom_sources: ModuleType, syntax: str) -> None:
    plain = dicom_sources.slices(tmp_path, count=1)[0]
    expected = stacks([plain])[0].picture(0)
    found = pydicom.dcmread(plain)
    if syntax == RLELossless:
        found.compress(RLELossless)
    found.file_meta.TransferSyntaxUID = syntax
    found.save_as(tmp_path / "other.dcm", implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    np.testing.assert_array_equal(stacks([tmp_path / "other.dcm"])[0].picture(0), expected)


def test_jpeg_is_decoded(tmp_path: Path, dicom_sources: ModuleType) -> None:
    pytest.importorskip("libjpeg")
    stack = stacks(dicom_sources.jpeg(tmp_path, count=3))[0]
    assert stack.picture(2).shape == (40, 56, 3)
    assert stack.picture(2).std() > 10


def test_a_file_without_mark(tmp_path: Path, dicom_sources: ModuleType) -> None:
    plain = dicom_sources.slices(tmp_path, count=1)[0]
    expected = stacks([plain])[0].picture(0)
    found = pydicom.dcmread(plain)
    with (tmp_path / "bare.dcm").open("wb") as stream:
        pydicom.filewriter.write_dataset(pydicom.filebase.DicomFileLike(stream), _as_implicit(found))
    assert not is_dicom(tmp_path / "bare.dcm")
    np.testing.assert_array_equal(stacks([tmp_path / "bare.dcm"])[0].picture(0), expected)


def _as_implicit(found: Any) -> Any:
    found.file_meta = None
    found.set_original_encoding(True, True)
    return found


# -- what is no picture, and what is damaged -----------------------------------------------------------------------------


def test_what_holds_no_picture(grey: Path) -> None:
    with pytest.raises(NoPicture, match="Segmentation Storage"):
        read_header(changed(grey, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4"))
    with pytest.raises(NoPicture, match="DICOMDIR"):
        read_header(changed(grey, SOPClassUID="1.2.840.10008.1.3.10"))


def test_encrypted(grey: Path) -> None:
    item = Dataset()
    item.EncryptedContent = b"secret"
    with pytest.raises(DataError, match="encrypted"):
        read_header(changed(grey, EncryptedAttributesSequence=[item], Rows=None, Columns=None))
    path = changed(grey, EncryptedAttributesSequence=[item], PixelData=None)
    with pytest.raises(DataError, match="its pictures are encrypted"):
        stacks_of_headers([read_header(path)], ReadOptions())[0][0].picture(0)


@pytest.mark.parametrize(
    ("elements", "says"),
    [
        ({"Rows": 0}, "damaged"),
        ({"Rows": 65535, "Columns": 65535}, "at most"),
        ({"NumberOfFrames": 2_000_000_000}, "more than its size allows"),
        ({"NumberOfFrames": "-3"}, "damaged"),
    ],
)
def test_absurd_dimensions(grey: Path, elements: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=rf"slice00\.dcm.*{says}"):
        read_header(changed(grey, **elements))


def test_pixels_that_are_cut_off_or_absent(grey: Path) -> None:
    whole = grey.read_bytes()
    grey.write_bytes(whole[:-10])
    with pytest.raises(DataError, match=r"slice00\.dcm"):
        stacks([grey])[0].picture(0)
    grey.write_bytes(whole)
    with pytest.raises(DataError, match="holds no pixels"):
        stacks([changed(grey, PixelData=None)])[0].picture(0)


def test_compression_nobody_decodes(grey: Path) -> None:
    found = pydicom.dcmread(grey)
    found.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG2
    found.PixelData = pydicom.encaps.encapsulate([b"\0\0\1\xb3" + bytes(60)])
    found.save_as(grey)
    with pytest.raises(DataError, match="cannot be decoded"):
        stacks([grey])[0].picture(0)


def test_a_codestream_larger_than_its_header(tmp_path: Path, dicom_sources: ModuleType) -> None:
    path = dicom_sources.jpeg(tmp_path, count=1)[0]
    found = pydicom.dcmread(path)
    data = bytearray(found.PixelData)
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    found.PixelData = bytes(data)
    found.save_as(path)
    with pytest.raises(DataError, match=r"65535 x 65535.*exhaust memory"):
        stacks([path])[0].picture(0)


def test_sizes_of_codestreams() -> None:
    siz = b"\xff\x4f\xff\x51" + bytes(4) + b"".join(value.to_bytes(4, "big") for value in (70, 50, 10, 20))
    assert codestream_size(siz) == (60, 30)
    assert codestream_size(b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc3\x00\x0b\x08\x00\x20\x00\x10\x01") == (16, 32)
    for data in (b"", b"\xff\xd8", b"RIFF", b"\xff\xd8\xff\xda\x00\x02"):
        assert codestream_size(data) is None


def test_a_deflated_bomb(tmp_path: Path, grey: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = pydicom.dcmread(grey)
    found.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    found.save_as(tmp_path / "bomb.dcm")
    whole = (tmp_path / "bomb.dcm").read_bytes()
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    meta = pydicom.filereader.read_file_meta_info(tmp_path / "bomb.dcm")
    start = 144 + meta.FileMetaInformationGroupLength
    (tmp_path / "bomb.dcm").write_bytes(whole[:start] + deflater.compress(bytes(1 << 24)) + deflater.flush())
    monkeypatch.setattr(dicom_headers, "MAX_INFLATED", 1 << 20)
    with pytest.raises(DataError, match="inflates to more than"):
        read_header(tmp_path / "bomb.dcm")


@pytest.mark.parametrize("behind", [b"", b"\0", bytes(70_000)], ids=["nothing", "the byte that makes it even", "much"])
def test_what_follows_deflated_data_is_passed_over(
    tmp_path: Path, grey: Path, behind: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = pydicom.dcmread(grey)
    found.NumberOfFrames, found.Rows, found.Columns = 3, 2048, 2048
    found.PixelData = bytes(3 * 2048 * 2048 * found.BitsAllocated // 8)
    found.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = tmp_path / "deflated.dcm"
    found.save_as(path)
    meta = pydicom.filereader.read_file_meta_info(path)
    start = 144 + meta.FileMetaInformationGroupLength
    whole = path.read_bytes()
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = len(inflater.decompress(whole[start:]))
    path.write_bytes(whole[: len(whole) - len(inflater.unused_data)] + behind)
    calls = itertools.count()
    real = zlib.decompressobj

    def counted(wbits: int) -> Any:
        made = real(wbits)

        class Counted:
            eof = property(lambda _: made.eof)
            unconsumed_tail = property(lambda _: made.unconsumed_tail)

            def decompress(self, data: bytes, most: int) -> bytes:
                assert next(calls) < 1000, "goes on for ever"
                return made.decompress(data, most)

        return Counted()

    monkeypatch.setattr(dicom_headers.zlib, "decompressobj", counted)
    assert dicom_headers.inflated_bytes(path) == inflated
    assert read_header(path).size == (2048, 2048)


def test_random_damage_never_escapes(tmp_path: Path, dicom_sources: ModuleType) -> None:
    whole = dicom_sources.enhanced(tmp_path, count=2, size=(4, 5))[0].read_bytes()
    generator = np.random.default_rng(3)
    path = tmp_path / "damaged.dcm"
    refusals: list[str] = []
    for _ in range(60):
        data = bytearray(whole)
        for place in generator.integers(132, len(data), 6):
            data[place] = generator.integers(0, 256)
        path.write_bytes(bytes(data)[: int(generator.integers(200, len(data) + 1))])
        try:
            for stack in stacks([path]):
                stack.picture(stack.count - 1)
        except DataError as error:
            refusals.append(str(error))
    assert refusals
    assert all(str(path) in refusal and "\n" not in refusal for refusal in refusals)


def test_the_files_that_pydicom_brings() -> None:
    """Every bundled file is read or refused in one line; those of known content come out right."""
    root = Path(pydicom.data.__file__).parent / "test_files"
    read = {}
    refusals: list[str] = []
    for path in sorted(root.glob("*.dcm")):
        try:
            for stack in stacks([path]):
                read[path.name] = stack.picture(stack.count - 1)
        except DataError as error:
            refusals.append(str(error))
    assert len(read) > 40
    assert all(refusal.startswith(str(root)) and "\n" not in refusal for refusal in refusals)
    for name in (
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
    ):
        np.testing.assert_array_equal(read[name], read["MR_small.dcm"])


def test_uids_made_anew_keep_apart(tmp_path: Path, dicom_sources: ModuleType) -> None:
    paths = dicom_sources.slices(tmp_path, count=2)
    changed(paths[1], SeriesInstanceUID=generate_uid())
    assert [stack.count for stack in stacks(paths)] == [1, 1]
