"""The model card of a shared adapter, filled from what its run left on disk; what is not there is 'not recorded'.

The sections follow Mitchell et al., "Model Cards for Model Reporting", FAT* 2019; the YAML at the top is what the
Hugging Face Hub reads (base model, tags, licence, scores as a model-index).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from vlsm_adapter import __version__
from vlsm_adapter.adapters.folder import parent_text
from vlsm_adapter.adapters.hub import HubId
from vlsm_adapter.markdown import cell, code, interval, table
from vlsm_adapter.sharing.facts import Evaluation, Facts

NOT_RECORDED = "not recorded"
# Licences that the hub knows by these ids; another is written as 'other' with its name.
LICENCES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "openrail",
    "unlicense",
)  # fmt: skip
_BASES = {
    "clipseg": 'T. Lüddecke and A. Ecker, "Image Segmentation Using Text and Image Prompts" (CLIPSeg), CVPR 2022',
    "cris": 'Z. Wang et al., "CRIS: CLIP-Driven Referring Image Segmentation", CVPR 2022',
    "san": 'M. Xu et al., "Side Adapter Network for Open-Vocabulary Semantic Segmentation" (SAN), CVPR 2023',
}


def model_card(facts: Facts, repo: str, *, base: str, licence: str | None) -> str:
    """The text of ``README.md``.

    Args:
        facts: of the adapter.
        repo: ``OWNER/NAME`` it is shared as.
        base: id of its base model, as shared.
        licence: of the weights; None where its author states none.
    """
    manifest = facts.manifest
    info = manifest.info
    method = manifest.config.method
    prompt = info.prompts[0] if info.prompts else "polyp"
    data = cell(info.data) if info.data else None
    lines = [
        _front_matter(facts, repo, base, licence).rstrip(),
        "",
        f"# {repo.partition('/')[2]}",
        "",
        f"A **{method}** adapter for the text-promptable segmentation model `{base}`, trained with vlsm-adapter on "
        f"{data or 'data that is not recorded'}. The base model stays as it is; {facts.parameters:,} numbers were "
        "trained. An image and a phrase go in, a mask comes out. Research software, not a medical device.",
        "",
        "## Use",
        "",
        "```python",
        "from vlsm_adapter import Predictor",
        "",
        f'predictor = Predictor.load("{repo}")  # or "{repo}@REVISION"',
        'predictor.set_image("image.png")',
        f"masks = predictor.predict([{prompt!r}])  # bool (1, H, W), at the size of the image",
        "```",
        "",
        "```bash",
        f'vlsm predict {repo} "images/*.png" --prompt "{_shell(prompt)}" --overlays',
        "```",
        "",
        *card_body(facts, repo, base=base, licence=licence),
    ]
    return "\n".join(lines) + "\n"


def card_body(facts: Facts, name: str, *, base: str, licence: str | None) -> list[str]:
    """The lines of the card's sections, from what the adapter is to how to cite it; ``name`` is what it is shared as."""
    manifest = facts.manifest
    info = manifest.info
    method = manifest.config.method
    asks = "; ".join(code(text) for text in info.prompts[:5]) or NOT_RECORDED
    data = cell(info.data) if info.data else None
    return [
        "## The adapter",
        "",
        *_table(
            ("method", f"{method}: {_settings(manifest.config.to_dict()) or 'no settings'}"),
            ("parameters trained", _parameters(facts)),
            ("base model", f"`{base}` ({manifest.base_family}), SHA-256 of its weights `{manifest.base_hash}`"),
            ("input", f"{_size(manifest.preprocessing)} pixels, {manifest.preprocessing['resample']}, stretched"),
            ("threshold", cell(", ".join(filter(None, (f"{info.threshold:g}", info.threshold_origin))))),
            ("prompts", f"level {info.prompt_level or NOT_RECORDED}; e.g. {asks}"),
            *([("training began from", parent_text(info.parent))] if info.parent else []),
        ),
        "",
        "## Data and training",
        "",
        *_table(*_data_rows(facts), *_training_rows(facts)),
        "",
        "## Scores",
        "",
        *_scores(facts),
        "## Intended use",
        "",
        f"Research on segmentation by words: images like those of {data or 'its training data'}, asked with prompts "
        "like those above, the masks reviewed by a person who can judge them.",
        "",
        "**Out of scope:** diagnosis, treatment or any other decision about a patient; other modalities, devices, organs or "
        "populations than those of the training data, unless measured there first; prompts of another kind than those above.",
        "",
        "## Limits",
        "",
        *(f"- {limit}" for limit in _limits(facts)),
        "",
        "## Licence",
        "",
        f"Weights of this adapter: {licence or 'not stated by the author'}. The base model and the training data have "
        "licences of their own, which also bind who uses this adapter.",
        "",
        "## Cite",
        "",
        *_citations(facts, name, base),
    ]


