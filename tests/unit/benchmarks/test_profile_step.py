"""The profile of a step: every operation under one heading, and a table that adds up."""

from __future__ import annotations

from collections import Counter

import pytest


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "linear maps"),
        ("quantized::linear_dynamic", "linear maps in 8 bits"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::native_layer_norm_backward", "norms"),
        ("aten::silu_backward", "activations"),
        ("aten::add_", "sums, products, copies"),
        ("aten::amax", "sums, products, copies"),
        ("aten::mkldnn_convolution", "convolutions"),
        ("Optimizer.step#AdamW.step", "optimizer"),
        ("enumerate(DataLoader)#next", "all else"),
    ],
)
def test_headings(name: str, kind: str) -> None:
    import profile_step

    assert profile_step.kind_of(name) == kind


def test_the_table_adds_up() -> None:
    import profile_step

    columns = {"one": Counter({"attention": 0.2, "all else": 0.1}), "two": Counter({"linear maps": 0.4})}
    lines = profile_step.table(columns, images=2).splitlines()
    assert lines[0] == "| ms per image | one | two |"
    assert "| attention | 100 | 0 |" in lines
    assert lines[-1] == "| all | **150** | **200** |"
    assert not any("norms" in line for line in lines)  # nobody spent time there
