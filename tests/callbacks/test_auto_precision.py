"""--trainer.precision auto through the real command line: what it chooses, keeps and leaves as it is."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from torch import nn

from cnnlab.callbacks import auto_precision
from cnnlab.callbacks.auto_precision import try_steps
from cnnlab.checkpoint import read_checkpoint
from cnnlab.commands import crossval
from cnnlab.data import MNIST
from cnnlab.precision import Trial
from cnnlab.run import Run
from cnnlab.tasks import Classification
from cnnlab.writing import write_json
from tests.conftest import TINY, TINY_PHOTOS, Cnnlab, processes, run_process
from tests.data.objects.pictures import write_objects

QUIET = [f"--callbacks.{name}=false" for name in ("gradcam", "errors", "validation_pictures")]
AUTO = ["--trainer.precision", "auto", *QUIET]


@pytest.fixture
def gain(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Let this machine have bf16 units, and a trial of steps say this gain; returns a list with an entry for each."""

    def set_gain(times: float) -> list[int]:
        tried: list[int] = []

        def tell(*_: Any) -> Trial:
            tried.append(1)
            return Trial(0.066, 0.066 / times, 32)

        monkeypatch.setattr("cnnlab.precision.has_bf16_units", lambda: True)
        monkeypatch.setattr(auto_precision, "try_steps", tell)
        return tried

    return set_gain


