"""Runs as processes of their own: killed, interrupted, resumed, launched twice."""

import csv
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cnnlab.checkpoint import read_checkpoint
from tests.conftest import TINY, command, run_process, start_process

pytestmark = pytest.mark.slow

FLAGS = [
    "--trainer.max_epochs=4",
    "--callbacks.last.every_n_steps=3",
    "--callbacks.ema=true",
    "--trainer.accumulate_grad_batches=2",
    "--data.batch_size=16",
]
"""16 batches, 8 steps an epoch, with averaged weights, dropout and augmentation."""


def rows(folder: Path) -> list[dict[str, str]]:
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if "images_per_second" not in key} for row in found]


def fit_arguments(root: Path, run: str) -> list[str]:
    return ["fit", "--config", str(TINY), "--data.root", str(root), "--run", run, *FLAGS]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, mnist_root: Path) -> Path:
    """A run without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_process(*fit_arguments(mnist_root, "R"), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "R"


def kill_in_the_middle(root: Path, cwd: Path, signum: signal.Signals, after_rows: int) -> tuple[int, str]:
    """Start a run, send it a signal when it has logged so many steps; return its exit status and output."""
    process = start_process(*fit_arguments(root, "R"), cwd=cwd)
    deadline = time.monotonic() + 120
    while len(rows(cwd / "R")) < after_rows:
        assert process.poll() is None, process.finish().stderr
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signum)
    done = process.finish(120)
    return done.returncode, done.stdout + done.stderr


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


@pytest.mark.parametrize(
    ("signum", "code", "after"),
    # In the middle of the second epoch; in the third; right after the first, where best.ckpt may be the newest; late.
    [
        (signal.SIGTERM, 143, 12),
        (signal.SIGUSR1, 138, 15),
        (signal.SIGINT, 130, 19),
        (signal.SIGKILL, -9, 8),
        (signal.SIGKILL, -9, 22),
    ],
    ids=str,
)
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, mnist_root: Path, whole: Path, signum: signal.Signals, code: int, after: int
) -> None:
    """Users met runs that silently started from scratch (Lightning#18524), or lost their checkpoint at preemption.

    The latter are Lightning#20542 and #21406, lightning-hydra-template#146. Here only the steps since the last save are
    repeated.
    """
    found, out = kill_in_the_middle(mnist_root, tmp_path, signum, after)
    assert found == code, out
    reached = len(rows(tmp_path / "R"))
    saved = torch.load(tmp_path / "R/checkpoints/last.ckpt", weights_only=True)["global_step"]
    if signum == signal.SIGKILL:
        # A save each 3 steps; the last one may not have been on the disk yet, but the one before it was.
        assert reached - saved <= 6
    else:
        assert saved == reached
        assert "go on with: cnnlab resume R" in out
        assert "Traceback" not in out
    done = run_process("resume", "R", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = torch.load(whole / "checkpoints/last.ckpt", weights_only=True)
    resumed = torch.load(tmp_path / "R/checkpoints/last.ckpt", weights_only=True)
    for key in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "loops"):
        assert equal(expected[key], resumed[key]), f"{key} differs after an interruption at step {reached}"
    assert rows(tmp_path / "R") == rows(whole)
    assert len(json.loads((tmp_path / "R/environment.json").read_text())["resumed"]) == 1


def test_two_processes_share_one_folder_and_predict_each_image_once(tmp_path: Path, mnist_root: Path) -> None:
    """Users met a folder for each process, predictions in a wrong order, and tables that overwrote each other.

    See Lightning#7679, torchgeo#1621; Lightning#10782, #13580 and #17521; Lightning#11380.
    """
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    flags = ["--config", str(TINY), "--data.root", str(mnist_root), *two]
    # From nothing, as a user starts it, both processes: those of the other tests are forked.
    fit = command("fit", *flags, "--trainer.max_epochs=2", "--callbacks.ema=true")
    done = subprocess.run(fit, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert [int(row["step"]) for row in rows(folder)] == list(range(8))
    alone = run_process("test", folder, "--trainer.devices=1", "--trainer.strategy=auto", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    by_one = json.loads((folder / "test.json").read_text())
    assert run_process("test", folder, cwd=tmp_path).returncode == 0
    by_two = json.loads((folder / "test.json").read_text())
    for name in ("test/accuracy", "test/accuracy_top5", "test/f1"):
        assert by_two[name] == by_one[name]
    done = run_process("predict", folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    by_two_rows = (folder / "predictions.csv").read_text()
    assert (
        run_process("predict", folder, "--trainer.devices=1", "--trainer.strategy=auto", cwd=tmp_path).returncode == 0
    )
    assert (folder / "predictions.csv").read_text() == by_two_rows
    with (folder / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["index"]) for row in table] == list(range(50))
    right = sum(row["target"] == row["label"] for row in table)
    assert right / len(table) == by_one["test/accuracy"]


def test_two_processes_stop_together_and_go_on(tmp_path: Path, mnist_root: Path) -> None:
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--callbacks.last.every_n_minutes=100"]
    (tmp_path / "late.py").write_text(
        "import os, signal, torch\n"
        "from cnnlab.tasks import Classification\n"
        "class Late(Classification):\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        if self.trainer.global_step == 6 and self.trainer.is_global_zero and 'STOP' in os.environ:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        # Each process has drawn other random numbers than the other when it is stopped.
        "        torch.rand(self.global_rank)\n"
        "        return super().training_step(batch, batch_idx)\n"
    )
    base = ["fit", "--config", str(TINY), "--data.root", str(mnist_root), "--model=late.Late", *two]
    assert run_process(*base, "--run", "whole", cwd=tmp_path).returncode == 0
    stopped = run_process(*base, "--run", "R", cwd=tmp_path, STOP="1")
    assert stopped.returncode == 143, stopped.stderr
    assert "cnnlab resume R" in stopped.stderr
    saved = torch.load(tmp_path / "R/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 7
    done = run_process("resume", "R", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = torch.load(tmp_path / "whole/checkpoints/last.ckpt", weights_only=True)
    resumed = torch.load(tmp_path / "R/checkpoints/last.ckpt", weights_only=True)
    assert equal(expected["state_dict"], resumed["state_dict"])
    # Sums of losses are added in another order where two processes' halves meet.
    for ours, theirs in zip(rows(tmp_path / "R"), rows(tmp_path / "whole"), strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert ours[key] == theirs[key] or float(ours[key]) == pytest.approx(float(theirs[key]), rel=1e-6)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, mnist_root: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "from cnnlab.tasks import Classification\n"
        "class Slow(Classification):\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        if self.trainer.global_step == 3:\n"
        "            print('sleeping', flush=True)\n"
        "            time.sleep(100)\n"
        "        return super().training_step(batch, batch_idx)\n"
    )
    arguments = [*fit_arguments(mnist_root, "R"), "--model=slow.Slow"]
    process = subprocess.Popen(
        command(*arguments), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "sleeping" in line:
            break
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130, out
    assert "cnnlab resume R" in out
    assert torch.load(tmp_path / "R/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3


KILLS = int(os.environ.get("CNNLAB_KILLS", "5"))
"""Kills in the test; make drill sets 30."""


def unfinished_files(folder: Path) -> list[Path]:
    """What is being written beside the checkpoints, or was when its writer was killed."""
    return [path for path in folder.iterdir() if path.name not in ("last.ckpt", "best.ckpt")]


def stop_within_a_write(process: Any, folder: Path) -> None:
    """Stop a process at a moment at which it writes a checkpoint."""
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None
        assert time.monotonic() < deadline
        if unfinished_files(folder):
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.05)
            if unfinished_files(folder):
                return
            process.send_signal(signal.SIGCONT)


@pytest.mark.timeout(120 + 40 * KILLS)
def test_kills_at_random_moments_cost_no_checkpoint(tmp_path: Path, mnist_root: Path) -> None:
    """A run that is killed repeatedly ends with the weights of an uninterrupted one; also while it writes them."""
    flags = ["--trainer.max_epochs", str(4 * KILLS), "--callbacks.last.every_n_steps", "1", "--callbacks.ema", "true"]
    fit = ["fit", "--config", str(TINY), "--data.root", str(mnist_root), *flags, "--trainer.enable_progress_bar=false"]
    checkpoints = tmp_path / "R/checkpoints"
    dice, unfinished = random.Random(), 0
    for number in range(KILLS):
        begun = len(rows(tmp_path / "R"))
        process = start_process(*fit, "--run", "R", "--resume", "auto", cwd=tmp_path)
        deadline = time.monotonic() + 120
        while len(rows(tmp_path / "R")) <= begun:
            assert process.poll() is None, process.finish().stderr
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(dice.uniform(0, 1))
        if number % 2:
            stop_within_a_write(process, checkpoints)
        process.send_signal(signal.SIGKILL)
        done = process.finish(60)
        assert done.returncode == -signal.SIGKILL, done.stderr
        unfinished += bool(unfinished_files(checkpoints))
        for name in ("last.ckpt", "best.ckpt"):
            if (checkpoints / name).exists():
                read_checkpoint(checkpoints / name)
    assert unfinished >= KILLS // 2
    for arguments in ([*fit, "--run", "R", "--resume", "auto"], [*fit, "--run", "whole"]):
        done = run_process(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    killed, whole = (torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True) for run in ("R", "whole"))
    for key in ("state_dict", "current_model_state", "optimizer_states"):
        assert equal(killed[key], whole[key]), key
    assert rows(tmp_path / "R") == rows(tmp_path / "whole")
    assert sorted(path.name for path in checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_disk_that_fills_during_a_save_stops_the_run_with_the_reason(tmp_path: Path, mnist_root: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        fit: list[str | Path] = ["fit", "--config", TINY, "--data.root", mnist_root, "--run", disk / "R"]
        done = run_process(*fit, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        saved = read_checkpoint(disk / "R/checkpoints/last.ckpt")
        room = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(room.f_bavail * room.f_frsize - 200_000))
        full = run_process("resume", disk / "R", "--trainer.max_epochs", "4", cwd=tmp_path)
        assert full.returncode == 2, full.stderr
        assert "cannot save" in full.stderr
        assert "No space left on device" in full.stderr
        assert "Make room, then resume the run" in full.stderr
        assert "Traceback" not in full.stderr
        assert equal(read_checkpoint(disk / "R/checkpoints/last.ckpt")["state_dict"], saved["state_dict"])
        (disk / "filler").unlink()
        done = run_process("resume", disk / "R", "--trainer.max_epochs", "4", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert read_checkpoint(disk / "R/checkpoints/last.ckpt")["global_step"] == 32
    finally:
        subprocess.run(["umount", str(disk)], check=True)
