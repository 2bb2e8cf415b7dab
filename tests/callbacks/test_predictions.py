import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cnnlab.callbacks import PredictionTable
from cnnlab.figures import confusion_matrix, contact_sheet
from tests.tasks.test_classification import data, task, trainer


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_there_is_a_row_for_each_image_in_order(tmp_path: Path, mnist_root: Path) -> None:
    model = task(class_names=["zero", *"12345678", 'a, "b"'])
    run = trainer(tmp_path, callbacks=[PredictionTable()])
    run.predict(model, datamodule=data(mnist_root), return_predictions=False)
    found = rows(tmp_path / "predictions.csv")
    assert [int(row["index"]) for row in found] == list(range(50))
    source = data(mnist_root)
    source.setup("test")
    with torch.inference_mode():
        expected = model.eval()(source.test_set.images).softmax(1)
    probabilities = np.array([[float(row[name]) for name in model.class_names] for row in found])
    np.testing.assert_allclose(probabilities, expected.numpy(), atol=1e-5)
    assert [int(row["label"]) for row in found] == probabilities.argmax(1).tolist()
    assert [row["name"] for row in found] == [model.class_names[int(row["label"])] for row in found]
    assert [int(row["target"]) for row in found] == source.test_set.targets.tolist()
    assert not list(tmp_path.glob(".predictions*"))


def test_the_picture_shows_the_hardest_images(tmp_path: Path, mnist_root: Path) -> None:
    table = PredictionTable(pictures=5)
    model = task()
    trainer(tmp_path, callbacks=[table]).predict(model, datamodule=data(mnist_root), return_predictions=False)
    found = rows(tmp_path / "predictions.csv")
    truth = sorted(float(row[row["target"]]) for row in found)
    shown = sorted(np.exp(-one.difficulty) for one in table._hardest)
    np.testing.assert_allclose(shown, truth[:5], rtol=1e-4)
    for one in table._hardest:
        row = found[-one.place]
        assert one.is_right == (row["label"] == row["target"])
        assert one.caption.startswith(f"{row['name']} {float(row[row['label']]):.0%}")
    with Image.open(tmp_path / "pictures/predictions.png") as picture:
        assert min(picture.size) > 100


def test_pictures_can_be_left_out(tmp_path: Path, mnist_root: Path) -> None:
    run = trainer(tmp_path, callbacks=[PredictionTable(pictures=0)])
    run.predict(task(), datamodule=data(mnist_root), return_predictions=False)
    assert not (tmp_path / "pictures").exists()


def test_names_that_look_like_mathematics_are_drawn_as_they_are(tmp_path: Path) -> None:
    image = np.zeros((3, 8, 8), dtype=np.uint8)
    names = ["$\\frac", "a_{b}$", "c"]
    contact_sheet([image, image], [f"{names[0]} 50%\nis {names[1]}", "c 90%"], tmp_path / "a.png", names[1])
    confusion_matrix(np.eye(3, dtype=np.int64), names, tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert (tmp_path / "b.png").stat().st_size > 1000
