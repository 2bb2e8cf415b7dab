"""The package as somebody else gets it: a wheel, an empty folder, nothing of the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_recipes_travel_in_the_wheel(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    empty = tmp_path / "empty"
    empty.mkdir()

    def cnnlab(*arguments: str) -> str:
        code = (
            f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); from cnnlab.cli import main; sys.exit(main())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=empty, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    shipped = {path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in ROOT.glob("configs/**/*.yaml")}
    shipped = {name for name in shipped if not name.startswith("sweep/")}
    assert {line.split()[0] for line in cnnlab("recipes").splitlines()} == shipped
    printed = cnnlab("fit", "--config", "mnist", "--print_config")
    assert "class_path: cnnlab.data.MNIST" in printed
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "cnnlab/py.typed" in names
    template = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("cnnlab/template/**/*.jinja")}
    assert template
    assert template <= set(names)
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "configs"))]
