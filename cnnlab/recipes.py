"""The recipes that come with cnnlab: complete configurations, and small overlays, by name."""

from __future__ import annotations

from pathlib import Path

from cnnlab.errors import InputError, nearest


def folder() -> Path:
    """Return the folder of the recipes: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    for candidate in (package / "configs", package.parent / "configs"):
        if candidate.is_dir():
            return candidate
    raise InputError(f"cnnlab's recipes are missing from {package}: install cnnlab again")


def names() -> dict[str, str]:
    """Return each recipe's name ("mnist", "trainer/debug") and first comment line, without W&B's sweep files."""
    found = {}
    for path in sorted(path for path in folder().rglob("*.yaml") if path.parent.name != "sweep"):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        found[path.relative_to(folder()).with_suffix("").as_posix()] = first.removeprefix("#").strip()
    return found


def resolve(name: str) -> str:
    """Return the path of the file that ``--config NAME`` stands for.

    NAME is a path, which has priority if it exists, or a recipe's name, with or without ".yaml", and with or without
    "configs/" before it.

    Raises:
        InputError: If there is neither such a file nor such a recipe.
    """
    if Path(name).is_file():
        return name
    bare = name.removesuffix(".yaml").removeprefix("configs/")
    shipped = folder() / f"{bare}.yaml"
    if shipped.is_file():
        return str(shipped)
    raise InputError(f"--config {name}: there is no such file, and no recipe of this name: {nearest(bare, names())}")


def called(path: str) -> str:
    """Return the name of a configuration file: a recipe's name, or the path of another file."""
    file = Path(path).resolve()
    own = folder().resolve()
    return file.relative_to(own).with_suffix("").as_posix() if file.is_relative_to(own) else path
