"""The adapters that may be loaded: those in one folder, by the names they have there."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from vlsm_adapter.adapters.folder import CONFIG_NAME, AdapterManifest, read_manifest
from vlsm_adapter.errors import AdapterError, UserError, nearest
from vlsm_adapter.run_folder import RunFolder
from vlsm_adapter.serve.problems import Refused

logger = logging.getLogger("vlsm_adapter")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Shelved:
    """An adapter in the folder.

    Attributes:
        name: of its folder, or of its run's, made safe by ``served_name``.
        folder: the adapter folder.
        manifest: what it says of itself; None where it cannot be read.
        problem: why it cannot be loaded, or None.
    """

    name: str
    folder: Path
    manifest: AdapterManifest | None
    problem: str | None = None

    def card(self, *, loaded: bool) -> dict[str, object]:
        """What clients are told of it."""
        info = self.manifest.info if self.manifest else None
        scores = {key: value for key, value in info.scores.items() if math.isfinite(value)} if info else {}
        return {
            "name": self.name,
            "loaded": loaded,
            "method": self.manifest.config.method if self.manifest else None,
            "threshold": info.threshold if info else None,
            "classes": list(info.prompts) if info else [],
            "scores": scores or None,
            "trained_on": info.data if info else None,
            "problem": self.problem,
        }


class Library:
    """Reads the folder anew at every question, so that an adapter put there is found without a restart.

    Args:
        root: a folder of adapter folders and runs; or one adapter folder or run, which is then all there is.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"{root}: no such folder: give a folder of adapters or runs, or one of them")
        self._single = _adapter_in(self.root) is not None
        self._told: set[str] = set()

    def names(self) -> list[str]:
        """Of all adapters in the folder, sorted."""
        return sorted(self._folders())

    def all(self, base_hash: str | None = None) -> list[Shelved]:
        """Every adapter; those that cannot be read or are for another base than ``base_hash`` say so."""
        return [_read(name, folder, base_hash) for name, folder in sorted(self._folders().items())]

    def find(self, name: str, base_hash: str | None = None) -> Shelved:
        """The adapter of that name.

        Raises:
            Refused: 404, there is none.
        """
        folders = self._folders()
        # Only a name that a listing of the folder has given is ever made into a path.
        if name not in folders:
            shown = name if _NAME.fullmatch(name) else "of that name"
            raise Refused(404, f"no adapter '{shown}': {nearest(name[:100], folders)}", field="adapter")
        return _read(name, folders[name], base_hash)

    def _folders(self) -> dict[str, Path]:
        if self._single:
            found = _adapter_in(self.root)
            return {_own_name(self.root): found} if found is not None else {}
        try:
            entries = sorted(self.root.iterdir())
        except OSError as error:
            raise UserError(f"{self.root}: cannot be read ({error.strerror or error})") from error
        folders: dict[str, Path] = {}
        # Those that keep their names come first: no other folder can take one from them.
        for entry in sorted(entries, key=lambda entry: served_name(entry.name) != entry.name):
            found = None if entry.name.startswith(".") or not entry.is_dir() else _adapter_in(entry)
            # A link out of the folder would serve what nobody put there.
            if found is None or not found.resolve().is_relative_to(self.root.resolve()):
                continue
            name = served_name(entry.name)
            if name in folders:
                self._tell_once(logging.WARNING, f"{entry}: passed over, another folder is served as {name}; rename it")
                continue
            if name != entry.name:
                self._tell_once(logging.INFO, f"{entry}: served as {name}")
            folders[name] = found
        return folders

    def _tell_once(self, level: int, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            logger.log(level, "%s", line.encode(errors="replace").decode())


def served_name(folder: str) -> str:
    """The name that a folder is served under: its own where that is safe in a URL, else one made of it.

    The hash keeps ``my set`` and ``my_set`` apart whatever else stands beside them, so that a name never moves to another
    folder.
    """
    if _NAME.fullmatch(folder):
        return folder
    letters = unicodedata.normalize("NFKD", folder).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", letters).strip("-._")[:80] or "adapter"
    return f"{plain}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}"


def _own_name(folder: Path) -> str:
    name = folder.resolve().name
    return name if _NAME.fullmatch(name) else "adapter"


def _adapter_in(folder: Path) -> Path | None:
    """The adapter folder that ``folder`` is, or that of the run it is."""
    for candidate in (folder, RunFolder(folder).adapter):
        if (candidate / CONFIG_NAME).is_file():
            return candidate
    return None


def _read(name: str, folder: Path, base_hash: str | None) -> Shelved:
    try:
        manifest = read_manifest(folder)
    except AdapterError as error:
        # Clients are told what is wrong, not where on this machine.
        return Shelved(name, folder, None, str(error).replace(f"{folder}/", "").replace(str(folder), name))
    if base_hash is not None and manifest.base_hash != base_hash:
        return Shelved(name, folder, manifest, f"made for another base model, '{manifest.base_id}'")
    return Shelved(name, folder, manifest)
