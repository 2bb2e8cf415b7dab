"""Pruning: remove channels with everything that depends on them, or set single weights to zero."""

from __future__ import annotations

import copy
import warnings
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.errors import InputError
from cnnlab.models.channel_removal import can_remove_channels, remove_channels

Removals = list[list[Any]]
"""See models.channel_removal.Removal; here as plain lists."""


def prune_channels(network: nn.Module, example: Tensor, share: float, everywhere: bool = False) -> Removals:
    """Remove the channels whose weights have the smallest norms, in place; dependencies are found by tracing.

    Dependencies and norms of groups of layers are computed by torch-pruning (Fang et al. 2023, arXiv:2301.12900). The
    last layers keep their outputs: they are the classes.

    Args:
        network: The network, in eval mode.
        example: Standardized images (B, C, H, W).
        share: The share of the channels of each layer, above 0, below 1.
        everywhere: Compare channels across layers: the share is of all channels, and no layer loses more than 90 %.

    Returns:
        The removed channels, for remove_channels.

    Raises:
        InputError: If the library is missing, if the share is out of range, or if the network has layers that cannot
            be pruned.
    """
    _check_share(share)
    try:
        with warnings.catch_warnings(action="ignore"):
            import torch_pruning
    except ImportError as error:
        raise InputError('removing channels needs torch-pruning: pip install "cnnlab[prune]"') from error
    names = {module: name for name, module in network.named_modules()}
    again = copy.deepcopy(network)
    network.requires_grad_(True)  # The library traces by gradients.
    try:
        with warnings.catch_warnings(action="ignore"):
            pruner = torch_pruning.pruner.BasePruner(
                network,
                example,
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=share,
                max_pruning_ratio=0.9 if everywhere else 1.0,
                global_pruning=everywhere,
                ignored_layers=_last_layers(network, example),
            )
    except Exception as error:  # A user's network can cause any error.
        raise InputError(f"{type(network).__name__} cannot be pruned: {error}") from error
    removals: Removals = []
    for group in pruner.step(interactive=True):
        removals += _steps(group, pruner.DG, names)
        group.prune()
    if not removals:
        raise InputError(f"{share:g} of the channels of {type(network).__name__} are none: choose a greater share")
    # Checkpoints are loaded without the library: remove_channels must give the same network.
    remove_channels(again, removals)
    mine = again.state_dict()
    for name, value in network.state_dict().items():
        if not torch.equal(mine[name], value):
            raise InputError(f"{type(network).__name__} cannot be pruned: what was removed of {name} cannot be told")
    for parameter, before in zip(network.parameters(), again.parameters(), strict=True):
        parameter.requires_grad_(before.requires_grad)
    return removals


def _steps(group: Any, graph: Any, names: dict[nn.Module, str]) -> Removals:
    """Return the removals of a group of layers that lose channels together."""
    steps: Removals = []
    for dependency, indices in group:
        module = dependency.target.module
        if not isinstance(module, nn.Module) or module not in names:
            if isinstance(module, nn.Parameter):
                raise InputError(
                    "the network has parameters outside of layers (layer scale, tokens, positions), whose channels "
                    "cannot be removed: prune a network of convolutions, or single weights (--method unstructured)"
                )
            continue  # An operation without weights, such as an addition or a pooling.
        if not list(module.parameters(recurse=False)) and not list(module.buffers(recurse=False)):
            continue
        if not can_remove_channels(module):
            raise InputError(
                f"channels of {names[module]}, a {type(module).__name__}, cannot be removed: prune another network, or "
                "single weights (--method unstructured)"
            )
        side = "out" if graph.is_out_channel_pruning_fn(dependency.handler) else "in"
        if indices:
            steps.append([names[module], side, sorted(int(index) for index in indices)])
    return steps


def _last_layers(network: nn.Module, example: Tensor) -> list[nn.Module]:
    """Return the layers in the network's attribute ``output_layers``, or the one with weights that runs last."""
    if own := getattr(network, "output_layers", ()):
        return [network.get_submodule(name) for name in own]
    ran: list[nn.Module] = []
    with ExitStack() as hooks, torch.no_grad():
        for layer in weighted(network):
            hooks.enter_context(layer.register_forward_hook(lambda module, *_: ran.append(module)))
        network(example)
    if not ran:
        raise InputError(f"{type(network).__name__} has no convolution or linear layer to prune")
    return ran[-1:]


def prune_weights(network: nn.Module, share: float) -> int:
    """Set the smallest weights of all convolutions and linear layers together to zero, in place.

    File size and speed do not change: zeros are stored and multiplied like any number, but compress well.

    Args:
        network: The network.
        share: The share of the weights, above 0, below 1.

    Returns:
        The number of weights that are zero.

    Raises:
        InputError: If the share is out of range.
    """
    from torch.nn.utils import prune

    _check_share(share)
    network.to(memory_format=torch.contiguous_format)  # The library flattens weights in their memory layout.
    layers = weighted(network)
    prune.global_unstructured(
        [(layer, "weight") for layer in layers], pruning_method=prune.L1Unstructured, amount=share
    )
    for layer in layers:
        prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
    return sum(int((layer.weight == 0).sum()) for layer in layers)


def weighted(network: nn.Module) -> list[Any]:
    """Return the convolutions and linear layers."""
    return [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))]


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise InputError(f"the share to prune is {share:g}, expected above 0, below 1")
