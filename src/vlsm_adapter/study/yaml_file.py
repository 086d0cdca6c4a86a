"""Reading the YAML of study.yaml: keys stand once, and ``on`` is a word."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from vlsm_adapter.errors import ConfigError
from vlsm_adapter.plain_values import check_size


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key stands once: of two methods under one name the first would vanish otherwise."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:bool":
                key_node.tag = "tag:yaml.org,2002:str"  # YAML 1.1 takes the key 'on' for a truth value
            if key_node.tag == "tag:yaml.org,2002:merge":  # '<<: *name' has no value of its own
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"'{key}' stands twice", key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> dict[str, Any]:
    """The sections of ``file`` as plain values.

    Raises:
        ConfigError: it cannot be read, is no YAML, names a key twice, or holds no sections.
    """
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read ({error.strerror}); give a study file, see docs/compare.md"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: not YAML ({' '.join(str(error).split())})") from error
    check_size(values, file)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{file}: must hold sections data, methods, ...; see docs/compare.md")
    return values
