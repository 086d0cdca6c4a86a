"""The methods' configurations: what they refuse, where they place what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlsm_adapter.adapters import ADAPTERS, DenseAdapterConfig, Placement, ShallowAdapterConfig, adapter_config
from vlsm_adapter.adapters.config import BottleneckConfig, sites_named
from vlsm_adapter.errors import AdapterError, ConfigError

Build = Callable[..., object]
BOTTLENECKS = [name for name in ADAPTERS.names() if issubclass(ADAPTERS.get(name), BottleneckConfig)]


def places(placements: list[Placement]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for placement in placements:
        found.setdefault(placement.site.name, []).append(placement.site.index)
    return found


def test_unknown_method_and_setting_show_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown adapter 'dens': did you mean 'dense'"):
        adapter_config("dens")
    with pytest.raises(ConfigError, match="no setting 'bottlneck_dim': did you mean 'bottleneck_dim'"):
        adapter_config("dense", bottlneck_dim=3)
    with pytest.raises(ConfigError, match="adapter 'dense' has no setting 'method'"):
        adapter_config("dense", method="dense")
    for method in ("coop", "maple"):
        with pytest.raises(ConfigError, match="surrogates"):
            adapter_config(method, words="a \ud800")
    with pytest.raises(ConfigError, match="unknown adapter '5'"):
        adapter_config(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", BOTTLENECKS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("parts", "lv"),
        ("parts", None),
        ("parts", ["v"]),
        ("variant", "Residual"),
        ("activation", "tanh"),
        ("bottleneck_dim", 0),
        ("bottleneck_dim", 2.0),
        ("bottleneck_dim", True),
        ("bottleneck_dim", 10**9),
        ("condition_dim", -1),
        ("scale", 0),
        ("scale", float("nan")),
        ("scale", "1"),
        ("scale", 101),
    ],
)
def test_value_out_of_range_is_named(method: str, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name}=") as caught:
        adapter_config(method, **{name: value})
    assert "\n" not in str(caught.value)


@given(
    st.sampled_from(BOTTLENECKS),
    st.integers(1, 4096),
    st.sampled_from(["v", "vl", "vlc"]),
    st.sampled_from(["published", "residual"]),
    st.floats(0.001, 100),
)
def test_written_form_reads_back(method: str, width: int, parts: str, variant: str, scale: float) -> None:
    config = adapter_config(method, bottleneck_dim=width, parts=parts, variant=variant, scale=scale)
    values = config.to_dict()
    assert adapter_config(values.pop("method"), **values) == config


def test_decoder_only_and_full_copy_what_is_read(new_model: Build) -> None:
    model = new_model()
    decoder = adapter_config("decoder_only").placements(model)  # type: ignore[arg-type]
    modules = [placement.site.module for placement in decoder]
    assert all(placement.copies for placement in decoder)
    inside = {name for name, _ in model.clipseg.decoder.named_parameters()}  # type: ignore[attr-defined]
    covered = {
        f"{module.removeprefix('clipseg.decoder.')}.{name}"
        for module in modules
        for name, _ in model.get_submodule(module).named_parameters()  # type: ignore[attr-defined]
    }
    assert covered == inside
    full = [placement.site.module for placement in adapter_config("full").placements(model)]  # type: ignore[arg-type]
    assert set(modules) < set(full)
    assert not [module for module in full if "layers.4" in module and "vision" in module]  # read by nothing
    assert not [module for module in full if "post_layernorm" in module or "visual_projection" in module]
    with pytest.raises(ConfigError, match="no setting 'parts'"):
        adapter_config("full", parts="v")


def test_dense_residual_covers_every_block_that_is_read(new_model: Build) -> None:
    model = new_model()
    found = places(DenseAdapterConfig(4, parts="vlc").placements(model))  # type: ignore[arg-type]
    image, text = list(range(4)), list(range(4))  # five vision blocks, the last of them is not read
    expected = {"image.attn_out": image, "image.mlp_out": image, "text.attn_out": text, "text.mlp_out": text}
    assert found == {**expected, "condition": [0]}


def test_dense_published_stops_before_the_last_block_read(new_model: Build) -> None:
    model = new_model(text_config={"num_hidden_layers": 5})
    config = DenseAdapterConfig(4, parts="vl", variant="published")
    found = places(config.placements(model))  # type: ignore[arg-type]
    assert set(map(tuple, found.values())) == {(0, 1, 2)}
    assert Counter(p.zero_start or not p.activate_output for p in config.placements(model)) == {False: 12}  # type: ignore[arg-type]


def test_last_blocks_are_counted_from_the_last_that_is_read(new_model: Build) -> None:
    model = new_model(text_config={"num_hidden_layers": 3})
    found = places(DenseAdapterConfig(4, parts="vlc", last_blocks=2).placements(model))  # type: ignore[arg-type]
    image, text = [2, 3], [1, 2]
    expected = {"image.attn_out": image, "image.mlp_out": image, "text.attn_out": text, "text.mlp_out": text}
    assert found == {**expected, "condition": [0]}
    published = DenseAdapterConfig(4, parts="v", variant="published", last_blocks=1)
    assert places(published.placements(model)) == {"image.attn_out": [2], "image.mlp_out": [2]}  # type: ignore[arg-type]
    more = DenseAdapterConfig(4, parts="v", last_blocks=99)
    assert more.placements(model) == DenseAdapterConfig(4, parts="v").placements(model)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["dense", "lora", "rslora", "dora", "ia3", "adaptformer"])
def test_last_blocks_of_every_method_that_adapts_blocks(new_model: Build, method: str) -> None:
    model = new_model()
    few = places(adapter_config(method, parts="v", last_blocks=2).placements(model))  # type: ignore[arg-type]
    every = places(adapter_config(method, parts="v").placements(model))  # type: ignore[arg-type]
    assert few.keys() == every.keys()
    assert all(numbers == [2, 3] for numbers in few.values())
    config = adapter_config(method, last_blocks=2)
    assert config.to_dict()["last_blocks"] == 2
    assert "last_blocks" not in adapter_config(method).to_dict()  # files stay readable by versions without it
    for value in (0, -1, 2.0, True, "two"):
        with pytest.raises(ConfigError, match="last_blocks="):
            adapter_config(method, last_blocks=value)


def test_shallow_covers_the_activations(new_model: Build) -> None:
    model = new_model()
    found = places(ShallowAdapterConfig(4, parts="vlc").placements(model))  # type: ignore[arg-type]
    assert found == {"image.skip": [0, 1, 2], "text.skip": [0, 1, 2], "condition": [0]}
    assert places(ShallowAdapterConfig(4, parts="v").placements(model)) == {"image.skip": [0, 1, 2]}  # type: ignore[arg-type]


def test_shallow_needs_equal_widths_for_text(new_model: Build) -> None:
    model = new_model(projection_dim=12)
    with pytest.raises(AdapterError, match=r"text width 16 .* differs from the condition's 12; use parts='v'"):
        ShallowAdapterConfig(4, parts="vl").placements(model)  # type: ignore[arg-type]
    assert ShallowAdapterConfig(4, parts="v").placements(model)  # type: ignore[arg-type]


def test_unknown_site_lists_the_sites(new_model: Build) -> None:
    with pytest.raises(AdapterError, match=r"no site 'image.qkv': it offers condition, decoder, image, image.attn_out"):
        sites_named(new_model(), "image.qkv")  # type: ignore[arg-type]


def test_condition_has_its_own_width(new_model: Build) -> None:
    widths = {p.site.name: p.bottleneck_dim for p in ShallowAdapterConfig(4, condition_dim=9).placements(new_model())}  # type: ignore[arg-type]
    assert widths == {"image.skip": 4, "text.skip": 4, "condition": 9}
