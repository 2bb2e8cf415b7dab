from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnlab.figures import contact_sheet


@pytest.mark.parametrize(("shape", "columns"), [((30, 30), 6), ((30, 45), 6), ((30, 60), 3), ((30, 150), 2)])
def test_wide_images_stand_in_shorter_rows_of_whole_groups(
    tmp_path: Path, shape: tuple[int, int], columns: int
) -> None:
    images = [np.full((1, *shape), 90 + i, dtype=np.uint8) for i in range(12)]
    contact_sheet(images, [str(i) for i in range(12)], tmp_path / "a.png", "Twelve", columns=6)
    with Image.open(tmp_path / "a.png") as picture:
        width = 1.4 * min(shape[1] / shape[0], 4)
        assert picture.size[0] == pytest.approx(110 * columns * (width + 0.1), abs=2)


def test_fewer_images_than_a_row_holds_stand_in_a_narrower_one(tmp_path: Path) -> None:
    contact_sheet([np.zeros((3, 20, 20), dtype=np.uint8)] * 3, ["a$b$"] * 3, tmp_path / "a.png", "Three")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size[0] == pytest.approx(110 * 3 * 1.5, abs=2)
