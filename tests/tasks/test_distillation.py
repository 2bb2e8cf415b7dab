"""A student learns from its teacher, which leaves no trace but its name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cnnlab.batch import Batch
from cnnlab.data import MNIST
from cnnlab.errors import InputError
from cnnlab.interpret import feature_maps
from cnnlab.losses import attention_transfer, soft_targets
from cnnlab.tasks import Classification, Distillation
from cnnlab.tasks.base import load_task
from cnnlab.tasks.teacher import LogitsCache, find_teacher
from tests.conftest import TINY, Cnnlab, Result, patterns, run_process

RECIPE = TINY.with_name("distillation.yaml")


@pytest.fixture
def teach(cnnlab: Cnnlab, fit: Cnnlab, mnist_root: Path) -> Cnnlab:
    """``cnnlab fit`` with the tiny recipe for distillation, into the folder S; the teacher is the run T."""
    assert not fit("--run", "T", "--trainer.max_epochs", "1").code

    def run(*flags: str | Path) -> Result:
        return cnnlab("fit", "--config", RECIPE, "--data.root", mnist_root, "--run", "S", *flags)

    return run


def test_soft_targets_by_hand() -> None:
    # T 2: the teacher says softmax(0, 1), the student softmax(0, 0).
    student, teacher = torch.zeros(1, 2), torch.tensor([[0.0, 2.0]])
    p = torch.tensor([1.0, torch.e]) / (1 + torch.e)
    expected = 4 * (p * (p / 0.5).log()).sum()
    torch.testing.assert_close(soft_targets(student, teacher, 2.0), expected)
    # The mean over the batch, and never below 0.
    torch.testing.assert_close(soft_targets(student.repeat(3, 1), teacher.repeat(3, 1), 2.0), expected)
    logits = torch.randn(8, 5)
    assert soft_targets(logits, logits + 3).item() == pytest.approx(0, abs=1e-6)


def test_the_gradients_of_soft_targets_are_as_large_as_the_cross_entropy_s() -> None:
    """At high temperatures the gradient tends to that of half the squared distance of logits with mean 0, over K."""
    teacher = torch.tensor([[1.0, -2.0, 0.5, 0.5]])
    student = torch.zeros(1, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(soft_targets(student, teacher, 1000.0), student)
    torch.testing.assert_close(gradient, (student.detach() - teacher) / 4, rtol=1e-2, atol=1e-3)


def test_half_precision_does_not_overflow() -> None:
    student, teacher = torch.full((2, 3), 6e4).half(), torch.tensor([[6e4, 0.0, 0.0]] * 2).half()
    assert torch.isfinite(soft_targets(student, teacher))
    features = torch.full((1, 2, 3, 3), 6e4).half()
    assert torch.isfinite(attention_transfer(features, features))


def test_attention_transfer_by_hand() -> None:
    left, right = torch.zeros(1, 2, 1, 2), torch.zeros(1, 3, 1, 2)
    left[0, :, 0, 0] = 5.0
    right[0, :, 0, 1] = 0.1
    assert attention_transfer(left, left).item() == 0
    # Nothing in common: both maps have length 1 and are at right angles.
    assert attention_transfer(left, right).item() == pytest.approx(2)
    # A larger map is averaged to the size of the smaller.
    assert attention_transfer(left.repeat_interleave(2, dim=3), left).item() == pytest.approx(0, abs=1e-6)


class Constant(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return self.logits.expand(len(images), -1)


def test_the_loss_in_training_and_elsewhere() -> None:
    from cnnlab.tasks.teacher import Teacher

    task = Distillation("T", alpha=0.7, temperature=4.0, channels=1, num_classes=3, label_smoothing=0.1)
    taught = torch.tensor([[3.0, 0.0, -1.0]])
    task._held = [Teacher(nn.Identity(), Constant(taught), None, "T", "0")]
    images, targets = torch.rand(2, 1, 28, 28), torch.tensor([0, 2])
    loss, logits = task.train().loss_and_outputs(Batch.of((images, targets)))
    hard = cross_entropy(logits, targets, label_smoothing=0.1)
    torch.testing.assert_close(loss, 0.7 * soft_targets(logits, taught.expand(2, -1), 4.0) + 0.3 * hard)
    loss, logits = task.eval().loss_and_outputs(Batch.of((images, targets)))
    torch.testing.assert_close(loss, cross_entropy(logits, targets))
    # Switching the student to training leaves the teacher alone, and nothing of it is the student's.
    assert not task.train().teacher.training
    assert not any("logits" in name for name in task.state_dict())
    assert not any(parameter is task.teacher.network.logits for parameter in task.parameters())


def test_what_is_saved_is_a_plain_classifier_that_says_who_taught_it(
    teach: Cnnlab, cnnlab: Cnnlab, tmp_path: Path
) -> None:
    """A frozen teacher made every checkpoint larger (Lightning-AI/pytorch-lightning#17592, #19514)."""
    result = teach()
    assert not result.code, result.err
    for name in ("best", "last"):
        checkpoint = torch.load(tmp_path / f"S/checkpoints/{name}.ckpt", weights_only=True)
        assert checkpoint["cnnlab"]["task"] == "cnnlab.tasks.classification.Classification"
        assert checkpoint["cnnlab"]["teacher"]["origin"] == "T/checkpoints/best.ckpt"
        assert len(checkpoint["cnnlab"]["teacher"]["sha256"]) == 64
        assert sum(value.numel() for value in checkpoint["state_dict"].values()) < 2000
        assert not {"teacher", "alpha", "temperature"} & set(checkpoint["hyper_parameters"])
    assert type(load_task(tmp_path / "S/checkpoints/best.ckpt")) is Classification
    # Neither testing nor what comes after needs the teacher.
    (tmp_path / "T").rename(tmp_path / "gone")
    assert not cnnlab("test", "S").code
    assert not cnnlab("predict", "S").code
    (tmp_path / "S/checkpoints/best.ckpt").rename(tmp_path / "student.ckpt")
    assert not cnnlab("test", "student.ckpt", "--run", "elsewhere").code


STOP = """
import os, signal
from lightning.pytorch import Callback

class Stop(Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 11:
            os.kill(os.getpid(), signal.SIGTERM)
"""


def test_an_interrupted_run_ends_with_the_same_weights_and_takes_no_other_teacher(
    teach: Cnnlab, cnnlab: Cnnlab, tmp_path: Path
) -> None:
    assert not teach().code
    (tmp_path / "stopping.py").write_text(STOP)
    assert teach("--run", "I", "--trainer.callbacks+=stopping.Stop").code == 143
    (tmp_path / "T").rename(tmp_path / "gone")
    refused = cnnlab("resume", "I")
    assert refused.code == 2
    assert "model.teacher T: there is no such run or checkpoint" in refused.err
    shutil.copytree(tmp_path / "S", tmp_path / "T")
    refused = cnnlab("resume", "I")
    assert refused.code == 2
    assert "is not the teacher that the run began with" in refused.err
    shutil.rmtree(tmp_path / "T")
    (tmp_path / "gone").rename(tmp_path / "T")
    assert not cnnlab("resume", "I").code
    one, other = (
        torch.load(tmp_path / f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in ("S", "I")
    )
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.teacher", "nowhere"], "no such run or checkpoint; as a network"),
        (["--model.teacher", "simple_cnn"], "is a network without weights"),
        (["--model.teacher", "resnet18"], "whose classes are ImageNet's, and the data have 10 of their own"),
        (["--model.alpha", "2"], "model.alpha is 2.0, expected 0..1"),
        (["--model.temperature", "0"], "model.temperature is 0.0, expected above 0"),
        (["--model.teacher_size", "0"], "model.teacher_size is 0"),
        (["--model.features", '{"nothing": "features"}'], "no layer 'nothing'"),
        (["--model.cache", "true"], "the data augment it"),
        (["--model.cache", "true", "--model.features", '{"features": "features"}'], "exclude each other"),
    ],
)
def test_what_does_not_fit_is_named(teach: Cnnlab, flags: list[str], message: str) -> None:
    result = teach(*flags)
    assert result.code == 2
    assert message in result.err


