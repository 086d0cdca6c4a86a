"""A client of ``vlsm serve``, with the names of :class:`vlsm_adapter.Predictor`.

::

    from vlsm_adapter.client import Client

    with Client("http://127.0.0.1:8000") as client:
        client.set_image("frame.png")
        polyp, instrument = client.predict(["polyp", "instrument"], adapter="polyp")

Needs the extra ``web`` (httpx), and no torch.
"""

from __future__ import annotations

import base64
import enum
import io
import math
import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vlsm_adapter.errors import ConfigError, UserError

if TYPE_CHECKING:
    import httpx


class _Own(enum.Enum):
    ADAPTER = "the client's own"


_NO_IMAGE = "no image is set: call set_image(image) before asking prompts"
# Modes of Pillow that PNG holds; 16 bits are windowed by the service.
_SENT = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B", "I;16L", "I;16N"})
OWN = _Own.ADAPTER
"""The adapter that the client was made with; None is the base model as it is."""


class ServiceError(UserError):
    """The service refused a request.

    Attributes:
        status: HTTP status; 0 where the service cannot be reached.
        field: of the request, at fault; or None.
    """

    def __init__(self, status: int, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.field = field


@dataclass(frozen=True)
class Timing:
    """Where the time of an answer went, in milliseconds.

    Attributes:
        encode: encoding the picture; 0 where its encoding was kept.
        decode: decoding the prompts.
        total: in the service, from the request to its answer.
        cached: whether the picture's encoding was kept from before.
    """

    encode: float
    decode: float
    total: float
    cached: bool


class Client:
    """Holds one image on a service and asks prompts about it.

    The image's bytes are kept here too: where the service has forgotten the image, it is sent again.

    Args:
        url: of the service.
        token: where the service asks for one.
        adapter: asked where a call names none; None is the base model as it is.
        timeout: seconds for one request.
        retries: further attempts when the service is busy, each after the time it asks for.

    Raises:
        ConfigError: httpx is not installed, the address is none, or the token holds what no header can carry.

    Attributes:
        timing: of the last answer, or None.
        image: what the service says of the image that is set (``kind``, ``width``, ``height``, ``frames``, ``spacing``), or None.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        token: str | None = None,
        adapter: str | None = None,
        timeout: float = 120.0,
        retries: int = 5,
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise ConfigError("the client needs httpx: pip install 'vlsm-adapter[web]'") from error
        if token is not None and not all("!" <= char <= "~" for char in token):
            raise ConfigError("the token holds characters other than letters, digits and signs of ASCII: check it")
        self.url = url.rstrip("/")
        self.adapter = adapter
        self.timing: Timing | None = None
        self.image: dict[str, Any] | None = None
        self._retries = retries
        self._file: tuple[str, bytes] | None = None
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # No proxy and no .netrc of the environment: images go where the caller says and nowhere else.
        try:
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)
        except httpx.InvalidURL as error:
            raise ConfigError(f"{url}: no address ({error}): give one like http://127.0.0.1:8000") from None

    # -- images and prompts ----------------------------------------------------------------------------------------

    def set_image(self, image: np.ndarray | Image.Image | str | Path | bytes) -> None:
        """Send an image; prompts are about it from now on.

        Args:
            image: uint8 (H, W, 3) RGB or (H, W) grey, a Pillow image, a file (also NIfTI or DICOM), or a file's bytes.

        Raises:
            ServiceError: the service cannot read it, or cannot be reached; the image set before stays.
            UserError: the file cannot be read, or the image is of another kind.
        """
        file = _as_file(image)
        self.image = self._upload(file)
        self._file = file

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) of the image that is set, or None."""
        return (self.image["height"], self.image["width"]) if self.image else None

    def predict(
        self,
        prompts: Sequence[str],
        *,
        adapter: str | _Own | None = OWN,
        threshold: float | None = None,
        frame: int = 0,
    ) -> np.ndarray:
        """Masks at native size, bool (P, H, W).

        Args:
            prompts: P texts.
            adapter: by default the client's; None asks the base model as it is.
            threshold: by default the adapter's.
            frame: page, frame or slice, from 0.

        Raises:
            ServiceError: the service refuses, or cannot be reached.
            UserError: no image is set, or no prompts.
        """
        maps = self._ask(prompts, adapter, threshold, frame, "mask")
        return np.stack([values > 127 for values in maps])

    def probabilities(self, prompts: Sequence[str], *, adapter: str | _Own | None = OWN, frame: int = 0) -> np.ndarray:
        """Probabilities of foreground at native size, float32 (P, H, W), in steps of 1/255.

        Raises:
            ServiceError: the service refuses, or cannot be reached.
            UserError: no image is set, or no prompts.
        """
        maps = self._ask(prompts, adapter, None, frame, "probability")
        return np.stack(maps).astype(np.float32) / 255

    def correct(self, prompt: str, mask: np.ndarray, *, adapter: str | _Own | None = OWN, frame: int = 0) -> str:
        """Save a corrected mask on the service, to train on.

        Args:
            prompt: what the mask shows.
            mask: bool (H, W), of the image's size.
            adapter: whose answer it corrects; by default the client's.
            frame: which picture it belongs to.

        Returns:
            The id of the record.

        Raises:
            ServiceError: the service saves none, or refuses this one.
            UserError: no image is set, or the mask is no bool (H, W).
        """
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.ndim != 2:
            raise UserError("the mask must be a bool array (H, W)")
        _check_text(prompt)
        if self.image_size is None:
            raise UserError(_NO_IMAGE)
        if self.image_size != mask.shape:
            raise UserError(
                f"the mask has shape {mask.shape}, the image {self.image_size}: give one of the image's size"
            )
        content = _png(mask.astype(np.uint8) * 255)
        body = {"frame": _whole(frame), "prompt": prompt, "adapter": self._named(adapter), "png": _text(content)}
        return str(self._about_image("/v1/corrections", body)["record"])

    # -- adapters --------------------------------------------------------------------------------------------------

    def adapters(self) -> list[dict[str, Any]]:
        """The adapters in the service's folder: ``name``, ``loaded``, ``method``, ``threshold``, ``classes``, ...

        Raises:
            ServiceError: the service cannot be reached, or asks for a token.
        """
        return list(self._json("GET", "/v1/adapters")["adapters"])

    def load_adapter(self, name: str) -> None:
        """Have the service load an adapter, anew if it is loaded.

        Raises:
            ServiceError: there is none of that name, or it cannot be loaded.
        """
        self._json("POST", f"/v1/adapters/{_part(name)}")

    def unload_adapter(self, name: str) -> None:
        """Have the service take an adapter out of memory.

        Raises:
            ServiceError: none of that name is loaded.
        """
        self._json("DELETE", f"/v1/adapters/{_part(name)}")

    # -- life ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _named(self, adapter: str | _Own | None) -> str | None:
        return self.adapter if isinstance(adapter, _Own) else adapter

    # -- requests --------------------------------------------------------------------------------------------------

    def _ask(
        self, prompts: Sequence[str], adapter: str | _Own | None, threshold: float | None, frame: int, form: str
    ) -> list[np.ndarray]:
        if isinstance(prompts, str):
            raise UserError(f"prompts is one string: give a list of texts, [{prompts!r}]")
        if not prompts:
            raise UserError("no prompt: give at least one text that names what to find, such as 'polyp'")
        for prompt in prompts:
            _check_text(prompt)
        asked, least = self._named(adapter), None if threshold is None else _threshold(threshold)
        queries = [{"prompt": prompt, "adapter": asked, "threshold": least} for prompt in prompts]
        answer = self._about_image("/v1/segment", {"frame": _whole(frame), "queries": queries, "return": form})
        self.timing = Timing(**answer["milliseconds"], cached=answer["cached"])
        return [_grey(result["png"]) for result in answer["results"]]

    def _about_image(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.image is None or self._file is None:
            raise UserError(_NO_IMAGE)
        try:
            return self._json("POST", path, json={**body, "image_id": self.image["image_id"]})
        except ServiceError as error:
            if (error.status, error.field) != (404, "image_id"):
                raise
        self.image = self._upload(self._file)  # forgotten meanwhile
        return self._json("POST", path, json={**body, "image_id": self.image["image_id"]})

    def _upload(self, file: tuple[str, bytes]) -> dict[str, Any]:
        return self._json("POST", "/v1/images", files={"file": file})

    def _json(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        response = self._send(method, path, **content)
        try:
            values = response.json()
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise ServiceError(response.status_code, f"{self.url}: not an answer of 'vlsm serve': check the address")
        if response.status_code >= 400:
            message = f"{self.url}: {values.get('error', f'status {response.status_code}')}"
            raise ServiceError(response.status_code, message, values.get("field"))
        return values

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        import httpx

        for attempt in range(self._retries + 1):
            try:
                response = self._http.request(method, path, **content)
            except httpx.TimeoutException:
                raise ServiceError(
                    0, f"{self.url}: no answer in time: is it overloaded? give a larger timeout"
                ) from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise ServiceError(
                    0, f"{self.url}: cannot be reached ({error}): is 'vlsm serve' running there?"
                ) from None
            if response.status_code != 503 or attempt == self._retries:
                return response
            wait = response.headers.get("retry-after", "")
            time.sleep(min(30, int(wait)) if wait.isdecimal() else 1)
        raise AssertionError("unreachable")


def _as_file(image: np.ndarray | Image.Image | str | Path | bytes) -> tuple[str, bytes]:
    """Name and bytes of a file to be sent."""
    if isinstance(image, bytes):
        return "image", image
    if isinstance(image, (str, Path)):
        try:
            return Path(image).name, Path(image).read_bytes()
        except OSError as error:
            raise UserError(f"{image}: cannot be read ({error.strerror or error}): check the path") from None
    if isinstance(image, Image.Image):
        stream = io.BytesIO()
        exif = image.info.get("exif")  # the orientation among it, which the service applies
        if image.mode == "F" or (image.mode.startswith("I") and not image.mode.startswith("I;16")):
            raise UserError(
                f"a Pillow image of mode '{image.mode}' has no form in which it can be sent: give its file, or convert it to 'L'"
            )
        if image.mode not in _SENT:  # PNG has no CMYK, as of some JPEG files, no HSV, ...
            image = image.convert({"PA": "RGBA", "RGBa": "RGBA", "La": "LA"}.get(image.mode, "RGB"))
        image.save(stream, "PNG", compress_level=1, **({"exif": exif} if exif else {}))
        return "image.png", stream.getvalue()
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"an image of type {type(image).__name__} cannot be used: give an array, a Pillow image, or a file"
        )
    if image.dtype != np.uint8 or image.size == 0 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise UserError(
            f"the image is {image.dtype} of shape {image.shape}: give uint8 (H, W, 3) RGB or (H, W) grey, or a file"
        )
    return "image.png", _png(image)


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _grey(text: str) -> np.ndarray:
    """uint8 (H, W) of a PNG in base64."""
    with Image.open(io.BytesIO(base64.b64decode(text)), formats=("PNG",)) as picture:
        return np.asarray(picture.convert("L"))


def _check_text(prompt: object) -> None:
    if not isinstance(prompt, str) or any("\ud800" <= char <= "\udfff" for char in prompt):
        raise UserError(f"prompt {prompt!r} is not Unicode text: give a string")


def _threshold(value: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 1:
        raise UserError(f"threshold {value!r}: must be a probability, a number from 0 to 1")
    return number


def _whole(frame: int) -> int:
    try:
        number = operator.index(frame)
    except TypeError:
        number = -1
    if number < 0:
        raise UserError(f"frame {frame!r}: must be a whole number from 0")
    return number


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _part(name: str) -> str:
    """A name as one part of a path."""
    from urllib.parse import quote

    return quote(name, safe="")
