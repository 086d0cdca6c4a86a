"""Names of methods as they stand in tables, and the order in which they stand there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlsm_adapter.study_report.results import ZERO_SHOT

# As their papers write them; a method that is not here goes by its own name. The order is that of the tables: what needs
# no adapter, text-free references, prompts, parameter-efficient methods, bottleneck adapters.
_NAMES = {
    ZERO_SHOT: "Zero-shot",
    "decoder_only": "Decoder only",
    "full": "Full fine-tuning",
    "unet": "U-Net",
    "segresnet": "SegResNet",
    "dynunet": "DynUNet",
    "coop": "CoOp",
    "vpt": "VPT",
    "maple": "MaPLe",
    "bitfit": "BitFit",
    "layernorm": "LayerNorm",
    "ia3": "(IA)³",
    "lora": "LoRA",
    "rslora": "rsLoRA",
    "dora": "DoRA",
    "adaptformer": "AdaptFormer",
    "shallow": "Shallow",
    "dense": "Dense",
    "telescopic": "Telescopic",
}
_ORDER = {name: number for number, name in enumerate(_NAMES)}
_PARTS = {"v": "V", "l": "L", "vl": "VL", "lc": "LC", "vlc": "VLC"}


def display_name(name: str) -> str:
    """``"dense_vlc"`` is ``"Dense VLC"``, ``"lora"`` is ``"LoRA"``; a name of the user's own stays as it is."""
    if name in _NAMES:
        return _NAMES[name]
    head = _head(name)
    if not head:
        return name
    words = [_PARTS.get(word, word) for word in name[len(head) :].strip("_-").replace("-", "_").split("_")]
    return " ".join([_NAMES[head], *words])


def settings_suffix(settings: Mapping[str, Any], shown: frozenset[str]) -> str:
    """What tells two rows of one method apart: values of ``parts`` and ``variant``, ``key=value`` of the others."""
    words = []
    for key in sorted(shown, key=lambda key: (key != "parts", key != "variant", key)):
        if key not in settings:
            continue
        value = settings[key]
        if key == "parts":
            words.append(_PARTS.get(str(value), str(value)))
        elif key == "variant":
            words.append(str(value))
        else:
            words.append(
                f"{key.rpartition('.')[2]}={value:g}"
                if isinstance(value, float)
                else f"{key.rpartition('.')[2]}={value}"
            )
    return " ".join(words)


def order(name: str, method: str, settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where a row stands: by method, then by parts, then by name."""
    head = _head(name) or _head(method)
    parts = list(_PARTS)
    place = parts.index(settings["parts"]) if settings.get("parts") in parts else len(parts)
    return (_ORDER.get(head, len(_ORDER)), str(settings.get("variant", "")), place, name)


def _head(name: str) -> str:
    """The longest known method that ``name`` begins with, as a whole word."""
    found = [known for known in _NAMES if name == known or name.startswith((f"{known}_", f"{known}-"))]
    return max(found, key=len, default="")


def percent_or_cases(fraction: str | None) -> str:
    """``"10%"`` as ``"10 % of labels"``, ``"20 cases"`` as ``"20 labelled cases"``, all as ``"all labels"``."""
    if fraction is None:
        return "no labels"
    if fraction == "100%":
        return "all labels"
    return f"{fraction[:-1]} % of labels" if fraction.endswith("%") else f"{fraction.split()[0]} labelled cases"


def fraction_size(fraction: str) -> float:
    """For sorting and axes: a share of 1 for percents; a number of cases is larger than any share."""
    try:
        number = float(fraction.rstrip("%").split()[0])
    except (ValueError, IndexError):
        return 0.0
    return number / 100 if fraction.endswith("%") else number


def listed(names: Sequence[str]) -> str:
    """``"A"``, ``"A and B"``, ``"A, B and C"``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