def test_a_teacher_of_other_classes_or_images_is_refused(
    tmp_path: Path, fit: Cnnlab, photos: Path, cnnlab: Cnnlab
) -> None:
    assert not fit("--run", "T", "--trainer.max_epochs", "1").code
    student = Distillation("T", channels=1, num_classes=3, class_names=["a", "b", "c"])
    with pytest.raises(InputError, match=r"tells 10 classes apart.*the data have 3 \(a, b, c\)"):
        find_teacher("T", student)
    turned = Distillation("T", channels=1, num_classes=10, class_names=[str(9 - i) for i in range(10)])
    with pytest.raises(InputError, match="the same classes in another order"):
        find_teacher("T", turned)
    colored = Distillation("T", channels=3, num_classes=10)
    with pytest.raises(InputError, match="takes images of 1 channels, not 3"):
        find_teacher("T", colored)


def test_a_teacher_by_its_name_brings_its_own_preprocessing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=4)
    torch.save(network.state_dict(), tmp_path / "resnet10t.pth")
    student = Distillation("resnet10t", teacher_weights=str(tmp_path), channels=3, num_classes=4)
    teacher = find_teacher("resnet10t", student, str(tmp_path), None, ["0", "1", "2", "3"])
    assert teacher.size == (176, 176)
    images = torch.randint(0, 256, (2, 3, 176, 176), dtype=torch.uint8)
    known = timm.get_pretrained_cfg("resnet10t")
    assert known is not None
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (known.mean, known.std))
    with torch.no_grad():
        torch.testing.assert_close(teacher(images), network.eval()((images / 255 - mean) / std), rtol=1e-4, atol=1e-4)
        # Another size is brought to its own: an even image stays even, and on its scale.
        even = torch.full((1, 3, 64, 80), 90, dtype=torch.uint8)
        large = torch.full((1, 3, 176, 176), 90, dtype=torch.uint8)
        torch.testing.assert_close(teacher(even), teacher(large), rtol=1e-4, atol=1e-4)
    student = Distillation("resnet10t", channels=3, num_classes=5)
    with pytest.raises(InputError, match="does not hold weights"):
        find_teacher("resnet10t", student, str(tmp_path), None, student.class_names)


