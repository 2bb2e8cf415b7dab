"""Job scripts, and jobs that are refused before submission."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import timm
import torch
import yaml

from cnnlab import cluster
from cnnlab.cluster import ArrayTask
from cnnlab.errors import InputError
from tests.conftest import TINY, TINY_PHOTOS, Cnnlab, run_process

CPU = ("--gpus-per-node", "0")


@pytest.fixture
def job(cnnlab: Cnnlab, mnist_root: Path) -> Cnnlab:
    """``cnnlab slurm OPTIONS --dry-run -- fit`` with the tiny recipe; flags of fit come after "--"."""

    def run(*arguments: str | Path) -> object:
        options: tuple[str | Path, ...] = arguments
        flags: tuple[str | Path, ...] = ()
        if "--" in arguments:
            at = arguments.index("--")
            options, flags = arguments[:at], arguments[at + 1 :]
        return cnnlab("slurm", *options, "--dry-run", "--", "fit", "--config", TINY, "--data.root", mnist_root, *flags)

    return run  # type: ignore[return-value]


def lines(script: str) -> list[str]:
    return [line for line in script.splitlines() if line.startswith("#SBATCH")]


def test_the_script_says_what_the_job_needs(job: Cnnlab, tmp_path: Path) -> None:
    result = job("--nodes", "2", "--gpus-per-node=4", "--cpus_per_task", "8", "--time", "8:00:00", "--partition", "gpu",
                 "--account=me", "--exclusive", "--", "--run", "R", "--data.batch_size", "16")  # fmt: skip
    assert result.code == 0, result.err
    for line in ("nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "cpus-per-task=8", "time=8:00:00", "partition=gpu",
                 "account=me", "exclusive", "requeue", "open-mode=append", "signal=SIGUSR1@90", f"chdir={tmp_path}",
                 f"output={tmp_path}/R/slurm/%j.out"):  # fmt: skip
        assert f"#SBATCH --{line}" in lines(result.out)
    (command,) = (line for line in result.out.splitlines() if "srun --kill" in line)
    assert "--trainer.num_nodes 2 --trainer.devices 4 --trainer.accelerator gpu --trainer.strategy ddp" in command
    assert command.endswith(f"--resume auto --run {tmp_path}/R || status=$?")
    assert "a step takes 16 x 8 = 128 of 256 images" in result.out
    assert "--model.lr_scaling linear" in result.out
    assert not list(tmp_path.iterdir())


def test_a_shell_can_read_it(job: Cnnlab, tmp_path: Path, photos: Path, cnnlab: Cnnlab) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b/ph").symlink_to(photos)
    result = cnnlab("slurm", *CPU, "--array", "0-2", "--copy-data", "--dry-run", "--", "fit", "--config", TINY_PHOTOS,
                    "--data.root", "a b/ph", "--run", "it's")  # fmt: skip
    assert result.code == 0, result.err
    script = result.out.partition("note:")[0]
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    # With SLURM's commands replaced, the shell hands on each word as it was.
    stand_ins = 'srun() { printf "%s\\n" "$@"; }\nscontrol() { echo host; }\nexport -f srun scontrol\n'
    variables = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "host", "SLURM_ARRAY_TASK_ID": "2"}
    run = subprocess.run(["bash"], input=stand_ins + script + "\n", text=True, capture_output=True, check=False,
                         env={**os.environ, **variables})  # fmt: skip
    words = run.stdout.splitlines()
    assert words[words.index("--seed_everything") + 1] == "2"
    assert f"{tmp_path}/it's/seed-2" in words
    assert f"{tmp_path}/a b/ph" in words


@pytest.mark.parametrize(("status", "requeued"), [(138, True), (0, False), (1, False), (143, False)])
def test_only_a_run_that_has_saved_itself_is_queued_again(job: Cnnlab, status: int, requeued: bool) -> None:
    stand_ins = f'srun() {{ return {status}; }}\nscontrol() {{ echo "$@"; }}\nsleep() {{ :; }}\n'
    stand_ins += "export CNNLAB_ADDRESS=here SLURM_JOB_ID=7 SLURM_ARRAY_JOB_ID=6 SLURM_ARRAY_TASK_ID=1\n"
    for options, number in (((), "7"), (("--array", "0-1"), "6_1")):
        script = job(*CPU, *options).out.partition("note:")[0]
        run = subprocess.run(["bash"], input=stand_ins + script, text=True, capture_output=True, check=False)
        assert run.returncode == status
        assert run.stdout.strip() == (f"requeue {number}" if requeued else "")


def test_only_a_training_goes_on(fit: Cnnlab, cnnlab: Cnnlab) -> None:
    """A requeued test would start from the beginning each time."""
    assert fit().code == 0
    tests = cnnlab("slurm", *CPU, "--dry-run", "--", "test", "R").out
    assert "SIGUSR1" not in tests
    assert "scontrol requeue" not in tests
    assert "scontrol requeue" in cnnlab("slurm", *CPU, "--dry-run", "--", "resume", "R").out
    refused = cnnlab("slurm", *CPU, "--dry-run", "--", "resume", "R", "--ckpt_path", "best")
    assert "would start at --ckpt_path again" in refused.err


def test_the_data_are_read_from_their_copy(
    tmp_path: Path, photos: Path, cnnlab: Cnnlab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names stay the same although the original files are slow, or (here) empty."""
    import shutil

    shutil.copytree(photos, tmp_path / "p")
    shutil.copytree(photos, tmp_path / "copy")
    fit = ("fit", "--config", TINY_PHOTOS, "--data.root", "p", "--trainer.max_epochs", "1", "--callbacks.unfreezing",
           "false")  # fmt: skip
    assert cnnlab(*fit, "--run", "A").code == 0
    for path in (tmp_path / "p").rglob("*.jpg"):
        path.write_bytes(b"")
    assert cnnlab(*fit, "--run", "B", "--data.num_workers", "0").code == 2
    monkeypatch.setenv("CNNLAB_COPY", f"{tmp_path}/p={tmp_path}/copy")
    assert cnnlab(*fit, "--run", "C").code == 0
    a, c = (torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True) for run in "AC")
    assert all(torch.equal(value, c["state_dict"][name]) for name, value in a["state_dict"].items())
    assert c["datamodule_hyper_parameters"]["root"] == "p"


