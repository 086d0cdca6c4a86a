"""What the service is told at its start; every number that bounds it stands here."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, fields
from pathlib import Path

from vlsm_adapter.errors import ConfigError

MIB = 1024 * 1024
LEAST_TOKEN = 16  # characters: a shorter one can be guessed


@dataclass(frozen=True)
class ServeSettings:
    """Folders, address and limits.

    Attributes:
        adapters: folder of adapter folders and runs, or one of them; only what is in it can be loaded.
        model: base model; by default that of the adapters.
        device: by default the GPU where there is one.
        host, port: where to listen; port 0 takes a free one.
        token: what a client must send as ``Authorization: Bearer TOKEN``; None asks for none.
        corrections: folder for corrected masks; None saves none.
        hosts: further names by which browsers reach the service (the Host header), beside its own address.
        most_body_bytes: of a request.
        most_waiting_bytes: of the bodies of all requests under way together.
        most_pixels: of a picture (H x W); of a volume, of each of its pictures.
        most_frames: pictures of an upload.
        most_prompts: per request.
        most_prompt_characters: per prompt.
        most_answer_pixels: of all maps of an answer together.
        most_adapters: in memory at once.
        most_requests: under way at once.
        queue: questions that wait for the model.
        timeout: seconds from the request to its answer.
        image_cache_bytes, encoding_cache_bytes, text_cache_bytes: how much is kept.
        keep_minutes: images that nobody asked about for so long are forgotten.
        threads: that decode uploads and encode answers.

    Raises:
        ConfigError: a number is not positive, or the token is short.
    """

    adapters: Path
    model: str | None = None
    device: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    corrections: Path | None = None
    hosts: tuple[str, ...] = ()
    most_body_bytes: int = 64 * MIB
    most_waiting_bytes: int = 256 * MIB
    most_pixels: int = 25_000_000
    most_frames: int = 2000
    most_prompts: int = 32
    most_prompt_characters: int = 500
    most_answer_pixels: int = 200_000_000
    most_adapters: int = 8
    most_requests: int = 512
    queue: int = 1024
    timeout: float = 60.0
    image_cache_bytes: int = 1024 * MIB
    encoding_cache_bytes: int = 512 * MIB
    text_cache_bytes: int = 32 * MIB
    keep_minutes: float = 60.0
    threads: int = 2

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "port" and isinstance(value, int | float) and not value > 0:
                raise ConfigError(f"{item.name}={value}: must be above 0")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port={self.port}: allowed are 1 to 65535, or 0 for any that is free")
        if self.token is not None:
            if len(self.token) < LEAST_TOKEN:
                raise ConfigError(f"the token has {len(self.token)} characters: at least {LEAST_TOKEN} are needed")
            if not all("!" <= char <= "~" for char in self.token):
                raise ConfigError("the token holds characters other than letters, digits and signs of ASCII")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether ``host`` names this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
