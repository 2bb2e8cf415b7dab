"""What cnnlab takes for granted of Lightning's, TorchMetrics' and W&B's private names."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from cnnlab import lightning_compat
from cnnlab.strategies import FullyShard


class Line(LightningModule):
    """A network of one weight, which notes at each batch whether gradients are accumulated."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)
        self.accumulating: list[bool] = []
        self.steps: list[int] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.line(batch[0]).square().mean()
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.accumulating.append(lightning_compat.is_accumulating(self.trainer))
        self.steps.append(self.trainer.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **kwargs: Any) -> Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(
        default_root_dir=folder, accelerator="cpu", max_epochs=1, enable_checkpointing=False, **quiet, **kwargs
    )


def test_accumulation_ends_with_each_optimizer_step(tmp_path: Path) -> None:
    module = Line()
    data = DataLoader(TensorDataset(torch.ones(5, 1)), batch_size=1)
    trainer(tmp_path, accumulate_grad_batches=2).fit(module, data)
    # The last batch of an epoch is a step although its group is not full.
    assert module.accumulating == [True, False, True, False, False]
    assert module.steps == [0, 1, 1, 2, 3]


def test_a_module_is_attached_to_the_trainer_that_runs_it(tmp_path: Path) -> None:
    module = Line()
    assert not lightning_compat.is_attached(module)
    module.trainer = trainer(tmp_path)
    assert lightning_compat.is_attached(module)


def test_a_trainer_has_the_arguments_that_it_does_not_declare(tmp_path: Path) -> None:
    plain = trainer(tmp_path, log_every_n_steps=7)
    assert lightning_compat.log_every_n_steps(plain) == 7
    assert not lightning_compat.is_trial_run(plain)
    assert not lightning_compat.is_overfitting(plain)
    assert lightning_compat.is_trial_run(trainer(tmp_path, fast_dev_run=2))
    assert lightning_compat.is_overfitting(trainer(tmp_path, overfit_batches=0.5))


def test_a_loaded_metric_continues_its_mean() -> None:
    saved, metric = MeanMetric(), MeanMetric()
    saved.update(torch.tensor([1.0, 2.0]))
    saved.update(torch.tensor([6.0]))
    metric.update(torch.tensor([100.0]))
    assert metric.compute() == 100
    lightning_compat.load_metric(metric, saved.metric_state, saved.update_count)
    # Neither the cached value nor the count of before is left.
    assert metric.compute() == 3
    assert metric.update_count == 2
    metric.update(torch.tensor([3.0]))
    assert metric.compute() == 3


def test_a_local_metric_asks_no_other_process() -> None:
    asked = []

    def available() -> bool:
        asked.append(True)
        return False

    shared = MeanMetric(distributed_available_fn=available)
    shared.update(torch.tensor([1.0]))
    shared.compute()
    assert asked
    asked.clear()
    local = MeanMetric(dist_sync_fn=_fail, distributed_available_fn=lambda: True)
    local.update(torch.tensor([1.0]))
    lightning_compat.compute_locally(local)
    assert local.compute() == 1


def _fail(*args: Any) -> list[Tensor]:
    raise AssertionError("the metric has asked another process")


def test_the_data_parallel_size_counts_processes() -> None:
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = context.SimpleQueue()
    processes = [context.Process(target=_mesh, args=(rank, port, results)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [results.get() for _ in processes] == [{"data_parallel": 2, "tensor_parallel": 1}] * 2


def _mesh(rank: int, port: int, results: Any) -> None:
    """The mesh that FullyShard makes on one node of two processes."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    warnings.simplefilter("ignore")
    made = Trainer(accelerator="cpu", devices=2, strategy=FullyShard(), logger=False, enable_checkpointing=False)
    made.strategy.connect(Line())
    made.strategy.setup_environment()
    mesh = made.strategy.device_mesh  # type: ignore[attr-defined]
    results.put({name: mesh[name].size() for name in mesh.mesh_dim_names})


@pytest.mark.parametrize("path", ["mailbox.MailboxClosedError", "mailbox_handle.HandleAbandonedError"])
def test_wandb_still_has_the_errors_of_an_ended_process(path: str) -> None:
    module, name = path.split(".")
    error = getattr(importlib.import_module(f"wandb.sdk.mailbox.{module}"), name)
    assert not issubclass(error, ConnectionError)
    assert lightning_compat.has_wandb_ended(error())
    assert lightning_compat.has_wandb_ended(BrokenPipeError())
    assert not lightning_compat.has_wandb_ended(ValueError())
