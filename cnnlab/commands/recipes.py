"""cnnlab recipes."""

from __future__ import annotations

from cnnlab import recipes as shipped


def recipes() -> None:
    """List the configurations that come with cnnlab: the names that --config takes."""
    found = shipped.names()
    width = max(map(len, found)) + 2
    for name, purpose in found.items():
        print(f"{name:{width}}{purpose}")
