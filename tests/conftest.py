"""Generated data and a command line for all tests."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnlab.cli import main
from cnnlab.commands import crossval, prune
from tests.forked import Forked

TINY = Path(__file__).parent / "conf" / "classification.yaml"
"""A recipe that trains in a second: 320 generated images, three classes' worth of patterns, two epochs."""

TINY_PHOTOS = TINY.with_name("image_folder.yaml")
"""A recipe that fine-tunes in seconds: 24 generated photographs, a small ResNet, three phases in three epochs."""


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write an array in MNIST's file format."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def patterns(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images 28x28 of ten kinds (a bright bar at ten heights, with noise) and their classes."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    images = generator.integers(0, 60, (count, 28, 28))
    for image, label in zip(images, labels, strict=True):
        image[2 + 2 * label : 6 + 2 * label, 4:24] += 180
    return images.astype(np.uint8), labels.astype(np.uint8)


def write_mnist(root: Path, train: int = 320, test: int = 50, name: str = "MNIST", packed: bool = False) -> None:
    """Lay down the four files of a data set in MNIST's form."""
    for prefix, count, seed in (("train", train, 0), ("t10k", test, 1)):
        images, labels = patterns(count, seed)
        for kind, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            path = root / name / "raw" / f"{prefix}-{kind}"
            write_idx(path, array)
            if packed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
                path.unlink()


@pytest.fixture(scope="session")
def mnist_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small data set in MNIST's form."""
    root = tmp_path_factory.mktemp("data")
    write_mnist(root)
    return root


def write_photos(root: Path, splits: dict[str, int], size: tuple[int, int] = (40, 48)) -> None:
    """Lay down JPEG files of three classes (stripes along, stripes across, spots), so many of each in a split."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[: size[0], : size[1]]
    shapes = {"across": columns // 6 % 2, "along": rows // 6 % 2, "spots": (rows // 8 + columns // 8) % 2}
    for split, count in splits.items():
        for name, shape in shapes.items():
            for i in range(count):
                color = generator.integers(60, 200, 3)
                pixels = 40 + shape[..., None] * color + generator.integers(0, 15, (*size, 3))
                path = root / split / name / f"{i:02}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path, quality=95)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photographs with train, val and test, three classes of 8, 4 and 4 images."""
    root = tmp_path_factory.mktemp("photos")
    write_photos(root, {"train": 8, "val": 4, "test": 4})
    return root


@pytest.fixture
def fit_photos(cnnlab: Cnnlab, photos: Path) -> Cnnlab:
    """``cnnlab fit`` with the tiny recipe for photographs, into the folder R."""

    def run(*flags: str | Path) -> Result:
        return cnnlab("fit", "--config", TINY_PHOTOS, "--data.root", photos, "--run", "R", *flags)

    return run


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real data sets, outside the project; a test that needs it skips where it is absent."""
    folder = Path(os.environ.get("CNNLAB_TEST_DATA", Path(__file__).parents[2] / "shared/data"))
    if not folder.is_dir():
        pytest.skip(f"needs real data in {folder} (or in $CNNLAB_TEST_DATA)")
    return folder


@pytest.fixture(autouse=True)
def _every_checkpoint_is_safe(tmp_path: Path) -> Iterator[None]:
    """Users met checkpoints that weights_only=True refuses (Lightning#20450, #21757): load all that tests save."""
    yield
    for path in [*tmp_path.rglob("best.ckpt"), *tmp_path.rglob("last.ckpt")]:
        if path.stat().st_size:
            torch.load(path, weights_only=True)


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


Cnnlab = Callable[..., Result]


@pytest.fixture(autouse=True)
def _clean_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No run's folder, seed or launcher's variables from one test to the next."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_", "PL_")) or name in ("RANK", "LOCAL_RANK", "CNNLAB_RUN"):
            monkeypatch.delenv(name)
    path = list(sys.path)
    before = dict(os.environ)
    yield
    sys.path[:] = path
    for name in set(os.environ) - set(before):
        del os.environ[name]


@pytest.fixture
def cnnlab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cnnlab:
    """Run the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Result:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["cnnlab", *map(str, arguments)])
        try:
            code = main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def fit(cnnlab: Cnnlab, mnist_root: Path) -> Cnnlab:
    """``cnnlab fit`` with the tiny recipe, into the folder R."""

    def run(*flags: str | Path) -> Result:
        return cnnlab("fit", "--config", TINY, "--data.root", mnist_root, "--run", "R", *flags)

    return run


def command(*arguments: str | Path) -> list[str]:
    """The command line as a process of its own."""
    return [sys.executable, "-m", "cnnlab", *map(str, arguments)]


def processes(count: int) -> tuple[str, ...]:
    """The flags for so many processes on this machine, whatever a run was trained with."""
    return ("--trainer.devices", str(count), "--trainer.strategy", "ddp" if count > 1 else "auto")


def start_process(
    *arguments: str | Path, cwd: Path, session: bool = False, variables: dict[str, str] | None = None
) -> Forked:
    """Start the command line as a process of its own (or a session), with more environment variables."""
    files = Path(tempfile.mkdtemp(prefix="printed-", dir=cwd.parent))
    return Forked([*map(str, arguments)], cwd, files, session, variables or {})


def run_process(*arguments: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a process of its own, to its end, with more environment variables."""
    return start_process(*arguments, cwd=cwd, variables=variables).finish()


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the trainings of crossval and prune be forked too."""

    def run(*arguments: str) -> int:
        done = run_process(*arguments, cwd=Path.cwd())
        print(done.stdout)
        print(done.stderr, file=sys.stderr)
        return done.returncode

    for module in (crossval, prune):
        monkeypatch.setattr(module, "run_cnnlab", run)