def kept(folder: Path) -> tuple[Any, Any]:
    """The precision in config.yaml and in the last checkpoint."""
    checkpoint = read_checkpoint(folder / "checkpoints/last.ckpt")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    return config["trainer"]["precision"], checkpoint["cnnlab"]["trainer"]["precision"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = read_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"]
    return state


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_keeps_what_was_chosen_and_trains_as_if_it_had_been_asked_for_it(
    fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path, gain: Callable[..., list[int]]
) -> None:
    tried, chosen = gain(1.61), "bf16-mixed"
    done = fit(*AUTO)
    assert done.code == 0, done.err
    assert f"precision: {chosen}: " in done.out
    assert kept(tmp_path / "R") == (chosen, chosen)
    told = json.loads((tmp_path / "R/environment.json").read_text())["precision"]
    assert told["precision"] == chosen
    assert "66 ms a step of 32 images" in told["reason"]
    own = weights(tmp_path / "R")
    (tmp_path / "R").rename(tmp_path / "first")
    assert fit("--trainer.precision", chosen, *QUIET).code == 0
    assert same(own, weights(tmp_path / "R"))
    # A test goes on with it, also of a checkpoint that is alone.
    (tmp_path / "alone").mkdir()
    (tmp_path / "first/checkpoints/last.ckpt").rename(tmp_path / "alone/last.ckpt")
    for place in ("R", "alone/last.ckpt"):
        seen = cnnlab("test", place, "--trainer.callbacks", "tests.callbacks.test_auto_precision.Say")
        assert f"runs in {chosen}" in seen.out, seen.err
    assert len(tried) == 1


class Say(Callback):
    """Prints the precision."""

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        print("runs in", trainer.precision)


class Stop(Callback):
    """Ends the process as a scheduler does, at a step."""

    def __init__(self, at: int = 11) -> None:
        self.at = at

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_stopped_run_goes_on_in_its_precision_and_ends_with_the_same_weights(
    fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path, mnist_root: Path, gain: Callable[..., list[int]]
) -> None:
    """Also where the same command is repeated, whose recipe says auto, on a machine that would choose another one."""
    tried = gain(1.61)
    assert fit(*AUTO).code == 0
    whole = weights(tmp_path / "R")
    (tmp_path / "R").rename(tmp_path / "whole")
    for again in (["resume", "R"], None):
        stopped = fit(*AUTO, "--trainer.callbacks", "tests.callbacks.test_auto_precision.Stop")
        assert stopped.code == 143, stopped.err
        gain(1.0)
        if again is None:
            resumed = fit(*AUTO, "--resume", "auto")
            assert "precision: bf16-mixed, as in R/checkpoints/last.ckpt" in resumed.out
        else:
            resumed = cnnlab(*again, "--trainer.callbacks", "[]")
        assert resumed.code == 0, resumed.err
        assert kept(tmp_path / "R") == ("bf16-mixed", "bf16-mixed")
        assert same(whole, weights(tmp_path / "R"))
        (tmp_path / "R").rename(tmp_path / f"stopped-{again is None}")
        tried = gain(1.61)
    assert not tried


def test_a_precision_of_ones_own_wins(fit: Cnnlab, tmp_path: Path, gain: Callable[..., list[int]]) -> None:
    """Over the recipe's auto, and in the form of a plugin too, with which Lightning would refuse a name."""
    tried = gain(1.61)
    done = fit(*AUTO, "--trainer.precision", "32-true", "--trainer.max_epochs=1")
    assert done.code == 0, done.err
    assert kept(tmp_path / "R") == ("32-true", "32-true")
    (tmp_path / "R").rename(tmp_path / "named")
    plugin = ["--trainer.plugins", "lightning.pytorch.plugins.precision.DoublePrecision", "--trainer.max_epochs=1"]
    done = fit(*AUTO, *plugin)
    assert done.code == 0, done.err
    assert kept(tmp_path / "R") == (None, "64-true")
    done = fit(*AUTO, *plugin, "--trainer.max_epochs=2", "--resume", "auto")
    assert done.code == 0, done.err
    assert not tried


def test_few_steps_are_not_worth_a_trial(fit: Cnnlab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnlab.precision.has_bf16_units", lambda: True)
    done = fit(*AUTO)
    assert done.code == 0, done.err
    assert "precision: 32-true: 16 steps are too few to try bf16-mixed" in done.out


def test_a_checkpoint_of_an_older_version_is_evaluated_in_full_precision(
    fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path
) -> None:
    assert fit(*QUIET, "--trainer.max_epochs=1").code == 0
    checkpoint = torch.load(tmp_path / "R/checkpoints/last.ckpt", weights_only=True)
    del checkpoint["cnnlab"]["trainer"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    done = cnnlab("test", "old.ckpt", "--trainer.precision", "auto")
    assert done.code == 0, done.err
    assert "precision: 32-true: the checkpoint names none" in done.out


def test_all_processes_take_what_the_first_one_chose(tmp_path: Path, mnist_root: Path) -> None:
    """Each alone might choose another precision: they measure at the same time, on processors that they share."""
    (tmp_path / "own.py").write_text(
        "import os\n"
        "from lightning.pytorch import Callback\n"
        "from cnnlab import precision\n"
        "from cnnlab.callbacks import auto_precision\n"
        "precision.has_bf16_units = lambda: True\n"
        "first = os.environ.get('LOCAL_RANK', '0') == '0'\n"
        "auto_precision.try_steps = lambda *_: precision.Trial(2.0 if first else 1.0, 1.0, 32)\n"
        "class Say(Callback):\n"
        "    def on_train_start(self, trainer, pl_module):\n"
        "        print(f'process {trainer.global_rank} trains in {trainer.precision}', flush=True)\n"
    )
    flags = ["--trainer.max_epochs=1", "--trainer.callbacks", "own.Say", *processes(2)]
    done = run_process("fit", "--config", TINY, "--data.root", mnist_root, "--run", "R", *AUTO, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "process 0 trains in bf16-mixed" in done.stdout
    assert "process 1 trains in bf16-mixed" in done.stdout
    assert done.stdout.count("precision: bf16-mixed: 2.0x") == 1


@pytest.mark.parametrize("name", ["classification", "image_folder", "segmentation", "detection", "distillation"])
def test_a_trial_changes_nothing_of_the_run(
    cnnlab: Cnnlab,
    tmp_path: Path,
    mnist_root: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """Weights, statistics of batch norm, random states, a teacher's remembered answers, the order of the images."""
    places: dict[str, list[Any]] = {
        "classification": ["--data.root", mnist_root],
        "image_folder": ["--data.root", photos, "--data.mixing", "true"],
        "segmentation": [],
        "detection": ["--data.root", "boxes"],
        "distillation": ["--data.root", mnist_root, "--model.teacher", "T", "--model.cache", "true"],
    }
    if name == "detection":
        write_objects(tmp_path / "boxes", {"train": 12, "val": 4})
    if name == "distillation":
        teacher = ["--config", TINY, "--data.root", mnist_root, "--trainer.max_epochs=1", "--run", "T"]
        assert cnnlab("fit", *teacher, *QUIET).code == 0
        places[name] += ["--data.degrees", "0"]
    options = ["--config", TINY.with_name(f"{name}.yaml"), *places[name], *QUIET]
    assert cnnlab("fit", *options, "--run", "plain").code == 0
    tried: list[Any] = []

    def really(trainer: Trainer, task: Any) -> Any:
        tried.append(try_steps(trainer, task))
        return "the test stays in full precision"

    monkeypatch.setattr("cnnlab.precision.has_bf16_units", lambda: True)
    monkeypatch.setattr(auto_precision, "FEWEST_STEPS", 1)
    monkeypatch.setattr(auto_precision, "_SECONDS", 0.0)
    monkeypatch.setattr(auto_precision, "try_steps", really)
    done = cnnlab("fit", *options, "--run", "tried", *AUTO)
    assert done.code == 0, done.err
    assert isinstance(tried[0], Trial), tried
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "tried"))


def test_a_trial_takes_the_fastest_step_of_each_precision_and_the_batch_of_the_run(
    tmp_path: Path, mnist_root: Path
) -> None:
    """Other programs disturb single steps, so that means would say anything."""
    data = MNIST(root=str(mnist_root), val_size=64, batch_size=32)
    task = Classification("simple_cnn", 10, channels=1)
    data.setup("fit")
    run = Trainer(max_epochs=100, accelerator="cpu", logger=False, enable_checkpointing=False)
    run.strategy.connect(task)
    vars(run)["datamodule"] = data
    now, taken, sizes = [0.0], [0], []

    def pass_time(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        taken[0] += 1
        sizes.append(len(inputs[0]))
        mixed = torch.is_autocast_enabled("cpu")
        now[0] += (0.02 if mixed else 0.05) * (3 if taken[0] % 5 == 0 else 1)

    task.network.register_forward_hook(pass_time)
    found = try_steps(run, task, lambda: now[0])
    assert isinstance(found, Trial)
    assert found == pytest.approx(Trial(0.05, 0.02, 32))
    assert set(sizes) == {8, 32}
    assert all(parameter.grad is None for parameter in task.parameters())


def test_what_fails_in_a_trial_is_the_reason_for_full_precision(fit: Cnnlab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some operation may know no bf16; the run does without."""

    def fail(*_: Any) -> None:
        raise RuntimeError('"median" not implemented for BFloat16')

    monkeypatch.setattr("cnnlab.precision.has_bf16_units", lambda: True)
    monkeypatch.setattr(auto_precision, "FEWEST_STEPS", 1)
    monkeypatch.setattr(auto_precision, "_measure", fail)
    done = fit(*AUTO, "--trainer.max_epochs=1")
    assert done.code == 0, done.err
    assert 'precision: 32-true: bf16-mixed could not be tried (RuntimeError: "median" not' in done.out


def test_each_fold_trains_in_the_precision_of_the_first(
    cnnlab: Cnnlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else folds would differ by more than their images."""
    fits: list[list[str]] = []

    def pretend(command: str, *arguments: str) -> int:
        folder = Path(arguments[arguments.index("--run") + 1] if command == "fit" else arguments[0])
        if command == "fit":
            fits.append(list(arguments))
            write_json(folder / "config.yaml", {"trainer": {"precision": "bf16-mixed"}})
        elif command == "validate":
            write_json(folder / "validation.json", {"val/loss": 1.0})
        else:
            table = Run(folder).results_of("val").predictions
            table.parent.mkdir(parents=True)
            table.write_text("index,path\n0,a.png\n")
        return 0

    monkeypatch.setattr(crossval, "run_cnnlab", pretend)
    assert cnnlab("crossval", "--config", TINY_PHOTOS, "--folds", "3", "--run", "C").code == 0
    chosen = ["--trainer.precision", "bf16-mixed"]
    assert [arguments[:2] == chosen for arguments in fits] == [False, True, True]


def test_the_precision_of_matrix_products_is_kept_and_set_on_gpus_only(
    fit: Cnnlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor it would change the numbers of a run that came from a GPU."""
    called: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", called.append)
    assert fit(*QUIET, "--trainer.max_epochs=1", "--trainer.float32_matmul_precision", "high").code == 0
    assert yaml.safe_load((tmp_path / "R/config.yaml").read_text())["trainer"]["float32_matmul_precision"] == "high"
    about = read_checkpoint(tmp_path / "R/checkpoints/last.ckpt")["cnnlab"]
    assert about["trainer"] == {"precision": "32-true", "float32_matmul_precision": "high"}
    assert not called
