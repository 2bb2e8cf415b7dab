"""Optimization: the part of VisionTask that creates optimizer and schedule, and applies changed rates on resuming."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from cnnlab.checkpoint import make_portable
from cnnlab.errors import InputError
from cnnlab.lightning_compat import is_attached
from cnnlab.models.backbone import backbone_prefix
from cnnlab.tasks.optimizers import create_optimizer, decayed_rates, scaling_factor
from cnnlab.tasks.schedules import create_schedules

DEFAULT_LR = 1e-3


class Optimization(LightningModule):
    """Creates the optimizer and the schedules from the hyperparameters that VisionTask describes."""

    network: nn.Module
    layer_rates: dict[str, float] | None
    monitor: ClassVar[str]
    mode: ClassVar[Literal["min", "max"]]

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
        # A fused step unscales gradients itself, so Lightning refuses to clip them before it in mixed precision.
        clipped = bool(self.trainer.gradient_clip_val) and "mixed" in str(self.trainer.precision)
        # Some fused steps do not support sharded weights.
        sharded = self.device_mesh is not None
        optimizer = create_optimizer(
            self.network,
            hparams["optimizer"],
            lr,
            hparams["weight_decay"],
            hparams["optimizer_args"] or {},
            fused=not clipped and not sharded,
            rates=rates,
        )
        schedules = create_schedules(
            hparams["schedule"],
            optimizer,
            self.trainer.estimated_stepping_batches,
            hparams["warmup"],
            self.monitor,
            self.mode,
            hparams["schedule_args"] or {},
        )
        return [optimizer], schedules

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
        self._refuse_other_groups(checkpoint)
        fixed = ["optimizer", "optimizer_args", "layer_decay"]
        if "plateau" in (kept["schedule"], self.hparams["schedule"]):
            fixed += ["schedule", "schedule_args", "warmup"]
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
            for name in ("lr", "initial_lr"):
                group[name] *= faster
        for schedule in checkpoint["lr_schedulers"]:
            for name in ("base_lrs", "_last_lr"):
                if name in schedule:
                    schedule[name] = [rate * faster for rate in schedule[name]]

    def _refuse_other_groups(self, checkpoint: dict[str, Any]) -> None:
        saved = any("layers" in group for state in checkpoint["optimizer_states"] for group in state["param_groups"])
        wanted = self.layer_rates is not None or self.hparams["layer_decay"] is not None
        if saved != wanted:
            raise InputError(
                f"the run was trained {'with' if saved else 'without'} rates for each layer (callbacks.unfreezing or "
                "model.layer_decay), and cannot go on otherwise: leave them as they were, or begin a new run with "
                "--model.init_from"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add to the checkpoint what is needed to create this task, and its data, again."""
        make_portable(checkpoint, self, getattr(self.trainer, "datamodule", None))
        checkpoint["cnnlab"]["lr_factor"] = self._lr_factor()
        checkpoint["cnnlab"]["backbone"] = backbone_prefix(self.network)
