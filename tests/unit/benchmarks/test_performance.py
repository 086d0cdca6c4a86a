"""The benchmark driver: both ways compute the same, ratios and tables say what was measured; nothing here is timed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vlsm_adapter.adapters import adapter_config, tuner
from vlsm_adapter.adapters.attach import attach
from vlsm_adapter.models import load_model

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model of ``--quick``, as the driver saves it."""
    from our_way import save_base_model

    return save_base_model(tmp_path_factory.mktemp("base") / "tiny", quick=True)


@pytest.fixture
def setting(base: Path, tmp_path: Path) -> Any:
    from measuring import Setting

    return Setting(str(base), str(tmp_path), repeats=1, quick=True)


@pytest.mark.parametrize("method", ["none", "dense", "shallow", "decoder_only"])
def test_the_usual_way_computes_what_we_compute(base: Path, method: str) -> None:
    """Same weights, same logits, also where prompts are padded to the whole context: it is a fair baseline."""
    from transformers import CLIPSegForImageSegmentation

    import our_way
    import usual_way

    model = load_model(base)
    stock = CLIPSegForImageSegmentation.from_pretrained(base).eval().requires_grad_(False)
    usual = usual_way.UsualWay(stock, method)
    if method != "none":
        torch.manual_seed(0)
        report = attach(model, adapter_config(method, **our_way.SETTINGS[method]))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        usual.take(tuner.state_dict(model, "default"))
        assert report.trainable == sum(one.numel() for one in usual.parameters() if one.requires_grad)
    tokens = model.tokenize(["polyp", "a small round skin lesion"])
    end = model.tokenizer.eos_token_id  # type: ignore[union-attr]
    ids, mask = our_way.padded_as_given(tokens.input_ids, tokens.attention_mask, end)
    assert ids.shape == mask.shape == (2, usual_way.CONTEXT)
    pixels = torch.randn(2, 3, *model.preprocessing.size)
    with torch.no_grad():
        ours = model(pixels, tokens.input_ids, tokens.attention_mask)[:, 0]
        torch.testing.assert_close(usual(pixels, ids, mask), ours, rtol=1e-3, atol=1e-4)


def test_the_usual_way_refuses_weights_of_another_method(base: Path) -> None:
    from transformers import CLIPSegForImageSegmentation

    import usual_way

    usual = usual_way.UsualWay(CLIPSegForImageSegmentation.from_pretrained(base), "dense")
    with pytest.raises(SystemExit, match="other tensors"):
        usual.take({"condition.adapter_down.weight": torch.zeros(1)})


def test_dense_training_takes_the_same_steps(setting: Any) -> None:
    import rows_training

    found = rows_training.dense(setting, batch=2)
    assert found.equal, found.notes
    assert len(found.ours) == len(found.usual) == 1
    assert found.notes["precision"] == "32-true"
    assert len(found.notes["losses"]["ours"]) == 2


@pytest.mark.slow  # that kept features change nothing is tested in e2e/test_feature_cache.py
def test_cached_epochs_take_the_same_steps(setting: Any) -> None:
    import rows_training

    found = rows_training.epochs(setting, method="decoder_only")
    assert found.equal, found.notes
    assert found.notes["weights_equal_to_uncached"]


def test_predictions_are_the_same(setting: Any) -> None:
    import rows_prediction

    found = rows_prediction.predict(setting, prompts=3)
    assert found.equal, found.notes
    artefact = rows_prediction.artefact(setting)
    assert 0 < artefact.ours[0] < artefact.usual[0]


def test_both_ways_are_measured_in_turn() -> None:
    from measuring import alternate

    order: list[str] = []

    def way(name: str) -> Any:
        return lambda: order.append(name) or float(len(order))

    ours, usual = alternate(way("ours"), way("usual"), 3)
    assert order == ["ours", "usual", "usual", "ours", "ours", "usual"]
    assert (ours, usual) == ([1.0, 4.0, 5.0], [2.0, 3.0, 6.0])


