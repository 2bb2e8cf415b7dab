"""Import of classes by their paths, and the arguments that they take."""

from __future__ import annotations

import importlib
import inspect
import traceback
from pathlib import Path
from typing import Any

from cnnlab.errors import InputError, nearest


def by_path(path: str) -> Any:
    """Import ``package.module.name``.

    Raises:
        InputError: If it is not an import path, or if the module or the name in it cannot be imported.

    >>> by_path("pathlib.PurePath").__name__
    'PurePath'
    """
    module_name, _, attribute = path.rpartition(".")
    if not module_name or module_name.startswith("."):
        raise InputError(f"{path!r} is no import path: expected package.module.name")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        by = "" if module_name.startswith(str(error.name)) else f", and {_last_line(error, module_name)} imports it"
        raise InputError(
            f"{path}: module {error.name!r} is neither in the working folder ({Path.cwd()}) nor among the installed "
            f"packages{by}: install it, set PYTHONPATH, or start cnnlab in its folder"
        ) from error
    except Exception as error:  # The user's module runs, and can raise anything.
        reason = " ".join(str(error).split()) or "no message"
        raise InputError(
            f"{path}: module {module_name!r} cannot be imported: {type(error).__name__}: {reason} "
            f"({_last_line(error, module_name)})"
        ) from error
    if not hasattr(module, attribute):
        raise InputError(f"{path}: module {module_name!r} has no {attribute!r}: {nearest(attribute, vars(module))}")
    return getattr(module, attribute)


def _last_line(error: Exception, module_name: str) -> str:
    """The place of an error in a user's module: the innermost line in it or in what it imports, as file:line."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(("<", importlib.__file__, __file__))]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else module_name


def parameters_of(kind: type) -> dict[str, inspect.Parameter]:
    """The arguments that a class takes, including those that it passes to its base classes by **kwargs.

    The command line, the links between data and task, checkpoints and messages all use this function.

    >>> class Base:
    ...     def __init__(self, a, b=2): ...
    >>> class Own(Base):
    ...     def __init__(self, c, **kwargs): ...
    >>> list(parameters_of(Own))
    ['c', 'a', 'b']
    """
    found: dict[str, inspect.Parameter] = {}
    for owner in kind.__mro__:
        if "__init__" not in vars(owner):
            continue
        parameters = inspect.signature(owner).parameters.values()
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        found |= {p.name: p for p in named if p.name not in found}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found
