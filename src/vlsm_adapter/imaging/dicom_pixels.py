"""From the stored pixels of a DICOM frame to 8-bit RGB: the grey-scale pipeline of PS3.3 C.7.6.3, C.11.1 and C.11.2.

Stored values go through the modality transformation (Modality LUT, or rescale slope and intercept), then the values of
interest (a window, or a VOI LUT) become 0 to 255; MONOCHROME1 is turned round, so that high is bright in every picture.
Colours come as RGB, whatever the file stores. Of an enhanced file each frame's own functional groups count.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from vlsm_adapter.data.volumes import to_8_bit
from vlsm_adapter.errors import DataError
from vlsm_adapter.imaging.dicom_headers import functional_group, is_dicom, numbers, pydicom, readable

_PIXELS = {0x0008: "FloatPixelData", 0x0009: "DoubleFloatPixelData", 0x0010: "PixelData"}
_JPEG_STARTS_OF_FRAME = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7})


@dataclass(frozen=True)
class Stored:
    """A decoded frame and what its header says about showing it.

    Attributes:
        values: (H, W) or (H, W, 3), as decoded; colours are RGB already.
        dataset: elements of group 0028 and the functional groups, without pixels.
        frame: number in the file, from 0.
    """

    values: npt.NDArray[Any]
    dataset: Any
    frame: int

    @property
    def is_grey(self) -> bool:
        """Whether it goes through the grey-scale pipeline."""
        return self.values.ndim == 2 and str(self.dataset.get("PhotometricInterpretation")) != "PALETTE COLOR"


class PixelFile:
    """A DICOM file whose header was read, from which frames are decoded one at a time.

    Only the frame at hand is in memory, but for deflated files and those that name no transfer syntax.

    Args:
        path: the file.
        size: (H, W) that its frames must have.

    Raises:
        DataError: no pixels, or a damaged header.
        ConfigError: pydicom is not installed.
    """

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        library = pydicom()
        from pydicom.pixels import as_pixel_options
        from pydicom.uid import UID

        self.path, self.size = path, size
        self._start: int | None = None
        with readable(path), path.open("rb") as stream:
            marked = is_dicom(path)
            self.dataset = library.dcmread(stream, stop_before_pixels=True, force=not marked)
            syntax = UID(getattr(self.dataset, "file_meta", {}).get("TransferSyntaxUID", ""))
            as_named = (
                getattr(self.dataset, "original_encoding", ())[:1] == (syntax.is_implicit_VR,) if syntax else False
            )
            if not marked or not as_named or syntax.is_deflated:
                self.dataset = library.dcmread(path, force=not marked)
                _name_syntax(self.dataset)
                if not any(name in self.dataset for name in _PIXELS.values()):
                    raise _no_pixels(path, self.dataset)
                return
            head = stream.read(12)
            order: Literal["little", "big"] = "little" if syntax.is_little_endian else "big"
            group, element = (int.from_bytes(head[place : place + 2], order) for place in (0, 2))
            if group != 0x7FE0 or element not in _PIXELS:
                raise _no_pixels(path, self.dataset)
            options = {"transfer_syntax_uid": syntax, "pixel_keyword": _PIXELS[element]}
            if not syntax.is_implicit_VR:
                options["pixel_vr"] = head[4:6].decode("ascii")
            self._start = stream.tell() - (4 if syntax.is_implicit_VR else 0)
            self._syntax = syntax
            self._options = as_pixel_options(self.dataset, **options)

    def stored(self, frame: int) -> Stored:
        """Decode one frame, counted from 0.

        Raises:
            DataError: damaged or truncated pixels, a compression nobody decodes, or another size than the header's.
        """
        from pydicom.pixels import get_decoder, pixel_array

        path = self.path
        with readable(path):
            if self._start is None:
                values = pixel_array(self.dataset, index=frame)
            else:
                with path.open("rb") as stream:
                    if self._syntax.is_encapsulated:
                        self._check_codestream(stream, frame)
                    stream.seek(self._start)
                    decoder = get_decoder(self._syntax)
                    values, _ = decoder.as_array(stream, index=frame, validate=True, **self._options)
            values = np.asarray(values)
            if values.ndim not in (2, 3) or values.shape[:2] != self.size or (values.ndim == 3 and values.shape[2] < 3):
                raise DataError(f"{path}: its pixels have the shape {values.shape}, by its header {self.size}: damaged")
            return Stored(values[..., :3] if values.ndim == 3 else values, self.dataset, frame)

    def _check_codestream(self, stream: BinaryIO, frame: int) -> None:
        """Refuse a compressed frame whose own header asks for another number of pixels, before memory is given to it."""
        from pydicom.encaps import get_frame

        assert self._start is not None
        stream.seek(self._start)
        count = int(self.dataset.get("NumberOfFrames") or 1)
        found = codestream_size(get_frame(stream, frame, number_of_frames=count))
        if found is not None and found[0] * found[1] > 4 * self.size[0] * self.size[1]:
            raise DataError(
                f"{self.path}: its compressed pixels are {found[0]} x {found[1]}, by its header {self.size[1]} x "
                f"{self.size[0]}: damaged, or made to exhaust memory"
            )


def _no_pixels(path: Path, dataset: Any) -> DataError:
    if "EncryptedAttributesSequence" in dataset:
        return DataError(f"{path}: its pictures are encrypted: decrypt the file first")
    return DataError(f"{path}: holds no pixels: cut off or stripped of them; fetch the file again")


def intensities(stored: Stored) -> npt.NDArray[np.float32]:
    """Values after the modality transformation (Hounsfield units of CT), float32 (H, W); padding is NaN."""
    from pydicom.pixels import apply_modality_lut

    values, dataset = stored.values, stored.dataset
    if dataset.get("ModalityLUTSequence"):
        shown = np.asarray(apply_modality_lut(values, dataset)).astype(np.float32)
    else:
        slope, intercept = _rescale(stored)
        shown = values.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    padding = numbers(dataset, "PixelPaddingValue", 1)
    if padding is not None:
        limit = (numbers(dataset, "PixelPaddingRangeLimit", 1) or padding)[0]
        low, high = sorted(_as_stored(value, values.dtype) for value in (padding[0], limit))
        shown[(values >= low) & (values <= high)] = np.nan
    return shown


def _as_stored(value: float, dtype: np.dtype[Any]) -> float:
    """A value of the header as the pixels have it: some files write it unsigned where pixels are signed, or the reverse."""
    if dtype.kind not in "iu" or np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
        return value
    turn = 2.0 ** (8 * dtype.itemsize)
    return value - turn if value > 0 else value + turn


def says_window(stored: Stored) -> bool:
    """Whether the file itself says which values to show: a window, a VOI LUT, or 8 bits without transformation."""
    return not stored.is_grey or _lut_of(stored) is not None or _window_of(stored) is not None or _is_plain(stored)


def to_rgb(stored: Stored, limits: tuple[float, float] | None) -> npt.NDArray[np.uint8]:
    """The frame as uint8 (H, W, 3).

    Args:
        stored: the frame.
        limits: intensities that become black and white; None where :func:`says_window`.
    """
    if not stored.is_grey:
        return _colours(stored)
    shown = intensities(stored)
    grey = to_8_bit(shown, *limits) if limits is not None else _by_file(stored, shown)
    if _is_inverse(stored.dataset):
        grey = 255 - grey
    grey[~np.isfinite(shown)] = 0
    return np.repeat(grey[:, :, None], 3, axis=2)


def _by_file(stored: Stored, shown: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    lut = _lut_of(stored)
    if lut is not None:
        from pydicom.pixels import apply_voi

        filled = np.nan_to_num(shown, nan=0.0)
        whole = np.rint(np.clip(filled, -(2**30), 2**30)).astype(np.int64)
        item = lut.VOILUTSequence[0]
        top = 2 ** int(item.LUTDescriptor[2]) - 1
        return to_8_bit(np.asarray(apply_voi(whole, lut)).astype(np.float32), 0, top)
    window = _window_of(stored)
    if window is None:
        return to_8_bit(shown, 0, 255)
    centre, width, function = window
    if function == "SIGMOID":
        return to_8_bit(255 / (1 + np.exp(np.clip(-4 * (shown - centre) / width, -80, 80))), 0, 255)
    if function == "LINEAR_EXACT":
        return to_8_bit(shown, centre - width / 2, centre + width / 2)
    # LINEAR, PS3.3 C.11.2.1.2.1; of width 1 a step at the centre.
    if width <= 1:
        return np.where(shown > centre - 0.5, 255, 0).astype(np.uint8)
    return to_8_bit(shown, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)


def _lut_of(stored: Stored) -> Any:
    """The data set whose first VOI LUT is in force, or None."""
    own = functional_group(stored.dataset, stored.frame, "FrameVOILUTSequence")
    return next((one for one in (own, stored.dataset) if one is not None and one.get("VOILUTSequence")), None)


def _window_of(stored: Stored) -> tuple[float, float, str] | None:
    """Centre, width and function of the first window, or None where there is none that can be used."""
    own = functional_group(stored.dataset, stored.frame, "FrameVOILUTSequence")
    for place in (own, stored.dataset):
        if place is None:
            continue
        centre, width = (_first(place.get(name)) for name in ("WindowCenter", "WindowWidth"))
        function = str(place.get("VOILUTFunction") or "LINEAR")
        if centre is not None and width is not None and width > 0 and (width >= 1 or function != "LINEAR"):
            return centre, width, function
    return None


def _is_plain(stored: Stored) -> bool:
    """Whether values are bytes that nothing transforms."""
    bits = int(stored.dataset.get("BitsStored") or 8)
    return (
        stored.values.dtype == np.uint8
        and bits == 8
        and _rescale(stored) == (1.0, 0.0)
        and (not stored.dataset.get("ModalityLUTSequence"))
    )


def _rescale(stored: Stored) -> tuple[float, float]:
    """Slope and intercept; of an enhanced file those of the frame."""
    own = functional_group(stored.dataset, stored.frame, "PixelValueTransformationSequence")
    place = stored.dataset if own is None else own
    slope, intercept = (numbers(place, name, 1) for name in ("RescaleSlope", "RescaleIntercept"))
    return slope[0] if slope and slope[0] else 1.0, intercept[0] if intercept else 0.0


def _is_inverse(dataset: Any) -> bool:
    return str(dataset.get("PhotometricInterpretation")) == "MONOCHROME1"


def _colours(stored: Stored) -> npt.NDArray[np.uint8]:
    values = stored.values
    if values.ndim == 2:
        from pydicom.pixels import apply_color_lut

        values = np.asarray(apply_color_lut(values, stored.dataset))[..., :3]
        bits = values.dtype.itemsize * 8
    else:
        bits = int(stored.dataset.get("BitsStored") or values.dtype.itemsize * 8)
    if values.dtype.kind == "f":
        return to_8_bit(values, 0, 1)
    if bits > 8:
        values = values >> (bits - 8)
    return np.ascontiguousarray(np.clip(values, 0, 255).astype(np.uint8))


def _first(value: Any) -> float | None:
    """The first of the numbers of an element that may hold one or several; None where it holds none."""
    try:
        several = hasattr(value, "__iter__") and not isinstance(value, str)
        number = float(next(iter(value)) if several else value)
    except (TypeError, ValueError, StopIteration, ArithmeticError):
        return None
    return number if np.isfinite(number) else None


def _name_syntax(dataset: Any) -> None:
    """Give a data set that was read without one the transfer syntax of the way it was read."""
    from pydicom import uid

    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = pydicom().dataset.FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit


def codestream_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) as the header of a JPEG, JPEG-LS or JPEG 2000 codestream has it; None of anything else."""
    if data[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000: SOC, SIZ (ISO/IEC 15444-1 A.5.1)
        x1, y1, x0, y0 = struct.unpack(">4I", data[8:24])
        return x1 - x0, y1 - y0
    place = 2 if data[:2] == b"\xff\xd8" else len(data)
    while place + 9 <= len(data):  # JPEG segments (ISO/IEC 10918-1 B.1.1.4)
        marker = data[place + 1]
        if data[place] != 0xFF:
            return None
        if marker == 0xFF:
            place += 1
            continue
        if marker in _JPEG_STARTS_OF_FRAME:
            height, width = struct.unpack(">2H", data[place + 5 : place + 9])
            return width, height
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None
