"""What is wrong with objects and their files: counted by kind, and a few named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cnnlab.errors import InputError
from cnnlab.image_files import listed

MOST_KEPT = 3
"""Findings of a kind that are named."""


@dataclass
class _Kind:
    remedy: str
    count: int = 0
    texts: list[str] = field(default_factory=list)


class Findings:
    """Findings by kind, in the order in which the kinds were met."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}

    def add(self, kind: str, remedy: str, texts: Iterable[str], count: int = 1) -> None:
        """Count findings.

        Args:
            kind: What they are, in the plural: "objects with a negative size".
            remedy: What to do.
            texts: The first of them, each with its file, line and value; no more are used than are named.
            count: How many there are.
        """
        if not count:
            return
        found = self._kinds.setdefault(kind, _Kind(remedy))
        found.count += count
        for text in texts:
            if len(found.texts) >= MOST_KEPT:
                break
            found.texts.append(text)

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def notes(self) -> list[str]:
        """A line for each kind, of what has been left out."""
        return [
            f"{found.count:,} {kind}, left out: {listed(found.texts, found.count, MOST_KEPT)}"
            for kind, found in self._kinds.items()
        ]

    def check(self) -> None:
        """Raise the first finding of each kind, in three lines at most.

        Raises:
            InputError: If there is any finding.
        """
        if not self._kinds:
            return
        shown = list(self._kinds.values())[:3]
        lines = [f"{found.texts[0]}: {found.remedy}{_more(found.count - 1, ' like it')}" for found in shown]
        others = sum(found.count for found in self._kinds.values()) - sum(found.count for found in shown)
        lines[-1] += f"{_more(others, '')}; or leave such out with --data.on_error skip"
        raise InputError("\n".join(lines))


def _more(count: int, what: str) -> str:
    return f" (and {count:,} more{what})" if count else ""
