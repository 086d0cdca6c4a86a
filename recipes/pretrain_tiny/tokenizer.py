"""The tokenizer of the embedded model: byte-level BPE, trained on generated English text.

Byte-level, so that any text in any language has tokens and none is unknown; lower-casing, so that "Polyp" and "polyp"
are one word; special tokens as CLIP has them (start, end, padding = end), at the two highest ids: transformers takes
the id 2 for end-of-text as the mark of an old kind of checkpoint.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from phrases import (
    COLOUR_WORDS,
    COLOURS,
    GENERIC,
    NUMBERS,
    PLACE_TEMPLATES,
    POSITIONS,
    SHAPES,
    SIZES,
    SOFT,
    TEMPLATES,
    TEXTURES,
    TONES,
    plural,
)
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from vlsm_adapter.errors import ModelError

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 77


def _words(text: str) -> list[str]:
    return text.split()


# Words of prompts for medical images, so that such prompts stay short. Only spelling is learnt here, never a picture.
MEDICAL_NOUNS = _words("""
polyp tumor tumour lesion nodule mass cyst ulcer mole melanoma nevus keratosis carcinoma adenoma abscess fibroadenoma
hemorrhage haemorrhage edema oedema effusion opacity consolidation pneumonia pneumothorax atelectasis cardiomegaly
fracture fibrosis emphysema infiltration thickening calcification stone plaque stenosis aneurysm thrombus infarct
metastasis lymph node wound burn foot ulcer scar rash necrosis granulation bleeding erosion inflammation varix
heart lung lungs liver kidney spleen pancreas stomach colon rectum bowel intestine esophagus bladder prostate uterus
ovary breast thyroid brain skull spine vertebra rib clavicle femur tibia knee hip retina optic disc optic cup macula
vessel artery vein aorta ventricle left ventricular cavity myocardium left atrium right ventricle right atrium
mediastinum diaphragm trachea bronchus airway cartilage ligament tendon muscle bone fat tissue skin tooth teeth gland
nerve cell nucleus nuclei membrane cytoplasm instrument forceps catheter needle endotracheal tube pacemaker device
enlarged cardiomediastinum pleural support devices surgical tool clasper shaft suture clip stent
""")
MEDICAL_ADJECTIVES = _words("""
benign malignant suspicious abnormal normal healthy diseased hypoechoic hyperechoic anechoic isoechoic hypodense
hyperdense irregular regular round oval lobulated spiculated smooth rough flat raised sessile pedunculated pigmented
asymmetric symmetric circumscribed indistinct blurred diffuse focal multiple single solitary cystic solid calcified
necrotic vascular reddish pinkish brownish whitish yellowish blackish bluish dark bright pale small medium large tiny
""")
MEDICAL_IMAGES = _words("""
ultrasound endoscopy colonoscopy endoscopic colonoscopic dermoscopy dermoscopic radiograph x-ray chest x-ray microscopy
microscopic histopathology histology mammogram mammography tomography computed tomography magnetic resonance angiography
fundus photograph echocardiography echocardiogram ct scan mri slice two-chamber four-chamber view end of diastole
end of systole cycle patient frame image photo picture scan
""")
MEDICAL_TEMPLATES = (
    "{adjective} {noun}",
    "{noun} in {image} image",
    "one {adjective} {noun} in the {image}",
    "{noun} which is {adjective} in shape located in {place} of the image",
    "two medium sized {adjective} {noun}s located in {place} and right of the image",
    "{adjective} {noun} of {image} image with {adjective} boundary, often a {noun}",
    "{image} of the {noun} of a {sex} patient aged {age} years with good image quality",
    "no {noun} in the {image}",
    "the {noun} is a {adjective} growth that projects from the wall of the {noun}",
    "segment the {noun}",
)


def text_corpus(names: Iterable[str], seed: int = 0, count: int = 60_000) -> Iterator[str]:
    """Generated English text to train the merges on: class names, scene phrases, medical prompts."""
    rng = np.random.default_rng([seed, 7])

    def pick(words: tuple[str, ...] | list[str]) -> str:
        return words[int(rng.integers(len(words)))]

    nouns = [word for words in SHAPES.values() for word in words] + list(GENERIC) + list(SOFT)
    colours = [*COLOURS, *(word for words in COLOUR_WORDS.values() for word in words)]
    other = [word for table in (TEXTURES, TONES, SIZES, NUMBERS) for words in table.values() for word in words]
    places = [word for words in POSITIONS.values() for word in words]
    for name in names:
        yield from (name, f"a photo of a {name}", plural(name))
    for noun, adjective in itertools.product(MEDICAL_NOUNS, ("the", "a")):
        yield f"{adjective} {noun}"
    for _ in range(count):
        if rng.random() < 0.5:
            noun = pick(nouns)
            text = f"{pick(other)} {pick(colours)} {plural(noun) if rng.random() < 0.3 else noun}"
            yield pick(PLACE_TEMPLATES).format(noun=text, place=pick(places))
            yield pick(TEMPLATES).format(text)
        else:
            yield pick(MEDICAL_TEMPLATES).format(
                adjective=pick(MEDICAL_ADJECTIVES),
                noun=pick(MEDICAL_NOUNS),
                image=pick(MEDICAL_IMAGES),
                place=pick(places),
                sex=pick(("male", "female")),
                age=int(rng.integers(1, 100)),
            )


def train_tokenizer(names: Iterable[str], vocabulary: int = 3072, seed: int = 0, count: int = 60_000) -> Tokenizer:
    """A byte-level BPE of at most ``vocabulary`` tokens, special tokens included, that adds its own start and end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            normalizers.Lowercase(),
        ]
    )
    # The space before the first word makes it the same token as within a sentence.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text_corpus(names, seed, count), trainer)
    tokenizer.add_special_tokens([BOS, EOS])
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}",
        pair=f"{BOS} $A {EOS} $B {EOS}",
        special_tokens=[(BOS, bos), (EOS, eos)],
    )
    return tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder.

    Raises:
        ModelError: its ``tokenizer.json`` is missing or damaged.
    """
    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise ModelError(f"{folder}: cannot start from it (tokenizer.json: {error}); give a model folder") from error


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files that ``transformers.AutoTokenizer`` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "model_max_length": CONTEXT,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
