"""Run a network without changing it, and find the layer for class activation maps and its output as a map."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.errors import InputError, nearest


@contextmanager
def preserve_state(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, uncompiled, outside inference mode and without gradients.

    Afterwards, also after an exception, each module's mode, torch's random states and the compiled code are restored.
    Parameters, their gradients and requires_grad are not touched here.

    Args:
        network: Any; its modules may be in different modes.

    >>> layer = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3).eval())
    >>> with preserve_state(layer):
    ...     print(layer[0].training)
    False
    >>> layer[0].training, layer[1].training
    (True, False)
    """
    modes = {module: module.training for module in network.modules()}
    devices = {parameter.device for parameter in network.parameters() if parameter.is_cuda}
    network.eval()
    try:
        with (
            torch.random.fork_rng([device.index for device in devices if device.index is not None]),
            torch.compiler.set_stance("force_eager"),
            torch.inference_mode(False),
            torch.no_grad(),
        ):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def default_layer(network: nn.Module, images: Tensor) -> str:
    """Choose the layer for class activation maps: the last layer with the coarsest grid.

    In a classifier it is the last one before the pooling, in a U-Net the last one at the bottom. In a vision
    transformer it is the first norm of the last block: after the last attention, patches no longer reach the class
    token. A network, or a module in it, can name another layer in an attribute ``gradcam_layer``.

    Args:
        network: Any network; it is run once.
        images: The network's input, (B, C, H, W); one image is enough.

    Raises:
        InputError: If no layer returns a map of more than one position.
    """
    for name, module in network.named_modules():
        if isinstance(own := getattr(module, "gradcam_layer", None), str):
            return f"{name}.{own}".lstrip(".")
        if hasattr(module, "num_prefix_tokens") and hasattr(module, "blocks"):
            return f"{name}.blocks.{len(module.blocks) - 1}.norm1".lstrip(".")
    sizes: list[tuple[str, int]] = []

    def record(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            height, width = to_grid(network, name, output).shape[2:]
            if height * width > 1:
                sizes.append((name, height * width))

    with preserve_state(network), ExitStack() as hooks:
        for name, module in network.named_modules():
            if name:
                hooks.enter_context(module.register_forward_hook(partial(record, name)))
        network(images[:1].clone())
    if not sizes:
        raise InputError(
            f"no layer of {type(network).__name__} gives a map of more than one position for images of "
            f"{images.shape[2]} x {images.shape[3]}: use larger images"
        )
    coarsest = min(size for _, size in sizes)
    return next(name for name, size in reversed(sizes) if size == coarsest)


def get_layer(network: nn.Module, name: str) -> nn.Module:
    """Get a layer by its name.

    Raises:
        InputError: If there is no such layer.
    """
    layers: dict[str, nn.Module] = dict(network.named_modules())
    if name not in layers:
        raise InputError(f"{type(network).__name__} has no layer {name!r}: {nearest(name, layers)}")
    return layers[name]


def to_grid(network: nn.Module, layer: str, output: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Bring a layer's output into the shape (B, C, h, w).

    Args:
        network: The network that has the layer.
        layer: The layer's name.
        output: (B, C, h, w); (B, h, w, C) if the network's ``output_fmt`` is NHWC, as in timm; or tokens (B, N, C), of
            which the first ``num_prefix_tokens`` are left out.
        size: Height and width of the image, for the grid of the tokens.

    Raises:
        InputError: If the output has another shape.
    """
    own = get_layer(network, layer)
    owners = [module for name, module in network.named_modules() if f"{layer}.".startswith(f"{name}." if name else "")]
    if output.ndim == 4:
        nhwc = any(str(getattr(owner, "output_fmt", "")).endswith("NHWC") for owner in owners)
        # Convolutions and batch norms always have channels first.
        nhwc = nhwc and not isinstance(own, (nn.Conv2d, nn.BatchNorm2d))
        return output.permute(0, 3, 1, 2) if nhwc else output
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
def forward_hook(layer: nn.Module, hook: Any, name: str) -> Iterator[None]:
    """Register a forward hook, and remove it afterwards.

    Raises:
        InputError: If the layer was not run in between.
    """
    calls: list[bool] = []

    def counting_hook(*args: Any) -> Any:
        calls.append(True)
        return hook(*args)

    with layer.register_forward_hook(counting_hook):
        yield
    if not calls:
        raise InputError(f"layer {name!r} takes no part in the network's forward pass: choose another")
