"""Prompts to token ids by ``tokenizer.json``, without transformers, whose import takes longer than most predictions.

What it gives is what transformers' tokenizer gives for the same files; any other kind of tokenizer is left to transformers
(:func:`vlsm_adapter.models.checkpoints.load_tokenizer`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Encoding, Tokenizer

from vlsm_adapter import files

# Classes of transformers that add nothing to tokenizer.json.
_PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")
# Settings that change what transformers gives, beside tokenizer.json.
_MORE = ("additional_special_tokens", "extra_special_tokens", "split_special_tokens")
_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")


def is_plain(config: dict[str, Any]) -> bool:
    """Whether ``tokenizer_config.json`` says that ``tokenizer.json`` is all there is to the tokenizer.

    Of CLIP's, transformers 5 writes a ``tokenizer.json`` that is complete; older ones were built anew at every load.
    """
    if any(config.get(name) for name in _MORE) or config.get("padding_side", "right") not in ("right", "left"):
        return False
    name = config.get("tokenizer_class")
    return name in _PLAIN or (name == "CLIPTokenizer" and config.get("backend") == "tokenizers")


class FileTokenizer:
    """The tokenizer of a ``tokenizer.json``, called as transformers' are.

    Its backend keeps no state between calls, so several threads may use it at once.

    Args:
        folder: holds ``tokenizer.json`` and ``tokenizer_config.json``.

    Raises:
        Exception: a file is damaged; the tokenizers library raises nothing narrower.
    """

    is_fast = True

    def __init__(self, folder: Path) -> None:
        self._files = {name: (folder / name).read_bytes() for name in _FILES if (folder / name).is_file()}
        config = json.loads(self._files["tokenizer_config.json"])
        self.backend_tokenizer = Tokenizer.from_buffer(self._files["tokenizer.json"])
        self.backend_tokenizer.no_truncation()
        self.backend_tokenizer.no_padding()
        self.padding_side = str(config.get("padding_side", "right"))
        self.bos_token, self.bos_token_id = self._special(config, "bos_token")
        self.eos_token, self.eos_token_id = self._special(config, "eos_token")
        self.pad_token, self.pad_token_id = self._special(config, "pad_token")
        self._config = config

    @property
    def is_complete(self) -> bool:
        """Whether every token that the other files name is one of ``tokenizer.json``, so that transformers would add none,
        and there is one to pad with."""
        other = json.loads(self._files.get("special_tokens_map.json", b"{}"))
        named = {name: _content(token) for name, token in other.items()}
        if any(token != _content(self._config.get(name)) for name, token in named.items()):
            return False
        tokens: dict[str | None, int | None] = {}
        tokens |= {_content(token): None for name, token in self._config.items() if name.endswith("_token")}
        added = self._config.get("added_tokens_decoder") or {}
        tokens |= {_content(token): int(number) for number, token in added.items()}
        tokens.pop(None, None)
        known = {token: self.backend_tokenizer.token_to_id(str(token)) for token in tokens}
        fits = all(known[token] is not None and number in (None, known[token]) for token, number in tokens.items())
        return fits and self.pad_token_id is not None

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: str | bool = False,
        truncation: bool = False,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
        return_offsets_mapping: bool = False,
        verbose: bool = True,
    ) -> dict[str, Any]:
        """Token ids of a text, or of several.

        Args:
            text: one (lists of numbers are given) or several (lists of lists).
            padding: ``"longest"`` of them, ``"max_length"``, or False.
            truncation: to ``max_length`` tokens, start and end included.
            add_special_tokens: start and end.
            return_tensors: ``"pt"`` for int64 tensors (P, L).
            return_offsets_mapping: where in the text each token begins and ends.
            verbose: accepted as transformers' tokenizers do; nothing is told here.

        Returns:
            ``input_ids``, ``attention_mask``, and ``offset_mapping`` where asked for.

        Raises:
            ValueError: padding without a pad token, or tensors of rows that differ in length.
        """
        single = isinstance(text, str)
        texts = [text] if isinstance(text, str) else list(text)
        backend = self.backend_tokenizer
        room = None
        if truncation and max_length is not None:
            room = max_length - (backend.num_special_tokens_to_add(False) if add_special_tokens else 0)
        encodings = []
        for encoding in backend.encode_batch(texts, add_special_tokens=False):
            if room is not None and len(encoding) > room:
                encoding.truncate(max(room, 0), direction="right")
            encodings.append(backend.post_process(encoding) if add_special_tokens else encoding)
        self._pad(encodings, padding, max_length)
        given: dict[str, Any] = {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
        }
        if return_offsets_mapping:
            given["offset_mapping"] = [encoding.offsets for encoding in encodings]
        if return_tensors == "pt":
            return {name: torch.tensor(rows, dtype=torch.long) for name, rows in given.items()}
        return {name: rows[0] for name, rows in given.items()} if single else given

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files, as they were read.

        Raises:
            UserError: the folder cannot be written.
        """
        for name, content in self._files.items():
            files.write_bytes(Path(folder) / name, content)

    def _pad(self, encodings: list[Encoding], padding: str | bool, max_length: int | None) -> None:
        if padding is False:
            return
        if self.pad_token is None or self.pad_token_id is None:
            raise ValueError("tokenizer_config.json names no pad_token that tokenizer.json knows")
        longest = max((len(encoding) for encoding in encodings), default=0)
        length = max_length if padding == "max_length" and max_length is not None else longest
        for encoding in encodings:
            encoding.pad(length, direction=self.padding_side, pad_id=self.pad_token_id, pad_token=self.pad_token)

    def _special(self, config: dict[str, Any], name: str) -> tuple[str | None, int | None]:
        token = _content(config.get(name))
        return token, (None if token is None else self.backend_tokenizer.token_to_id(token))


def _content(token: Any) -> str | None:
    """A token of a configuration, which is text or has settings of its own."""
    return token.get("content") if isinstance(token, dict) else token
