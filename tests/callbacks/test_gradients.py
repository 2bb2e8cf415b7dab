import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cnnlab.callbacks.gradients import GradientMonitor
from cnnlab.errors import InputError
from cnnlab.loggers import MetricsCsv
from tests.conftest import Cnnlab
from tests.tasks.test_classification import trainer

Loss = Callable[[Tensor], Tensor]
MONITOR = ("--trainer.callbacks+=cnnlab.callbacks.gradients.GradientMonitor", "--trainer.callbacks.every_n_steps")


class Sum(nn.Module):
    """The sum of what its layers make of the same input, and of a number of its own if there is one."""

    def __init__(self, layers: dict[str, nn.Module], bias: float | None = None) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.bias = None if bias is None else nn.Parameter(torch.tensor(bias))

    def forward(self, x: Tensor) -> Tensor:
        total = torch.stack([layer(x) for layer in self.children()]).sum()
        return total if self.bias is None else total + self.bias


class Task(LightningModule):
    """Minimizes what its network says, by default without moving."""

    def __init__(self, network: nn.Module, loss: Loss = Tensor.sum, **sgd: Any) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.sgd = {"lr": 0.0, **sgd}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(self.network(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), **self.sgd)


def linear(*weights: float, bias: float | None = None) -> nn.Linear:
    layer = nn.Linear(len(weights), 1, bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weights]))
        if bias is not None:
            layer.bias.fill_(bias)
    return layer


def fit(
    folder: Path, model: LightningModule, monitor: GradientMonitor, inputs: list[list[float]], **kwargs: Any
) -> list[dict[str, float]]:
    """The rows of metrics.csv after a training with an input a batch; an absent value is NaN."""
    log = MetricsCsv(folder / "metrics.csv")
    run = trainer(folder, callbacks=[monitor], logger=log, **kwargs)
    run.fit(model, DataLoader(TensorDataset(torch.tensor(inputs)), batch_size=1))
    return [{name: float(value or "nan") for name, value in row.items()} for row in log.read()]


