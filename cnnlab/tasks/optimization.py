"""Optimization: the part of VisionTask that creates optimizer and schedule, and applies changed rates on resuming."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from cnnlab.checkpoint import make_portable
from cnnlab.errors import InputError, TrainingError, nearest
from cnnlab.lightning_compat import is_attached
from cnnlab.loggers import announce
from cnnlab.models.groups import backbone_prefix, layer_groups
from cnnlab.strategies import spreads_weights
from cnnlab.tasks.places import forget_settings, move_schedules, place_in_run, steps_of_epoch
from cnnlab.tasks.schedules import check_schedule, create_schedules
from cnnlab.tasks.smallest_batch import check_smallest_batch

DEFAULT_LR = 1e-3
_FUSED_OPTIMIZERS = frozenset({"adam", "adamw", "sgd", "momentum", "adagrad"})
_SCALING = {"linear": 1.0, "sqrt": 0.5}
"""Rules that scale a learning rate with the batch: the power of the ratio."""


class Optimization(LightningModule):
    """Creates the optimizer and the schedules from the hyperparameters that VisionTask describes."""

    network: nn.Module
    layer_rates: dict[str, float] | None
    _resumed_place: tuple[int, int] | None = None
    monitor: str
    mode: ClassVar[Literal["min", "max"]]

    def check_optimization(self) -> None:
        """Raise InputError if there is no such optimizer or rule, or if a hyperparameter is out of range."""
        hparams = self.hparams
        for name in ("lr", "weight_decay"):
            if hparams[name] < 0:
                raise InputError(f"model.{name} is {hparams[name]}, expected 0 or more")
        _check_name(hparams["optimizer"])
        if hparams["layer_decay"] is not None and not 0 < hparams["layer_decay"] <= 1:
            raise InputError(f"model.layer_decay is {hparams['layer_decay']}, expected above 0, to 1")
        rule = hparams["lr_scaling"]
        if rule is not None and rule not in _SCALING:
            raise InputError(f"model.lr_scaling is {rule!r}: {nearest(rule, _SCALING)}")
        if hparams["lr_batch_size"] < 1:
            raise InputError(f"model.lr_batch_size is {hparams['lr_batch_size']}, expected 1 or more")
        check_schedule(hparams["schedule"], hparams["warmup"], hparams["schedule_args"] or {})

    def configure_optimizers(self) -> Any:
        """The optimizer by name from timm's factory, and the schedule by name."""
        hparams = self.hparams
        rates = self.layer_rates
        for name in ("layer_decay", "lr_scaling"):
            if rates is not None and hparams.get(name) is not None:
                raise InputError(f"model.{name} and callbacks.unfreezing both set the layers' rates: choose one")
        factor = self._lr_factor()
        lr = hparams["lr"] * factor
        if hparams.get("lr_scaling") is not None:
            rank_zero_info(
                f"model.lr_scaling: the learning rate is {lr:g} ({hparams['lr']:g} times {factor:g}), as a step sees "
                f"{self._samples_a_step()} samples on {self.trainer.world_size} process(es), not "
                f"{hparams['lr_batch_size']}"
            )
        if hparams["layer_decay"] is not None:
            rates = decayed_rates(self.network, lr, hparams["layer_decay"])
        elif rates is not None and hparams["lr"] != DEFAULT_LR:
            rank_zero_warn(
                f"model.lr is {hparams['lr']}, which changes nothing: callbacks.unfreezing sets the rates of all layers"
            )
        optimizer = self._create_optimizer(lr, rates)
        schedules = create_schedules(
            hparams["schedule"],
            optimizer,
            self._total_steps(),
            hparams["warmup"],
            self.monitor,
            self.mode,
            hparams["schedule_args"] or {},
        )
        return [optimizer], schedules

    def _total_steps(self) -> float:
        """The optimizer steps of the whole run.

        Raises:
            InputError: If Lightning refuses the trainer's settings when it counts them.
        """
        try:
            return self.trainer.estimated_stepping_batches
        except (ValueError, MisconfigurationException) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"trainer: {' '.join(str(error).split())}") from error

    def on_train_start(self) -> None:
        """Let the schedule of a resumed run go on at its share of the run, however many steps an epoch has now.

        Raises:
            InputError: If a batch norm would get one value for a channel.
        """
        super().on_train_start()
        check_smallest_batch(self, getattr(self.trainer, "datamodule", None))
        total = self._total_steps()
        if self.trainer.ckpt_path is None or not math.isfinite(total):
            return
        place = place_in_run(self.trainer, int(total))
        before = self._resumed_place
        # The restored rates are those of the steps that the run had before.
        made_for = int(total) if before is None else before[1]
        move_schedules(self.trainer.lr_scheduler_configs, place, made_for, self.hparams)
        if before is not None and before != (place.steps_of_epoch, place.total):
            announce(
                f"the schedule goes on at {place.step / place.total:.0%} of the run: steps of an epoch are now "
                f"{place.steps_of_epoch} (they were {before[0]}), of the run {place.total} (they were {before[1]})"
            )

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Move a schedule by a step.

        Raises:
            TrainingError: If plateau's metric is NaN, which it would count as no improvement.
        """
        if metric is not None and math.isnan(float(metric)):
            raise TrainingError(
                f"{self.monitor} is not a number (NaN), so the schedule cannot compare it; stopped. Usual causes: "
                "nothing to measure it on in the validation images, or outputs that are NaN"
            )
        super().lr_scheduler_step(scheduler, metric)

    def _create_optimizer(self, lr: float, rates: Mapping[str, float] | None) -> Optimizer:
        """Create the optimizer, with a learning rate for each layer group if there are such rates.

        Raises:
            InputError: If it does not take its settings.
        """
        from timm.optim import create_optimizer_v2  # timm takes a second to import

        name, weight_decay = self.hparams["optimizer"], self.hparams["weight_decay"]
        args = dict(self.hparams["optimizer_args"] or {})
        # A fused step unscales gradients itself, so Lightning refuses to clip them before it in mixed precision.
        clipped = bool(self.trainer.gradient_clip_val) and "mixed" in str(self.trainer.precision)
        # Some fused steps do not support sharded weights.
        if name.lower() in _FUSED_OPTIMIZERS and not clipped and not spreads_weights(self.trainer.strategy):
            args.setdefault("fused", True)
        model_or_params: Any = self.network if rates is None else _groups(self.network, weight_decay, rates)
        try:
            return create_optimizer_v2(model_or_params, opt=name, lr=lr, weight_decay=weight_decay, **args)
        except (TypeError, ValueError) as error:
            raise InputError(f"optimizer {name!r} does not take these settings: {error}") from error

    def _samples_a_step(self) -> int:
        """The number of samples in an optimizer step, on all processes.

        Raises:
            InputError: If there is no data module with a batch_size.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if not isinstance(getattr(data, "batch_size", None), int):
            raise InputError("model.lr_scaling needs a data module with a batch_size: leave it out, and set model.lr")
        return int(data.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches)

    def _lr_factor(self) -> float:
        rule = self.hparams.get("lr_scaling")
        return 1.0 if rule is None else scaling_factor(rule, self._samples_a_step(), self.hparams["lr_batch_size"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Apply a learning rate or weight decay that was changed for a resumed fit to the optimizer's state.

        Raises:
            InputError: If a setting was changed that cannot be applied to the state.
        """
        if not is_attached(self) or self.trainer.state.fn != "fit":
            return
        kept = checkpoint["hyper_parameters"]
        steps = checkpoint["cnnlab"].get("steps")
        self._resumed_place = None if steps is None else (steps["epoch"], steps["run"])
        saved = any("layers" in group for state in checkpoint["optimizer_states"] for group in state["param_groups"])
        if saved != (self.layer_rates is not None or self.hparams["layer_decay"] is not None):
            raise InputError(
                f"the run was trained {'with' if saved else 'without'} rates for each layer (callbacks.unfreezing or "
                "model.layer_decay), and cannot go on otherwise: leave them as they were, or begin a new run with "
                "--model.init_from"
            )
        fixed = ["optimizer", "optimizer_args", "layer_decay"]
        if "plateau" in (kept["schedule"], self.hparams["schedule"]):
            fixed += ["schedule", "warmup"]
        changed = [name for name in fixed if kept.get(name) != self.hparams[name]]
        for name in ("lr", "weight_decay"):
            if kept[name] != self.hparams[name] and not (kept[name] and self.hparams[name]):
                changed.append(name)
        if changed:
            raise InputError(
                f"a run cannot go on with another {' and '.join(changed)}: leave it as it was, or begin a new run with "
                "--model.init_from"
            )
        if self.layer_rates is not None:
            kept = {**kept, "lr": self.hparams["lr"]}  # lr has no effect: the layers have their own rates.
        faster, stronger = (self.hparams[name] / kept[name] if kept[name] else 1.0 for name in ("lr", "weight_decay"))
        faster *= self._lr_factor() / checkpoint["cnnlab"].get("lr_factor", 1.0)
        if (faster, stronger) != (1, 1) and self.trainer.strategy.restore_checkpoint_after_setup:
            raise InputError(
                f"a run under {type(self.trainer.strategy).__name__} cannot go on with another learning rate or weight "
                "decay: leave them as they were, or begin a new run with --model.init_from"
            )
        groups = [group for state in checkpoint["optimizer_states"] for group in state["param_groups"]]
        for group in groups:
            group["weight_decay"] *= stronger
            # Only schedules of a factor know an initial rate.
            for name in {"lr", "initial_lr"} & group.keys():
                group[name] *= faster
        for schedule in checkpoint["lr_schedulers"]:
            forget_settings(schedule)
            for name in ("base_lrs", "_last_lr"):
                if name in schedule:
                    schedule[name] = [rate * faster for rate in schedule[name]]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add to the checkpoint what is needed to create this task, and its data, again."""
        make_portable(checkpoint, self, getattr(self.trainer, "datamodule", None), self.trainer)
        checkpoint["cnnlab"]["lr_factor"] = self._lr_factor()
        total = self._total_steps() if self.trainer.state.fn == "fit" else math.inf
        if math.isfinite(total):
            checkpoint["cnnlab"]["steps"] = {"epoch": steps_of_epoch(self.trainer), "run": int(total)}
        checkpoint["cnnlab"]["backbone"] = backbone_prefix(self.network)


def decayed_rates(network: nn.Module, lr: float, decay: float) -> dict[str, float]:
    """The learning rate of each layer group: lr for the head, multiplied by decay for each group towards the input.

    >>> from cnnlab.models import SimpleCNN
    >>> decayed_rates(SimpleCNN(), 1.0, 0.5)
    {'features.0': 0.125, 'features.2': 0.25, 'features.4': 0.5, 'head': 1.0}
    """
    groups = layer_groups(network)
    return {group.name: lr * decay ** (len(groups) - 1 - i) for i, group in enumerate(groups)}


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


def _groups(network: nn.Module, weight_decay: float, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """The parameters by layer group, including frozen ones, so that a resumed run has the same groups.

    Norms and biases get no weight decay.
    """
    groups = []
    for layers in layer_groups(network):
        parameters = [parameter for _, parameter in layers.parameters_of(network)]
        weights = [parameter for parameter in parameters if parameter.ndim > 1]
        others = [parameter for parameter in parameters if parameter.ndim <= 1]
        shared = {"lr": rates[layers.name], "layers": layers.name}
        if weights:
            groups.append({"params": weights, "weight_decay": weight_decay, "name": layers.name, **shared})
        if others:
            groups.append({"params": others, "weight_decay": 0.0, "name": f"{layers.name}/norms and biases", **shared})
    return groups


def _check_name(optimizer: str) -> None:
    """Raise InputError if there is no such optimizer."""
    if optimizer.lower() in _FUSED_OPTIMIZERS:
        return
    # timm's import takes a third of a second, and the common names are known without it.
    from timm.optim import list_optimizers

    known = [str(name) for name in list_optimizers()]
    if optimizer.lower() not in known:
        raise InputError(f"there is no optimizer {optimizer!r}: {nearest(optimizer, known)}")
