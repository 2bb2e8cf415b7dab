"""Checks of runs that find objects, the same for boxes and masks."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import torch

from tests.conftest import processes, run_process

STOP = """
import os, signal
from lightning.pytorch import Callback

class Stop(Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 8:
            os.kill(os.getpid(), signal.SIGTERM)
"""


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def check_interrupted(flags: tuple[str, ...], folder: Path) -> None:
    """A run that is stopped in its second epoch and resumed ends with the weights of one that is not."""
    assert run_process("fit", *flags, "--run", "whole", cwd=folder).returncode == 0
    (folder / "stopping.py").write_text(STOP)
    stopped = run_process("fit", *flags, "--run", "R", "--trainer.callbacks+=stopping.Stop", cwd=folder)
    assert stopped.returncode == 143
    done = run_process("resume", "R", cwd=folder)
    assert done.returncode == 0, done.stderr
    whole, again = (
        torch.load(folder / run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in ("whole", "R")
    )
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def check_two_processes(run: Path, folder: Path) -> None:
    """One and two processes measure the same, but for the loss, whose sum they round."""
    measured = []
    for count in (1, 2):
        done = run_process("test", run, *processes(count), cwd=folder)
        assert done.returncode == 0, done.stderr
        content = json.loads((run / "test.json").read_text())
        content.pop("test/loss")
        measured.append(content)
    assert measured[0] == measured[1]
