"""Optimizers by name from timm's factory, optionally with a learning rate for each layer group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from cnnlab.errors import InputError, nearest
from cnnlab.models.groups import layer_groups

_FUSED_OPTIMIZERS = frozenset({"adam", "adamw", "sgd", "momentum", "adagrad"})


_SCALING = {"linear": 1.0, "sqrt": 0.5}
"""Rules that scale a learning rate with the batch: the power of the ratio."""


def check_optimizer(name: str, lr: float, weight_decay: float) -> None:
    """Raise InputError if there is no such optimizer, or if a setting is out of range."""
    from timm.optim import list_optimizers

    for setting, value in (("lr", lr), ("weight_decay", weight_decay)):
        if value < 0:
            raise InputError(f"model.{setting} is {value}, expected 0 or more")
    known = [str(known) for known in list_optimizers()]
    if name.lower() not in known:
        raise InputError(f"there is no optimizer {name!r}: {nearest(name, known)}")


def decayed_rates(network: nn.Module, lr: float, decay: float) -> dict[str, float]:
    """The learning rate of each layer group: lr for the head, multiplied by decay for each group towards the input.

    >>> from cnnlab.models import SimpleCNN
    >>> decayed_rates(SimpleCNN(), 1.0, 0.5)
    {'features.0': 0.125, 'features.2': 0.25, 'features.4': 0.5, 'head': 1.0}
    """
    groups = layer_groups(network)
    return {group.name: lr * decay ** (len(groups) - 1 - i) for i, group in enumerate(groups)}


def check_scaling(rule: str | None, reference: int) -> None:
    """Raise InputError if there is no such rule, or if the reference is below 1."""
    if rule is not None and rule not in _SCALING:
        raise InputError(f"model.lr_scaling is {rule!r}: {nearest(rule, _SCALING)}")
    if reference < 1:
        raise InputError(f"model.lr_batch_size is {reference}, expected 1 or more")


def scaling_factor(rule: str, samples: int, reference: int) -> float:
    """The factor between the learning rates of this number of samples per step and of the reference.

    Args:
        rule: linear (Goyal et al. 2017, "Accurate, large minibatch SGD") or sqrt (Krizhevsky 2014, "One weird trick").
        samples: The samples of a step.
        reference: The samples per step that the learning rate is meant for.

    >>> scaling_factor("linear", 1024, 256), scaling_factor("sqrt", 1024, 256)
    (4.0, 2.0)
    """
    return float((samples / reference) ** _SCALING[rule])


def create_optimizer(
    network: nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    args: dict[str, Any],
    fused: bool = True,
    rates: Mapping[str, float] | None = None,
) -> Optimizer:
    """Create an optimizer; norms and biases get no weight decay.

    Args:
        network: The network to train.
        name: A name for timm.optim.create_optimizer_v2.
        lr: The learning rate.
        weight_decay: Weight decay.
        args: Further arguments of the optimizer.
        fused: Whether its step may be one kernel.
        rates: A learning rate for each of the network's layer groups, by name. The optimizer then has all of them,
            including those that are frozen now, so that a resumed run has the same groups.

    Raises:
        InputError: If the optimizer does not take these settings.
    """
    from timm.optim import create_optimizer_v2  # timm takes a second to import

    extra = dict(args)
    if fused and name.lower() in _FUSED_OPTIMIZERS:
        extra.setdefault("fused", True)
    model_or_params: Any = network if rates is None else _groups(network, weight_decay, rates)
    try:
        return create_optimizer_v2(model_or_params, opt=name, lr=lr, weight_decay=weight_decay, **extra)
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer {name!r} does not take these settings: {error}") from error


def _groups(network: nn.Module, weight_decay: float, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    found = []
    for layers in layer_groups(network):
        parts: dict[str, list[nn.Parameter]] = {"": [], "/norms and biases": []}
        for _, parameter in layers.parameters_of(network):
            parts["/norms and biases" if parameter.ndim <= 1 else ""].append(parameter)
        for suffix, parameters in parts.items():
            if parameters:
                decay = 0.0 if suffix else weight_decay
                name = layers.name + suffix
                found.append(
                    {
                        "params": parameters,
                        "lr": rates[layers.name],
                        "weight_decay": decay,
                        "name": name,
                        "layers": layers.name,
                    }
                )
    return found