def test_summary_is_of_ratios_per_repetition() -> None:
    from measuring import Measured, Row, summary

    measured = Measured([2.0, 8.0, 3.0], [1.0, 2.0, 1.0])
    found = summary(Row("r", "title", "images/s", 3.0, True), measured)
    assert (found["ratio"], found["lowest"], found["highest"], found["holds"]) == (3.0, 2.0, 4.0, True)
    assert not summary(Row("r", "title", "MiB", 0.45, False), measured)["holds"]
    assert summary(Row("r", "title", "MiB", 0.45, False, scale=2.0), measured)["ours"] == 1.5


def found_rows(**changes: Any) -> dict[str, Any]:
    """What the driver writes, with two rows and one that failed."""
    from measuring import Measured, Row, summary

    rows = [
        summary(Row("fast", "a step | of training", "images/s", 1.3, True), Measured([3.0, 2.8], [1.0, 1.0], True)),
        summary(Row("small", "memory", "MiB", 0.45, False), Measured([900.0], [1000.0], False)),
    ]
    processor = {"name": "Zen 4", "usable": 2, "instructions": {"AVX2": True, "AMX BF16": False}, "load": 0.1}
    machine = {"processor": processor, "memory": {"total": 8 << 30}, "accelerators": [], "threads": 2}
    machine["versions"] = {"torch": "2.13.0"}
    about = {"command": "python benchmarks/performance.py", "date": "2026-01-01", "quick": False, "repeats": 2}
    return {**about, "clock": "wall", "machine": machine, "rows": rows, "failed": {"metrics": "a | b"}, **changes}


def test_table_json_plot_and_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import results

    page = tmp_path / "page.md"
    page.write_text(f"before\n{results.MARKS[0]}\nold\n{results.MARKS[1]}\nafter\n")
    found = found_rows()
    results.write(found, tmp_path / "out", docs=page)
    assert json.loads((tmp_path / "out" / "performance.json").read_text()) == found
    assert (tmp_path / "out" / "performance.svg").read_text().startswith("<?xml")
    assert (tmp_path / "out" / "performance.png").stat().st_size > 1000
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "at least 1.3 | **2.9** | 2.8 to 3" in text
    assert "at most 0.45 | **0.9**, not held" in text
    assert "| **no** |" in text
    assert "failed: a / b" in text
    assert "Zen 4, 2 usable cores (AVX2), 8 GiB memory; 2 threads, load 0.1" in text
    results.write(found, tmp_path / "out", docs=page)
    assert page.read_text() == text


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    import results

    (tmp_path / "page.md").write_text("nothing")
    for page in ("page.md", "absent.md"):
        with pytest.raises(SystemExit, match="needs the lines"):
            results.check_marks(tmp_path / page)


def test_names_of_rows_are_those_of_the_options() -> None:
    import performance

    assert tuple(performance.rows()) == performance.NAMES
    assert set(performance.NAMES) < set(performance.tasks())


def test_wrong_options_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    import performance

    for arguments, says in ((["--only", "nothing"], "nothing"), (["--repeats", "0"], "--repeats")):
        with pytest.raises(SystemExit) as ended:
            performance.main(arguments)
        assert ended.value.code == 2
        assert says in capsys.readouterr().err
    assert performance.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == list(performance.NAMES)


@pytest.mark.slow
def test_the_driver_end_to_end(tmp_path: Path) -> None:
    """The rows that start further processes, and one that does not."""
    script = str(BENCHMARKS / "performance.py")
    only = ["artefact", "memory", "cold_start", "efficiency"]
    command = [sys.executable, script, "--quick", "--repeats", "1", "--out", str(tmp_path), "--only", *only]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "performance.json").read_text())
    assert {row["row"] for row in found["rows"]} == set(only)
    assert not found["failed"]
    assert all(row["measured"]["equal"] is not False for row in found["rows"])
