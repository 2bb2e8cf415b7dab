"""The same numbers from one process and from several."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY, processes, run_process, write_mnist

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("images", "counts"), [(2, (1, 3)), (13, (1, 2, 3))])
def test_any_number_of_processes_measures_and_predicts_the_same(
    tmp_path: Path, images: int, counts: tuple[int, ...]
) -> None:
    """Users met predictions in a wrong order (Lightning#10782, #17521), and samples that were counted twice in a test.

    The latter are Lightning#7929 and #12862. One case has fewer images than processes.
    """
    write_mnist(tmp_path / "data", test=images)
    done = run_process("fit", "--config", TINY, "--data.root", "data", "--run", "R", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scores, tables = [], []
    for count in counts:
        for command in ("test", "predict"):
            done = run_process(command, "R", *processes(count), "--data.batch_size", "3", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        scores.append(json.loads((tmp_path / "R/test.json").read_text()))
        files = ("predictions.csv", "confusion_matrix.csv", "classes.csv", "reliability.csv")
        tables.append([(tmp_path / "R" / name).read_bytes() for name in files])
    assert scores == [scores[0]] * len(counts)
    assert tables == [tables[0]] * len(counts)
    assert tables[0][0].count(b"\n") == images + 1


WATCH = """\
import hashlib
from pathlib import Path
from cnnlab.tasks import Classification

class Watch(Classification):
    def training_step(self, batch, batch_idx):
        hashes = [hashlib.sha1(image.numpy().tobytes() + bytes([int(t)])).hexdigest() for image, t in zip(*batch)]
        with Path(self.trainer.default_root_dir, f"seen-{self.global_rank}.txt").open("a") as file:
            print(*hashes, file=file)
        return super().training_step(batch, batch_idx)
"""


def test_two_processes_train_on_the_batches_of_one(tmp_path: Path, mnist_root: Path) -> None:
    """Each step has the same samples with the same augmentation; without batch norm, the losses are equal."""
    (tmp_path / "watch.py").write_text(WATCH)
    fit: list[str | Path] = [
        "fit",
        "--config",
        TINY,
        "--data.root",
        mnist_root,
        "--model",
        "watch.Watch",
        "--model.group_norm",
        "true",
    ]
    fit += ["--model.dropout", "0", "--trainer.max_epochs", "3"]
    for run, count in (("one", 1), ("two", 2)):
        size = ("--data.batch_size", str(32 // count))
        done = run_process(*fit, "--run", run, *processes(count), *size, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    seen = [
        (tmp_path / name).read_text().splitlines() for name in ("one/seen-0.txt", "two/seen-0.txt", "two/seen-1.txt")
    ]
    assert len(seen[0]) == 24
    assert seen[0] == [f"{first} {second}" for first, second in zip(*seen[1:], strict=True)]
    losses = []
    for run in ("one", "two"):
        with (tmp_path / run / "metrics.csv").open(newline="") as file:
            losses.append([float(row["train/loss_step"]) for row in csv.DictReader(file)])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_the_learning_rate_follows_the_batch_of_all_processes(tmp_path: Path, mnist_root: Path) -> None:
    fit: list[str | Path] = [
        "fit",
        "--config",
        TINY,
        "--data.root",
        mnist_root,
        "--model.schedule",
        "constant",
        "--model.warmup",
        "0",
    ]
    fit += ["--model.lr_scaling", "linear", "--model.lr_batch_size", "64", "--data.batch_size", "16"]
    done = run_process(*fit, "--run", "R", "--trainer.accumulate_grad_batches", "4", *processes(2), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the learning rate is 0.02 (0.01 times 2), as a step sees 128 samples on 2 process(es), not 64" in (
        done.stdout + done.stderr
    )
    with (tmp_path / "R/metrics.csv").open(newline="") as file:
        rates = {row[name] for row in csv.DictReader(file) for name in row if name.startswith("lr-") and row[name]}
    assert rates == {"0.02"}
    # One process alone goes on with what its own batch has.
    resumed = run_process("resume", "R", *processes(1), "--trainer.max_epochs", "3", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    with (tmp_path / "R/metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert {last[name] for name in last if name.startswith("lr-")} == {"0.01"}


LOGGED = """\
import os
from pathlib import Path
from cnnlab.tasks import Classification

original = Path.replace

def replace(self, target):
    with Path("writes.txt").open("a") as file:
        print(os.environ.get("LOCAL_RANK", "0"), Path(target).name, file=file)
    return original(self, target)

Path.replace = replace

class Logged(Classification):
    pass
"""


def test_what_a_run_writes_is_written_by_its_first_process(tmp_path: Path, photos: Path) -> None:
    """Users met callbacks of the first process that blocked the others (Lightning#18148, #16417).

    Unfreezing, averaged weights, Grad-CAM, the ONNX file and the report all run here.
    """
    pytest.importorskip("onnxruntime")
    (tmp_path / "logged.py").write_text(LOGGED)
    fit: list[str | Path] = [
        "fit",
        "--config",
        TINY.with_name("image_folder.yaml"),
        "--data.root",
        photos,
        "--model",
        "logged.Logged",
    ]
    fit += ["--callbacks.ema", "true", "--callbacks.onnx", "true", "--callbacks.gradients", "true", "--run", "R"]
    done = run_process(*fit, *processes(2), "--data.batch_size", "6", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "phase 3 of 3" in done.stdout + done.stderr
    assert run_process("test", "R", cwd=tmp_path).returncode == 0
    assert run_process("predict", "R", cwd=tmp_path).returncode == 0
    for name in ("model.onnx", "model.onnx.json", "report.html", "predictions.csv", "test.json", "manifest.csv"):
        assert (tmp_path / "R" / name).is_file(), name
    assert (tmp_path / "R/pictures/gradcam.png").is_file()
    writes = [line.split() for line in (tmp_path / "writes.txt").read_text().splitlines()]
    assert {"report.html", "best.ckpt", "last.ckpt", "model.onnx", "predictions.csv"} <= {name for _, name in writes}
    assert {rank for rank, _ in writes} == {"0"}


STOP = """\
import os, signal
from cnnlab.tasks import Classification

class Stop(Classification):
    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == 10 and self.trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().training_step(batch, batch_idx)
"""


def test_fully_sharded_networks_train_as_others_do(tmp_path: Path, mnist_root: Path) -> None:
    """PyTorch's fully_shard on two processes gives DDP's weights, whole checkpoints, and a run that can be resumed."""
    fit: list[str | Path] = [
        "fit",
        "--config",
        TINY,
        "--data.root",
        mnist_root,
        "--data.batch_size",
        "16",
        "--trainer.max_epochs",
        "2",
    ]
    # Adam would make steps of a bias before a batch norm, whose gradient is nothing but rounding.
    # Another memory format adds up in another order.
    fit += ["--model.optimizer", "sgd", "--model.lr", "0.05", "--model.channels_last", "false"]
    sharded = ["--config", "trainer/fully_shard", "--trainer.accelerator", "cpu"]
    done = run_process(*fit, *sharded, "--run", "sharded", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "callbacks.gradcam draws nothing" in done.stderr
    assert run_process(*fit, *processes(2), "--run", "ddp", cwd=tmp_path).returncode == 0
    weights = [torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True) for run in ("sharded", "ddp")]
    assert weights[0]["state_dict"].keys() == weights[1]["state_dict"].keys()
    for name, value in weights[1]["state_dict"].items():
        torch.testing.assert_close(weights[0]["state_dict"][name], value, atol=1e-6, rtol=1e-5)
    # The statistics of the batch norms are those of the first process on both.
    measured = []
    for run in ("sharded", "ddp"):
        with (tmp_path / run / "metrics.csv").open(newline="") as file:
            measured += [[float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]]
    assert measured[0] == pytest.approx(measured[1], rel=1e-6)
    # One process tests what two have trained, and two what they have trained; of 5 batches one has 3, the other 2.
    found = []
    for flags in (processes(1), ()):
        assert run_process("test", "sharded", *flags, "--data.batch_size", "10", cwd=tmp_path).returncode == 0
        found.append(json.loads((tmp_path / "sharded/test.json").read_text())["test/accuracy"])
    assert found[0] == found[1]

    start = ("--model.init_from", "ddp/checkpoints/last.ckpt", "--model.lr", "0", "--trainer.max_epochs", "1")
    begun = run_process(*fit, *sharded, "--run", "begun", *start, cwd=tmp_path)
    assert begun.returncode == 0, begun.stderr
    same = torch.load(tmp_path / "begun/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    name = "network.head.5.weight"
    assert torch.equal(same[name], weights[1]["state_dict"][name])

    (tmp_path / "stop.py").write_text(STOP)
    stopped = run_process(*fit, *sharded, "--run", "half", "--model", "stop.Stop", cwd=tmp_path)
    assert stopped.returncode == 143, stopped.stderr
    resumed = run_process("resume", "half", "--model", "cnnlab.tasks.Classification", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    again = torch.load(tmp_path / "half/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, again[name]) for name, value in weights[0]["state_dict"].items())


def test_a_graph_that_never_changes_may_be_compiled(tmp_path: Path, mnist_root: Path) -> None:
    fit: list[str | Path] = ["fit", "--config", TINY, "--data.root", mnist_root, "--data.batch_size", "16"]
    # Compiled, dropout draws other numbers.
    fit += ["--model.dropout", "0"]
    static = ["--config", "trainer/ddp_static_graph"]
    losses = []
    for run, flags in (("static", [*static, "--trainer.accelerator", "cpu"]), ("plain", processes(2))):
        done = run_process(*fit, *flags, "--run", run, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        with (tmp_path / run / "metrics.csv").open(newline="") as file:
            losses.append([float(row["train/loss_step"]) for row in csv.DictReader(file)])
    assert losses[0] == pytest.approx(losses[1], abs=2e-2)
