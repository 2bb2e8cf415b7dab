"""Training with less memory: activation checkpointing, and group norm for small batches; norms of single values."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cnnlab.errors import InputError, nearest

_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def checkpoint_stages(network: nn.Module, names: Sequence[str]) -> None:
    """Save only these modules' inputs, and recompute their activations in the backward pass (Chen et al. 2016).

    State dicts, results and batch norm's statistics do not change.

    Args:
        network: The network, changed in place.
        names: Names of its modules in named_modules().

    Raises:
        InputError: If there is no such module, or it is a list of modules.
    """
    modules = dict(network.named_modules())
    for name in names:
        if name not in modules or not name:
            raise InputError(
                f"model.checkpoint_stages: the network has no {name!r}: {nearest(name, filter(None, modules))}"
            )
        module = modules[name]
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            inner = ", ".join(f"{name}.{child}" for child, _ in module.named_children())
            raise InputError(f"model.checkpoint_stages: {name!r} is a list that is never called; name {inner}")
        module.forward = partial(_run_checkpointed, module, module.forward)


def _run_checkpointed(module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)

    def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        return contextlib.nullcontext(), _freeze_statistics(module)

    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextlib.contextmanager
def _freeze_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norm still normalizes by the batch, but does not update its running statistics."""
    norms = [child for child in module.modules() if isinstance(child, BATCH_NORMS) and child.training]
    states = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, count in states:
        norm.momentum = 0.0
        norm.num_batches_tracked = count.clone() if count is not None else None
    try:
        yield
    finally:
        for norm, momentum, count in states:
            norm.momentum, norm.num_batches_tracked = momentum, count


def batch_to_group_norm(network: nn.Module, groups: int = 32) -> int:
    """Replace each batch norm by a group norm (Wu and He 2018), in place.

    Scale and shift are kept, running statistics are not: a pretrained network needs fine-tuning.

    Args:
        network: The network.
        groups: The number of groups, reduced to its greatest common divisor with the channels.

    Returns:
        The number of replaced norms.
    """
    norms = [(name, module) for name, module in network.named_modules() if isinstance(module, BATCH_NORMS)]
    for name, norm in norms:
        new = nn.GroupNorm(math.gcd(groups, norm.num_features), norm.num_features, eps=norm.eps, affine=norm.affine)
        if norm.affine:
            new.load_state_dict({"weight": norm.weight, "bias": norm.bias})
        activation = getattr(norm, "act", None)  # timm's batch norms include their activation.
        network.set_submodule(name, nn.Sequential(new, activation) if isinstance(activation, nn.Module) else new)
    return len(norms)


@torch.no_grad()
def norms_of_one_value(model: nn.Module, images: torch.Tensor) -> list[str]:
    """Find the norms that normalize over one value, if these images are a training batch: torch refuses to train them.

    The model is evaluated, so that its state does not change. A norm that is synchronized sees other processes' values.

    Args:
        model: The model, on the images' device.
        images: (B, C, H, W), in the form that it takes.

    Returns:
        Their names in the model, in the order of computation.
    """
    found: list[str] = []

    def look(name: str, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        features = inputs[0]
        # An instance norm and a group norm treat each image alone.
        groups = module.num_groups if isinstance(module, nn.GroupNorm) else features.shape[1]
        images_together = 1 if isinstance(module, _INSTANCE_NORMS) else len(features)
        if features.numel() // len(features) // groups * images_together == 1:
            found.append(name)

    modes = {module: module.training for module in model.modules()}
    kinds = (*BATCH_NORMS, *_INSTANCE_NORMS, nn.GroupNorm)
    hooks = [
        module.register_forward_pre_hook(partial(look, name))
        for name, module in model.named_modules()
        if isinstance(module, kinds) and not isinstance(module, nn.SyncBatchNorm)
    ]
    try:
        model.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return found