# -- the YAML that the hub reads -----------------------------------------------------------------------------------------


def _front_matter(facts: Facts, repo: str, base: str, licence: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    known = (licence or "").lower()
    values: dict[str, Any] = {
        "library_name": "vlsm-adapter",
        "pipeline_tag": "image-segmentation",
        "tags": [
            "vlsm-adapter",
            "adapter",
            facts.manifest.config.method,
            "medical",
            "image-segmentation",
            "vision-language",
            facts.manifest.base_family,
        ],
    }
    if licence is not None:
        values["license"] = known if known in LICENCES else "other"
        if known not in LICENCES:
            values["license_name"] = _slug(licence)
    if HubId.parse(base) is not None:
        values |= {"base_model": base, "base_model_relation": "adapter"}
    results = [
        EvalResult(
            task_type="image-segmentation",
            task_name="segmentation by prompt",
            dataset_type=_slug(one.data),
            dataset_name=f"{one.data}{f' ({one.division})' if one.division else ''}",
            dataset_split=one.split,
            metric_type=name,
            metric_name=_metric_name(one, about),
            metric_value=round(about["mean"], 6),
        )
        for one in facts.evaluations
        if one.held_out
        for name, about in one.metrics.items()
        if about["mean"] is not None
    ]
    if results:
        values |= {"model_name": repo.partition("/")[2], "eval_results": results}
    return f"---\n{ModelCardData(**values).to_yaml()}\n---"


def _metric_name(one: Evaluation, about: Mapping[str, Any]) -> str:
    unit = "" if about["unit"] == "ratio" else f" in {about['unit']}"
    low, high = about["ci_low"], about["ci_high"]
    bounds = "" if low is None else f", {one.confidence:.0%} interval {low:.4g} to {high:.4g}"
    other = f", threshold {one.threshold:g}" if one.other_threshold else ""
    other += f", in {one.lowered}" if one.lowered else ""
    return f"{about['display_name']}{unit}, mean over {one.cases} cases{bounds}, prompt level {one.level}{other}"


# -- the tables ----------------------------------------------------------------------------------------------------------


def _table(*rows: tuple[str, str]) -> list[str]:
    """Lines of a table of names and facts; the facts are Markdown already."""
    return table(("", ""), rows)


def _data_rows(facts: Facts) -> list[tuple[str, str]]:
    info, config = facts.manifest.info, facts.config
    split = ", ".join(f"{number} {part}" for part, number in info.split.items())
    rows = [
        ("data", cell(info.data) if info.data else NOT_RECORDED),
        ("cases", split or NOT_RECORDED),
        ("data licence", NOT_RECORDED),
    ]
    if config is not None:
        rows.append(("prompt level of training", config.data.level))
        rows.append(("augmentation", config.data.augment))
    return rows


def _training_rows(facts: Facts) -> list[tuple[str, str]]:
    info, config = facts.manifest.info, facts.config
    if config is None:
        return [("training", f"settings {NOT_RECORDED}"), ("seed", _or(info.seed)), ("hardware and time", NOT_RECORDED)]
    train = config.train
    batch = train.batch_size * train.accumulate * train.devices
    epochs = f"{_or(facts.epochs)} of at most {train.epochs} epochs"
    if facts.best is not None:
        kept = "the weights it began from" if facts.best == 0 else f"epoch {facts.best}"
        often = f" every {train.validate_every} epochs" if train.validate_every > 1 else ""
        epochs += f"; kept: {kept}, by validation Dice{often}"
    dice = info.scores.get("validation Dice")
    shown = "" if dice is None or not math.isfinite(dice) else f" ({dice:.4f} at the network's resolution)"
    return [
        ("epochs", epochs + shown),
        ("optimiser", f"AdamW, learning rate {train.lr:g} ({train.schedule}), weight decay {train.weight_decay:g}"),
        ("batch", f"{batch} cases per update"),
        ("loss", train.loss),
        ("seed", str(train.seed)),
        ("hardware and time", _hardware(facts)),
        ("software", _software(facts)),
    ]


def _hardware(facts: Facts) -> str:
    environment = facts.environment
    if not environment or facts.seconds is None:
        return NOT_RECORDED
    device = str(environment.get("device", NOT_RECORDED))
    where = f"{device} ({environment.get('processor', NOT_RECORDED)}, {environment.get('threads', '?')} threads)"
    return f"{where}, {_or(environment.get('precision'))}; {facts.seconds:.0f} s of training steps, validation apart"


def _software(facts: Facts) -> str:
    versions = facts.environment.get("versions")
    if not isinstance(versions, dict):
        return NOT_RECORDED
    named = ("vlsm-adapter", "torch", "transformers", "peft")
    return ", ".join(f"{name} {versions[name]}" for name in named if name in versions) or NOT_RECORDED


def _scores(facts: Facts) -> list[str]:
    if not facts.evaluations:
        return [f"Evaluation of these weights: {NOT_RECORDED}.", ""]
    lines: list[str] = []
    for one in facts.evaluations:
        division = f", {one.division}" if one.division else ""
        lowered = f", in {one.lowered}" if one.lowered else ""
        heading = f"### {cell(one.data)}, split {one.split}, prompt level {one.level}{cell(division)}{cell(lowered)}"
        lines += [heading, ""]
        rows = []
        for name, about in one.metrics.items():
            unit = "" if about["unit"] == "ratio" else f" ({about['unit']})"
            row = [f"{about['display_name']}{unit}", interval(about)]
            if one.paired:
                base, gain = one.zero_shot.get(name), one.paired.get(name)
                row.append(interval(base) if base else NOT_RECORDED)
                row.append(interval(gain, "mean_difference", signed=True) if gain else NOT_RECORDED)
            rows.append(row)
        lines += table(
            ["metric", "adapter", *(["base model, zero-shot", "paired difference"] if one.paired else [])], rows
        )
        lines += [
            "",
            f"Means over {one.cases} cases ({one.prompts} different prompts) at the images' own size, threshold "
            f"{one.threshold:g}, NSD tolerance {one.nsd_tolerance:g} (mm where the spacing is known, else pixels); in "
            f"brackets {one.confidence:.0%} bootstrap intervals over {one.resampled}s."
            + (f" {one.left_out} unusable cases were left out." if one.left_out else ""),
            *(
                ["", f"**Made with threshold {one.threshold:g}; the adapter's is now {one.own_threshold:g}.**"]
                if one.other_threshold
                else []
            ),
            *(["", f"The model answered in {cell(one.precision)}, not in float32."] if one.lowered else []),
            *(
                ["", "**The words of this prompt level are drawn from the ground truth: these scores flatter.**"]
                if one.leaks
                else []
            ),
            *(["", f"**{one.seen} of these cases were trained on: these scores flatter.**"] if one.seen else []),
            *(["", "Whether some of these cases were trained on is not known."] if one.seen is None else []),
            "",
        ]
    return lines


def _limits(facts: Facts) -> list[str]:
    info = facts.manifest.info
    trained = info.split.get("train")
    seen = f"It has seen {trained} training cases of one data set" if trained else f"Its training cases: {NOT_RECORDED}"
    limits = [
        seen + (", and those of the adapter that its training began from." if info.parent else "."),
        "The scores are those of one training with one seed; another seed gives others.",
    ]
    if not any(one.held_out for one in facts.evaluations):
        limits.append("No score on cases known to be held out from training is recorded.")
    elif not any(one.held_out and not one.own_data for one in facts.evaluations):
        limits.append("No score on data of another hospital or device is recorded: expect lower ones there.")
    limits += [
        "Where what a prompt names is not in the image, it may still answer with a mask.",
        "How it does for groups of patients (age, sex, skin tone, device) was not measured.",
    ]
    return limits


def _citations(facts: Facts, name: str, base: str) -> list[str]:
    entry = _BASES.get(facts.manifest.base_family, NOT_RECORDED)
    kind = f"Base model `{base}`" if HubId.parse(base) else f"Architecture of the base model `{base}`"
    return [
        f"This adapter: `{name}`, at the revision used. The software:",
        "",
        "```bibtex",
        "@software{vlsm_adapter,",
        "  title = {vlsm-adapter: text-promptable medical image segmentation with small adapters},",
        "  author = {{The vlsm-adapter authors}},",
        "  year = {2026},",
        f"  version = {{{__version__}}}",
        "}",
        "@inproceedings{vlsm_adapter_method,",
        "  title = {{VLSM-Adapter}: Finetuning Vision-Language Segmentation Efficiently with Lightweight Blocks},",
        "  author = {Dhakal, Manish and Adhikari, Rabin and Thapaliya, Safal and Khanal, Bishesh},",
        "  booktitle = {Medical Image Computing and Computer Assisted Intervention (MICCAI)},",
        "  year = {2024},",
        "  note = {arXiv:2405.06196}",
        "}",
        "```",
        "",
        f"{kind}: {entry}.",
        f"Data ({cell(facts.manifest.info.data or NOT_RECORDED)}): cite it as its authors ask.",
    ]


# -- small forms ---------------------------------------------------------------------------------------------------------


def _parameters(facts: Facts) -> str:
    base = next((one.base_parameters for one in facts.evaluations if one.base_parameters), None)
    return f"{facts.parameters:,}" + (f" beside {base:,} of the base" if base else "")


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items() if key != "method")


def _size(preprocessing: dict[str, Any]) -> str:
    return " x ".join(str(side) for side in preprocessing["size"])


def _or(value: Any) -> str:
    return NOT_RECORDED if value is None else str(value)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "unnamed"


def _shell(prompt: str) -> str:
    return re.sub(r'([\\"$`])', r"\\\1", prompt)
