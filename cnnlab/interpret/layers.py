"""Which layer of a network shows where it looks, and what its output looks like as a map."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from cnnlab.errors import InputError, nearest
from cnnlab.interpret.undisturbed import undisturbed


def default_layer(network: nn.Module, images: Tensor) -> str:
    """The layer whose activations show best where a network looks: the last one of those of the coarsest grid.

    In a classifier it is the last one before the pooling, in a U-Net the last one at the bottom, in a vision
    transformer the norm of the last block (behind its attention the patches say nothing to the class token any more). A
    network or a part of it that has an attribute ``gradcam_layer`` decides for itself.

    Args:
        network: Any; it is run once.
        images: (B, C, H, W), what it takes; one is enough.

    Raises:
        InputError: If no layer gives a map of more than one place.
    """
    for name, module in network.named_modules():
        if isinstance(own := getattr(module, "gradcam_layer", None), str):
            return _joined(name, own)
        if hasattr(module, "num_prefix_tokens") and hasattr(module, "blocks"):
            return _joined(name, f"blocks.{len(module.blocks) - 1}.norm1")
    sizes: list[tuple[str, int]] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                height, width = grid(network, name, output).shape[2:]
                if height * width > 1:
                    sizes.append((name, height * width))

        return hook

    named = [(name, module) for name, module in network.named_modules() if name]
    hooks = [module.register_forward_hook(note(name)) for name, module in named]
    try:
        with undisturbed(network):
            network(images[:1].clone())
    finally:
        for hook in hooks:
            hook.remove()
    if not sizes:
        raise InputError(
            f"no layer of {type(network).__name__} gives a map of more than one place for images of "
            f"{images.shape[2]} x {images.shape[3]}: take larger ones"
        )
    coarsest = min(size for _, size in sizes)
    return next(name for name, size in reversed(sizes) if size == coarsest)


def layer_named(network: nn.Module, name: str) -> nn.Module:
    """A layer by its name.

    Raises:
        InputError: If there is none.
    """
    layers: dict[str, nn.Module] = dict(network.named_modules())
    if name not in layers:
        raise InputError(f"{type(network).__name__} has no layer {name!r}: {nearest(name, layers)}")
    return layers[name]


def grid(network: nn.Module, layer: str, output: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """A layer's output as (B, C, h, w).

    Args:
        network: Whose layer it is.
        layer: The layer's name.
        output: (B, C, h, w); (B, h, w, C) where the network says so (``output_fmt``, as timm's do); or tokens
            (B, N, C), of which those that stand for no place (``num_prefix_tokens``) are left out.
        size: Height and width of the image, to know the grid of tokens by.

    Raises:
        InputError: If it is nothing of the kind.
    """
    own = layer_named(network, layer)
    owners = [module for name, module in network.named_modules() if f"{layer}.".startswith(f"{name}." if name else "")]
    if output.ndim == 4:
        last = any(str(getattr(owner, "output_fmt", "")).endswith("NHWC") for owner in owners)
        # Convolutions and their norms know only channels first.
        last = last and not isinstance(own, (nn.Conv2d, nn.BatchNorm2d))
        return output.permute(0, 3, 1, 2) if last else output
    if output.ndim == 3 and size is not None:
        prefix = max((int(getattr(owner, "num_prefix_tokens", 0)) for owner in owners), default=0)
        tokens = output[:, prefix:]
        height = round(math.sqrt(tokens.shape[1] * size[0] / size[1]))
        if height and tokens.shape[1] % height == 0:
            return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], height, -1)
    raise InputError(
        f"layer {layer!r} gives {tuple(output.shape)}, expected a map (batch, channels, height, width), or tokens of a "
        "grid (batch, tokens, channels): choose a layer before the pooling"
    )


@contextmanager
def hooked(layer: nn.Module, hook: Any, name: str) -> Iterator[None]:
    """A forward hook that is gone afterwards.

    Raises:
        InputError: If the layer was not run meanwhile.
    """
    ran: list[bool] = []

    def noting(*args: Any) -> Any:
        ran.append(True)
        return hook(*args)

    handle = layer.register_forward_hook(noting)
    try:
        yield
    finally:
        handle.remove()
    if not ran:
        raise InputError(f"layer {name!r} takes no part in the network's forward pass: choose another")


def _joined(name: str, inner: str) -> str:
    return f"{name}.{inner}" if name else inner
