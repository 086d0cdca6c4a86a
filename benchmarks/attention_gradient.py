"""How wrong the gradient of a training step is with fused attention in CLIPSeg's decoder, and with ours.

    python benchmarks/attention_gradient.py [--model NAME] [--data DIR --prompt WORDS]

Shallow adapters are trained for some steps on phantoms or on the first images of DIR, asked to segment a disc; then the
gradient of one more is computed by each, beside the same in float64.
Prints the largest product of query and key (scaled, as the softmax gets it) of each attention of the decoder.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from vlsm_adapter.adapters import adapter_config
from vlsm_adapter.adapters.attach import attach
from vlsm_adapter.data.images import read_image
from vlsm_adapter.data.phantoms import make_phantom
from vlsm_adapter.losses import LOSSES
from vlsm_adapter.models import load_model
from vlsm_adapter.models.clipseg_parts.network import Attention

Gradients = dict[str, torch.Tensor]


def adapted(options: argparse.Namespace) -> Any:
    """The model with fresh adapters."""
    torch.manual_seed(0)
    model = load_model(options.model)
    attach(model, adapter_config("shallow", variant="published", parts="vlc"))
    return model


def loss_of(model: Any, options: argparse.Namespace, pixels: torch.Tensor) -> torch.Tensor:
    """Of one batch, on the model's device."""
    weight = next(model.parameters())
    tokens = model.tokenize([options.prompt] * len(pixels))
    given = (pixels.to(weight), tokens.input_ids.to(weight.device), tokens.attention_mask.to(weight.device))
    logits = model(*given)[:, 0]
    rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in logits.shape[-2:]), indexing="ij")
    masks = ((rows**2 + columns**2) < 0.25).to(logits).expand_as(logits)  # a disc stands for the truth
    return LOSSES.get("dice_bce")(logits, masks)


def trained(options: argparse.Namespace, pixels: torch.Tensor) -> Gradients:
    """What the adapters are after some steps."""
    model = adapted(options)
    trains = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(trains.values(), lr=0.003)
    for _ in range(options.steps):
        loss_of(model, options, pixels).backward()
        torch.nn.utils.clip_grad_norm_(trains.values(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return {name: parameter.detach() for name, parameter in trains.items()}


def step(
    options: argparse.Namespace, state: Gradients, pixels: torch.Tensor, device: str, dtype: torch.dtype, *, exact: bool
) -> tuple[Gradients, list[float], float]:
    """Gradients, largest products and the loss."""
    model = adapted(options)
    model.load_state_dict(state, strict=False)
    model = model.to(device=device, dtype=dtype)
    products: list[float] = []

    def look(layer: Attention, given: tuple[torch.Tensor, ...]) -> None:
        with torch.no_grad():
            query, key = (
                one(given[0]).unflatten(-1, (layer.heads, -1)).transpose(1, 2) for one in (layer.q_proj, layer.k_proj)
            )
            products.append(float((query @ key.transpose(-2, -1)).abs().max()) / query.shape[-1] ** 0.5)

    for layer in model.clipseg.decoder.layers:
        layer.self_attn.exact = exact and layer.self_attn.exact
        layer.self_attn.register_forward_pre_hook(look)
    loss = loss_of(model, options, pixels)
    loss.backward()
    found = {name: p.grad.double().cpu() for name, p in model.named_parameters() if p.grad is not None}
    return found, products, loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--prompt", default="polyp")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    if options.data is None:
        images = [make_phantom("endoscopy", seed=0, index=index).image for index in range(options.images)]
    else:
        images = [read_image(file) for file in sorted((options.data / "images").iterdir())[: options.images]]
    pixels = load_model(options.model).preprocess(images)
    state = trained(options, pixels)
    expected, products, loss = step(options, state, pixels, "cpu", torch.float64, exact=False)
    norm = sum(float(value.norm()) ** 2 for value in expected.values()) ** 0.5
    print(
        f"{options.model}, '{options.prompt}', {len(images)} images of {options.data or 'phantoms'}, after {options.steps} steps"
    )
    print(f"largest products in the decoder: {', '.join(f'{value:,.0f}' for value in products)}; loss {loss:.5f}")
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for exact in (False, True):
            found, _, loss = step(options, state, pixels, device, torch.float32, exact=exact)
            wrong = sum(float((found[name] - value).norm()) ** 2 for name, value in expected.items()) ** 0.5
            worst = max(
                float((found[name] - value).norm() / value.norm().clamp(min=1e-30)) for name, value in expected.items()
            )
            print(
                f"{device:5s}{'ours ' if exact else 'fused'}  loss {loss:.5f}  relative error of the gradient "
                f"{wrong / norm:.2g}, of the worst parameter's {worst:.2g}"
            )


if __name__ == "__main__":
    main()
