"""Adapters on the Hugging Face Hub: ``OWNER/NAME`` or ``OWNER/NAME@REVISION`` where a folder can be given.

What is fetched lies in the hub's own cache (``HF_HOME``), so that an adapter used once is there without a network. The
endpoint is ``HF_ENDPOINT``, the token that of ``hf auth login`` or ``HF_TOKEN``: all as huggingface_hub has them.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlsm_adapter.errors import AdapterError, one_line

_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_ID = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[A-Za-z0-9_][A-Za-z0-9_./-]{{0,249}}))?")


@dataclass(frozen=True)
class HubId:
    """A repository of models on the hub.

    Attributes:
        repo: ``OWNER/NAME``.
        revision: branch, tag or commit; None for the main branch.
    """

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"

    @classmethod
    def parse(cls, text: str | Path) -> HubId | None:
        """The id that ``text`` is, or None where it is none: a name of two parts that are no relative path."""
        found = _ID.fullmatch(text.as_posix() if isinstance(text, Path) else text)
        if found is None or ".." in found["repo"] or "--" in found["repo"]:
            return None
        return cls(found["repo"], found["revision"])


def local_folder(path: str | Path, files: tuple[str, ...]) -> Path:
    """``path`` where it exists or is no hub id; else the folder of the hub's cache into which ``files`` are fetched.

    Args:
        path: a folder, or a hub id.
        files: names of the files to fetch; the first says whether it is an adapter at all.

    Raises:
        AdapterError: no such repository or revision, a gated or private one, not an adapter, or no network.
    """
    there = Path(path)
    hub = HubId.parse(path)
    if hub is None or there.exists():
        return there
    return fetch(hub, files)


def fetch(hub: HubId, files: tuple[str, ...]) -> Path:
    """The folder of the hub's cache that holds ``files`` of one commit; its name is that commit.

    Raises:
        AdapterError: as :func:`local_folder`.
    """
    from huggingface_hub import hf_hub_download

    cached = not can_be_found(endpoint())
    with hub_errors(str(hub), hub, files[0]):
        first = Path(hf_hub_download(hub.repo, files[0], revision=hub.revision, local_files_only=cached))
        for name in files[1:]:  # of the same commit, whatever is pushed meanwhile
            hf_hub_download(hub.repo, name, revision=first.parent.name, local_files_only=cached)
    return first.parent


def can_be_found(address: str) -> bool:
    """Whether the name of the hub's machine means anything here: without a network the hub's library would try for half a
    minute, also for a path that was mistyped."""
    if urllib.request.getproxies():
        return True  # the proxy finds it
    parts = urllib.parse.urlsplit(address)
    try:
        socket.getaddrinfo(parts.hostname, parts.port or 443)
    except OSError:
        return False
    return True


def endpoint() -> str:
    """Address of the hub in use."""
    from huggingface_hub import constants

    return constants.ENDPOINT


@contextlib.contextmanager
def hub_errors(what: str, hub: HubId, file: str = "") -> Iterator[None]:
    """Say in one line what the hub or the way to it refused; tokens are in none of them.

    Args:
        what: the user's own words for what was asked.
        hub: the repository.
        file: whose absence means that the repository is of another kind.

    Raises:
        AdapterError: for whatever huggingface_hub raises within.
    """
    from huggingface_hub import errors

    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)  # that a request carries no token is no news where none is needed
    address = endpoint()
    try:
        yield
    except errors.GatedRepoError as error:
        raise AdapterError(
            f"'{what}': access is restricted by its author; ask for it at {address}/{hub.repo}, then log in "
            "('hf auth login', or HF_TOKEN)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise AdapterError(
            f"'{what}': no such folder here, and {address} shows no repository '{hub.repo}': check the name; for a private "
            "one log in ('hf auth login', or HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise AdapterError(
            f"'{what}': '{hub.repo}' has no revision '{hub.revision}'; give a branch, tag or commit"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise AdapterError(
            f"'{what}': no such folder here, {address} cannot be reached and the cache does not hold it; check the path "
            "or the network, or fetch it once while there is one"
        ) from error
    except errors.EntryNotFoundError as error:
        raise AdapterError(
            f"'{what}': the repository has no {file or 'such file'}: not an adapter of vlsm-adapter (vlsm push writes one)"
        ) from error
    except errors.LocalTokenNotFoundError as error:
        raise AdapterError(f"'{what}': needs a login: 'hf auth login', or set HF_TOKEN") from error
    except AdapterError:
        raise
    except errors.HfHubHTTPError as error:
        raise AdapterError(f"'{what}': {address} refused ({_status(error)})") from error
    except Exception as error:  # its HTTP library and the xet store have exceptions of their own
        raise AdapterError(f"'{what}': {address} could not be used ({one_line(error)}); try again") from error
    finally:
        log.setLevel(level)


def _status(error: Exception) -> str:
    """The status of the answer and what the server says, with what helps."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    said = getattr(error, "server_message", None) or ""
    fix = {
        401: ": log in with a valid token ('hf auth login', or HF_TOKEN)",
        403: ": the token has no right to this; give one with write access to the owner's repositories",
        429: ": too many requests; wait and try again",
    }.get(status or 0, "")
    return one_line(ValueError(f"status {status}{f', {said}' if said else ''}{fix}"))
