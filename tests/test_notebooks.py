"""The notebooks are pairs of the same text, with pictures; make notebooks runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jupytext
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("0*.py"))


def cells(path: Path) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


@pytest.mark.parametrize("text", NOTEBOOKS, ids=lambda path: path.stem)
def test_both_of_a_pair_say_the_same(text: Path) -> None:
    assert cells(text) == cells(text.with_suffix(".ipynb"))


@pytest.mark.parametrize("text", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_have_been_run(text: Path) -> None:
    notebook: Any = jupytext.read(text.with_suffix(".ipynb"))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert [output for output in outputs if "image/png" in output.get("data", {})] or text.stem == "05_deployment"
    assert text.with_suffix(".ipynb").stat().st_size < 1_000_000


def test_there_are_six() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]
