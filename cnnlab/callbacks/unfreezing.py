"""Progressive unfreezing: the head first, then late layers, then all layers."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from cnnlab.callbacks.monitors import Mode, check_logged, monitored
from cnnlab.errors import InputError
from cnnlab.lightning_compat import is_trial_run
from cnnlab.loggers import write_metrics
from cnnlab.models.groups import LayerGroup, layer_groups
from cnnlab.models.norms_and_checkpointing import BATCH_NORMS


@dataclass
class Phase:
    """The sections that are trained from an epoch on, and their learning rates.

    Args:
        lr: The learning rate of each section, from the head down; sections beyond the list are frozen.
        epoch: The epoch with which it begins, 0 for the first; None to begin when the monitored metric has not
            improved for ``patience`` validations. It has no default: a phase without it would inherit the epoch of the
            phase in the same position of an earlier configuration.
    """

    lr: list[float]
    epoch: int | None


_PHASES = (Phase([1e-3], 0), Phase([5e-4, 1e-4], 3), Phase([5e-4, 1e-4, 1e-5], 6))


class ProgressiveUnfreezing(Callback):
    """Trains the head, then late layers too, then all layers, with a learning rate for each section of layers.

    A section's rate is its phase's rate times the factor of the schedule, which runs over the whole training; 0 while
    the section is frozen. At most one phase begins with an epoch. Frozen layers get no gradient, and their norms keep
    their statistics. The optimizer has all parameters from the first step on, so a run can be resumed in any phase.
    Under DDP the network is wrapped again when a phase begins, because the reducer only knows the parameters that were
    trainable when it was made.

    Howard and Ruder 2018, "Universal language model fine-tuning" (gradual unfreezing, discriminative rates).

    Args:
        phases: The phases in order, the first from epoch 0. If None: the head, from epoch 3 late layers too, from
            epoch 6 all layers.
        sections: The number of layer groups (models.groups) in each section, from the head down; the remaining groups
            are the last section. The default is the head, two groups (a ResNet's layer3 and layer4), and the rest.
        decay: The learning rate of each layer group as a share of that of the next group towards the head, in the same
            section; above 0, to 1 (Bao et al. 2022). The section's rate is that of its first group.
        monitor: The metric that a phase without an epoch waits for; the task's own if None.
        mode: "min" or "max"; the task's own if None.
        patience: The number of validations without improvement before such a phase begins.

    Raises:
        InputError: If the phases contradict each other or the sections; in setup(), if the network has too few groups.
    """

    def __init__(
        self,
        phases: list[Phase] | None = None,
        sections: list[int] | None = None,
        decay: float = 1.0,
        monitor: str | None = None,
        mode: Mode | None = None,
        patience: int = 2,
    ) -> None:
        self.phases = list(_PHASES) if phases is None else phases
        self.sections = [1, 2] if sections is None else sections
        self.decay = decay
        self.patience = patience
        self.monitor, self._mode_given = monitor, mode
        self._phase = 0
        self._best: float | None = None
        self._waited = 0
        self._sections: list[list[LayerGroup]] = []
        _check(self.phases, self.sections, decay, patience)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze what the first phase does not train, before the optimizer and DDP inspect the network."""
        if stage != "fit":
            return
        groups = layer_groups(network_of(pl_module))
        most = max(len(phase.lr) for phase in self.phases)
        if len(groups) < sum(self.sections[: most - 1]) + (most > len(self.sections)):
            names = ", ".join(group.name for group in groups)
            raise InputError(
                f"callbacks.unfreezing.sections is {self.sections}, but the network has {len(groups)} layer groups "
                f"({names}): give smaller sections, or fewer rates"
            )
        upwards = list(reversed(groups))
        self._sections = []
        for count in self.sections:
            self._sections.append(upwards[:count])
            upwards = upwards[count:]
        self._sections.append(upwards)
        if any(phase.epoch is None for phase in self.phases):
            self.monitor, self.mode = monitored(pl_module, self.monitor, self._mode_given)
        self._phase, self._best, self._waited = 0, None, 0
        self._freeze(pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the phase in which the run was saved, before the optimizer and DDP inspect the network."""
        saved = checkpoint["callbacks"].get(self.state_key)
        if saved is not None and self._sections:
            self._phase, self._best, self._waited = saved["phase"], saved["best"], saved["waited"]
            begun = slice(self._phase + 1)
            now = self.state_dict()
            same = all(saved[name] == now[name] for name in ("sections", "decay"))
            if not same or saved["phases"][begun] != now["phases"][begun]:
                raise InputError(
                    f"the run was in phase {self._phase + 1} of its unfreezing, with the sections "
                    f"{saved['sections']}, the decay {saved['decay']:g} and the phases {saved['phases']}: only phases "
                    "that have not begun can be changed"
                )
            self._freeze(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the phases, the current one, and the validations without improvement so far."""
        return {
            "phases": [asdict(phase) for phase in self.phases],
            "sections": self.sections,
            "decay": self.decay,
            "phase": self._phase,
            "best": self._best,
            "waited": self._waited,
        }

    @property
    def state_key(self) -> str:
        """A fixed key, whatever the phases are."""
        return "ProgressiveUnfreezing"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report what is trained; keep the frozen norms' statistics."""
        self._set_modes(pl_module)
        # A resumed run has logged its share of trained parameters before.
        self._tell(trainer, pl_module, log=trainer.global_step == 0)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the next phase if it is due."""
        if self._is_due(trainer.current_epoch):
            before = self.phases[self._phase].lr
            self._phase += 1
            self._best, self._waited = None, 0
            self._freeze(pl_module)
            self._set_rates(trainer, before[0])
            _wrap_anew(trainer)
            self._tell(trainer, pl_module, log=True)
        self._set_modes(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the validations without improvement of the monitored metric."""
        following = self.phases[self._phase + 1 : self._phase + 2]
        if trainer.sanity_checking or trainer.state.fn != "fit" or not following or following[0].epoch is not None:
            return
        check_logged(trainer, "callbacks.unfreezing", self.monitor)
        value = float(trainer.callback_metrics[str(self.monitor)])
        better = self._best is None or (value > self._best if self.mode == "max" else value < self._best)
        self._best = value if better else self._best
        self._waited = 0 if better else self._waited + 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if training has ended before the last phase, for example by early stopping."""
        if self._phase + 1 < len(self.phases) and not is_trial_run(trainer):
            rank_zero_warn(
                f"training ended in phase {self._phase + 1} of {len(self.phases)} of callbacks.unfreezing: layers that "
                "the later phases would have trained are as they were (more epochs, earlier phases, or more patience "
                "in callbacks.early_stopping)"
            )

    def _is_due(self, epoch: int) -> bool:
        if self._phase + 1 >= len(self.phases):
            return False
        begins = self.phases[self._phase + 1].epoch
        return self._waited >= self.patience if begins is None else epoch >= begins

    def _rates(self) -> dict[str, float]:
        """Return the learning rate of each layer group in this phase, 0 if it is frozen."""
        given = self.phases[self._phase].lr
        return {
            group.name: given[i] * self.decay**below if i < len(given) else 0.0
            for i, section in enumerate(self._sections)
            for below, group in enumerate(section)
        }

    def _groups(self) -> Iterator[tuple[LayerGroup, bool]]:
        """Yield each layer group, and whether it is trained."""
        trained = len(self.phases[self._phase].lr)
        for i, section in enumerate(self._sections):
            for group in section:
                yield group, i < trained

    def _freeze(self, pl_module: LightningModule) -> None:
        network = network_of(pl_module)
        for group, trained in self._groups():
            for _, parameter in group.parameters_of(network):
                parameter.requires_grad_(trained)
                if not trained:
                    parameter.grad = None
        pl_module.layer_rates = self._rates()  # type: ignore[assignment]

    def _set_modes(self, pl_module: LightningModule) -> None:
        network = network_of(pl_module)
        for group, trained in self._groups():
            for module in group.modules_of(network):
                if isinstance(module, (*BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)):
                    module.train(trained)

    def _set_rates(self, trainer: Trainer, head_before: float) -> None:
        rates = self._rates()
        for optimizer in trainer.optimizers:
            # The schedule's factor so far is the same for all layers as for the head.
            head = next(group for group in optimizer.param_groups if group["layers"] == self._sections[0][0].name)
            factor = head["lr"] / head_before
            for group in optimizer.param_groups:
                group["initial_lr"] = rates[group["layers"]]
                group["lr"] = group["initial_lr"] * factor
        for config in trainer.lr_scheduler_configs:
            if hasattr(config.scheduler, "base_lrs"):
                config.scheduler.base_lrs = [group["initial_lr"] for group in config.scheduler.optimizer.param_groups]

    def _tell(self, trainer: Trainer, pl_module: LightningModule, log: bool) -> None:
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network_of(pl_module).parameters()]
        total, trained = sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
        rates = ", ".join(f"{rate:g}" for rate in self.phases[self._phase].lr)
        rank_zero_info(
            f"epoch {trainer.current_epoch}, phase {self._phase + 1} of {len(self.phases)}: {trained:,} of {total:,} "
            f"parameters are trained ({trained / total:.1%}); learning rates from the head down: {rates}"
        )
        if log:
            write_metrics(trainer, {"train/trainable_share": trained / total}, trainer.global_step)


def network_of(pl_module: LightningModule) -> nn.Module:
    """Return a task's network, or the whole module if it has none."""
    network = getattr(pl_module, "network", pl_module)
    return network if isinstance(network, nn.Module) else pl_module


def _wrap_anew(trainer: Trainer) -> None:
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and isinstance(strategy.model, nn.parallel.DistributedDataParallel):
        strategy.model = strategy.lightning_module
        # Remove the old reducer's hooks before the new one registers its own.
        gc.collect()
        strategy.configure_ddp()


def _check(phases: list[Phase], sections: list[int], decay: float, patience: int) -> None:
    where = "callbacks.unfreezing"
    if not phases:
        raise InputError(f"{where}.phases is empty, expected one or more")
    if phases[0].epoch not in (0, None):
        raise InputError(f"{where}.phases: the first begins with epoch {phases[0].epoch}, expected 0")
    if not sections or min(sections) < 1:
        raise InputError(f"{where}.sections is {sections}, expected numbers of layer groups, 1 or more")
    if not 0 < decay <= 1:
        raise InputError(f"{where}.decay is {decay}, expected above 0, to 1")
    if patience < 1:
        raise InputError(f"{where}.patience is {patience}, expected 1 or more")
    epochs = [phase.epoch for phase in phases[1:] if phase.epoch is not None]
    if epochs != sorted(set(epochs)) or (epochs and epochs[0] < 1):
        raise InputError(f"{where}.phases begin with the epochs {epochs}, expected ascending ones, after 0")
    for phase in phases:
        if not 1 <= len(phase.lr) <= len(sections) + 1:
            raise InputError(
                f"{where}.phases: {len(phase.lr)} rates ({phase.lr}), expected 1 to {len(sections) + 1}: one for each "
                "section that is trained, from the head down"
            )
        if not phase.lr[0] > 0 or not all(torch.tensor(phase.lr) >= 0):
            raise InputError(f"{where}.phases: rates are {phase.lr}, expected 0 or more, the head's above 0")
