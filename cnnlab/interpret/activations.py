"""What a network computes on the way: filters, feature maps, embeddings, and their pictures in two dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cnnlab.errors import InputError
from cnnlab.interpret.layers import grid, hooked, layer_named
from cnnlab.interpret.undisturbed import undisturbed


def filters(network: nn.Module, layer: str | None = None) -> Tensor:
    """The kernels of a convolution, each stretched to 0..1.

    Args:
        network: Any.
        layer: The name of a 2D convolution; the first one if None.

    Returns:
        (filters, channels, height, width) float32, on the CPU; a copy.

    Raises:
        InputError: If there is no convolution, or if the layer is none.

    >>> from cnnlab.models import SimpleCNN
    >>> filters(SimpleCNN()).shape
    torch.Size([32, 1, 3, 3])
    """
    convolutions = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    if layer is None and not convolutions:
        raise InputError(f"{type(network).__name__} has no 2D convolution")
    chosen = layer_named(network, layer) if layer is not None else next(iter(convolutions.values()))
    if not isinstance(chosen, nn.Conv2d):
        raise InputError(
            f"layer {layer!r} is a {type(chosen).__name__}, expected a 2D convolution: {', '.join(convolutions)}"
        )
    kernels = chosen.weight.detach().float().cpu().clone()
    low, high = torch.aminmax(kernels.flatten(1), dim=1)
    span = (high - low).clamp(min=torch.finfo(torch.float32).tiny)
    return (kernels - low.view(-1, 1, 1, 1)) / span.view(-1, 1, 1, 1)


def feature_maps(network: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """The activations of layers, by their names.

    Args:
        network: Any; it is left as it was.
        images: (B, C, H, W), what it takes.
        layers: Names as in named_modules.

    Returns:
        (B, channels, h, w) float32 each, on the CPU.

    Raises:
        InputError: If there is no such layer, if it takes no part, or if it gives no map.
    """
    found: dict[str, Tensor] = {}
    size = (images.shape[2], images.shape[3])

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            # Copied at once: the next layer may change it in place, and the device's memory is wanted back.
            found[name] = grid(network, name, output, size).float().cpu().clone()

        return hook

    with undisturbed(network), ExitStack() as stack:
        for name in layers:
            stack.enter_context(hooked(layer_named(network, name), keep(name), name))
        network(images.clone())
    return found


def embeddings(network: nn.Module, batches: Iterable[Tensor], layer: str | None = None, limit: int = 2000) -> Tensor:
    """What goes into the classifier, for each image.

    Args:
        network: Any; it is left as it was.
        batches: Images (B, C, H, W); no more are asked for than it takes.
        layer: Whose input to take; the last linear layer's that the network runs if None. Of maps and of tokens the
            mean is taken.
        limit: How many images.

    Returns:
        (images, features) float32, on the CPU, a batch at a time.

    Raises:
        InputError: If there is no linear layer, or no image.
    """
    rows: list[Tensor] = []
    latest: list[Tensor] = []

    def keep(module: nn.Module, args: Any) -> None:
        # A copy: the layer itself may change it in place.
        latest[:] = [args[0].detach().float().clone()]

    chosen = (
        [module for module in network.modules() if isinstance(module, nn.Linear)]
        if layer is None
        else [layer_named(network, layer)]
    )
    if not chosen:
        raise InputError(f"{type(network).__name__} has no linear layer: say whose input the embeddings are")
    handles = [module.register_forward_pre_hook(keep) for module in chosen]
    try:
        with undisturbed(network):
            for images in batches:
                wanted = images[: limit - sum(map(len, rows))]
                network(wanted.clone())
                if not latest:
                    raise InputError(f"layer {layer!r} takes no part in the network's forward pass: choose another")
                values = latest[-1]
                values = values.flatten(2).mean(dim=2) if values.ndim == 4 else values
                rows.append(values.mean(dim=1).cpu() if values.ndim == 3 else values.flatten(1).cpu())
                if sum(map(len, rows)) >= limit:
                    break
    finally:
        for handle in handles:
            handle.remove()
    if not rows:
        raise InputError("there is no image to embed")
    return torch.cat(rows)


def projected(
    values: Tensor, method: Literal["tsne", "pca"] = "tsne", seed: int = 0, perplexity: float = 30.0
) -> npt.NDArray[np.float32]:
    """Embeddings in two dimensions: t-SNE (van der Maaten and Hinton 2008), or the first two principal components.

    Args:
        values: (images, features).
        method: tsne or pca.
        seed: Of t-SNE, which begins with the principal components.
        perplexity: Of t-SNE, about how many neighbours count; lowered where there are few images.

    Returns:
        (images, 2).

    Raises:
        InputError: If there are fewer than 3 images, if there is no such method, or if scikit-learn is missing.
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
    fewer = min(perplexity, (len(points) - 1) / 3)
    return np.asarray(TSNE(2, perplexity=fewer, init="pca", random_state=seed).fit_transform(points), dtype=np.float32)
