"""Sending an adapter to a hub: its three files, in one commit, and nothing else of this machine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlsm_adapter.adapters.folder import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME
from vlsm_adapter.adapters.hub import HubId, can_be_found, endpoint, hub_errors
from vlsm_adapter.errors import AdapterError, UserError
from vlsm_adapter.models import embedded_models, text_free_models
from vlsm_adapter.sharing.card import model_card
from vlsm_adapter.sharing.facts import Facts, gather
from vlsm_adapter.sharing.private import refuse_paths, texts_in


@dataclass(frozen=True)
class Parcel:
    """What is sent.

    Attributes:
        repo: ``OWNER/NAME``.
        weights: the weights file; sent as it is.
        config: text of ``adapter_config.json``.
        card: text of ``README.md``.
        facts: that the card was filled from.
    """

    repo: str
    weights: Path
    config: str
    card: str
    facts: Facts

    def sizes(self) -> dict[str, int]:
        """File name to bytes."""
        return {
            WEIGHTS_NAME: self.weights.stat().st_size,
            CONFIG_NAME: len(self.config.encode()),
            CARD_NAME: len(self.card.encode()),
        }


def pack(
    path: str | Path,
    repo: str,
    *,
    base: str | None = None,
    licence: str | None = None,
    card: str | Path | None = None,
) -> Parcel:
    """Everything that :func:`send` sends, checked; nothing is sent.

    Args:
        path: a run folder, or an adapter folder.
        repo: ``OWNER/NAME`` on the hub.
        base: hub id of the base model, needed where the adapter names a folder of this machine; the base's hash stays and
            is checked whenever the adapter is loaded.
        licence: of the weights, e.g. ``"cc-by-4.0"``; by default what the adapter states.
        card: a file to send as the card in place of the one that is written here.

    Raises:
        UserError: no adapter, not an id, a base that is only here, or a place on this machine in what would be sent.
    """
    hub = HubId.parse(repo)
    if hub is None or hub.revision is not None:
        raise UserError(f"'{repo}': give OWNER/NAME; letters, digits, '-', '_' and '.', no other")
    if licence is not None and not licence.strip():
        raise UserError("the licence is empty: name one, e.g. --licence cc-by-4.0, or leave it out")
    facts = gather(path)
    shared_base = public_base(facts.manifest.base_id, base)
    licence = licence or facts.manifest.info.licence
    config = shared_config(facts.raw, shared_base, licence)
    places = places_of(facts)
    refuse_paths(CONFIG_NAME, texts_in(config), places, whole=True)
    refuse_paths(WEIGHTS_NAME, texts_in(_metadata(facts.folder / WEIGHTS_NAME)), places, whole=True)
    made = model_card(facts, repo, base=shared_base, licence=licence)
    text = made if card is None else _own_card(Path(card))
    refuse_paths(CARD_NAME if card is None else str(card), [("", text)], places, whole=False)
    sent = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return Parcel(repo, facts.folder / WEIGHTS_NAME, sent, text, facts)


def send(parcel: Parcel, *, private: bool = False) -> str:
    """Make the repository where it is not there, and send the files in one commit.

    Returns:
        Address of the commit.

    Raises:
        AdapterError: no login, no right, no network.
        UserError: the repository holds a base model, or is public where ``private`` was asked.
    """
    if not can_be_found(endpoint()):
        raise AdapterError(
            f"'{parcel.repo}': {endpoint()} cannot be reached, nothing was sent: push again where there is a network"
        )
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(library_name="vlsm-adapter")
    hub = HubId(parcel.repo)
    with hub_errors(parcel.repo, hub):
        api.create_repo(parcel.repo, private=private or None, exist_ok=True)
        about = api.model_info(parcel.repo)
    if private and not about.private:
        raise UserError(
            f"'{parcel.repo}' is there already and public, so --private cannot be kept: nothing was sent; change it at "
            f"{endpoint()}/{parcel.repo}/settings, or choose another name"
        )
    if any(one.rfilename == "config.json" for one in about.siblings or ()):
        raise UserError(f"'{parcel.repo}' holds a base model (config.json); give the adapter a repository of its own")
    with hub_errors(parcel.repo, hub):
        done = api.create_commit(
            parcel.repo,
            [
                CommitOperationAdd(WEIGHTS_NAME, str(parcel.weights)),
                CommitOperationAdd(CONFIG_NAME, parcel.config.encode()),
                CommitOperationAdd(CARD_NAME, parcel.card.encode()),
            ],
            commit_message=f"{parcel.facts.manifest.config.method} adapter",
        )
    return str(done.commit_url)


def public_base(own: str, given: str | None) -> str:
    """The id of the base as others can find it: ``given``, or its ``own`` where that is no folder of this machine.

    Raises:
        UserError: neither is.
    """
    if given is not None:
        hub = HubId.parse(given)
        if hub is None or hub.revision is not None:
            raise UserError(f"base '{given}': give its id on the hub, OWNER/NAME")
        return given
    if own in (*embedded_models(), *text_free_models()) or (HubId.parse(own) is not None and not Path(own).is_dir()):
        return own
    raise UserError(
        f"the adapter's base model is a folder of this machine ({Path(own).name}), which others do not have: say its id on the "
        "hub with --base OWNER/NAME"
    )


def shared_config(raw: dict[str, Any], base: str, licence: str | None) -> dict[str, Any]:
    """``adapter_config.json`` with the base's id and the licence as they are shared."""
    config = {**raw, "base": {**raw["base"], "id": base}}
    if licence is not None:
        config["info"] = {**raw.get("info", {}), "licence": licence}
    return config


def places_of(facts: Facts) -> Iterable[Path]:
    """Folders of this machine that the run knows."""
    found = [facts.folder.resolve(), Path.home(), Path.cwd()]
    if facts.config is not None:
        data = facts.config.data
        found += [Path(path) for path in (data.path, data.val_path, data.split_file) if path]
    return found


def _metadata(weights: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(weights, framework="pt") as handle:
        return {**(handle.metadata() or {}), **dict.fromkeys(handle.keys(), "")}


def _own_card(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); give a Markdown file in UTF-8") from error
