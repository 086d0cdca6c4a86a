"""The card of an exported folder, for people: what it is, how to run it, how near it is to the model it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlsm_adapter.adapters.folder import AdapterInfo

_RUN_WITH = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}


def card(manifest: dict[str, Any], info: AdapterInfo, *, has_adapter_card: bool) -> str:
    """``README.md`` in Markdown."""
    adapter, base, found = manifest["adapter"], manifest["base"], manifest["agreement"]
    size = " x ".join(map(str, manifest["preprocessing"]["size"]))
    example = info.prompts[0] if info.prompts else "polyp"
    kind = manifest["format_of_graphs"]
    precision = manifest["precision"] + (f" ({manifest['quantisation']})" if manifest["quantisation"] else "")
    adapter_told = f"{adapter['method']}, SHA-256 `{adapter['sha256']}`" if adapter else "none"
    told = "; the card of the adapter, with data and scores, is ADAPTER.md" if has_adapter_card else ""
    lines = [
        f"# {base['id']}{' with adapter ' + adapter['method'] if adapter else ''}, exported",
        "",
        f"Segments images by prompt, without {'vlsm-adapter' if kind == 'torch' else 'torch or vlsm-adapter'}"
        f" (needs {_RUN_WITH[kind]}){told}.",
        "",
        "```bash",
        "pip install -r requirements.txt",
        f'python runtime.py . IMAGE.png --prompt "{example}" --out mask.png',
        "```",
        "",
        "```python",
        "from runtime import Predictor",
        "",
        'predictor = Predictor.load(".")',
        'predictor.set_image("IMAGE.png")  # encoded once, however many prompts follow',
        f"masks = predictor.predict([{example!r}])  # bool (prompts, rows, columns)",
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| graphs | `{manifest['graphs']['image']}`, `{manifest['graphs']['prompt']}`: {kind}, {precision} |",
        f"| base model | `{base['id']}` ({base['family']}), SHA-256 `{base['sha256']}` |",
        f"| adapter | {adapter_told} |",
        *([f"| caution | {manifest['caution']} |"] if manifest["caution"] else []),
        f"| input | {size} pixels, {manifest['preprocessing']['resample']}, stretched |",
        f"| threshold | {manifest['threshold']:g} |",
        f"| prompts | level {info.prompt_level or 'not recorded'}, e.g. {example!r} |",
        f"| licence of the weights | {info.licence or 'not stated by the author; base model and data have their own'} |",
        "| licence of runtime.py | Apache-2.0 |",
        "",
        f"Compared with the model in torch on {found['images']} images ({found['image_source']}), "
        f"{len(found['prompts'])} prompts each: largest difference of a logit {found['max_logit_difference']:.1e} (of logits up to "
        f"{found['largest_logit']:.1f}), {found['pixels_agree']:.3%} of the masks' pixels agree, Dice {found['dice']:.4f}.",
        "",
        "Research software, not a medical device: its output needs review by a qualified person.",
        "",
    ]
    return "\n".join(lines)
