"""The size of each layer's gradient, with a warning if it vanishes, explodes or is missing."""

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

from cnnlab.callbacks.unfreezing import network_of
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
    """Logs the gradients' norms just before the optimizer's step, before clipping, and warns of bad ones.

    A layer is a module that owns parameters, in the task's ``network`` or, if it has none, in the task itself.
    Parameters of the network itself have the name "network". Frozen parameters are left out. The metrics are

    - gradients/total_norm: the L2 norm of all gradients together, to compare with --trainer.gradient_clip_val;
    - gradients/norm/LAYER: the L2 norm of a layer's gradient;
    - gradients/ratio/LAYER: that norm over the norm of the layer's weights; none if the weights are all zero.

    They belong to the same step, and to the same row of metrics.csv, as its train/loss_step. There is one warning for
    each layer and problem: a gradient that is missing, exactly zero, not finite, or too large for the weights. At the
    first step a gradient may be zero: residual branches often start with a factor of zero. In 16-mixed precision it
    may overflow while the loss is scaled up: that step is skipped, and the scale lowered.

    Args:
        every_n_steps: Optimizer steps between two measurements, as in --trainer.log_every_n_steps.
        warn_above: The ratio of gradient to weights above which to warn; inf for never.
        per_layer: Log norm and ratio of each layer, not only the total: two columns a layer. Warnings are always given.

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
        """Reset the reported warnings."""
        self._reported = set()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure, log and check the gradients at each ``every_n_steps``-th step."""
        step = trainer.global_step
        if (step + 1) % self.every_n_steps:
            return
        layers = _trained_layers(network_of(pl_module))
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
            # If all layers have a problem, the first and the last ones say as much as the whole list.
            shown = new if len(new) <= 8 else [*new[:4], f"{len(new) - 8} more", *new[-4:]]
            rank_zero_warn(f"optimizer step {step} (0 is the first), {', '.join(shown)}: {trouble}")


def _trained_layers(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the trainable parameters by layer; a shared one counts once, for its first layer, so totals are right."""
    layers = defaultdict(list)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            # torch.compile(network) wraps it in another module; network.compile() does not.
            path = [part for part in name.split(".")[:-1] if part != "_orig_mod"]
            layers[".".join(path) or "network"].append(parameter)
    return dict(layers)


def _norms(
    layers: dict[str, list[nn.Parameter]], trainer: Trainer, optimizer: Optimizer
) -> tuple[dict[str, float], dict[str, float], float | None]:
    """Return the norms of gradients and of weights by layer, if it has a gradient, and the loss scale of 16-mixed."""
    found = [
        (name, parameter.grad, parameter.detach())
        for name, parameters in layers.items()
        for parameter in parameters
        if parameter.grad is not None
    ]
    if not found:
        return {}, {}, None
    names, gradients, weights = zip(*found, strict=True)
    # Norms in half precision have three digits, and overflow above 65,504.
    dtype = reduce(torch.promote_types, {weight.dtype for weight in weights}, torch.float32)
    norms = [torch.linalg.vector_norm(tensor, dtype=dtype) for tensor in (*gradients, *weights)]
    one = torch.ones_like(norms[0])
    scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
    is_scaled = scaler is not None and scaler.is_enabled()
    # All in one tensor, since reading each value makes the host wait for the device.
    *values, scale = torch.stack([*norms, scaler.scale(one) if is_scaled else one]).tolist()
    # Lightning has unscaled the gradients, except for fused optimizers, which unscale them in their step.
    remaining = scale if steps_scaled(optimizer) else 1.0
    return (
        _by_layer(names, [value / remaining for value in values[: len(names)]]),
        _by_layer(names, values[len(names) :]),
        scale if is_scaled else None,
    )


def _by_layer(names: Iterable[str], norms: Iterable[float]) -> dict[str, float]:
    """Combine the norms of single parameters into those of their layers."""
    parts = defaultdict(list)
    for name, norm in zip(names, norms, strict=True):
        parts[name].append(norm)
    return {name: math.hypot(*values) for name, values in parts.items()}
