"""A project of one's own: what cnnlab new lays down works as it is."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cnnlab as package
from cnnlab.commands.new import requirement
from cnnlab.commands.slurm import parse_options
from tests.conftest import Cnnlab


def test_the_project_is_whole(cnnlab: Cnnlab, tmp_path: Path) -> None:
    result = cnnlab("new", "Leaves of-2026")
    assert result.code == 0, result.err
    project = tmp_path / "Leaves of-2026"
    files = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    assert files == {
        ".gitignore",
        "Makefile",
        "README.md",
        "configs/recipe.yaml",
        "leaves_of_2026/__init__.py",
        "leaves_of_2026/data.py",
        "leaves_of_2026/network.py",
        "pyproject.toml",
        "requirements.txt",
        "slurm.sh",
        "tests/test_project.py",
    }
    for path in project.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert "{{" not in text
            assert "PACKAGE" not in text
    # The job is one that cnnlab slurm takes.
    line = " ".join((project / "slurm.sh").read_text().replace("\\\n", "").splitlines()[-1].split())
    options = shlex.split(line.partition(" -- ")[0].replace('"$@"', ""))[2:]
    assert parse_options(options).sbatch == []


def test_nothing_is_overwritten(cnnlab: Cnnlab, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old/notes.txt").write_text("mine")
    refused = cnnlab("new", "old")
    assert refused.code == 2
    assert "old is there already" in refused.err
    assert (tmp_path / "old/notes.txt").read_text() == "mine"
    for name in ("2x", "class", "!!"):
        assert "makes no package's name" in cnnlab("new", name).err, name
    for name in ("cnnlab", "torch", "random", "numpy", "data", "runs"):
        assert "would hide another" in cnnlab("new", name).err, name
    assert "cannot be written" in cnnlab("new", "old/notes.txt/leaves").err
    (tmp_path / "empty").mkdir()
    assert cnnlab("new", "empty").code == 0


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (None, f"cnnlab=={package.__version__}"),
        ({"url": "file:///home/me/cnnlab", "dir_info": {"editable": True}}, "cnnlab @ file:///home/me/cnnlab"),
        (
            {"url": "https://example.org/cnnlab.git", "vcs_info": {"vcs": "git", "commit_id": "abc123"}},
            "cnnlab @ git+https://example.org/cnnlab.git@abc123",
        ),
    ],
)
def test_it_asks_for_the_cnnlab_that_made_it(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, object] | None, expected: str
) -> None:
    class Distribution:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if said is None else json.dumps(said)

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution())
    assert requirement() == expected


@pytest.mark.slow
def test_its_tests_pass_and_it_trains(cnnlab: Cnnlab, tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    assert cnnlab("new", "leaves").code == 0
    programs = f"BIN={Path(sys.executable).parent}"
    for target in ("test", "train"):
        done = subprocess.run(["make", target, programs], cwd=tmp_path / "leaves", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    # What its README says.
    line = "fit --config configs/recipe.yaml --model.network resnet18"
    assert line in (tmp_path / "leaves/README.md").read_text()
    code = "import sys; from cnnlab.commands.loading import load_config; load_config(sys.argv[2:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()],
        cwd=tmp_path / "leaves",
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "leaves/runs").iterdir()
    assert (run / "checkpoints/best.ckpt").is_file()
