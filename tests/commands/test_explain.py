import shutil
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from cnnlab.checkpoint import read_checkpoint
from cnnlab.commands.loading import load_run
from tests.conftest import TINY, Cnnlab


class Unavailable(CSVLogger):
    """A logger whose package is not installed."""

    def __init__(self) -> None:
        raise ModuleNotFoundError("it is not installed")


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


@pytest.fixture
def digits(fit: Cnnlab, cnnlab: Cnnlab) -> Cnnlab:
    """``cnnlab explain R``, of a run on generated digits."""
    assert fit("--trainer.max_epochs", "1").code == 0
    return lambda *arguments: cnnlab("explain", "R", *arguments)


def test_it_draws_maps_filters_features_and_all_images(digits: Cnnlab, tmp_path: Path) -> None:
    done = digits("--filters", "--features", "features.0", "features.3", "--tsne", "--html", "--number", "3")
    assert done.code == 0, done.err
    folder = tmp_path / "R/explain"
    drawn = {path.name for path in folder.iterdir()}
    assert drawn == {
        "gradcam.png",
        "filters.png",
        "features-features.0.png",
        "features-features.3.png",
        "tsne.png",
        "explain.html",
    }
    page = (folder / "explain.html").read_text()
    assert page.count("<img") == 5
    assert page.count('src="data:image/png;base64,') == 5


def test_images_of_ones_own_are_explained_at_the_size_of_the_others(digits: Cnnlab, tmp_path: Path) -> None:
    for number in range(3):
        path = tmp_path / f"new/{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (40 + number, 50), 90 * number).save(path)
    done = digits("new", "--class", "7", "--method", "gradcam++", "--out", "there")
    assert done.code == 0, done.err
    three = size(tmp_path / "there/gradcam.png")
    assert digits("new/0.png", "--out", "one").code == 0
    assert size(tmp_path / "one/gradcam.png") < three
    assert not (tmp_path / "R/explain").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class", "10"], "there is no class '10'"),
        (["--layer", "featurs"], "has no layer 'featurs': did you mean 'features'"),
        (["--features", "heads"], "has no layer"),
        (["absent.png"], "there is no image absent.png"),
    ],
)
def test_what_is_not_there_is_named(digits: Cnnlab, arguments: list[str], message: str) -> None:
    done = digits(*arguments)
    assert done.code == 2
    assert message in done.err


def test_it_needs_nothing_of_the_training(digits: Cnnlab, tmp_path: Path) -> None:
    config = tmp_path / "R/config.yaml"
    settings = yaml.safe_load(config.read_text())
    logger = {"class_path": "tests.commands.test_explain.Unavailable"}
    settings["trainer"] |= {"accelerator": "gpu", "devices": 8, "logger": logger}
    config.write_text(yaml.safe_dump(settings))
    done = digits("--number", "1")
    assert done.code == 0, done.err


def test_it_explains_the_network_that_was_trained(digits: Cnnlab, tmp_path: Path) -> None:
    assert digits("--help").code == 0  # The run exists.
    task, _, run, _ = load_run("R")
    trained = read_checkpoint(run.best)["state_dict"]
    assert all(value.equal(trained[name]) for name, value in task.state_dict().items())
    assert not task.training


def test_a_checkpoint_explains_without_its_training_images(
    fit_photos: Cnnlab, cnnlab: Cnnlab, photos: Path, tmp_path: Path
) -> None:
    mine = shutil.copytree(photos, tmp_path / "mine")
    assert fit_photos("--data.root", mine).code == 0
    shutil.copy(mine / "test/spots/00.jpg", tmp_path / "new.jpg")
    shutil.copy(tmp_path / "R/checkpoints/best.ckpt", tmp_path / "sent.ckpt")
    shutil.rmtree(mine)
    for source in ("R", "sent.ckpt"):
        done = cnnlab("explain", source, "new.jpg", "--out", f"of-{source}")
        assert done.code == 0, done.err
        assert (tmp_path / f"of-{source}/gradcam.png").is_file()
    assert not list((tmp_path / "runs").iterdir())


def test_image_folders(fit_photos: Cnnlab, cnnlab: Cnnlab, photos: Path, tmp_path: Path) -> None:
    assert fit_photos().code == 0
    done = cnnlab("explain", "R", photos / "test/spots/00.jpg", "--tsne")
    assert done.code == 0, done.err
    assert (tmp_path / "R/results/00.jpg/explain/tsne.png").is_file()


def test_segmentation_has_maps_but_no_embedding(cnnlab: Cnnlab, tmp_path: Path) -> None:
    assert cnnlab("fit", "--config", TINY.with_name("segmentation.yaml"), "--run", "R").code == 0
    done = cnnlab("explain", "R", "--class", "circle", "--number", "2")
    assert done.code == 0, done.err
    assert (tmp_path / "R/explain/gradcam.png").is_file()
    refused = cnnlab("explain", "R", "--tsne")
    assert refused.code == 2
    assert "for images of one class" in refused.err
