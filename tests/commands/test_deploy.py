"""From a run to files: export, quantize, prune, infer and benchmark through the command line."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from cnnlab.commands.progress import progress
from cnnlab.data import MNIST
from cnnlab.data.base import Subset
from cnnlab.deploy.certificate import verify
from cnnlab.deploy.export import load_onnx, torch_predict
from cnnlab.deploying import pipeline, score
from cnnlab.imports import parameters_of
from cnnlab.models.simple_cnn import SimpleCNN
from cnnlab.tasks import Classification
from tests.conftest import TINY, Cnnlab, start_process

ONE_EPOCH = ("--trainer.max_epochs", "1", "--callbacks.unfreezing", "false")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_infer_gives_what_predict_and_test_give(
    fit_photos: Cnnlab, cnnlab: Cnnlab, photos: Path, tmp_path: Path
) -> None:
    """Images were prepared otherwise after the export (Lightning-AI/pytorch-lightning#7279, ultralytics#24893)."""
    assert not fit_photos(*ONE_EPOCH, "--data.size", "[30, 34]", "--data.crop", "0.9").code
    assert not cnnlab("export", "R").code
    result = cnnlab(
        "infer", "R/model.onnx", photos / "test", "--out", "found/table.csv", "--verify", "--batch_size", "5"
    )
    assert not result.code, result.err
    assert not cnnlab("test", "R").code
    assert not cnnlab("predict", "R").code
    found, expected = table(tmp_path / "found/table.csv"), table(tmp_path / "R/predictions.csv")
    assert list(found[0]) == list(expected[0])
    assert [row["index"] for row in found] == [row["index"] for row in expected]
    assert [Path(row["path"]).name for row in found] == [Path(row["path"]).name for row in expected]
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    for one, other in zip(found, expected, strict=True):
        for name in ("across", "along", "spots"):
            assert float(one[name]) == pytest.approx(float(other[name]), abs=1e-5)
    accuracy = np.mean([Path(row["path"]).parent.name == row["name"] for row in found])
    assert accuracy == json.loads((tmp_path / "R/test.json").read_text())["test/accuracy"]
    certificate = verify(tmp_path / "R/model.onnx")
    assert certificate["metric"]["network"] == certificate["metric"]["file"]
    assert certificate["metric"]["name"] == "val/accuracy"
    assert certificate["metric"]["images"] == 12
    assert certificate["checkpoint"]["file"] == "best.ckpt"


@pytest.mark.parametrize("flips", [(), ("--model.flips", "true")])
def test_segmentation_s_masks_are_those_of_predict(cnnlab: Cnnlab, tmp_path: Path, flips: tuple[str, ...]) -> None:
    recipe = TINY.with_name("segmentation.yaml")
    assert not cnnlab("fit", "--config", recipe, "--run", "S").code
    assert not cnnlab("export", "S", *flips).code
    assert json.loads((tmp_path / "S/model.onnx.json").read_text())["metric"]["name"] == "val/mean_iou"
    assert not cnnlab("predict", "S", *flips).code
    folder = tmp_path / "data/shapes/images/test"
    result = cnnlab("infer", "S/model.onnx", folder, "--out", "found.csv", "--overlays")
    assert not result.code, result.err
    masks = sorted((tmp_path / "masks").iterdir())
    assert len(masks) == len(list(folder.iterdir())) == len(list((tmp_path / "overlays").iterdir()))
    for mask in masks:
        other = tmp_path / "S/masks" / mask.name
        assert mask.read_bytes() == other.read_bytes()
    assert table(tmp_path / "found.csv")[0].keys() == table(tmp_path / "S/predictions.csv")[0].keys()


def test_a_folder_with_broken_files_is_predicted_but_for_those(
    fit_photos: Cnnlab, cnnlab: Cnnlab, photos: Path, tmp_path: Path
) -> None:
    assert not fit_photos(*ONE_EPOCH).code
    assert not cnnlab("export", "R").code
    shutil.copytree(photos / "test", tmp_path / "mixed")
    whole = sorted((tmp_path / "mixed").rglob("*.jpg"))
    whole[0].write_bytes(b"")
    whole[3].write_bytes(whole[3].read_bytes()[:200])
    (tmp_path / "mixed/notes.txt").write_text("no image")
    result = cnnlab("infer", "R/model.onnx", "mixed", "--out", "found.csv")
    assert result.code == 2
    assert "2 of 12 images could not be read" in result.err
    assert f"{whole[0].relative_to(tmp_path)}: the file is empty" in result.err
    assert whole[3].name in result.err
    rows = table(tmp_path / "found.csv")
    assert [row["path"] for row in rows] == [
        str(p.relative_to(tmp_path)) for i, p in enumerate(whole) if i not in (0, 3)
    ]
    assert [int(row["index"]) for row in rows] == [i for i in range(12) if i not in (0, 3)]
    # Nothing is overwritten.
    before = (tmp_path / "found.csv").read_bytes()
    result = cnnlab("infer", "R/model.onnx", "mixed", "--out", "found.csv")
    assert result.code == 2
    assert "exists already" in result.err
    assert (tmp_path / "found.csv").read_bytes() == before
    assert not list(tmp_path.glob(".*part"))


def test_a_file_that_was_changed_is_refused(fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    assert not fit("--trainer.max_epochs", "1").code
    assert not cnnlab("export", "R").code
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "a.png")
    model = onnx.load(tmp_path / "R/model.onnx")
    weights = model.graph.initializer[0]
    values = onnx.numpy_helper.to_array(weights).copy()
    values.flat[0] += 1e-3
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    onnx.save(model, tmp_path / "R/model.onnx")
    refused = cnnlab("infer", "R/model.onnx", "a.png", "--verify")
    assert refused.code == 2
    assert "sha256 is another" in refused.err
    assert not (tmp_path / "predictions.csv").exists()
    assert not cnnlab("infer", "R/model.onnx", "a.png").code  # not asked


def test_a_failed_comparison_leaves_no_file_and_says_so(fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    assert not fit("--trainer.max_epochs", "1").code
    result = cnnlab("export", "R", "--tolerance", "0")
    assert result.code == 2
    assert "R/model.onnx is not written" in result.err
    assert not [path for path in (tmp_path / "R").iterdir() if "model" in path.name]


def test_the_slot_exports_the_best_checkpoint(fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    result = fit("--callbacks.onnx", "true")
    assert not result.code, result.err
    assert "R/model.onnx" in result.out
    certificate = verify(tmp_path / "R/model.onnx")
    metrics = table(tmp_path / "R/metrics.csv")
    best = max(float(row["val/accuracy"]) for row in metrics if row["val/accuracy"])
    assert certificate["metric"]["file"] == pytest.approx(best)
    by_command = tmp_path / "R/other.onnx"
    assert not cnnlab("export", "R", "--out", by_command, "--images", "10").code
    assert verify(by_command)["metric"]["images"] == 10
    assert not cnnlab("export", "R", "--out", "R/last.onnx", "--ckpt_path", "last").code
    assert verify(tmp_path / "R/last.onnx")["checkpoint"]["file"] == "last.ckpt"
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28)).astype(np.uint8)
    one, other = (load_onnx(path)(images)["probabilities"] for path in (by_command, tmp_path / "R/model.onnx"))
    np.testing.assert_array_equal(one, other)


def test_the_slot_says_what_is_missing_before_it_trains(
    fit: Cnnlab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "onnxscript" else find(name, *a))
    result = fit("--callbacks.onnx", "true")
    assert result.code == 2
    assert 'callbacks.onnx needs onnxscript: pip install "cnnlab[deploy]"' in result.err
    assert not (tmp_path / "R/checkpoints").exists()


def test_int8_is_smaller_and_says_what_it_cost(fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    assert not fit().code
    result = cnnlab("quantize", "R", "--images", "32", "--max_drop", "0.2")
    assert not result.code, result.err
    certificate = verify(tmp_path / "R/model.int8.onnx")
    assert certificate["files"]["model.int8.onnx"]["bytes"] < 0.4 * certificate["float"]["bytes"]
    assert certificate["metric"]["network"] - certificate["metric"]["file"] <= 0.2
    assert certificate["quantization"]["layers"] == 5
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "a.png")
    assert not cnnlab("infer", "R/model.int8.onnx", "a.png", "--verify").code
    with pytest.warns(UserWarning, match="leaves convolutions in float"):
        assert not cnnlab("quantize", "R", "--method", "dynamic", "--out", "dynamic.onnx").code
    assert cnnlab("quantize", "R", "--max_drop", "-1").code == 2
    assert cnnlab("quantize", "R", "--images", "0").code == 2


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_pruned_run_is_a_run_like_any_other(fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path, mnist_root: Path) -> None:
    assert not fit().code
    done = cnnlab("prune", "R", "--epochs", "1", "--rounds", "2", "--callbacks.ema", "true")
    assert not done.code, done.err
    said = json.loads((tmp_path / "R-pruned/pruning.json").read_text())
    assert said["parameters"]["before"] == 128_714
    assert said["parameters"]["after"] < 0.3 * 128_714
    checkpoint = torch.load(tmp_path / "R-pruned/checkpoints/best.ckpt", weights_only=True)
    removed = checkpoint["hyper_parameters"]["pruned"]
    assert removed
    assert removed == json.loads(json.dumps(removed))
    assert sum(value.numel() for name, value in checkpoint["state_dict"].items() if "network" in name) < 40_000
    # Again with it, without anything beside it, and in whatever comes next.
    shutil.copy(tmp_path / "R-pruned/checkpoints/best.ckpt", tmp_path / "alone.ckpt")
    for arguments in (
        ("test", "R-pruned"),
        ("test", "alone.ckpt", "--run", "A", "--data.root", mnist_root),
        ("export", "R-pruned"),
        ("resume", "R-pruned", "--trainer.max_epochs", "2"),
        ("prune", "R-pruned", "--share", "0.2", "--epochs", "1", "--out", "smaller"),
    ):
        done = cnnlab(*arguments)
        assert not done.code, (arguments, done.err)
    # What was measured before it went on has been set aside.
    (aside,) = (tmp_path / "R-pruned/earlier").iterdir()
    one, other = (json.loads((folder / "test.json").read_text()) for folder in (aside, tmp_path / "A"))
    assert one == other
    smaller = json.loads((tmp_path / "smaller/pruning.json").read_text())
    assert smaller["parameters"]["before"] == said["parameters"]["after"]
    refused = cnnlab("prune", "R")
    assert refused.code == 2
    assert "R-pruned exists already" in refused.err


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_pruned_weights_stay_zero_while_the_others_train(fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    assert not fit().code
    done = cnnlab("prune", "R", "--method", "unstructured", "--epochs", "1", "--out", "Z")
    assert not done.code, done.err
    weights = {
        run: torch.load(tmp_path / f"{run}/checkpoints/best.ckpt", weights_only=True)["state_dict"]
        for run in ("R", "Z")
    }
    layers = [name for name, value in weights["Z"].items() if name.endswith("weight") and value.ndim > 1]
    zeros = sum(int((weights["Z"][name] == 0).sum()) for name in layers)
    total = sum(weights["Z"][name].numel() for name in layers)
    assert zeros == round(total / 2)
    moved = sum(int(((weights["Z"][n] != 0) & (weights["Z"][n] != weights["R"][n])).sum()) for n in layers)
    assert moved > 0.9 * (total - zeros)
    assert sum(p.numel() for p in SimpleCNN().parameters()) == 128_714


def test_zeros_are_kept_only_where_there_are_some(fit: Cnnlab) -> None:
    result = fit("--callbacks.sparsity", "true")
    assert result.code == 2
    assert "no weight is zero" in result.err


@pytest.mark.slow
def test_the_table_has_a_row_for_each_way_to_run(fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    assert not fit().code
    result = cnnlab("benchmark", "R", "--repetitions", "2", "--images", "32")
    assert not result.code, result.err
    rows = {row["variant"]: row for row in json.loads((tmp_path / "R/benchmark.json").read_text())["rows"]}
    assert set(rows) == {row["variant"] for row in table(tmp_path / "R/benchmark.csv")}
    assert (tmp_path / "R/benchmark.png").read_bytes()[:4] == b"\x89PNG"
    ran = {name for name, row in rows.items() if not row["reason"]}
    assert ran >= {"eager, eval", "eager, train mode", "inference mode", "channels_last", "bfloat16", "torch.export"}
    assert ran >= {"ONNX Runtime", "ONNX Runtime, INT8", "TorchScript"}
    assert "no TensorrtExecutionProvider" in rows["TensorRT"]["reason"]
    assert "cnnlab prune RUN" in rows["pruned"]["reason"]
    for name in ran:
        for batch in (1, 32):
            row = rows[name]
            assert row[f"batch_{batch}_ms_first_quartile"] <= row[f"batch_{batch}_ms"]
            assert row[f"batch_{batch}_images_per_second"] == pytest.approx(
                1000 * batch / row[f"batch_{batch}_ms"], rel=0.01
            )
    assert rows["eager, eval"]["batch_1_speedup"] == 1
    assert rows["eager, eval"]["metric_change"] == 0
    assert rows["ONNX Runtime"]["metric_change"] == 0
    assert rows["ONNX Runtime, INT8"]["megabytes"] < 0.4 * rows["ONNX Runtime"]["megabytes"]
    assert "TensorRT: not here" in result.out


def test_a_network_by_its_name_is_timed_with_random_weights(cnnlab: Cnnlab, tmp_path: Path) -> None:
    few = ("--variants", "inference mode", "ONNX Runtime", "--repetitions", "2", "--size", "28", "--channels", "1")
    result = cnnlab("benchmark", "simple_cnn", *few, "--classes", "10", "--out", "B")
    assert not result.code, result.err
    said = json.loads((tmp_path / "B/benchmark.json").read_text())
    assert [row["variant"] for row in said["rows"]] == ["inference mode", "ONNX Runtime"]
    assert said["rows"][1]["metric"] is None
    assert "random" in said["metric"]
    assert cnnlab("benchmark", "nothing", *few).code == 2
    refused = cnnlab("benchmark", "simple_cnn", "--variants", "warp drive")
    assert refused.code == 2
    assert "there is no variant 'warp drive'" in refused.err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:1 images of photos are not the run's")
@pytest.mark.usefixtures("forked")
def test_a_pruned_run_keeps_the_splits_and_needs_nothing_that_has_vanished(
    cnnlab: Cnnlab, photos: Path, tmp_path: Path
) -> None:
    for path in sorted((photos / "train").rglob("*.jpg")):
        (tmp_path / "photos" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "photos" / path.parent.name)
    fit = ("fit", "--config", TINY.with_name("image_folder.yaml"), "--data.root", "photos", *ONE_EPOCH)
    assert not cnnlab(*fit, "--data.val_size", "0.3", "--data.test_size", "0.3", "--run", "R").code
    # A file more would divide the others anew.
    shutil.copy(tmp_path / "photos/along/00.jpg", tmp_path / "photos/along/000.jpg")
    done = cnnlab("prune", "R", "--epochs", "1")
    assert not done.code, done.err
    one, other = ({r["path"]: r["split"] for r in table(tmp_path / f"{run}/manifest.csv")} for run in ("R", "R-pruned"))
    assert one == {path: other[path] for path in one}
    shutil.rmtree(tmp_path / "R")
    for arguments in (
        ("test", "R-pruned"),
        ("data", "show", "R-pruned", "--out", "sheet.png"),
        ("prune", "R-pruned", "--method", "unstructured", "--epochs", "1", "--out", "Z"),
        ("fit", "--config", "R-pruned/config.yaml", "--trainer.max_epochs", "1", "--run", "anew"),
    ):
        done = cnnlab(*arguments)
        assert not done.code, (arguments, done.err)


@pytest.mark.slow
def test_a_signal_lets_a_training_that_prune_has_started_save(fit: Cnnlab, tmp_path: Path) -> None:
    assert not fit("--trainer.max_epochs", "1").code
    process = start_process("prune", "R", "--epochs", "200", cwd=tmp_path)
    metrics = tmp_path / "R-pruned/metrics.csv"
    deadline = time.monotonic() + 120
    while not metrics.is_file() or len(table(metrics)) < 20:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.finish(60).returncode == 143
    step = torch.load(tmp_path / "R-pruned/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert step - 1 >= max(int(row["step"]) for row in table(metrics))


def test_a_way_that_fails_costs_no_other(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """One image of 32 pixels leaves batch norm one value a channel, which it refuses in training."""
    few = ("--variants", "inference mode", "eager, train mode", "--repetitions", "2", "--size", "32", "--out", "B")
    result = cnnlab("benchmark", "resnet10t", *few)
    assert not result.code, result.err
    quick, wrong = json.loads((tmp_path / "B/benchmark.json").read_text())["rows"]
    assert quick["batch_1_ms"] > 0
    assert "more than 1 value per channel" in wrong["reason"]


def own_task() -> str:
    """A class that lists what Classification took before it could be pruned."""
    known = {name: p.default for name, p in parameters_of(Classification).items() if name != "pruned"}
    listed = ", ".join(f"{name}={default!r}" for name, default in known.items())
    handed = ", ".join(f"{name}={name}" for name in known)
    return (
        "from cnnlab.tasks import Classification\n\nclass Mine(Classification):\n"
        f"    def __init__(self, {listed}):\n        super().__init__({handed})\n"
    )


def test_a_task_of_one_s_own_is_tested_and_exported(cnnlab: Cnnlab, mnist_root: Path, tmp_path: Path) -> None:
    (tmp_path / "listed.py").write_text(own_task())
    data = ("--data", "MNIST", "--data.root", mnist_root, "--data.val_size", "64")
    assert not cnnlab("fit", "--model", "listed.Mine", *data, "--trainer.max_epochs", "1", "--run", "M").code
    for arguments in (("test", "M"), ("export", "M"), ("resume", "M", "--trainer.max_epochs", "2")):
        result = cnnlab(*arguments)
        assert not result.code, result.err
    refused = cnnlab("prune", "M")
    assert refused.code == 2
    assert "Mine takes no argument pruned" in refused.err


STRICT = """
from torch import nn

class Strict(nn.Module):
    def __init__(self, num_classes, channels):
        super().__init__()
        self.down = nn.Conv2d(channels, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(4, num_classes, 2, stride=2)
        self.skip = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x):
        return self.up(self.down(x).relu()) + self.skip(x)
"""


def test_a_network_for_some_sizes_only_gets_a_file_of_one_size(cnnlab: Cnnlab, tmp_path: Path) -> None:
    (tmp_path / "strict.py").write_text(STRICT)
    network = ("--model.network", "strict.Strict", "--model.network_args", "null", "--trainer.max_epochs", "1")
    assert not cnnlab("fit", "--config", TINY.with_name("segmentation.yaml"), *network, "--run", "S").code
    result = cnnlab("export", "S")
    assert result.code == 2
    assert "with --data.size a file of one size can be made" in result.err
    with pytest.warns(UserWarning, match=r"images of \(32, 32\) only"):
        assert not cnnlab("export", "S", "--data.size", "32").code
    assert not cnnlab("infer", "S/model.onnx", "data/shapes/images/test").code


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_drawn_for_a_terminal_and_left_out_where_there_is_no_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Terminal()
    monkeypatch.setattr(sys, "stderr", seen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress("images", 3) as advance:
        for _ in range(3):
            advance()
    assert "3/3" in seen.getvalue()
    silent = Terminal()
    monkeypatch.setattr(sys, "stderr", silent)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with progress("images", 3) as advance:
        advance()
    assert not silent.getvalue()


def test_a_score_of_some_images_is_of_all_classes_and_of_the_loss_too(mnist_root: Path) -> None:
    data = MNIST(root=str(mnist_root), val_size=64)
    data.setup("validate")
    assert Subset(data.val_set, 3).places == [0, 32, 63]
    assert len({int(t) for t in Subset(data.val_set, 20).__getitems__(list(range(20))).targets}) >= 8
    task = Classification(channels=1, mean=data.mean, std=data.std).eval()
    assert 0 <= score(task, data, torch_predict(pipeline(task)), most=16) <= 1
    batch = data.val_set.__getitems__(list(range(64)))
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(task(batch.images), batch.targets).item()
    by_loss = type("Loss", (Classification,), {"monitor": "val/loss"})(channels=1, mean=data.mean, std=data.std).eval()
    by_loss.load_state_dict(task.state_dict())
    assert score(by_loss, data, torch_predict(pipeline(by_loss))) == pytest.approx(expected, rel=1e-5)


def test_export_and_infer_say_what_to_mend(
    fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, message in (
        (("export", "nowhere"), "there is no run or checkpoint nowhere"),
        (("infer", "none.onnx", "a.png"), "there is no file none.onnx"),
    ):
        result = cnnlab(*arguments)
        assert result.code == 2
        assert message in result.err
    assert not fit("--trainer.max_epochs", "1").code
    result = cnnlab("export", "R", "--out", "model.bin")
    assert result.code == 2
    assert "ends with .onnx" in result.err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    result = cnnlab("export", "R")
    assert result.code == 2
    assert 'exporting needs onnxscript: pip install "cnnlab[deploy]"' in result.err
