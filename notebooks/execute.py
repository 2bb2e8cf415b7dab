"""Run the notebooks, and write each with what it shows beside its text: python notebooks/execute.py [NAME...].

They are kept as pairs: NAME.py is the text, to be read and changed; NAME.ipynb has the pictures.
"""

from __future__ import annotations

import base64
import io
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbclient
from PIL import Image

FOLDER = Path(__file__).parent


def execute(text: Path) -> None:
    """Run a notebook in an empty folder, and write NAME.ipynb."""
    notebook = jupytext.read(text)
    with tempfile.TemporaryDirectory() as scratch:
        resources = {"metadata": {"path": scratch}}
        nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    for number, cell in enumerate(notebook.cells):
        # Else each run would change them all.
        cell["id"] = str(number)
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        # What libraries say of the machine is no part of a notebook.
        cell["outputs"] = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = smaller(output["data"]["image/png"])
    notebook.metadata.pop("language_info", None)
    jupytext.write(notebook, text.with_suffix(".ipynb"))


def smaller(picture: str) -> str:
    """A PNG in base64 with 128 colors and no more than 800 pixels a side, since all that is committed stays."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        file = io.BytesIO()
        image.thumbnail((800, 800))
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    texts = [FOLDER / f"{name}.py" for name in sys.argv[1:]] or sorted(FOLDER.glob("[0-9]*.py"))
    for text in texts:
        began = time.perf_counter()
        execute(text)
        print(f"{text.stem:18}{time.perf_counter() - began:6.1f} s")
