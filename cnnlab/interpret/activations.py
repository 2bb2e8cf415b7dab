"""Filters, feature maps and embeddings of a network, and the embeddings' projection to two dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cnnlab.errors import InputError
from cnnlab.interpret.layers import forward_hook, get_layer, preserve_state, to_grid


def filters(network: nn.Module, layer: str | None = None) -> Tensor:
    """The kernels of a convolution, each scaled to 0..1.

    Args:
        network: Any network.
        layer: The name of a 2D convolution; the first one if None.

    Returns:
        (filters, channels, height, width) float32, on the CPU; a copy.

    Raises:
        InputError: If there is no 2D convolution, or the layer is not one.

    >>> from cnnlab.models import SimpleCNN
    >>> filters(SimpleCNN()).shape
    torch.Size([32, 1, 3, 3])
    """
    convolutions = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    if layer is None and not convolutions:
        raise InputError(f"{type(network).__name__} has no 2D convolution")
    chosen = get_layer(network, layer) if layer is not None else next(iter(convolutions.values()))
    if not isinstance(chosen, nn.Conv2d):
        raise InputError(
            f"layer {layer!r} is a {type(chosen).__name__}, expected a 2D convolution: {', '.join(convolutions)}"
        )
    kernels = chosen.weight.detach().float().cpu().clone()
    low, high = torch.aminmax(kernels.flatten(1), dim=1)
    span = (high - low).clamp(min=torch.finfo(torch.float32).tiny)
    return (kernels - low.view(-1, 1, 1, 1)) / span.view(-1, 1, 1, 1)


def feature_maps(network: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """The activations of layers, by name.

    Args:
        network: Any network; it is not changed.
        images: The network's input, (B, C, H, W).
        layers: Names in named_modules.

    Returns:
        (B, channels, h, w) float32 each, on the CPU.

    Raises:
        InputError: If a layer does not exist, does not run in the forward pass, or returns no map.
    """
    maps: dict[str, Tensor] = {}
    size = (images.shape[2], images.shape[3])

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        # Copied at once: the next layer may change it in place. On the CPU, to free the device's memory.
        maps[name] = to_grid(network, name, output, size).float().cpu().clone()

    with preserve_state(network), ExitStack() as stack:
        for name in layers:
            stack.enter_context(forward_hook(get_layer(network, name), partial(keep, name), name))
        network(images.clone())
    return maps


def embeddings(network: nn.Module, batches: Iterable[Tensor], layer: str | None = None, limit: int = 2000) -> Tensor:
    """The input of the classifier for each image.

    Args:
        network: Any network; it is not changed.
        batches: Images (B, C, H, W); only as many batches are read as needed.
        layer: The layer whose input is taken; the last linear layer that runs if None. Maps and tokens are averaged.
        limit: The maximum number of images.

    Returns:
        (images, features) float32, on the CPU, a batch at a time.

    Raises:
        InputError: If there is no linear layer, the layer does not run, or there is no image.
    """
    rows: list[Tensor] = []
    latest: list[Tensor] = []

    def keep_input(module: nn.Module, args: Any) -> None:
        # A copy: the layer may change its input in place.
        latest[:] = [args[0].detach().float().clone()]

    chosen = (
        [module for module in network.modules() if isinstance(module, nn.Linear)]
        if layer is None
        else [get_layer(network, layer)]
    )
    if not chosen:
        raise InputError(f"{type(network).__name__} has no linear layer: name the layer whose input the embeddings are")
    with preserve_state(network), ExitStack() as hooks:
        for module in chosen:
            hooks.enter_context(module.register_forward_pre_hook(keep_input))
        for images in batches:
            part = images[: limit - sum(map(len, rows))]
            network(part.clone())
            if not latest:
                raise InputError(f"layer {layer!r} takes no part in the network's forward pass: choose another")
            values = latest[-1]
            values = values.flatten(2).mean(dim=2) if values.ndim == 4 else values
            rows.append(values.mean(dim=1).cpu() if values.ndim == 3 else values.flatten(1).cpu())
            if sum(map(len, rows)) >= limit:
                break
    if not rows:
        raise InputError("there is no image to embed")
    return torch.cat(rows)


def project(
    values: Tensor, method: Literal["tsne", "pca"] = "tsne", seed: int = 0, perplexity: float = 30.0
) -> npt.NDArray[np.float32]:
    """Project embeddings to two dimensions by t-SNE (van der Maaten and Hinton 2008), or by PCA.

    Args:
        values: (images, features).
        method: tsne or pca.
        seed: The seed of t-SNE, which starts from the principal components.
        perplexity: The effective number of neighbors in t-SNE; lowered for few images.

    Returns:
        (images, 2).

    Raises:
        InputError: If there are fewer than 3 images, the method is unknown, or scikit-learn is not installed.
    """
    if method not in ("tsne", "pca"):
        raise InputError(f"there is no method {method!r}, only tsne and pca")
    if len(values) < 3:
        raise InputError(f"there are {len(values)} images, too few to lay out: 3 or more")
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise InputError('t-SNE needs scikit-learn: pip install "cnnlab[interpret]"') from error
    points = values.numpy().astype(np.float64)
    if method == "pca":
        return np.asarray(PCA(2, random_state=seed).fit_transform(points), dtype=np.float32)
    tsne = TSNE(2, perplexity=min(perplexity, (len(points) - 1) / 3), init="pca", random_state=seed)
    return np.asarray(tsne.fit_transform(points), dtype=np.float32)
