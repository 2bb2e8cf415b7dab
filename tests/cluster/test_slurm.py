"""Jobs on a real SLURM of two nodes, written and submitted by cnnlab slurm."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.cluster.conftest import Slurm
from tests.conftest import TINY, run_process

# One cluster for all of them.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("slurm")]

OPTIONS = ("--nodes", "2", "--gpus-per-node", "0", "--time", "30")
DEADLINE = 240

SLOW = """\
import time
from cnnlab.tasks import Classification

class Slow(Classification):
    def training_step(self, batch, batch_idx):
        time.sleep(0.1)
        return super().training_step(batch, batch_idx)
"""


def steps(run: Path) -> list[int]:
    path = run / "metrics.csv"
    if not path.exists():
        return []
    try:
        with path.open(newline="") as file:
            return [int(row["step"]) for row in csv.DictReader(file)]
    except ValueError:
        # A row that is being written.
        return []


def wait(until: Callable[[], bool], what: str, log: Path) -> None:
    deadline = time.monotonic() + DEADLINE
    while not until():
        if time.monotonic() > deadline:
            printed = "\n".join(path.read_text()[-3000:] for path in sorted(log.glob("*.out")))
            pytest.fail(f"{what}: not after {DEADLINE} s\n{printed}")
        time.sleep(0.1)


def submitted(slurm: Slurm, folder: Path, *arguments: str | Path) -> str:
    """Submit with cnnlab slurm, and return the job's number."""
    done = run_process("slurm", *arguments, cwd=folder, **slurm.environment)
    assert done.returncode == 0, done.stderr
    return str(json.loads(next(folder.rglob("slurm/jobs.json")).read_text())[-1])


def test_folds_are_trained_as_an_array_and_gathered(slurm: Slurm, tmp_path: Path, photos: Path) -> None:
    """The folder's name has spaces; a second job in the same run is refused."""
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    recipe = TINY.with_name("image_folder.yaml")
    fit: list[str | Path] = ["fit", "--config", recipe, "--data.root", photos, "--trainer.max_epochs", "1"]
    fit += ["--callbacks.unfreezing", "false"]
    options = ("--gpus-per-node", "0", "--folds", "2", "--copy-data", "--comment", "two words", "--hold")

    def cnnlab(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return run_process(*arguments, cwd=folder, **slurm.environment)

    refused = cnnlab("slurm", *options, "--partition", "no", "--", *fit, "--run", "R")
    assert refused.returncode == 2
    assert "sbatch refuses" in refused.stderr
    job = submitted(slurm, folder, *options, "--", *fit, "--run", "R")
    again = cnnlab("slurm", *options, "--", *fit, "--run", "R", "--resume", "auto")
    assert f"job {job} of R waits or runs" in again.stderr
    slurm.ask("scontrol", "release", job)
    wait(lambda: slurm.ask("squeue", "--noheader", f"--job={job}") == "", "the end", folder / "R/slurm")
    said = cnnlab("slurm", "status", "R").stdout
    assert f"job {job}_0  completed" in said
    assert f"job {job}_1  completed" in said
    gathered = run_process("crossval", *fit[1:], "--folds", "2", "--run", "R", cwd=folder)
    assert gathered.returncode == 0, gathered.stderr
    assert json.loads((folder / "R/crossval.json").read_text())["folds"] == 2


def test_the_drill(slurm: Slurm, tmp_path: Path, mnist_root: Path) -> None:
    """A run that is requeued by three signals and killed once ends with the weights of an uninterrupted one.

    Users met lost checkpoints and hangs after preemption (Lightning#20542, #21406; lightning-hydra-template#146), a W&B
    run for each process (Lightning#11380), and offline W&B runs that kept their last piece only (wandb#2423, #4624).
    """
    (tmp_path / "slow.py").write_text(SLOW)
    fit: list[str | Path] = [
        "fit",
        "--config",
        TINY,
        "--data.root",
        mnist_root,
        "--model",
        "slow.Slow",
        "--trainer.max_epochs",
        "25",
    ]
    fit += ["--config", "logger/wandb", "--callbacks.ema", "true", "--callbacks.last.every_n_steps", "5"]
    job = submitted(slurm, tmp_path, *OPTIONS, "--", *fit, "--run", "R")
    run = tmp_path / "R"
    assert slurm.state(job)["Requeue"] == "1"
    dice = random.Random(time.time_ns())
    interruptions = [["scancel", "--signal=USR1", job]] * 3 + [["scontrol", "requeue", job]]
    dice.shuffle(interruptions)
    for count, interruption in enumerate(interruptions):
        goal = max(steps(run), default=-1) + dice.randint(4, 16)
        # Of an interrupted run rows may be dropped: it must write new ones first.
        wait(lambda count=count: slurm.state(job)["Restarts"] == str(count), f"restart {count}", run / "slurm")  # type: ignore[misc]
        wait(lambda goal=goal: max(steps(run), default=-1) >= goal, f"step {goal}", run / "slurm")  # type: ignore[misc]
        time.sleep(dice.uniform(0, 0.5))
        slurm.ask(*interruption)
    ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
    wait(lambda: slurm.state(job)["JobState"] in ended, "the end", run / "slurm")
    state = slurm.state(job)
    printed = (run / "slurm" / f"{job}.out").read_text()
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("COMPLETED", "0:0", "4"), printed
    # W&B's own process, which the kill reaches as well, complains by itself.
    assert printed.count("stopped by SIGUSR1 after step") == 3
    assert "cnnlab/cli.py" not in printed

    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 25 * 4
    assert steps(run) == list(range(25 * 4))
    alone = run_process(
        *fit,
        "--run",
        "alone",
        "--trainer.devices",
        "2",
        "--trainer.strategy",
        "ddp",
        "--trainer.logger",
        "false",
        cwd=tmp_path,
        OMP_NUM_THREADS="1",
    )
    assert alone.returncode == 0, alone.stderr
    expected = torch.load(tmp_path / "alone/checkpoints/last.ckpt", weights_only=True)
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, last[key][name]) for name, value in expected[key].items()), key
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir() and not path.name.startswith("__")) == [
        "R",
        "alone",
    ]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    pieces = [folder.name.rpartition("-")[2] for folder in run.glob("wandb/offline-run-*")]
    assert set(pieces) == {json.loads((run / "wandb.json").read_text())["id"]}
    assert len(pieces) <= 5
    said = run_process("slurm", "status", "R", cwd=tmp_path, **slurm.environment)
    assert f"job {job}  completed" in said.stdout
    assert "R  step 100  val/accuracy" in said.stdout
