"""cnnlab new."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import keyword
import re
import sys
from pathlib import Path

from jinja2 import Environment, StrictUndefined

import cnnlab
from cnnlab.errors import InputError

_TAKEN = ("tests", "configs", "data", "runs")
"""Other folders of the project."""
_TEMPLATE = Path(cnnlab.__file__).parent / "template"


def new(folder: Path) -> None:
    """Create a new project that uses cnnlab as a library: a network, data, a recipe, a test, a job.

    Args:
        folder: The project's folder, which must be new or empty; its package has the same name.

    Raises:
        InputError: If the folder has files, cannot be written, or its name is not a valid or free package name.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already: name a new folder")
    package = re.sub(r"\W+", "_", folder.absolute().name.lower()).strip("_")
    if not package.isidentifier() or keyword.iskeyword(package):
        raise InputError(f"{folder.absolute().name!r} makes no package's name: choose one of letters and digits")
    installed = importlib.util.find_spec(package)
    # A plain folder is found too, but hides no package.
    if package in _TAKEN or package in sys.stdlib_module_names or (installed is not None and installed.origin):
        raise InputError(f"a package {package!r} would hide another of that name: choose another")
    settings = {"package": package, "title": folder.absolute().name, "requirement": requirement()}
    # Escaping is for HTML only.
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    try:
        for source in sorted(_TEMPLATE.rglob("*.jinja")):
            name = str(source.relative_to(_TEMPLATE).with_suffix("")).replace("PACKAGE", package)
            place = folder / (".gitignore" if name == "gitignore" else name)
            place.parent.mkdir(parents=True, exist_ok=True)
            text = environment.from_string(source.read_text(encoding="utf-8")).render(settings)
            place.write_text(text, encoding="utf-8")
        (folder / "slurm.sh").chmod(0o755)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}") from error
    print(f"project {folder}: cd {folder}, make test, make train; README.md says what is where")


def requirement() -> str:
    """Return the pip requirement for this installation of cnnlab: its version, or where it was installed from."""
    said = importlib.metadata.distribution("cnnlab").read_text("direct_url.json")
    if said is None:
        return f"cnnlab=={cnnlab.__version__}"
    origin = json.loads(said)
    kind = origin.get("vcs_info", {})
    return f"cnnlab @ {kind['vcs']}+{origin['url']}@{kind['commit_id']}" if kind else f"cnnlab @ {origin['url']}"
