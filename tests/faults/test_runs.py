"""What users met with runs and their processes: two writers, launchers, ports, dead readers, classes of their own."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo

from cnnlab.cluster.sweeps import sweep_points
from cnnlab.errors import InputError, explain_foreign
from cnnlab.lock import locked
from cnnlab.tasks import Distillation
from cnnlab.tasks.teacher import find_teacher
from tests.conftest import TINY, TINY_PHOTOS, Cnnlab, run_process, start_process, write_photos

ONE_EPOCH = ("--trainer.max_epochs", "1", "--callbacks.errors", "false")
SMALL = ("--callbacks.unfreezing", "false", "--model.head", "null", "--model.network", "simple_cnn")


def error_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("cnnlab: ")]


def test_two_trainings_of_one_run(tmp_path: Path, mnist_root: Path, cnnlab: Cnnlab) -> None:
    """Both ended well; best.ckpt was of the one, last.ckpt of the other (Lightning#12369, #11418)."""
    arguments = ("fit", "--config", TINY, "--data.root", mnist_root, "--run", "R", "--trainer.max_epochs", "2000")
    first = start_process(*arguments, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "R/checkpoints/last.ckpt").is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        second = cnnlab("resume", "R")
        assert second.code == 2
        assert error_lines(second.err) == second.err.splitlines()
        assert f"R is in use by process {first.pid}" in second.err
    finally:
        os.kill(first.pid, signal.SIGKILL)
    # The kernel has ended the owner, so its lock counts no more, though nobody has waited for it yet.
    while Path(f"/proc/{first.pid}/stat").exists() and ") Z" not in Path(f"/proc/{first.pid}/stat").read_text():
        time.sleep(0.01)
    assert cnnlab("resume", "R", "--trainer.max_epochs", "1").code == 0
    assert not (tmp_path / "R/.lock").exists()
    first.finish()


def test_the_lock_of_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that SLURM has queued again on another node goes on; any other process of another machine is named."""
    with locked(tmp_path):
        owner = json.loads((tmp_path / ".lock").read_text())
    (tmp_path / ".lock").write_text(json.dumps({**owner, "host": "node7", "job": "12", "restart": 0}))
    with (
        pytest.raises(InputError, match=r"in use by process \d+ on node7 .*has surely ended, remove .*\.lock"),
        locked(tmp_path),
    ):
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["restart"] == 1


def test_a_launcher_that_starts_more_processes_than_the_trainer_expects(
    cnnlab: Cnnlab, mnist_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two tasks with a trainer of one device trained twice in one folder (Lightning#20391)."""
    fit = ("fit", "--config", TINY, "--data.root", mnist_root, "--run", "R", *ONE_EPOCH)
    for name, value in (("JOB_ID", "5"), ("NTASKS", "2"), ("PROCID", "0"), ("LOCALID", "0"), ("NODEID", "0")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    refused = cnnlab(*fit)
    assert refused.code == 2
    assert "has started 2 processes, but the trainer expects 1" in error_lines(refused.err)[-1]
    assert not (tmp_path / "R").exists()
    refused = cnnlab(*fit, "--trainer.devices", "4", "--trainer.strategy", "ddp")
    assert refused.code == 2
    assert "has started 2 processes, but the trainer expects 4" in error_lines(refused.err)[-1]
    monkeypatch.delenv("SLURM_PROCID")
    done = cnnlab(*fit)
    assert done.code == 0, done.err
    assert "SLURM has reserved 2 tasks, but srun has not started this process" in done.out


def test_an_address_that_no_process_can_use(
    cnnlab: Cnnlab, mnist_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A port that was taken gave a traceback and a process left behind; an unknown address, minutes of silence."""
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    fit = ("fit", "--config", TINY, "--data.root", mnist_root, "--run", "R", *two)
    with socket.create_server(("", 0)) as taken:
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        refused = cnnlab(*fit)
        assert refused.code == 2
        assert f"MASTER_PORT {taken.getsockname()[1]} cannot be used" in error_lines(refused.err)[0]
    monkeypatch.delenv("MASTER_PORT")
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
    refused = cnnlab(*fit)
    assert refused.code == 2
    assert "MASTER_ADDR is 'nowhere.invalid'" in error_lines(refused.err)[0]
    assert not (tmp_path / "R").exists()


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_strategies_whose_results_do_not_come_back(cnnlab: Cnnlab, mnist_root: Path, strategy: str) -> None:
    """They trained to the end, and then a file in /tmp was no checkpoint."""
    refused = cnnlab("fit", "--config", TINY, "--data.root", mnist_root, "--trainer.strategy", strategy)
    assert refused.code == 2
    assert f"trainer.strategy {strategy} forks or spawns" in error_lines(refused.err)[0]
    assert "use ddp" in refused.err


def test_an_error_with_open_readers_is_seen_at_once(tmp_path: Path, photos: Path) -> None:
    """After an error, readers held the process for a minute, which then ended by "Alarm clock"."""
    script = (
        "from cnnlab.data import ImageFolder\n"
        f"data = ImageFolder({str(photos)!r}, size=32, num_workers=2, batch_size=4)\n"
        "data.setup('fit')\n"
        "batches = iter(data.train_dataloader())\n"
        "next(batches)\n"
        "raise KeyError('my own')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=40, check=False
    )
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("KeyError: 'my own'")


def test_readers_that_die_are_explained() -> None:
    """The message named a process and a signal, but no remedy."""
    killed = explain_foreign(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))
    assert killed is not None
    assert "data.num_workers" in killed
    full = explain_foreign(RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)"))
    assert full is not None
    assert "/dev/shm" in full
    assert explain_foreign(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


@pytest.mark.parametrize("place", ["file/R", "x" * 300])
def test_a_run_that_cannot_be_written(cnnlab: Cnnlab, mnist_root: Path, tmp_path: Path, place: str) -> None:
    """A folder that cannot be written gave a traceback after the data were read."""
    (tmp_path / "file").write_text("")
    refused = cnnlab("fit", "--config", TINY, "--data.root", mnist_root, "--run", place)
    assert refused.code == 2
    (line,) = refused.err.splitlines()
    assert line.startswith(f"cnnlab: {place[:50]}")
    assert "choose" in line


@pytest.mark.parametrize("key", ["--model", "--data", "--trainer.callbacks"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", "module 'own' cannot be imported: SyntaxError"),
        ("import absent_module\n", "module 'absent_module' is neither in the working folder"),
        ("x = 1 / 0\n", "ZeroDivisionError: division by zero"),
        ("Other = 1\n", "module 'own' has no 'Thing'"),
    ],
)
def test_a_class_of_ones_own_that_cannot_be_imported(
    cnnlab: Cnnlab, tmp_path: Path, mnist_root: Path, key: str, text: str, message: str
) -> None:
    """The message said "expected null", and nothing of the module."""
    sys.modules.pop("own", None)
    (tmp_path / "own.py").write_text(text)
    refused = cnnlab("fit", "--config", TINY, "--data.root", mnist_root, "--run", "R", key, "own.Thing")
    assert refused.code == 2
    (line,) = refused.err.splitlines()
    assert message in line
    assert len(line) < 400


def photo_folders(root: Path, names: dict[str, str]) -> Path:
    """Lay down the photographs of conftest under other class names."""
    write_photos(root, {"train": 6, "val": 4, "test": 4})
    for split in ("train", "val", "test"):
        for old, new in names.items():
            (root / split / old).rename(root / split / new)
    return root


def test_starting_weights_bring_their_preprocessing_and_their_classes(
    cnnlab: Cnnlab, tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A network trained with other means went on with ImageNet's: its accuracy fell (open_clip#311)."""
    small = ("--config", TINY_PHOTOS, *SMALL, *ONE_EPOCH)
    size = ("--data.size", "24", "--data.interpolation", "bicubic")
    first = cnnlab("fit", *small, "--data.root", photos, "--run", "A", *size)
    assert first.code == 0, first.err
    checkpoint = torch.load(tmp_path / "A/checkpoints/last.ckpt", weights_only=True)
    for name in ("mean", "std"):
        checkpoint["state_dict"][f"standardize.{name}"].fill_(0.5)
        checkpoint["hyper_parameters"][name] = [0.5] * 3
    torch.save(checkpoint, tmp_path / "A/checkpoints/best.ckpt")
    # In the order of their names: spots comes first, and one class is new.
    other = photo_folders(tmp_path / "other", {"spots": "a-new-one", "across": "spots", "along": "across"})
    started = ("fit", *small, "--data.root", other, "--data.size", "null", "--model.init_from", "A", "--model.lr", "0")
    second = cnnlab(*started, "--run", "B")
    assert second.code == 0, second.err
    assert "mean [0.5, 0.5, 0.5] and std [0.5, 0.5, 0.5] come with them" in caplog.text
    assert "2 of 3 are known, new: a-new-one, left out: along" in caplog.text
    trained = torch.load(tmp_path / "B/checkpoints/last.ckpt", weights_only=True)
    assert trained["hyper_parameters"]["mean"] == [0.5] * 3
    assert trained["datamodule_hyper_parameters"]["size"] == [24, 24]
    assert trained["datamodule_hyper_parameters"]["interpolation"] == "bicubic"
    assert trained["hyper_parameters"]["class_names"] == ["a-new-one", "across", "spots"]
    head = [name for name in trained["state_dict"] if name.startswith("network.")][-2:]
    for name in head:
        before, after = checkpoint["state_dict"][name], trained["state_dict"][name]
        assert torch.equal(after[[1, 2]], before[[0, 2]]), name
    # The file that is made of it standardizes by the same numbers.
    assert cnnlab("test", "B").code == 0
    (tmp_path / "A/checkpoints/best.ckpt").unlink()
    (tmp_path / "A/checkpoints/last.ckpt").unlink()
    assert cnnlab("resume", "B", "--trainer.max_epochs", "2").code == 0
    refused = cnnlab(*started, "--run", "C")
    assert refused.code == 2
    assert "model.init_from A: run A has no checkpoint" in refused.err


def test_values_of_another_order_are_matched_by_name(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """The row of one value became another's."""
    (tmp_path / "v").mkdir()
    lines = ["path,q,r"]
    for i in range(24):
        Image.new("RGB", (16, 16), (10 * i, 0, 0)).save(tmp_path / f"v/{i:02}.png")
        lines.append(f"{i:02}.png,{i + 0.5},{100.5 - i * i}")
    (tmp_path / "v.csv").write_text("\n".join(lines) + "\n")
    recipe = TINY_PHOTOS.with_name("regression.yaml")
    common = ("fit", "--config", recipe, "--data.root", "v", "--data.csv", "v.csv", "--model.loss", "gaussian_nll")
    assert cnnlab(*common, "--run", "A", "--data.values", "q,r", "--trainer.max_epochs", "1").code == 0
    more = ("--model.init_from", "A", "--model.lr", "0", "--model.weight_decay", "0")
    done = cnnlab(*common, "--run", "B", "--data.values", "r,q", "--trainer.max_epochs", "1", *more)
    assert done.code == 0, done.err
    biases = [
        next(value for name, value in reversed(state.items()) if name.endswith("bias"))
        for state in (torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in "AB")
    ]
    assert torch.equal(biases[1], biases[0][[1, 0, 3, 2]])


def head_of(run: str) -> list[torch.Tensor]:
    """The weight and the bias of the last layer of a run."""
    state = torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return [value for name, value in state.items() if name.startswith("network.")][-2:]


def test_numbered_classes_are_matched_by_their_numbers(
    cnnlab: Cnnlab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A network that knew the folders 0, 1 and 2 gave the row of 0 to the folder 1."""
    numbered = [dict(zip(("across", "along", "spots"), names, strict=True)) for names in ("012", "127")]
    first, second = (photo_folders(tmp_path / str(i), names) for i, names in enumerate(numbered))
    small = ("fit", "--config", TINY_PHOTOS, *SMALL, *ONE_EPOCH, "--data.size", "16", "--data.augment", "none")
    assert cnnlab(*small, "--data.root", first, "--run", "A").code == 0
    done = cnnlab(*small, "--data.root", second, "--run", "B", "--model.init_from", "A", "--model.lr", "0")
    assert done.code == 0, done.err
    for before, after in zip(head_of("A"), head_of("B"), strict=True):
        assert torch.equal(after[:2], before[1:])
    assert "the classes are matched by name: 2 of 3 are known, new: 7, left out: 0" in caplog.text


@pytest.mark.parametrize("names", [[], ["--data.class_names", "[ground, leaf, root]"]], ids=["values", "names"])
def test_masks_are_matched_by_their_values_and_keep_the_size(
    cnnlab: Cnnlab, tmp_path: Path, caplog: pytest.LogCaptureFixture, names: list[str]
) -> None:
    """Rows went to classes of other values, and the images were as large as their files, not as in the run."""
    for i in range(12):
        pixels = np.zeros((24, 24), np.uint8)
        pixels[: 6 + i], pixels[18:, i:] = 1, 2
        for kind in ("images", "masks"):
            (tmp_path / "m" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels * (80 if kind == "images" else 1)).save(tmp_path / f"m/{kind}/{i:02}.png")
    fit = ("fit", "--config", "segmentation", "--data.root", "m", *ONE_EPOCH, "--trainer.accelerator", "cpu")
    tiny = ("--data.batch_size", "4", "--data.num_workers", "0", "--model.network_args", "{base: 4, depth: 2}")
    own = ("--data.size", "16", "--data.crop", "null", "--data.mask_values", "[0, 2, 1]", *names)
    first = cnnlab(*fit, *tiny, *own, "--run", "A")
    assert first.code == 0, first.err
    start = ("--data.size", "null", "--data.crop", "null", "--model.init_from", "A", "--model.lr", "0")
    second = cnnlab(*fit, *tiny, *start, "--run", "B")
    assert second.code == 0, second.err
    for before, after in zip(head_of("A"), head_of("B"), strict=True):
        assert torch.equal(after, before[[0, 2, 1]])
    assert f"the classes are matched by {'value' if names else 'name'}: 3 of 3 are known" in caplog.text
    assert "images are resized to 16 x 16 pixels, as there" in caplog.text
    saved = torch.load(tmp_path / "B/checkpoints/last.ckpt", weights_only=True)
    assert saved["datamodule_hyper_parameters"]["size"] == [16, 16]
    assert cnnlab("test", "B").code == 0


def test_the_home_folder_of_a_run(cnnlab: Cnnlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--run=~/R wrote one half of the run into a folder called ~, and the other half into the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_photos(tmp_path / "photos", {"train": 6, "val": 4, "test": 4})
    small = ("fit", "--config", TINY_PHOTOS, *SMALL, *ONE_EPOCH, "--data.size", "16", "--data.root", "photos")
    done = cnnlab(*small, "--run=~/R")
    assert done.code == 0, done.err
    assert (tmp_path / "home/R/metrics.csv").is_file()
    assert (tmp_path / "home/R/checkpoints/best.ckpt").is_file()
    assert not (tmp_path / "~").exists()
    done = cnnlab("export", "~/R", "--out=~/m.onnx")
    assert done.code == 0, done.err
    assert (tmp_path / "home/m.onnx").is_file()


def test_a_teacher_by_name_knows_imagenet_s_classes_alone() -> None:
    """A folder of 1,000 classes of one's own passed for ImageNet's, in another order (timm#147)."""
    own = Distillation("resnet18", network="simple_cnn", num_classes=1000, class_names=[f"c{i}" for i in range(1000)])
    with pytest.raises(InputError, match=r"whose classes are ImageNet's, and the data have 1,000 of their own \(c0, "):
        find_teacher("resnet18", own)
    ids = ImageNetInfo().label_names()  # type: ignore[no-untyped-call]
    student = Distillation("resnet18", network="simple_cnn", num_classes=1000, class_names=ids)
    with pytest.raises(InputError, match="no such file or folder"):  # Accepted so far.
        find_teacher("resnet18", student, "absent")


def test_names_of_classes_that_yaml_reads_as_something_else(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """A folder called 1e3 made a run that could neither be resumed nor tested: its name was read as a number."""
    names = ["1e3", "null", "yes", "0x10", "1_000", "12:30", "2024-01-01", "nan", "007", "~", "[a]", "a: b"]
    for green, split in enumerate(("train", "val", "test")):
        for i, name in enumerate(names):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            Image.new("RGB", (16, 16), (20 * i, green, 0)).save(tmp_path / "photos" / split / name / "0.png")
    small = ("--config", TINY_PHOTOS, *SMALL, *ONE_EPOCH, "--data.size", "16", "--data.root", "photos")
    assert cnnlab("fit", *small, "--run", "R").code == 0
    done = cnnlab("resume", "R", "--trainer.max_epochs", "2")
    assert done.code == 0, done.err
    assert cnnlab("test", "R").code == 0
    found = torch.load(tmp_path / "R/checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]["class_names"]
    assert sorted(found) == sorted(names)
    (tmp_path / "printed.yaml").write_text(cnnlab("fit", "--config", "R/config.yaml", "--print_config").out)
    assert cnnlab("fit", "--config", "printed.yaml", "--run", "S", "--trainer.fast_dev_run", "true").code == 0


def sweep(folder: Path, parameters: str, method: str = "random", count: int | None = 20) -> list[dict[str, str]]:
    (folder / "sweep.yaml").write_text(f"method: {method}\nparameters: {parameters}\n")
    return sweep_points(folder / "sweep.yaml", count, 10_000)


def test_sweeps_are_drawn_as_wandb_defines_them(tmp_path: Path) -> None:
    """1e-4, which YAML reads as text, and nested parameters gave tracebacks; probabilities were ignored."""
    points = sweep(
        tmp_path,
        "{model: {parameters: {lr: {min: 1e-4, max: 1e-2, distribution: log_uniform_values}}},"
        " data.size: {values: [16, 32], probabilities: [0, 1.0]}, model.width: {distribution: q_uniform, min: 8,"
        " max: 24, q: 8}}",
    )
    assert all(list(point) == ["model.lr", "data.size", "model.width"] for point in points)
    assert all(1e-4 <= float(point["model.lr"]) <= 1e-2 for point in points)
    assert {point["data.size"] for point in points} == {"32"}
    assert {float(point["model.width"]) for point in points} == {8.0, 16.0, 24.0}
    grid = sweep(tmp_path, "{a: {min: 1, max: 2}, b: {values: ['1e3', [x, '7'], null]}}", "grid", None)
    assert [point["b"] for point in grid[:3]] == ["1e3", "[x, '7']", "null"]
    assert len(grid) == 6


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("{lr: {min: 0, max: 1, distribution: log_uniform_values}}", "lr: min is 0, and a logarithm"),
        ("{lr: {min: 2, max: 1}}", "lr: min is 2, above max, which is 1"),
        ("{lr: {min: low, max: 1}}", "lr: min is 'low', expected a number"),
        ("{lr: {values: []}}", "lr: values is [], expected a list of one or more"),
        ("{lr: {values: [1, 2], probabilities: [0.5]}}", "expected 2 numbers that sum to 1"),
        ("{lr: 3}", "lr is 3, expected value, values"),
        ("{lr: {mni: 1, max: 2}}", "lr has no key 'mni': did you mean 'min'"),
        ("{a: {min: 1, max: 10000}, b: {min: 1, max: 10000}}", "has 100,000,000 points"),
    ],
)
def test_a_sweep_that_cannot_be_drawn(tmp_path: Path, parameters: str, message: str) -> None:
    """Each of them gave a traceback, or 100 million tasks."""
    with pytest.raises(InputError) as refused:
        sweep(tmp_path, parameters, *(("grid", None) if "b:" in parameters else ("random", 3)))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A trained run on photographs, to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    small = ("--config", TINY_PHOTOS, *SMALL, *ONE_EPOCH, "--data.size", "16", "--data.root", photos)
    done = run_process("fit", *small, "--run", "R", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "R"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "R"))


def test_nothing_is_replaced_or_littered_unasked(cnnlab: Cnnlab, run: Path, tmp_path: Path, photos: Path) -> None:
    """Predictions, explanations, files and pictures of one thing replaced those of another, or lay in the way."""
    new = shutil.copytree(photos / "test/spots", tmp_path / "new")
    assert cnnlab("predict", "R", "--data.predict", "new").code == 0
    table = run / "results/new/predictions.csv"
    before = table.read_bytes()
    assert cnnlab("predict", "R", "--data.predict", "new").code == 0
    assert not (run / "results/new/earlier").exists()  # It was the same.
    (new / "00.jpg").write_bytes(b"no image")
    stopped = cnnlab("predict", "R", "--data.predict", "new")
    assert stopped.code == 2
    assert not table.exists()
    assert (run / "results/new/earlier/predict/predictions.csv").read_bytes() == before
    assert cnnlab("explain", "R", "--number", "2").code == 0
    own = (run / "explain/gradcam.png").read_bytes()
    assert cnnlab("explain", "R", new / "01.jpg").code == 0
    assert (run / "explain/gradcam.png").read_bytes() == own
    assert (run / "results/01.jpg/explain/gradcam.png").is_file()
    assert cnnlab("export", "R").code == 0
    file = (run / "model.onnx").read_bytes()
    assert cnnlab("export", "R", "--raw").code == 0
    assert cnnlab("export", "R", "--opset", "18").code == 0
    assert (run / "model.raw.onnx").is_file()
    assert (run / "earlier/export/model.onnx").read_bytes() == file
    assert cnnlab("infer", "R/model.onnx", new / "01.jpg").code == 0
    assert (run / "results/01.jpg/predictions.csv").is_file()
    assert cnnlab("analyze", "R").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["R", "new"]


def test_a_file_of_another_opset_is_refused(cnnlab: Cnnlab, run: Path) -> None:
    """--opset 11 gave a file of opset 18, and the certificate said nothing (pytorch#150592)."""
    refused = cnnlab("export", "R", "--opset", "11")
    assert refused.code == 2
    assert refused.err.splitlines()[-1].startswith(
        "cnnlab: --opset 11: the exporter can write this network in opset 18"
    )
    assert len(refused.err.splitlines()) <= 3
    assert not list(run.glob("model*"))
    refused = cnnlab("quantize", "R", "--method", "dynamic", "--calibration", "entropy")
    assert "--calibration does not apply to --method dynamic" in refused.err
    refused = cnnlab("benchmark", "R", "--size", "64")
    assert "--size does not apply to a run" in refused.err


def test_worst_images_are_wrong_ones(cnnlab: Cnnlab, run: Path) -> None:
    """With few images, right answers were among the worst, and the most certain among the least certain."""
    assert cnnlab("test", "R", "--callbacks.errors", "true").code == 0
    assert cnnlab("predict", "R").code == 0
    with (run / "predictions.csv").open() as file:
        predictions = {row["index"]: row for row in csv.DictReader(file)}
    names = sorted({Path(row["path"]).parent.name for row in predictions.values()})
    wrong = {index for index, row in predictions.items() if names[int(row["target"])] != row["name"]}
    with (run / "errors/test.csv").open() as file:
        shown = list(csv.DictReader(file))
    assert {row["index"] for row in shown if row["kind"] == "worst"} == wrong
    assert len({row["index"] for row in shown}) == len(shown)
    doubt = sorted(predictions, key=lambda index: max(float(predictions[index][name]) for name in names))
    assert {row["index"] for row in shown if row["kind"] == "least certain"} <= set(doubt[: len(doubt) // 2])


def test_an_evaluation_says_what_it_measured(cnnlab: Cnnlab, run: Path, tmp_path: Path, mnist_root: Path) -> None:
    """A number said nothing of its images; runs with different test sets were ranked (in bold)."""
    assert cnnlab("fit", "--config", TINY, "--data.root", mnist_root, "--run", "M", *ONE_EPOCH).code == 0
    tested = cnnlab("test", "M")
    assert "50 of 50 images of split test of MNIST" in tested.out
    assert json.loads((tmp_path / "M/measured.json").read_text())["test"] == "50 of 50 images of split test of MNIST"
    assert "50 of 50 images of split test of MNIST" in (tmp_path / "M/report.html").read_text()
    shutil.copytree(tmp_path / "M", tmp_path / "N")
    results = json.loads((tmp_path / "N/test.json").read_text())
    (tmp_path / "N/test.json").write_text(json.dumps({**results, "test/accuracy": 1.0}))
    assert cnnlab("report", "M", "N", "--out", "same.html").code == 0
    assert "<strong>1.0</strong>" in (tmp_path / "same.html").read_text()
    assert cnnlab("test", "R").code == 0
    assert cnnlab("report", "R", "N").code == 0
    other = (run / "results/R-N/report.html").read_text()
    assert "<strong>" not in other
    assert "were measured on different images (val, test)" in other


def test_a_machine_without_internet_learns_of_it_at_once(
    cnnlab: Cnnlab, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten retries took 67 seconds; then the advice was to use a machine with internet."""
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "https://localhost:9")
    monkeypatch.setenv("HF_HUB_CACHE", "absent")
    started = time.monotonic()
    fit = ("fit", "--config", TINY_PHOTOS, "--data.root", photos, "--run", "R", "--model.network", "resnet10t")
    refused = cnnlab(*fit, "--model.weights", "pretrained")
    assert refused.code == 2
    assert time.monotonic() - started < 10
    for remedy in ("no connection to localhost", "--model.weights", "CNNLAB_WEIGHTS", "from_scratch"):
        assert remedy in refused.err


def test_a_pruning_that_was_interrupted_starts_clean(cnnlab: Cnnlab, run: Path, tmp_path: Path, forked: None) -> None:
    """After a kill, its folder could neither be resumed nor made again."""
    (tmp_path / "P/checkpoints").mkdir(parents=True)
    (tmp_path / "P/.pruning").write_text("")
    (tmp_path / "P/checkpoints/last.ckpt").write_text("half")
    done = cnnlab("prune", "R", "--epochs", "1", "--out", "P")
    assert done.code == 0, done.err
    assert "left by a pruning that was interrupted" in done.out
    assert (tmp_path / "P/pruning.json").is_file()
    assert not list((tmp_path / "P").glob(".*"))
    again = cnnlab("prune", "R", "--epochs", "1", "--out", "P")
    assert again.code == 2
    assert "P exists already" in again.err
