from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn

from cnnlab.batch import Batch
from cnnlab.data import MNIST
from cnnlab.errors import InputError
from cnnlab.tasks import Classification
from cnnlab.tasks.metrics import ExactAccuracy


def task(**kwargs: Any) -> Classification:
    return Classification(**{"channels": 1, **kwargs})


def trainer(folder: Path, **kwargs: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(
        **{
            "default_root_dir": folder,
            "accelerator": "cpu",
            "max_epochs": 1,
            "use_distributed_sampler": False,
            "enable_model_summary": False,
            **quiet,
            **kwargs,
        }
    )


def data(root: Path, **kwargs: Any) -> MNIST:
    return MNIST(root=str(root), **{"val_size": 64, "batch_size": 32, **kwargs})


def test_pixels_go_in_and_logits_come_out() -> None:
    model = task().eval()
    pixels = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    torch.testing.assert_close(model(pixels), model(pixels / 255))
    assert model(pixels).shape == (2, 10)


def test_the_step_measures_what_it_says() -> None:
    model = task(num_classes=3, label_smoothing=0.1)
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 0.0], [1.0, 0.0, 0.0]])
    targets = torch.tensor([0, 2, 1, 1])
    loss = model.loss(logits, targets)
    expected = nn.functional.cross_entropy(logits, targets, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)
    model.take_in(model.test_metrics, model.decode(logits), Batch.of((torch.zeros(4, 1, 28, 28), targets)), loss)
    values = model.test_metrics.compute()
    assert values["accuracy"].item() == 0.75
    assert values["loss"].item() == pytest.approx(expected.item())
    # F1 by hand: class 0 has 1 hit, 1 false alarm; class 1 has 1 hit, 1 miss; class 2 is perfect.
    assert values["f1"].item() == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert values["confusion_matrix"].tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    # In bins of a fifteenth: two right ones share a bin, the third right one and the wrong one have one each.
    sure, _, surer, unsure = logits.softmax(1).amax(1).tolist()
    expected_error = 2 / 4 * (1 - sure) + 1 / 4 * (1 - surer) + 1 / 4 * unsure
    assert values["calibration_error"].item() == pytest.approx(expected_error)


@pytest.mark.parametrize("top_k", [1, 5])
def test_accuracy_is_the_exact_quotient_of_counts(top_k: int) -> None:
    metric = ExactAccuracy(10, top_k)
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(997, 10, generator=generator), torch.randint(0, 10, (997,), generator=generator)
    for part in range(0, 997, 100):
        metric.update(logits[part : part + 100], targets[part : part + 100])
    right = int((logits.topk(top_k).indices == targets[:, None]).sum())
    assert metric.compute().item() == right / 997


def test_top_k_is_five_only_where_it_says_something() -> None:
    assert "accuracy_top5" in task(num_classes=10).test_metrics
    assert "accuracy_top2" in task(num_classes=10, top_k=2).test_metrics
    assert not any("top" in str(name) for name in task(num_classes=5).test_metrics)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"optimizer": "adamv"}, "did you mean"),
        ({"schedule": "cosinus"}, "did you mean"),
        ({"network": "simple_cnnn"}, "simple_cnn"),
        ({"lr": -1.0}, "lr is -1"),
        ({"label_smoothing": 2.0}, "label_smoothing is 2"),
        ({"top_k": 10}, "top_k is 10"),
        ({"class_names": ["a"]}, "1 class_names for 10"),
        ({"mean": [0.5], "std": [0.5, 0.5]}, "mean has 1 and std 2"),
    ],
)
def test_wrong_settings_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        task(**kwargs)


def test_hyperparameters_are_plain_values() -> None:
    """Checkpoints that torch.load's safe mode refused (Lightning-AI/pytorch-lightning#20450, #21757)."""
    with pytest.raises(InputError, match=r"hyperparameter network_args\.dropout is a \w*Path"):
        task(network_args={"dropout": Path("x")})


def test_norms_and_biases_are_spared_weight_decay(tmp_path: Path) -> None:
    model = task()
    model.trainer = trainer(tmp_path)
    optimizer = _optimizer(model)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in model.network.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim > 1), name


def _optimizer(model: Classification) -> torch.optim.Optimizer:
    from unittest.mock import PropertyMock, patch

    with patch.object(pl.Trainer, "estimated_stepping_batches", PropertyMock(return_value=10)):
        found: torch.optim.Optimizer = model.configure_optimizers()[0][0]
    return found


