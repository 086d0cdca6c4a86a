"""Codes of prompts: known words only, and every code as the DICOM standard's dictionaries have it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlsm_adapter.imaging import codes
from vlsm_adapter.imaging.codes import ABNORMAL, ANATOMICAL, OBJECT, SCHEME, codes_of

# Of SNOMED CT, used for the morphology of polyps; not among the concepts that DICOM's own context groups list.
NOT_IN_DICOM = {"41329004", "2092003"}


@pytest.mark.parametrize(
    ("prompt", "value", "region"),
    [
        ("polyp", "41329004", None),
        ("Polyps", "41329004", None),
        ("one large pink round polyp, located in the center of the image", "41329004", None),
        ("two small polyps, located in top left, bottom right of the image", "41329004", None),
        ("skin lesion in the left of the image", "52988006", "39937001"),
        ("colon polyp", "68496003", None),
        ("tumour", "108369006", None),
        ("brain tumor", "108369006", "12738006"),
        ("skin lesion", "52988006", "39937001"),
        ("lesion of the skin", "52988006", "39937001"),
        ("breast tumor", "108369006", "76752008"),
        ("ulcer", "56208002", None),
        ("lungs", "39607008", None),
        ("left ventricle", "87878005", None),
        ("heart", "80891009", None),
        ("Left ventricular cavity of the heart.", "87878005", None),
        ("Tumor in the breast ultrasound image.", "108369006", "76752008"),
        ("small pink square foot ulcer", "56208002", "56459004"),
        ("skin melanoma", "2092003", "39937001"),
        ("surgical instrument", "57134006", None),
        ("tools", "57134006", None),
        ("ovaries", "15497006", None),
    ],
)
def test_known_prompts(prompt: str, value: str, region: str | None) -> None:
    found = codes_of(prompt)
    assert found.known
    assert (found.type.value, found.region and found.region.value) == (value, region)


@pytest.mark.parametrize(
    "prompt",
    [
        "kidney stone",
        "no tumor",
        "polyp or ulcer",
        "polyp and instrument",
        "lung heart",
        "large",
        "Polyp 2",
        "полип",
        "!",
    ],
)
def test_what_is_not_surely_known_keeps_its_words(prompt: str) -> None:
    found = codes_of(prompt)
    assert not found.known
    assert found.type.scheme == SCHEME
    assert found.type.meaning == prompt


def test_categories() -> None:
    assert codes_of("polyp").category == ABNORMAL
    assert codes_of("lung").category == ANATOMICAL
    assert codes_of("instrument").category == OBJECT


@given(st.text(max_size=200))
def test_any_text_has_codes_that_fit(prompt: str) -> None:
    found = codes_of(prompt)
    for code in (found.category, found.type):
        assert 0 < len(code.value) <= 16
        assert len(code.scheme) <= 16
        assert len(code.meaning) <= 64
    assert codes_of(prompt) == found


def test_private_codes_are_different_for_different_prompts() -> None:
    assert codes_of("weird thing").type.value == codes_of("weird  thing").type.value
    assert codes_of("weird thing").type.value != codes_of("weird things").type.value


def test_every_code_is_in_the_dictionaries_of_dicom() -> None:
    concepts = pytest.importorskip("pydicom.sr._concepts_dict").concepts
    known: dict[str, set[str]] = {}
    for of_name in concepts["SCT"].values():
        for value, (meaning, *_) in of_name.items():
            known.setdefault(value, set()).update(meaning.lower().replace(",", "").split())
    tables = (codes._FINDINGS, codes._ORGANS, codes._OBJECTS)
    used = {code for table in tables for code in table} | {code for pair in codes._WHOLE.values() for code in pair}
    for code in used | {ABNORMAL, ANATOMICAL, OBJECT, codes.SUBSTANCE}:
        if code.value in NOT_IN_DICOM:
            continue
        assert code.value in known, code
        words = set(code.meaning.lower().replace(",", "").split())
        assert words <= known[code.value], code