def warned(
    folder: Path, network: nn.Module, loss: Loss = Tensor.sum, steps: int = 4, lr: float = 0.0, **monitor: Any
) -> list[str]:
    """What a monitor that looks at each step says of inputs [2, 2]."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(folder, Task(network, loss, lr=lr), GradientMonitor(1, **monitor), [[2.0, 2.0]] * steps)
    return [str(warning.message) for warning in caught if "optimizer step" in str(warning.message)]


def test_norms_and_ratios_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    # d/dw is the input, d/dbias is 1: (2, 2, 1) has the norm 3, (2, 2) the root of 8; (3, 4, 12) has 13.
    network = Sum({"first": nn.Sequential(linear(3.0, 4.0, bias=12.0)), "second": linear(0.0, 0.0)}, bias=-0.5)
    (row,) = fit(tmp_path, Task(network), GradientMonitor(1), [[2.0, 2.0]])
    expected = {
        "gradients/norm/first.0": 3.0,
        "gradients/norm/second": math.sqrt(8),
        "gradients/norm/network": 1.0,
        "gradients/ratio/first.0": 3 / 13,
        "gradients/ratio/network": 2.0,
        "gradients/total_norm": math.sqrt(9 + 8 + 1),
    }
    assert row == pytest.approx({"step": 0, "epoch": 0, **expected})


def test_the_total_may_stand_alone(tmp_path: Path) -> None:
    (row,) = fit(tmp_path, Task(linear(3.0, 4.0)), GradientMonitor(1, per_layer=False), [[6.0, 8.0]])
    assert row == {"step": 0, "epoch": 0, "gradients/total_norm": 10}


def test_a_task_without_a_network_is_measured_as_a_whole(tmp_path: Path) -> None:
    class Whole(Task):
        def __init__(self) -> None:
            super().__init__(nn.Identity())
            del self.network
            self.layer = linear(3.0, 4.0)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.loss(self.layer(batch[0]))

    (row,) = fit(tmp_path, Whole(), GradientMonitor(1), [[6.0, 8.0]])
    assert row["gradients/ratio/layer"] == 2


def test_a_shared_parameter_counts_once(tmp_path: Path) -> None:
    first, second = linear(3.0, 4.0), linear(0.0, 0.0)
    second.weight = first.weight
    (row,) = fit(tmp_path, Task(Sum({"first": first, "second": second})), GradientMonitor(1), [[3.0, 4.0]])
    assert row["gradients/total_norm"] == row["gradients/norm/first"] == 10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_norms_have_the_digits_of_a_float32_in_other_precisions(tmp_path: Path, dtype: torch.dtype) -> None:
    network = linear(1.0, 1.0).to(dtype)
    model = Task(nn.Sequential(network), lambda output: output.sum())
    model.network.register_forward_pre_hook(lambda module, inputs: inputs[0].to(dtype))
    (row,) = fit(tmp_path, model, GradientMonitor(1), [[1.0, 1.0]])
    assert row["gradients/total_norm"] == pytest.approx(math.sqrt(2), rel=1e-6)


def test_only_real_steps_count_and_their_gradient_is_the_groups_mean(tmp_path: Path) -> None:
    inputs = [[1.0], [3.0], [10.0], [20.0], [5.0], [7.0], [1.0], [2.0]]
    rows = fit(tmp_path, Task(linear(1.0)), GradientMonitor(2), inputs, accumulate_grad_batches=2)
    assert [(row["step"], row["gradients/total_norm"]) for row in rows] == [(1, 15), (3, 1.5)]


def test_the_norm_is_that_before_clipping(tmp_path: Path) -> None:
    (row,) = fit(tmp_path, Task(linear(1.0)), GradientMonitor(1), [[5.0]], gradient_clip_val=1.0)
    assert row["gradients/total_norm"] == 5


@pytest.mark.parametrize("compiled", ["wrapped", "in place"])
def test_compiled_networks_keep_plain_names(tmp_path: Path, compiled: str) -> None:
    network: Any = nn.Sequential(linear(3.0, 4.0))
    if compiled == "wrapped":
        network = torch.compile(network, backend="eager")
    else:
        network.compile(backend="eager")
    (row,) = fit(tmp_path, Task(network), GradientMonitor(1), [[6.0, 8.0]])
    assert {name for name in row if "/" in name} == {
        "gradients/norm/0",
        "gradients/ratio/0",
        "gradients/total_norm",
    }


@pytest.mark.parametrize("fused", [True, False])
def test_loss_scaling_does_not_show(tmp_path: Path, fused: bool) -> None:
    """A fused optimizer unscales in its step, after the measurement."""
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    (row,) = fit(tmp_path, Task(linear(3.0, 4.0), fused=fused), GradientMonitor(1), [[6.0, 8.0]], plugins=[plugin])
    assert row["gradients/total_norm"] == 10
    assert row["gradients/ratio/network"] == 2


@pytest.mark.parametrize(("scale", "steps"), [(65536.0, []), (2.0, [2]), (0.5, [0])])
def test_an_overflow_is_news_once_the_loss_is_no_longer_scaled_up(
    tmp_path: Path, scale: float, steps: list[int]
) -> None:
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
    model = Task(linear(1.0), lambda output: output.sum() * float("inf"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, model, GradientMonitor(1), [[1.0]] * 4, plugins=[plugin])
    messages = [str(warning.message) for warning in caught if "not finite" in str(warning.message)]
    assert [int(re.findall(r"step (\d+)", message)[0]) for message in messages] == steps


def dead() -> nn.Module:
    """A layer whose ReLUs no input of [2, 2] makes positive, and one behind it that still learns its bias."""
    first, second = nn.Linear(2, 2), linear(1.0, 1.0, bias=1.0)
    with torch.no_grad():
        first.bias.fill_(-100.0)
    return nn.Sequential(first, nn.ReLU(), second)


def test_a_dead_layer_is_named_once_and_not_at_the_first_step(tmp_path: Path) -> None:
    (message,) = warned(tmp_path, dead())
    assert message.startswith("optimizer step 1 (0 is the first), 0: their gradient is exactly zero")


def test_a_residual_branch_that_begins_with_zero_is_in_order(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 2), linear(0.0, 0.0))
    assert warned(tmp_path, network, lr=0.1) == []


def test_each_layer_is_reported_once_for_each_kind_of_trouble(tmp_path: Path) -> None:
    factors = iter([1.0, 1e6, 1e6, float("nan"), float("inf"), 1.0])
    network = Sum({"a": linear(1.0, 1.0), "b": linear(2.0, 2.0)})
    messages = warned(tmp_path, network, lambda x: x * next(factors), steps=6)
    assert [message.partition(":")[0] for message in messages] == [
        "optimizer step 1 (0 is the first), a, b",
        "optimizer step 3 (0 is the first), a, b",
    ]
    assert "more than 100 times" in messages[0]
    assert "not finite" in messages[1]


def test_a_layer_that_joins_later_is_reported_by_itself(tmp_path: Path) -> None:
    factors = iter([1.0, 60.0, 200.0, 200.0])
    network = Sum({"a": linear(1.0, 1.0), "b": linear(2.0, 2.0)})
    messages = warned(tmp_path, network, lambda x: x * next(factors))
    assert [re.findall(r"step (\d).*first\), (.*?):", message)[0] for message in messages] == [("1", "a"), ("2", "b")]


@pytest.mark.parametrize(("limit", "count"), [(1.9, 1), (2.1, 0), (float("inf"), 0)])
def test_the_ratio_has_a_limit(tmp_path: Path, limit: float, count: int) -> None:
    messages = warned(tmp_path, linear(1.0, 1.0), warn_above=limit)
    assert len(messages) == count
    assert all("0 (0 is the first), network: their gradient is more than 1.9 times" in text for text in messages)


def test_a_long_list_shows_its_ends(tmp_path: Path) -> None:
    network = Sum({f"layer{number}": linear(1.0, 1.0) for number in range(12)})
    (message,) = warned(tmp_path, network, lambda output: output * float("inf"))
    assert "layer0, layer1, layer2, layer3, 4 more, layer8, layer9, layer10, layer11: " in message


def test_a_trained_layer_that_takes_no_part_is_named_once(tmp_path: Path) -> None:
    network = nn.Sequential(linear(1.0, 1.0))
    network.aside = linear(1.0, 1.0)
    network.forward = lambda x: network[0](x)  # type: ignore[method-assign]
    (message,) = warned(tmp_path, network)
    assert message.startswith("optimizer step 0 (0 is the first), aside: trained, but the loss did not reach them")
    assert not any("aside" in name for name in MetricsCsv(tmp_path / "metrics.csv").read()[0])


def test_frozen_parameters_are_left_out_in_silence(tmp_path: Path) -> None:
    frozen, partly = linear(1.0, 1.0).requires_grad_(False), linear(3.0, 4.0, bias=2.0)
    partly.weight.requires_grad_(False)
    network = Sum({"frozen": frozen, "partly": partly})
    (row,) = fit(tmp_path, Task(network), GradientMonitor(1), [[2.0, 2.0]])
    assert {name: value for name, value in row.items() if "/" in name} == {
        "gradients/norm/partly": 1,
        "gradients/ratio/partly": 0.5,
        "gradients/total_norm": 1,
    }


def test_nothing_is_touched_when_it_is_not_its_turn() -> None:
    monitor, nothing = GradientMonitor(5), cast(Any, None)
    for step in (0, 3, 5, 8):
        monitor.on_before_optimizer_step(cast(Any, SimpleNamespace(global_step=step)), nothing, nothing)
    with pytest.raises(AttributeError):
        monitor.on_before_optimizer_step(cast(Any, SimpleNamespace(global_step=4)), nothing, nothing)


def test_its_rows_are_those_of_the_steps_loss_and_training_stays_the_same(
    fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path
) -> None:
    monitored = fit(*MONITOR, "2", "--run=R")
    assert monitored.code == 0, monitored.err
    rows = MetricsCsv(tmp_path / "R/metrics.csv").read()
    layers = ["features.0.0", "features.0.1", "features.2.0", "features.2.1", "features.4.0", "features.4.1"]
    layers += ["head.2", "head.5"]
    names = [f"gradients/{kind}/{layer}" for kind in ("norm", "ratio") for layer in layers] + ["gradients/total_norm"]
    assert [name for name in rows[0] if name.startswith("gradients/")] == sorted(names)
    assert [int(row["step"]) for row in rows] == list(range(16))
    for row in rows:
        assert row["train/loss_step"]
        assert all(bool(row[name]) == (int(row["step"]) % 2 == 1) for name in names)

    assert fit("--run=without").code == 0
    with_it, without = (
        torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True) for run in ("R", "without")
    )
    for name, weights in without["state_dict"].items():
        assert torch.equal(with_it["state_dict"][name], weights), name
    states = [run["exact_resume"]["random"][0]["torch"] for run in (with_it, without)]
    assert torch.equal(*states)


def test_a_bad_interval_is_refused_on_the_command_line(fit: Cnnlab) -> None:
    result = fit(*MONITOR, "0")
    assert result.code == 2
    assert "callbacks.gradients.every_n_steps is 0, expected more than 0" in result.err


@pytest.mark.parametrize(("name", "value"), [("every_n_steps", -1), ("warn_above", 0.0), ("warn_above", float("nan"))])
def test_impossible_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"callbacks.gradients.{name} is {value}, expected more than 0"):
        GradientMonitor(**{name: value})  # type: ignore[arg-type]
