"""What a segment shows, in codes: SNOMED CT where a table knows all of the prompt's words, else a private code.

DICOM asks of every segment a category and a type (PS3.3 section C.8.20.2, categories of CID 7150). A prompt is coded when each of
its words is a known term or says nothing of its kind (articles, colours, sizes, positions): ``one large pink polyp`` is a
polyp, while ``kidney stone`` is no kidney, since "stone" is not known. A finding with the organ it is in, ``liver lesion``, is
coded as the finding with the organ as its anatomic region. A prompt that names two findings, two organs and no finding, or an absence
keeps its own words under a code of this project's coding scheme, 99VLSM, which is the same for the same prompt everywhere.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import NamedTuple

SCHEME = "99VLSM"


class Code(NamedTuple):
    """A coded concept: value, coding scheme and meaning, at most 16, 16 and 64 characters."""

    value: str
    scheme: str
    meaning: str


def _sct(value: str, meaning: str) -> Code:
    return Code(value, "SCT", meaning)


ABNORMAL = _sct("49755003", "Morphologically Abnormal Structure")
ANATOMICAL = _sct("91723000", "Anatomical Structure")
OBJECT = _sct("260787004", "Physical object")
SUBSTANCE = _sct("91720002", "Body Substance")

_HEART = _sct("80891009", "Heart")

_PARTS_OF_HEART = frozenset({"87878005", "53085002", "82471001", "73829009", "49848007"})

_FINDINGS = {
    _sct("108369006", "Neoplasm"): "tumor tumour neoplasm neoplasia",
    _sct("52988006", "Lesion"): "lesion",
    _sct("41329004", "Polyp"): "polyp",
    _sct("2092003", "Malignant melanoma"): "melanoma",
    _sct("27925004", "Nodule"): "nodule",
    _sct("4147007", "Mass"): "mass",
    _sct("367643001", "Cyst"): "cyst",
    _sct("56208002", "Ulcer"): "ulcer",
    _sct("44132006", "Abscess"): "abscess",
    _sct("35566002", "Hematoma"): "hematoma haematoma",
    _sct("50960005", "Hemorrhage"): "hemorrhage haemorrhage bleeding",
    _sct("79654002", "Edema"): "edema oedema",
    _sct("6574001", "Necrosis"): "necrosis",
    _sct("85659009", "aneurysm"): "aneurysm",
    _sct("396339007", "Thrombus"): "thrombus",
    _sct("36118008", "Pneumothorax"): "pneumothorax",
    _sct("60046008", "Pleural effusion"): "pleural_effusion",
    _sct("12402003", "Scar"): "scar",
}
_ORGANS = {
    _sct("39607008", "Lung"): "lung",
    _HEART: "heart",
    _sct("87878005", "Left ventricle"): "left_ventricle left_ventricular_cavity",
    _sct("53085002", "Right ventricle"): "right_ventricle right_ventricular_cavity",
    _sct("82471001", "Left atrium"): "left_atrium left_atrium_cavity left_atrial_cavity",
    _sct("73829009", "Right atrium"): "right_atrium right_atrium_cavity right_atrial_cavity",
    _sct("49848007", "Left Ventricle Myocardium"): "left_ventricle_myocardium left_ventricular_myocardium",
    _sct("15825003", "Aorta"): "aorta",
    _sct("10200004", "Liver"): "liver",
    _sct("64033007", "Kidney"): "kidney",
    _sct("78961009", "Spleen"): "spleen",
    _sct("15776009", "Pancreas"): "pancreas",
    _sct("28231008", "Gallbladder"): "gallbladder",
    _sct("89837001", "Bladder"): "bladder urinary_bladder",
    _sct("69695003", "Stomach"): "stomach gastric",
    _sct("32849002", "Esophagus"): "esophagus oesophagus",
    _sct("38848004", "Duodenum"): "duodenum",
    _sct("71854001", "Colon"): "colon colonic",
    _sct("34402009", "Rectum"): "rectum",
    _sct("12738006", "Brain"): "brain",
    _sct("2748008", "Spinal cord"): "spinal_cord",
    _sct("39937001", "Skin"): "skin",
    _sct("56459004", "Foot"): "foot",
    _sct("76752008", "Breast"): "breast",
    _sct("41216001", "Prostate"): "prostate",
    _sct("69748006", "Thyroid"): "thyroid thyroid_gland",
    _sct("35039007", "Uterus"): "uterus",
    _sct("15497006", "Ovary"): "ovary",
    _sct("78067005", "Placenta"): "placenta",
    _sct("44567001", "Trachea"): "trachea",
    _sct("5665001", "Retina"): "retina",
    _sct("59820001", "Blood Vessel"): "blood_vessel",
    _sct("59441001", "Lymph Node"): "lymph_node",
    _sct("272673000", "Bone"): "bone",
    _sct("113197003", "Rib"): "rib",
    _sct("51282000", "Vertebra"): "vertebra",
    _sct("71341001", "Femur"): "femur",
    _sct("38199008", "Tooth"): "tooth teeth",
    _sct("84640000", "Nucleus"): "nucleus nuclei cell_nucleus cell_nuclei",
    _sct("4421005", "Cell"): "cell",
}
# Findings whose code names their place too.
_WHOLE = {
    "colon_polyp": (ABNORMAL, _sct("68496003", "Polyp of colon")),
    "colonic_polyp": (ABNORMAL, _sct("68496003", "Polyp of colon")),
    "polyp_of_colon": (ABNORMAL, _sct("68496003", "Polyp of colon")),
    "brain_lesion": (ABNORMAL, _sct("301766008", "Lesion of Brain")),
    "blood": (SUBSTANCE, _sct("87612001", "Blood")),
}
_OBJECTS = {
    _sct("57134006", "Instrument"): "instrument surgical_instrument tool surgical_tool endoscopic_instrument",
    _sct("19923001", "Catheter"): "catheter",
    _sct("65818007", "Stent"): "stent",
    _sct("79068005", "Needle"): "needle",
    _sct("19227008", "Foreign body"): "foreign_body",
}
# Say how many, how large, of which colour or where in the picture, not what.
_SILENT = frozenset(
    re.findall(
        r"[a-z]+",
        """
        a an the this of in on at to is are which with and one two three four five single many several
        small medium large tiny big sized size pink red white black brown tan dark light pale yellow blue gray grey green
        purple orange colored coloured color colour round oval circle square rectangle triangle irregular circular regular
        shaped shape located location center centre central middle top bottom upper lower image picture photo photograph scan
        frame view visible ultrasound xray radiograph endoscopy endoscopic
        """,
    )
)
# Left and right are places only where the picture is meant; else they may be sides of the body.
_SIDE_OF_PICTURE = re.compile(
    r"\b(top|bottom|upper|lower|middle|center|centre)[\s\-]+(left|right)\b|\b(left|right)(\s+(side|part|half))?"
    r"\s+of\s+the\s+(image|picture|photo|frame)\b"
)


@dataclass(frozen=True)
class SegmentCodes:
    """What DICOM wants to know of a segment.

    Attributes:
        category: of CID 7150.
        type: what it is.
        region: the organ that a finding is in, or None.
        known: whether the type is of SNOMED CT.
    """

    category: Code
    type: Code
    region: Code | None = None

    @property
    def known(self) -> bool:
        """Whether a table knew the prompt."""
        return self.type.scheme == "SCT"


def codes_of(prompt: str) -> SegmentCodes:
    """Category, type and region of what ``prompt`` names; of any text."""
    text = unicodedata.normalize("NFKC", prompt).casefold()
    # Of a text with other letters or numbers not all words have been read.
    plain = re.fullmatch(r"[a-z\s.,;:'\-]*", text) is not None
    found = _terms(re.findall(r"[a-z]+", _SIDE_OF_PICTURE.sub(" ", text))) if plain else None
    if found is not None:
        whole = [_WHOLE[term] for term in found if term in _WHOLE]
        findings = {_BY_TERM[_FINDING][term] for term in found if term in _BY_TERM[_FINDING]}
        organs = {_BY_TERM[_ORGAN][term] for term in found if term in _BY_TERM[_ORGAN]}
        if any(organ.value in _PARTS_OF_HEART for organ in organs):
            organs -= {_HEART}  # "left ventricle of the heart"
        objects = {_BY_TERM[_OBJECT][term] for term in found if term in _BY_TERM[_OBJECT]}
        kinds = (len(whole), len(findings), len(organs), len(objects))
        if kinds == (1, 0, 0, 0):
            return SegmentCodes(*whole[0])
        if kinds in ((0, 1, 0, 0), (0, 1, 1, 0)):
            return SegmentCodes(ABNORMAL, *findings, *organs)
        if kinds == (0, 0, 1, 0):
            return SegmentCodes(ANATOMICAL, *organs)
        if kinds == (0, 0, 0, 1):
            return SegmentCodes(OBJECT, *objects)
    return SegmentCodes(ABNORMAL, private_code(prompt))


def private_code(prompt: str) -> Code:
    """The code of a prompt that no table knows: a hash of the text, and the text, cut where it is too long."""
    text = " ".join(prompt.split())
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return Code(f"P-{digest}", SCHEME, text if len(text) <= 64 else text[:61] + "...")


_FINDING, _ORGAN, _OBJECT = "finding", "organ", "object"
_BY_TERM = {
    kind: {term: code for code, terms in table.items() for term in terms.split()}
    for kind, table in ((_FINDING, _FINDINGS), (_ORGAN, _ORGANS), (_OBJECT, _OBJECTS))
}
_TERMS = frozenset(_WHOLE).union(*_BY_TERM.values())
_LONGEST = max(term.count("_") + 1 for term in _TERMS)


def _terms(words: list[str]) -> list[str] | None:
    """The known terms in ``words``, the longest first at each place; None where a word is neither known nor silent."""
    found: list[str] = []
    start = 0
    while start < len(words):
        for length in range(min(_LONGEST, len(words) - start), 0, -1):
            term = _known("_".join(words[start : start + length]))
            if term is not None:
                found.append(term)
                start += length
                break
        else:
            if words[start] not in _SILENT:
                return None
            start += 1
    return found


def _known(term: str) -> str | None:
    """``term``, or its singular, where it is known."""
    for form in (term, term.removesuffix("s"), term.removesuffix("es"), term.removesuffix("ies") + "y"):
        if form in _TERMS:
            return form
    return None
