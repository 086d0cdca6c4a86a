"""What the prompts call the thing, read from words and names alone."""

from __future__ import annotations

from typing import Any

from vlsm_adapter.data.audit.classes import class_findings
from vlsm_adapter.data.audit.findings import Finding


def codes(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.code: finding for finding in findings}


def test_one_class_for_all(new_case: Any) -> None:
    same = codes(class_findings([new_case(f"{name}.png", p1="polyp") for name in "abc"]))
    assert same["class-constant"].severity == "note"
    melanoma = codes(class_findings([new_case(f"{name}.png", p1="skin melanoma") for name in "abc"]))
    assert melanoma["diagnosis-constant"].severity == "warning"
    assert "class-constant" not in melanoma
    assert class_findings([new_case("a.png", p1="polyp"), new_case("b.png", p1="instrument")]) == []


def test_missing_levels(new_case: Any) -> None:
    cases = [new_case(f"{i}.png", p1=f"polyp {i % 2}", p6="x") for i in range(4)] + [new_case("odd.png", p1="polyp 1")]
    finding = codes(class_findings(cases))["levels-differ"]
    assert finding.cases == ("odd",)
    assert finding.evidence[0].why == "has p0, p1"


def test_prompt_against_file_name(new_case: Any) -> None:
    cases = [
        new_case("1_benign.png", p1="tumor 1", p2="malignant tumor"),
        new_case("2_benign.png", p1="tumor", p2="benign tumor"),
        new_case("3_normal.png", p1="tumor", p2="irregular tumor"),
    ]
    finding = codes(class_findings(cases))["class-against-name"]
    assert finding.severity == "error"
    assert finding.cases == ("1_benign",)


def test_list_that_leaves_out_its_own(new_case: Any) -> None:
    text = "{} in the frontal view of a Chest Xray. Edema, Lung Opacity are present."
    cases = [
        new_case(f"{i}.png", p1=f"{name} in a chest Xray.", p5=text.format(name))
        for i, name in enumerate(["Edema", "Airspace Opacity"])
    ]
    finding = codes(class_findings(cases))["list-without-own"]
    assert finding.cases == ("1",)
    assert "1 case of 2" in finding.message
    assert "airspace opacity 1" in finding.message


def test_words_nobody_else_says(new_case: Any) -> None:
    cases = [
        new_case(f"{i}.png", p1=f"polyp {i % 2}", p2="round pink polyp, seventy-year-old", p3="irregular polyp")
        for i in range(60)
    ]
    assert "rare-words" not in codes(class_findings(cases))
    cases[7] = new_case("7.png", p1="polyp 1", p2="hot dog polyp", p3="irregular polyp")
    finding = codes(class_findings(cases))["rare-words"]
    assert "dog 1, hot 1" in finding.message
    assert set(finding.cases) == {"7"}
