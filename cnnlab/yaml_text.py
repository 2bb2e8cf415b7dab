"""YAML that every parser reads back as it was written."""

from __future__ import annotations

import re
from typing import Any

import yaml

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The one in C is ten times as fast, where PyYAML was built with it."""


def load_yaml(text: str) -> Any:
    """Return the content of YAML, plain values only.

    Raises:
        yaml.YAMLError: If it is not YAML.
    """
    return yaml.load(text, Loader=_LOADER)


class _TextDumper(yaml.SafeDumper):
    """Quotes each text that some parser of YAML would read as a number: PyYAML itself writes 1e3 plainly."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "'" if re.match(r"[-+]?\.?\d", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_TextDumper.add_representer(str, _represent_text)


def dump_yaml(content: Any, one_line: bool = False) -> str:
    """Return YAML that every parser reads back as it was, texts such as 1e3 included.

    >>> print(dump_yaml({"names": ["1e3", "null", "cat"]}, one_line=True))
    {names: ['1e3', 'null', cat]}
    """
    text = yaml.dump(
        content,
        Dumper=_TextDumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=one_line,
        width=float("inf") if one_line else 80,
    )
    return str(text).removesuffix("\n...\n").rstrip("\n") if one_line else str(text)