def test_only_wandb_without_network_is_offline(job: Cnnlab) -> None:
    wandb = ("--", "--config", "logger/wandb")
    assert "export WANDB_MODE=offline" in job(*CPU, *wandb).out
    assert "WANDB_MODE" not in job(*CPU, "--online", *wandb).out
    assert "WANDB_MODE" not in job(*CPU).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nodes", "many"), "--nodes is 'many', expected a number, 1 or more"),
        (("--time", "soon"), "--time is 'soon', expected minutes"),
        (("--time", "1"), "the last 90 seconds are reserved for saving"),
        (("nodes",), "'nodes' is no option"),
        (("--array", "1-x"), "--array is '1-x', expected seeds"),
        (("--folds", "1"), "--folds is 1, expected 2 or more"),
        (("--array", "0-1", "--folds", "2"), "choose one"),
        (("--ntasks-per-node", "2"), "each GPU has one process"),
        (("--sweep", "none.yaml"), "--sweep none.yaml: No such file"),
        (("--copy-data",), "MNIST has no image files that are read repeatedly"),
        (("--", "--trainer.devices", "2"), "leave it out, and give --gpus-per-node"),
        (("--nodes", "9"), "a step takes 32 x 9 = 288 images, and there are only 256 for training"),
        (("--", "--callbacks.last", "false"), "callbacks.last is off"),
        (("--time", "4"), "callbacks.last.every_n_minutes is 5, and the job has 4 minutes"),
        (("--", "--model.lrr", "1"), "did you mean"),
        (("--folds", "5"), "folds"),
        (("--count", "5"), "--count is the number of random points of a --sweep"),
        (("--", "--model", "Distillation", "--model.teacher", "nobody"), "model.teacher nobody: there is no such run"),
        (("--", "--model.init_from", "none.ckpt"), "model.init_from none.ckpt: there is no run or checkpoint"),
        (
            ("--", "--config", "logger/wandb", "--trainer.logger.log_model", "true"),
            "log_model uploads checkpoints to W&B",
        ),
        (("--", "--data.root", "nowhere"), "nowhere"),
    ],
)
def test_what_would_fail_later_is_refused(
    job: Cnnlab, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = job(*arguments)
    assert result.code == 2, result.out
    assert message in result.err
    assert not list(tmp_path.glob("runs/*"))


def test_weights_that_nodes_could_not_fetch_are_missed(
    cnnlab: Cnnlab, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compute nodes have no internet (huggingface/diffusers#5519): the missing weights are named before submission."""
    monkeypatch.setenv("CNNLAB_WEIGHTS", str(tmp_path / "w"))
    fit = ("fit", "--config", TINY_PHOTOS, "--data.root", photos, "--model.weights", "pretrained")
    arguments = ("slurm", *CPU, "--dry-run", "--", *fit)
    missing = cnnlab(*arguments)
    assert missing.code == 2
    assert "the pretrained weights of test_resnet" in missing.err
    assert "cnnlab fetch" in missing.err
    (tmp_path / "w").mkdir()
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w/test_resnet.pth")
    for name in ("test_resnet", "timm/test_resnet"):
        found = cnnlab(*arguments, "--model.network", name)
        assert found.code == 0, found.err
        assert f"export CNNLAB_WEIGHTS={tmp_path}/w" in found.out


def test_without_slurm_torchrun_is_named(
    cnnlab: Cnnlab, mnist_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "is_available", lambda: False)
    arguments = ("--", "fit", "--config", TINY, "--data.root", mnist_root, "--run", "R")
    one = cnnlab("slurm", *CPU, "--ntasks-per-node", "2", *arguments)
    assert one.code == 2
    assert "this machine has no SLURM" in one.err
    assert "torchrun --standalone --nproc-per-node 2 -m -- cnnlab fit" in one.err
    array = cnnlab("slurm", *CPU, "--array", "3-4", *arguments)
    assert f"--seed_everything 3 --run {tmp_path}/R/seed-3 (and so on for each task)" in array.err
    two = cnnlab("slurm", *CPU, "--nodes", "2", *arguments)
    assert "torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint FIRST_NODE:29500 --rdzv-id R" in two.err
    assert not list(tmp_path.iterdir())


def test_an_old_run_is_not_overwritten_by_a_job(fit: Cnnlab, job: Cnnlab) -> None:
    assert fit().code == 0
    refused = job(*CPU, "--", "--run", "R")
    assert refused.code == 2
    assert "R exists already" in refused.err
    assert job(*CPU, "--", "--run", "R", "--resume", "auto").code == 0


def test_the_script_alone_queues_a_job_again(cnnlab: Cnnlab, mnist_root: Path, tmp_path: Path) -> None:
    """Lightning requeues from a signal handler, also in a test, which would then restart for ever."""
    (tmp_path / "looks.py").write_text(
        "from pathlib import Path\n"
        "from cnnlab.tasks import Classification\n"
        "class Looks(Classification):\n"
        "    def on_fit_start(self):\n"
        "        environment = self.trainer._accelerator_connector.cluster_environment\n"
        "        Path('seen.txt').write_text(f'{type(environment).__name__} {environment.auto_requeue}')\n"
        "        super().on_fit_start()\n"
    )
    variables = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NAME": "x",
                 "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1"}  # fmt: skip
    fit = ("fit", "--config", TINY, "--data.root", mnist_root, "--model", "looks.Looks", "--run", "R")
    done = run_process(*fit, "--trainer.devices", "1", "--trainer.max_epochs", "1", cwd=tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "seen.txt").read_text() == "SLURMEnvironment False"


def test_a_sweep_is_a_run_for_each_point(tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    parameters = {
        "model.lr": {"values": [0.1, 1e-05]},
        "data.augment": {"value": "light"},
        "x": {"values": [True, [1, 2]]},
    }
    grid.write_text(yaml.safe_dump({"method": "grid", "parameters": parameters}, sort_keys=False))
    tasks = cluster.sweep_tasks(tmp_path / "S", grid, None)
    assert [task.flags for task in tasks][1:3] == [
        ("--model.lr", "0.1", "--data.augment", "light", "--x", "[1, 2]"),
        ("--model.lr", "1e-05", "--data.augment", "light", "--x", "true"),
    ]
    assert tasks[3].run == tmp_path / "S/point-3"
    space = {"lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1}, "n": {"min": 1, "max": 3}}
    grid.write_text(yaml.safe_dump({"method": "bayes", "parameters": space}, sort_keys=False))
    with pytest.raises(InputError, match="has no run_cap: give the number of points with --count"):
        cluster.sweep_tasks(tmp_path, grid, None)
    drawn = cluster.sweep_tasks(tmp_path, grid, 200)
    assert drawn == cluster.sweep_tasks(tmp_path, grid, 200)
    rates = [float(task.flags[1]) for task in drawn]
    assert sum(rate < 10**-2.5 for rate in rates) == pytest.approx(100, abs=30)
    assert {task.flags[3] for task in drawn} == {"1", "2", "3"}
    grid.write_text("just text")
    with pytest.raises(InputError, match="is not a W&B sweep"):
        cluster.sweep_tasks(tmp_path, grid, 2)


def test_seeds_are_written_as_slurm_writes_arrays(tmp_path: Path) -> None:
    tasks, max_parallel = cluster.seed_tasks(tmp_path, "3,5-6")
    assert tasks[0] == ArrayTask(tmp_path / "seed-3", ("--seed_everything", "3"))
    assert [task.run.name for task in tasks] == ["seed-3", "seed-5", "seed-6"]
    assert max_parallel is None
    with pytest.raises(InputError, match="expected seeds"):
        cluster.seed_tasks(tmp_path, "0-4%0")


def test_folds_lie_where_crossval_gathers_them(tmp_path: Path) -> None:
    assert cluster.fold_tasks(tmp_path, 2)[1] == ArrayTask(
        tmp_path / "fold-1", ("--data.folds", "2", "--data.fold", "1")
    )
