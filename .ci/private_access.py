"""Find uses of other packages' private names outside the modules that are there to hold them.

python .ci/private_access.py [PACKAGE_FOLDER]

Reported are:

- imports from private modules, and of private names;
- ``x._name``, ``getattr(x, "_name")`` and ``vars(x)["name"]``, where x is not self, cls or super();
- ``self._name`` and ``def _name`` in a class, where a foreign base class has this name, or where nobody defines it.

Public in spite of their underscore are the methods of named tuples, ``os._exit``, and the names of ATen operators
(``torch.ops.aten._softmax``): an operator's name is part of exported graphs.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

COMPAT = ("lightning_compat.py", "torch_compat.py")
"""The modules that may use private names."""
PUBLIC = {"_replace", "_asdict", "_fields", "_make", "_exit"}
_OWN = ("self", "cls")


class Finding(NamedTuple):
    """A private access."""

    file: Path
    line: int
    text: str


class Class(NamedTuple):
    """A class of the package: its bases as written, and the private names that it defines."""

    bases: list[str]
    names: set[str]


def is_private(name: object) -> bool:
    """Whether a name has one leading underscore."""
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__") and name != "_"


def dotted(node: ast.expr) -> str | None:
    """The text of a name with dots; None for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Subscript):
        return dotted(node.value)
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return None


def imported(tree: ast.Module) -> dict[str, str]:
    """What each imported name stands for: a dotted path."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.asname or name.name.partition(".")[0]: name.name for name in node.names if name.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    return found


def private_names(path: str) -> set[str]:
    """The private names of a foreign class and its bases, those that only its methods assign included."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
        break
    else:
        return set()
    names: set[str] = set()
    for kind in inspect.getmro(found) if inspect.isclass(found) else ():
        names |= {name for name in vars(kind) if is_private(name)}
        try:
            names |= set(re.findall(r"\bself\.(_[a-zA-Z]\w*)\b(?=[^=\n]*=[^=])", inspect.getsource(kind)))
        except (OSError, TypeError):  # Written in C.
            continue
    return names


class Package:
    """The modules and classes of a package."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))}
        self.imports = {path: imported(tree) for path, tree in self.trees.items()}
        self.classes: dict[tuple[Path, str], Class] = {}
        self.paths: dict[str, Path] = {}
        for path, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    bases = [self._resolve(path, base) for base in node.bases]
                    self.classes[path, node.name] = Class([base for base in bases if base], _defined(node))
                    self.paths[node.name] = path
        self._foreign: dict[str, set[str]] = {}

    def _resolve(self, path: Path, base: ast.expr) -> str | None:
        text = dotted(base)
        if text is None:
            return None
        first, _, rest = text.partition(".")
        return self.imports[path].get(first, first) + (f".{rest}" if rest else "")

    def lineage(self, path: Path, name: str) -> Iterator[tuple[str, set[str], bool]]:
        """A class of the package and all of its bases: name, private names, whether it is foreign."""
        own = self.classes[path, name]
        yield name, own.names, False
        for base in own.bases:
            last = base.rpartition(".")[2]
            if (path, base) in self.classes:
                yield from self.lineage(path, base)
            elif last in self.paths and base.startswith(f"{self.name}."):
                yield from self.lineage(self.paths[last], last)
            else:
                if base not in self._foreign:
                    self._foreign[base] = private_names(base)
                yield base, self._foreign[base], True

    def findings(self) -> Iterator[Finding]:
        """All private accesses outside COMPAT."""
        for path, tree in self.trees.items():
            if path.name not in COMPAT:
                for node, owner in _walk(tree, None):
                    if problem := self._problem(node, owner, path):
                        yield Finding(path, getattr(node, "lineno", 0), problem)

    def _problem(self, node: ast.AST, owner: str | None, path: Path) -> str | None:
        if isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(name.name for name in node.names)]
            foreign = not node.level and not (node.module or "").startswith(self.name)
            return f"imports from {node.module}" if foreign and any(map(is_private, names)) else None
        if isinstance(node, ast.Import):
            names = [part for name in node.names for part in name.name.split(".")]
            return f"imports {node.names[0].name}" if any(map(is_private, names)) else None
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and owner and is_private(node.name):
            return self._inherited(owner, node.name, path)
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in PUBLIC:
            return self._attribute(node, owner, path)
        if isinstance(node, ast.Call):
            return _by_string(node)
        if isinstance(node, ast.Subscript) and _is_vars_of_another(node.value):
            return f"{ast.unparse(node)} is an undeclared attribute"
        return None

    def _attribute(self, node: ast.Attribute, owner: str | None, path: Path) -> str | None:
        value = node.value
        is_super = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "super"
        if owner and (is_super or (isinstance(value, ast.Name) and value.id in _OWN)):
            defined = any(node.attr in names for _, names, foreign in self.lineage(path, owner) if not foreign)
            return self._inherited(owner, node.attr, path) or (
                None if defined else f"{owner} does not define {node.attr}"
            )
        text = dotted(value) or ""
        first, _, rest = text.partition(".")
        whole = f"{self.imports[path].get(first, first)}.{rest}"
        if text == "aten" or whole.startswith("torch.ops.") or first in self.paths:
            return None
        return f"{ast.unparse(node)} is private"

    def _inherited(self, owner: str, name: str, path: Path) -> str | None:
        for base, names, foreign in self.lineage(path, owner):
            if foreign and name in names:
                return f"{owner}.{name} belongs to {base}"
        return None


def _defined(node: ast.ClassDef) -> set[str]:
    """The private names that a class's body or methods bind."""
    names = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(inner.name)
        elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            names.add(inner.id)
        elif isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
            names.add(inner.attr)
        elif isinstance(inner, ast.Call) and getattr(inner.func, "attr", "") in ("register_buffer", "register_module"):
            names |= {argument.value for argument in inner.args[:1] if isinstance(argument, ast.Constant)}
    return names


def _walk(node: ast.AST, owner: str | None) -> Iterator[tuple[ast.AST, str | None]]:
    """All nodes, each with the class that it stands in."""
    for child in ast.iter_child_nodes(node):
        yield child, owner
        yield from _walk(child, child.name if isinstance(child, ast.ClassDef) else owner)


def _by_string(node: ast.Call) -> str | None:
    function, arguments = node.func, node.args
    if isinstance(function, ast.Name) and function.id in ("getattr", "hasattr", "setattr", "delattr"):
        name = arguments[1].value if len(arguments) > 1 and isinstance(arguments[1], ast.Constant) else None
        own = isinstance(arguments[0], ast.Name) and arguments[0].id in _OWN
        return f"{ast.unparse(node)} is private" if is_private(name) and name not in PUBLIC and not own else None
    if isinstance(function, ast.Attribute) and function.attr == "get" and _is_vars_of_another(function.value):
        return f"{ast.unparse(node)} is an undeclared attribute"
    return None


def _is_vars_of_another(node: ast.expr) -> bool:
    is_vars = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "vars"
    return is_vars and not (isinstance(node.args[0], ast.Name) and node.args[0].id in _OWN)


def main(arguments: list[str]) -> int:
    """Print what is found; 1 if anything is."""
    folder = Path(arguments[0]) if arguments else Path(__file__).parents[1] / "cnnlab"
    findings = list(Package(folder.resolve()).findings())
    for finding in findings:
        print(f"{finding.file.relative_to(folder.resolve().parent)}:{finding.line}: {finding.text}")
    print(f"{len(findings)} private accesses outside {' and '.join(COMPAT)}")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
