"""What users met with commands on a trained run: options of other names, strict JSON, pruning of other norms."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cnnlab.commands.crossval import start_crossval
from cnnlab.run import Run
from cnnlab.writing import read_csv, write_csv, write_json
from tests.conftest import TINY_PHOTOS, Cnnlab, run_process, write_photos

SMALL = (
    *("--callbacks.unfreezing", "false", "--callbacks.errors", "false", "--callbacks.gradcam", "false"),
    *("--model.head", "null", "--model.network", "simple_cnn", "--data.size", "16", "--trainer.max_epochs", "1"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the photographs p and a run R of a network with group norms."""
    folder = tmp_path_factory.mktemp("trained")
    write_photos(folder / "p", {"train": 6, "val": 3, "test": 3}, (16, 16))
    fit = ("fit", "--config", TINY_PHOTOS, "--data.root", "p", *SMALL, "--model.group_norm", "true", "--run", "R")
    done = run_process(*fit, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, which is the working folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_group_norms_are_pruned_too(cnnlab: Cnnlab, place: Path, forked: None) -> None:
    """Only networks with batch norm could be pruned: a group norm was a layer whose channels cannot be removed."""
    done = cnnlab("prune", "R", "--epochs", "1", "--out", "P")
    assert done.code == 0, done.err
    count = json.loads((place / "P/pruning.json").read_text())["parameters"]
    assert count["after"] < 0.6 * count["before"]
    assert cnnlab("test", "P").code == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("prune R --run X", "cnnlab prune has no option --run: did you mean 'out'?"),
        ("explain R --output X", "cnnlab explain has no option --output: did you mean 'out'?"),
        ("quantize R --metod dynamic", "cnnlab quantize has no option --metod: did you mean 'method'?"),
        ("infer R p --num_threads 1", "cnnlab infer has no option --num_threads: did you mean 'threads'?"),
        ("infer R p", "R is a folder: name an ONNX file, such as R/model.onnx (cnnlab export RUN)"),
        ("benchmark R --batch-size 2", "cnnlab benchmark has no option --batch-size: did you mean 'batch'?"),
        ("test R --out X", "there is no option --out: did you mean 'run'?"),
        ("fit --config image_folder --epochs 3", "there is no option --epochs: did you mean 'trainer.max_epochs'?"),
        ("export R --format coreml", "argument --format: invalid choice: 'coreml'"),
        ("sync R --run X", "cnnlab sync R --run X: expected cnnlab sync RUN [--replay] [--dashboard]"),
        ("new", "cnnlab new: expected cnnlab new FOLDER"),
    ],
)
def test_an_option_of_another_command_is_answered_by_the_own_one(
    cnnlab: Cnnlab, place: Path, command: str, words: str
) -> None:
    """A prune with --run said that the run lies in no run's folder; others printed their usage, or nothing near."""
    done = cnnlab(*command.split())
    assert done.code == 2
    assert words in done.err.splitlines()[-1]
    assert len(done.err.splitlines()) <= 3
    assert not (place / "X").exists()


def test_json_that_is_printed_is_strict(cnnlab: Cnnlab, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN was printed, which is no JSON, and which other programs refuse to read."""
    monkeypatch.setattr("cnnlab.commands.benchmark.score", lambda *_, **__: float("nan"))
    done = cnnlab("benchmark", "R", "--json", "--repetitions", "2", "--variants", "eager, eval")
    assert done.code == 0, done.err
    rows = json.loads(done.out[done.out.index("[\n") : done.out.rindex("\n]") + 2], parse_constant=pytest.fail)
    assert rows[0]["metric"] is None
    assert rows[0]["batch_1_ms"] > 0


def test_a_class_called_fold_has_a_column_of_its_own(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """The table of a cross-validation had two columns of this name."""
    start_crossval(tmp_path / "C", 2, ["--config", str(TINY_PHOTOS)])
    for fold, name in enumerate("ba"):
        run = Run(tmp_path / f"C/fold-{fold}")
        write_json(run.validation, {"val/accuracy": 1.0})
        write_csv(run.results_of("val").predictions, [{"index": 0, "path": f"{name}.png", "fold": 0.25}])
    assert cnnlab("crossval", "--config", TINY_PHOTOS, "--folds", "2", "--run", "C").code == 0
    assert read_csv(tmp_path / "C/predictions.csv") == [
        {"fold": "1", "path": "a.png", "fold (class or value)": "0.25"},
        {"fold": "0", "path": "b.png", "fold (class or value)": "0.25"},
    ]