def test_weights_spread_over_processes_get_no_fused_step(tmp_path: Path) -> None:
    """FSDP on a GPU failed in the first step: "params, grads, exp_avgs, and exp_avg_sqs must have same dtype"."""
    from unittest.mock import PropertyMock, patch

    model = task()
    model.trainer = trainer(tmp_path)
    assert _optimizer(model).defaults["fused"]
    with patch.object(pl.Trainer, "strategy", PropertyMock(return_value=FSDPStrategy())):
        assert not _optimizer(model).defaults["fused"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_training_learns_in_every_precision(tmp_path: Path, mnist_root: Path, precision: Any) -> None:
    if precision == "16-mixed" and not torch.cuda.is_available():
        pytest.skip("16-mixed needs a GPU")
    pl.seed_everything(0)
    model = task(lr=0.01)
    accelerator = "cuda" if precision == "16-mixed" else "cpu"
    run = trainer(tmp_path, max_epochs=8, precision=precision, accelerator=accelerator, gradient_clip_val=1.0)
    run.fit(model, datamodule=data(mnist_root))
    assert model.results["val/accuracy"] > 0.9
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


class _Gradients(pl.Callback):
    """The gradient of each optimizer step."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.found.append(torch.cat([p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]))


def _gradients(folder: Path, root: Path, batch_size: int, accumulate: int, images: int) -> list[Tensor]:
    pl.seed_everything(0)
    # Without batch norm and dropout a batch's gradient is the mean of its parts'.
    model = task(network="tests.tasks.test_classification.linear")
    watch = _Gradients()
    run = trainer(folder, accumulate_grad_batches=accumulate, callbacks=[watch])
    run.fit(model, datamodule=data(root, batch_size=batch_size, val_size=320 - images, drop_last=False))
    return watch.found


def linear(num_classes: int, channels: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784 * channels, num_classes))


def test_four_batches_of_32_accumulate_to_the_gradient_of_one_of_128(tmp_path: Path, mnist_root: Path) -> None:
    accumulated = _gradients(tmp_path, mnist_root, 32, 4, images=128)
    at_once = _gradients(tmp_path, mnist_root, 128, 1, images=128)
    assert len(accumulated) == len(at_once) == 1
    torch.testing.assert_close(accumulated[0], at_once[0])


def test_the_last_incomplete_group_counts(tmp_path: Path, mnist_root: Path) -> None:
    found = _gradients(tmp_path, mnist_root, 32, 4, images=192)
    assert len(found) == 2
    assert found[1].abs().sum() > 0


def test_compiled_networks_keep_plain_names(tmp_path: Path, mnist_root: Path) -> None:
    """Checkpoints of compiled models whose keys begin with _orig_mod (Lightning-AI/pytorch-lightning#17415)."""
    model = task(compile=True)
    assert model.network._compiled_call_impl is not None
    assert set(model.state_dict()) == set(task().state_dict())


def test_init_from_takes_weights_and_nothing_else(tmp_path: Path, mnist_root: Path) -> None:
    """Loading weights went on with the old run instead (mehta-lab/VisCy#291)."""
    pl.seed_everything(0)
    first = task()
    run = trainer(tmp_path)
    run.fit(first, datamodule=data(mnist_root))
    run.save_checkpoint(tmp_path / "first.ckpt")
    second = task(num_classes=10, init_from=str(tmp_path / "first.ckpt"))
    again = trainer(tmp_path, max_epochs=0)
    again.fit(second, datamodule=data(mnist_root))
    assert again.global_step == 0
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name])


def test_init_from_leaves_what_does_not_fit(tmp_path: Path, mnist_root: Path) -> None:
    run = trainer(tmp_path, max_epochs=0)
    first = task()
    run.fit(first, datamodule=data(mnist_root))
    run.save_checkpoint(tmp_path / "first.ckpt")
    begun = {"init_from": str(tmp_path / "first.ckpt")}
    other = task(num_classes=11, **begun)
    head = other.network.state_dict()["head.5.weight"].clone()
    trainer(tmp_path, max_epochs=0).fit(other, datamodule=data(mnist_root))
    # Classes that are numbers are matched by them; the new one, 10, keeps its fresh row.
    assert torch.equal(other.network.state_dict()["head.5.weight"][:10], first.network.state_dict()["head.5.weight"])
    assert torch.equal(other.network.state_dict()["head.5.weight"][10], head[10])
    assert torch.equal(
        other.network.state_dict()["features.0.0.weight"], first.network.state_dict()["features.0.0.weight"]
    )
    with pytest.raises(InputError, match="none of its weights fits"):
        trainer(tmp_path, max_epochs=0).fit(
            task(network="tests.tasks.test_classification.linear", **begun), datamodule=data(mnist_root)
        )


def test_a_checkpoint_makes_the_task_again_without_the_command_line(tmp_path: Path, mnist_root: Path) -> None:
    """Values linked from the data were missing from checkpoints (Lightning-AI/pytorch-lightning#8981)."""
    source = data(mnist_root)
    model = task(class_names=[f"digit {i}" for i in range(10)], mean=source.mean, std=source.std)
    run = trainer(tmp_path)
    run.fit(model, datamodule=source)
    run.save_checkpoint(tmp_path / "x.ckpt")
    again = Classification.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True).eval()
    assert again.class_names[3] == "digit 3"
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 1, 28, 28), dtype=np.uint8))
    assert torch.equal(again(pixels), model.eval()(pixels))


def test_metrics_of_several_labels_do_not_depend_on_the_batches() -> None:
    """Torchmetrics takes logits for probabilities where all of a batch lie in 0..1."""
    task = Classification("simple_cnn", 2, channels=1, multi_label=True)
    logits = torch.tensor([[0.3, -2.0], [0.4, 0.2], [3.0, 0.1]])
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    whole, parts = task.stage_metrics("val"), task.stage_metrics("val")
    batch, loss = Batch.of((torch.zeros(3, 1, 8, 8), targets)), torch.tensor(0.0)
    task.take_in(whole, task.decode(logits), batch, loss)
    for i in range(3):
        one = Batch.of((batch.images[i : i + 1], targets[i : i + 1]))
        task.take_in(parts, task.decode(logits[i : i + 1]), one, loss)
    assert {name: value.tolist() for name, value in whole.compute().items()} == {
        name: value.tolist() for name, value in parts.compute().items()
    }
    assert float(whole.compute()["accuracy"]) == pytest.approx(5 / 6)


def test_a_size_that_the_network_does_not_take_is_named() -> None:
    task = Classification("vit_tiny_patch16_224", 3)
    with pytest.raises(InputError, match=r"does not take images of 64x64: .*network_args\.img_size 64"):
        task(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    smaller = Classification("vit_tiny_patch16_224", 3, network_args={"img_size": 64})
    assert smaller(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 3)
