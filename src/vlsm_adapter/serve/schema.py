"""Requests and answers of the HTTP interface, as OpenAPI documents them."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints


def plain_prompt(text: str) -> str:
    """``text`` without blanks around it.

    Raises:
        ValueError: nothing in it can be seen, or it holds control characters.
    """
    text = text.strip()
    kinds = [unicodedata.category(char) for char in text]
    if all(kind[0] in "CZ" for kind in kinds):
        raise ValueError("is empty: say what to segment")
    if any(kind == "Cc" and not char.isspace() for kind, char in zip(kinds, text, strict=True)):
        raise ValueError("holds control characters: send plain text")
    return text


# What the limits allow is checked where the settings are known.
Prompt = Annotated[
    str, StringConstraints(max_length=10_000), AfterValidator(plain_prompt), Field(examples=["polyp"], min_length=1)
]
Name = Annotated[str, StringConstraints(max_length=200)]
# Strict: true is no threshold, and "1" no frame.
Threshold = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]
Frame = Annotated[int, Field(ge=0, strict=True, description="Page, frame or slice, counted from 0.")]
ImageId = Annotated[str, StringConstraints(max_length=100)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Problem(BaseModel):
    """Why a request was refused."""

    error: str = Field(description="One line: what is wrong, what is allowed, the fix.")
    field: str | None = Field(description="The field at fault, e.g. 'queries[0].prompt'.")


class AdapterCard(BaseModel):
    """An adapter in the server's folder."""

    name: str
    loaded: bool
    method: str | None
    threshold: float | None = Field(description="Probability above which a pixel is foreground.")
    classes: list[str] = Field(description="Examples of prompts it was trained with.")
    scores: dict[str, float] | None = Field(
        description="By name what was measured as it was trained, e.g. 'validation Dice'."
    )
    trained_on: str | None
    problem: str | None = Field(description="Why it cannot be loaded; null where it can.")


class Adapters(BaseModel):
    """The base model and the adapters that may be loaded onto it."""

    base: str
    zero_shot: bool = Field(description="Whether the base model answers as it is.")
    corrections: bool = Field(description="Whether corrected masks are saved.")
    adapters: list[AdapterCard]


class Unloaded(BaseModel):
    """An adapter that is out of memory."""

    name: str
    loaded: bool


class ImageCard(BaseModel):
    """An upload that the server holds in memory."""

    image_id: str = Field(description="Hash of the uploaded bytes: the same file has the same id.")
    name: str
    kind: Literal["picture", "pages", "nifti", "dicom"]
    width: int
    height: int
    frames: int
    spacing: list[float] | None = Field(description="[row, column] in mm per pixel, where the file says.")


class Query(_Strict):
    """One prompt, asked of one adapter."""

    prompt: Prompt
    adapter: Name | None = Field(None, description="Name of a loaded adapter; null asks the base model as it is.")
    threshold: Threshold | None = Field(None, description="By default the adapter's.")


class SegmentRequest(_Strict):
    """Prompts about a picture."""

    image_id: ImageId
    frame: Frame = 0
    queries: list[Query] = Field(min_length=1)
    form: Literal["probability", "mask"] = Field(
        "probability", alias="return", description="What the PNGs hold: probability x 255, or the mask, 0 and 255."
    )


class Result(BaseModel):
    """The answer to one query."""

    prompt: str
    adapter: str | None
    threshold: float
    area_px: int = Field(description="Pixels whose probability is above the threshold.")
    area_mm2: float | None
    png: str = Field(description="Base64 of an 8-bit grey PNG of the picture's size.")


class Milliseconds(BaseModel):
    """Where the time went."""

    encode: float = Field(description="Encoding the picture; 0 where its encoding was kept.")
    decode: float
    total: float


class SegmentAnswer(BaseModel):
    """Results in the order of the queries."""

    frame: int = Field(description="Page, frame or slice that was asked about.")
    frames: int = Field(description="How many the upload has: the others were not segmented.")
    results: list[Result]
    milliseconds: Milliseconds
    cached: bool = Field(description="Whether every encoding that was needed was kept from before.")


class MaskFile(_Strict):
    """A mask to be put into a file."""

    prompt: Prompt
    png: str = Field(description="Base64 of a PNG of the picture's size; foreground is above 127.")
    frame: Frame | None = Field(None, description="By default the request's.")
    adapter: Name | None = Field(None, description="Whose answer it is, for the file's record of its making.")


class DownloadRequest(_Strict):
    """Masks to be made into a file of the user's."""

    image_id: ImageId
    frame: Frame = 0
    format: Literal["png", "nifti", "seg"]
    masks: list[MaskFile] = Field(min_length=1)


class CorrectionRequest(_Strict):
    """A corrected mask."""

    image_id: ImageId
    frame: Frame = 0
    prompt: Prompt
    adapter: Name | None = Field(None, description="Whose answer was corrected.")
    png: str = Field(description="Base64 of a PNG of the picture's size; foreground is above 127.")


class Saved(BaseModel):
    """A correction that is on disk."""

    record: str
    saved: int = Field(description="Records in the folder.")


class Health(BaseModel):
    """How the service is."""

    status: str
