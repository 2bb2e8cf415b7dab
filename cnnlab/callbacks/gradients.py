"""How large each layer's gradient is, and a warning where it vanishes, explodes or never comes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from functools import reduce
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from cnnlab.errors import InputError
from cnnlab.loggers import write_metrics
from cnnlab.torch_compat import steps_scaled

_ABSENT = "trained, but the loss did not reach them: freeze them, or remove them from the network"
_ZERO = (
    "their gradient is exactly zero, so that they learn nothing. Usual causes: ReLUs that no input makes positive any "
    "more (a learning rate that was too high), a loss that does not depend on them, 16-mixed precision"
)
_NOT_FINITE = (
    "their gradient is not finite; it comes from the output, so look at the last of them first. Usual causes: a "
    "learning rate that is too high (--model.lr), 16-mixed precision where bf16-mixed would do, no clipping "
    "(--trainer.gradient_clip_val 1)"
)
_LARGE = (
    "their gradient is more than {limit:g} times as large as their weights: lower the learning rate (--model.lr), let "
    "it rise slowly (--model.warmup) or clip (--trainer.gradient_clip_val 1)"
)


class GradientMonitor(Callback):
    """Logs the gradients' norms as the optimizer is about to use them, before clipping, and warns of bad ones.

    A layer is a module of the task's ``network`` (of the task itself where it has none) that owns parameters; the
    network's own stand under the name "network". Frozen parameters are left out. Logged are

    - gradients/total_norm: the L2 norm of all gradients together, which --trainer.gradient_clip_val is compared with;
    - gradients/norm/LAYER: the L2 norm of a layer's gradient;
    - gradients/ratio/LAYER: that norm over the norm of the layer's weights; none where the weights are all zero.

    They belong to the same step, and stand in the same row of metrics.csv, as its train/loss_step. Each layer is warned
    of once for each kind of trouble: a gradient that is missing, exactly zero, not finite, or too large for the
    weights. At the first step it may be zero: residual branches often begin with a factor of zero. In 16-mixed
    precision it may overflow for as long as the loss is scaled up: that step is skipped, and the scale lowered.

    Args:
        every_n_steps: Optimizer steps between two measurements, as in --trainer.log_every_n_steps.
        warn_above: The ratio of gradient to weights from which on to warn; inf for never.
        per_layer: Log norm and ratio of each layer, not only the total: two columns a layer. Warnings come either way.

    Raises:
        InputError: If an argument is not above 0.
    """

    def __init__(self, every_n_steps: int = 50, warn_above: float = 100.0, per_layer: bool = True) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("warn_above", warn_above)):
            if not value > 0:
                raise InputError(f"callbacks.gradients.{name} is {value}, expected more than 0")
        self.every_n_steps = every_n_steps
        self.warn_above = warn_above
        self.per_layer = per_layer
        self._reported: set[tuple[str, str]] = set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with a clean slate."""
        self._reported = set()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure, log and judge the gradients, where it is their turn."""
        step = trainer.global_step
        if (step + 1) % self.every_n_steps:
            return
        layers = _trained_layers(_network(pl_module))
        gradients, weights, loss_scale = _norms(layers, trainer, optimizer)
        ratios = {name: norm / weights[name] for name, norm in gradients.items() if weights[name]}
        if gradients:
            metrics = {"gradients/total_norm": math.hypot(*gradients.values())}
            if self.per_layer:
                metrics |= {f"gradients/norm/{name}": norm for name, norm in gradients.items()}
                metrics |= {f"gradients/ratio/{name}": ratio for name, ratio in ratios.items()}
            write_metrics(trainer, metrics, step)

        self._warn(step, _ABSENT, [name for name in layers if name not in gradients])
        if step > 0:
            self._warn(step, _ZERO, [name for name, norm in gradients.items() if norm == 0])
        if loss_scale is None or loss_scale < 1:
            self._warn(step, _NOT_FINITE, [name for name, norm in gradients.items() if not math.isfinite(norm)])
        large = [name for name, ratio in ratios.items() if math.isfinite(ratio) and ratio > self.warn_above]
        self._warn(step, _LARGE.format(limit=self.warn_above), large)

    def _warn(self, step: int, trouble: str, layers: list[str]) -> None:
        new = [name for name in layers if (name, trouble) not in self._reported]
        if new:
            self._reported |= {(name, trouble) for name in new}
            # Where all layers are in trouble, the ends tell as much as the whole list.
            shown = new if len(new) <= 8 else [*new[:4], f"{len(new) - 8} more", *new[-4:]]
            rank_zero_warn(f"optimizer step {step} (0 is the first), {', '.join(shown)}: {trouble}")


def _network(pl_module: LightningModule) -> nn.Module:
    network = getattr(pl_module, "network", None)
    return network if isinstance(network, nn.Module) else pl_module


def _trained_layers(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters by layer; one that layers share counts once, for the first, so that totals are right."""
    layers = defaultdict(list)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            # torch.compile(network) adds a module around it, which network.compile() does not.
            path = [part for part in name.split(".")[:-1] if part != "_orig_mod"]
            layers[".".join(path) or "network"].append(parameter)
    return dict(layers)


def _norms(
    layers: dict[str, list[nn.Parameter]], trainer: Trainer, optimizer: Optimizer
) -> tuple[dict[str, float], dict[str, float], float | None]:
    """The norms of gradient and weights, by layer, where there is a gradient; the loss scale of 16-mixed precision."""
    found = [
        (name, parameter.grad, parameter.detach())
        for name, parameters in layers.items()
        for parameter in parameters
        if parameter.grad is not None
    ]
    if not found:
        return {}, {}, None
    names, gradients, weights = zip(*found, strict=True)
    # Half precision's own norms have three digits, and end at 65,504.
    dtype = reduce(torch.promote_types, {weight.dtype for weight in weights}, torch.float32)
    norms = [torch.linalg.vector_norm(tensor, dtype=dtype) for tensor in (*gradients, *weights)]
    one = torch.ones_like(norms[0])
    scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
    is_scaled = scaler is not None and scaler.is_enabled()
    # All in one tensor, since each that is read makes the device wait.
    *values, scale = torch.stack([*norms, scaler.scale(one) if is_scaled else one]).tolist()
    # Lightning has unscaled the gradients, but for optimizers that do so in their step: the fused ones.
    remaining = scale if steps_scaled(optimizer) else 1.0
    return (
        _by_layer(names, [value / remaining for value in values[: len(names)]]),
        _by_layer(names, values[len(names) :]),
        scale if is_scaled else None,
    )


def _by_layer(names: Iterable[str], norms: Iterable[float]) -> dict[str, float]:
    """Norms of single parameters to those of their layers."""
    parts = defaultdict(list)
    for name, norm in zip(names, norms, strict=True):
        parts[name].append(norm)
    return {name: math.hypot(*values) for name, values in parts.items()}
