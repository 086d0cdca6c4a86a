"""The web page's files, read once at the start and sent from memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

# What browsers are told; a file of another ending is not served.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
}
_NONE = b"""<!doctype html><html lang="en"><title>vlsm-adapter</title>
<p>The service runs. Its interface is described under <a href="docs">/docs</a>.</p></html>"""


@dataclass(frozen=True)
class PageFile:
    """A file of the page.

    Attributes:
        content: its bytes.
        media_type: for the Content-Type header.
        etag: another one for other bytes.
    """

    content: bytes
    media_type: str
    etag: str


def page_files() -> dict[str, PageFile]:
    """Path below ``page/``, with '/', to file; ``index.html`` is always there."""
    found: dict[str, PageFile] = {}

    def collect(folder: Traversable, prefix: str) -> None:
        for entry in folder.iterdir():
            ending = f".{entry.name.rpartition('.')[2].lower()}"
            if entry.is_dir():
                collect(entry, f"{prefix}{entry.name}/")
            elif ending in _TYPES and not entry.name.startswith("."):
                found[f"{prefix}{entry.name}"] = _page_file(entry.read_bytes(), _TYPES[ending])

    root = files("vlsm_adapter.serve") / "page"
    if root.is_dir():
        collect(root, "")
    found.setdefault("index.html", _page_file(_NONE, _TYPES[".html"]))
    return found


def _page_file(content: bytes, media_type: str) -> PageFile:
    return PageFile(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:24]}"')
