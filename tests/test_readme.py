"""What the README tells people to type works."""

import re
import shlex
from pathlib import Path

import pytest

from cnnlab.commands.slurm import parse_options
from tests.conftest import Cnnlab

README = (Path(__file__).parents[1] / "README.md").read_text()
COMMANDS = [
    # What a job runs, or torchrun, is a fit like another.
    "cnnlab fit " + line.split("  #")[0].split(" > ")[0].partition(" fit ")[2].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith(("cnnlab fit", "cnnlab slurm", "torchrun")) and " fit " in line
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_fit_command_is_valid(cnnlab: Cnnlab, tmp_path: Path, line: str) -> None:
    (tmp_path / "my_overlay.yaml").write_text("trainer: {max_epochs: 3}\n")
    result = cnnlab(*shlex.split(line)[1:], "--print_config")
    assert result.code == 0, result.err


def test_the_options_of_jobs_are_valid() -> None:
    lines = [line.split("  #")[0] for line in README.splitlines() if line.startswith("cnnlab slurm") and " -- " in line]
    assert len(lines) >= 2
    for line in lines:
        options = parse_options(shlex.split(line.partition(" -- ")[0])[2:])
        assert all(option.startswith("--partition=") for option in options.sbatch)


def test_the_python_example_runs(tmp_path: Path, mnist_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = code.replace('root="data"', f"root={str(mnist_root)!r}, val_size=64").replace("max_epochs=3", "max_epochs=1")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["trainer"].current_epoch == 1  # type: ignore[attr-defined]
    assert list(tmp_path.rglob("best.ckpt"))


def test_its_pictures_are_there() -> None:
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (Path(__file__).parents[1] / path).stat().st_size > 1000
