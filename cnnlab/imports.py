"""What lies behind an import path."""

from __future__ import annotations

import importlib
from typing import Any

from cnnlab.errors import InputError, nearest


def by_path(path: str) -> Any:
    """Import ``package.module.name``.

    Raises:
        InputError: If there is no such module, or nothing of that name in it.

    >>> by_path("pathlib.PurePath").__name__
    'PurePath'
    """
    module_name, _, attribute = path.rpartition(".")
    if not module_name or module_name.startswith("."):
        raise InputError(f"{path!r} is no import path: expected package.module.name")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path}: module {error.name!r} is neither in the working folder nor among the installed packages"
        ) from error
    except ImportError as error:
        raise InputError(f"{path}: module {module_name!r} cannot be imported: {error}") from error
    if not hasattr(module, attribute):
        raise InputError(f"{path}: module {module_name!r} has no {attribute!r}: {nearest(attribute, vars(module))}")
    return getattr(module, attribute)