def test_where_the_teacher_s_features_are_strong_is_learned_too(teach: Cnnlab, tmp_path: Path) -> None:
    pair = ("--model.features", '{"features.4": "features.4"}', "--model.alpha", "0")
    distance = {}
    for weight in (0, 100):
        assert not teach(*pair, "--model.features_weight", str(weight), "--run", f"F{weight}").code
        student = load_task(tmp_path / f"F{weight}/checkpoints/last.ckpt")
        teacher = load_task(tmp_path / "T/checkpoints/best.ckpt")
        images = torch.from_numpy(patterns(64, seed=5)[0][:, None])
        own, taught = (feature_maps(task, images, ["network.features.4"]) for task in (student, teacher))
        distance[weight] = attention_transfer(*own.values(), *taught.values()).item()
    assert distance[100] < 0.8 * distance[0]


def test_the_cache_asks_once_for_each_image() -> None:
    asked: list[int] = []

    def compute(images: Tensor) -> Tensor:
        asked.append(len(images))
        return images.flatten(1)[:, :2].float()

    cache = LogitsCache()
    images = torch.randint(0, 256, (6, 1, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(cache(images[:4], compute), images[:4].flatten(1)[:, :2].float())
    torch.testing.assert_close(cache(images[[5, 0, 3]], compute), images[[5, 0, 3]].flatten(1)[:, :2].float())
    torch.testing.assert_close(cache(images[[5, 0]], compute), images[[5, 0]].flatten(1)[:, :2].float())
    assert asked == [4, 1]


def test_cached_logits_train_the_same_student(teach: Cnnlab, tmp_path: Path) -> None:
    plain = ("--data.degrees", "0")
    assert not teach(*plain).code
    assert not teach(*plain, "--run", "C", "--model.cache", "true").code
    one, other = (
        torch.load(tmp_path / f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in ("S", "C")
    )
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_learn_from_one_teacher(teach: Cnnlab, tmp_path: Path, mnist_root: Path) -> None:
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "16")
    flags = ("--callbacks.onnx", "true", "--data.root", mnist_root, "--run", "D")
    done = run_process("fit", "--config", RECIPE, *two, *flags, cwd=tmp_path)
    assert not done.returncode, done.stderr
    checkpoint = torch.load(tmp_path / "D/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 16
    assert (tmp_path / "D/model.onnx.json").is_file()


def test_it_works_without_the_command_line(mnist_root: Path, tmp_path: Path, teach: Cnnlab) -> None:
    import lightning.pytorch as pl

    data = MNIST(root=str(mnist_root), val_size=64, batch_size=32)
    task = Distillation("T", network="simple_cnn", channels=1, class_names=data.class_names)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, use_distributed_sampler=False, **quiet
    )
    trainer.fit(task, data)
    assert task.results["val/loss"] > 0
