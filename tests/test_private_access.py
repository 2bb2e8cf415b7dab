"""make imports fails at private names of other packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci/private_access.py"

FORMS = {
    "x._name": "def planted(trainer):\n    return trainer._results",
    "a module's": "import torch\nplanted = torch.nn.modules.batchnorm._NormBase",
    "getattr": "def planted(trainer):\n    return getattr(trainer, '_results', None)",
    "vars": "def planted(trainer):\n    return vars(trainer)['fast_dev_run']",
    "vars get": "def planted(trainer):\n    return vars(trainer).get('fast_dev_run')",
    "a private module": "from torch.utils._pytree import tree_leaves",
    "a private name": "from torch.nn.modules.batchnorm import _BatchNorm",
    "import": "import torch._subclasses",
    "inherited": "from torch import nn\nclass Planted(nn.Module):\n    def a(self):\n        return self._modules",
    "inherited twice": (
        "from pkg.base import Base\nclass Planted(Base):\n    def a(self):\n        return self._modules"
    ),
    "set in __init__": (
        "from lightning.pytorch.loggers import WandbLogger\nclass Planted(WandbLogger):\n"
        "    def a(self):\n        self._offline = True"
    ),
    "overridden": (
        "from lightning.pytorch.cli import LightningCLI\nclass Planted(LightningCLI):\n"
        "    def _run_subcommand(self, subcommand):\n        pass"
    ),
    "defined nowhere": "class Planted:\n    def a(self):\n        return self._absent",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package that uses nothing private but its own."""
    folder = tmp_path / "pkg"
    folder.mkdir()
    (folder / "base.py").write_text(
        "import os\nfrom collections import namedtuple\nimport torch\nfrom torch import nn\n"
        "aten = torch.ops.aten\nPair = namedtuple('Pair', 'a b')\n"
        "class Base(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self._own = Pair(1, 2)._replace(a=3)\n"
        "    def _softmax(self):\n        return aten._softmax, torch.ops.aten._softmax\n"
        "class Derived(Base):\n    def both(self):\n        return self._own, self._softmax(), super()._softmax()\n"
    )
    (folder / "torch_compat.py").write_text("from torch.utils._pytree import tree_leaves\n")
    return folder


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True, check=False)


def test_its_own_private_names_are_free(package: Path) -> None:
    done = check(package)
    assert done.returncode == 0, done.stdout


def test_each_private_access_is_found(package: Path) -> None:
    for number, text in enumerate(FORMS.values()):
        (package / f"planted_{number}.py").write_text(text + "\n")
    done = check(package)
    assert done.returncode == 1
    found = [line.partition(":")[0] for line in done.stdout.splitlines()[:-1]]
    assert sorted(found) == sorted(f"pkg/planted_{number}.py" for number in range(len(FORMS)))


def test_cnnlab_uses_no_private_names() -> None:
    done = check(SCRIPT.parents[1] / "cnnlab")
    assert done.returncode == 0, done.stdout
