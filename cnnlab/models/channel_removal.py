"""Removal of channels from a network, described by plain lists in a pruned network's checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.errors import InputError
from cnnlab.models.norms_and_checkpointing import BATCH_NORMS

Removal = tuple[str, str, Sequence[int]]
"""A module's name, "in" or "out", and the indices of the channels to remove, counted at that moment."""


def remove_channels(network: nn.Module, removals: Sequence[Sequence[Any]]) -> None:
    """Remove channels from a network's modules, in place and in this order.

    Args:
        network: The network.
        removals: See Removal; lists work too. All channels that depend on a removed one must be listed.

    Raises:
        InputError: If the network has no such layer or channel, or a layer's channels cannot be removed.
    """
    modules = dict(network.named_modules())
    for name, side, indices in removals:
        if name not in modules:
            raise InputError(f"channels were removed from a network with a layer {name!r}, which this one lacks")
        _remove(modules[name], name, side == "out", list(indices))


def read_removals(path: str | Path) -> list[list[Any]]:
    """Read a JSON file of removals.

    Raises:
        InputError: If there is no such file, or its content is not a list of removals.
    """
    try:
        removals = json.loads(Path(path).read_text(encoding="utf-8"))
        return [[str(name), str(side), [int(index) for index in indices]] for name, side, indices in removals]
    except FileNotFoundError as error:
        raise InputError(f"model.pruned {path}: there is no such file") from error
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"model.pruned {path} holds no list of [layer, in or out, channels]: {error}") from error


def can_remove_channels(module: nn.Module) -> bool:
    """Whether the channels of a layer of this kind can be removed."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        return module.groups == 1 or _is_depthwise(module)
    return isinstance(module, (nn.Linear, *BATCH_NORMS, nn.GroupNorm, nn.LayerNorm, nn.PReLU))


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels


def _remove(module: nn.Module, name: str, out: bool, indices: list[int]) -> None:
    if not can_remove_channels(module):
        raise InputError(f"channels of {name}, a {type(module).__name__}, cannot be removed")
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        keep = _remaining_channels(module.out_channels, indices, name)
        _slice(module, "weight", 0, keep)
        _slice(module, "bias", 0, keep)
        module.in_channels = module.out_channels = module.groups = len(keep)
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        attribute = f"{'out' if out else 'in'}_{'features' if isinstance(module, nn.Linear) else 'channels'}"
        keep = _remaining_channels(getattr(module, attribute), indices, name)
        # A transposed convolution's weight has the input channels first.
        _slice(module, "weight", int(out == isinstance(module, nn.ConvTranspose2d)), keep)
        if out:
            _slice(module, "bias", 0, keep)
        setattr(module, attribute, len(keep))
    elif isinstance(module, BATCH_NORMS):
        keep = _remaining_channels(module.num_features, indices, name)
        for part in ("weight", "bias", "running_mean", "running_var"):
            _slice(module, part, 0, keep)
        module.num_features = len(keep)
    elif isinstance(module, nn.GroupNorm):
        keep = _remaining_channels(module.num_channels, indices, name)
        _check_groups(keep, module, name)
        for part in ("weight", "bias"):
            _slice(module, part, 0, keep)
        module.num_channels = len(keep)
    elif isinstance(module, nn.LayerNorm):
        keep = _remaining_channels(module.normalized_shape[-1], indices, name)
        for part in ("weight", "bias"):
            _slice(module, part, -1, keep)
        module.normalized_shape = (*module.normalized_shape[:-1], len(keep))
    elif isinstance(module, nn.PReLU) and module.num_parameters > 1:
        keep = _remaining_channels(module.num_parameters, indices, name)
        _slice(module, "weight", 0, keep)
        module.num_parameters = len(keep)


def _check_groups(keep: Tensor, norm: nn.GroupNorm, name: str) -> None:
    """Check that each group of a group norm loses as many channels, so that no other one changes its group."""
    counts = torch.bincount(keep // (norm.num_channels // norm.num_groups), minlength=norm.num_groups)
    if counts.min() != counts.max():
        raise InputError(
            f"{name} normalizes its {norm.num_channels} channels in {norm.num_groups} groups, which would differ in "
            "size: prune a network with batch norm, or single weights (--method unstructured)"
        )


def _remaining_channels(count: int, indices: list[int], name: str) -> Tensor:
    if not indices or not all(0 <= index < count for index in indices) or len(set(indices)) >= count:
        raise InputError(f"channels {indices[:5]}... cannot be removed from {name}, which has {count}")
    keep = torch.ones(count, dtype=torch.bool)
    keep[indices] = False
    return keep.nonzero().flatten()


def _slice(module: nn.Module, name: str, dim: int, keep: Tensor) -> None:
    old = getattr(module, name)
    if old is None:
        return
    new = old.detach().index_select(dim, keep.to(old.device)).contiguous()
    if new.ndim == 4 and old.is_contiguous(memory_format=torch.channels_last):
        new = new.contiguous(memory_format=torch.channels_last)
    if isinstance(old, nn.Parameter):
        setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
    else:
        module.register_buffer(name, new)
