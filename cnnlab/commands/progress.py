"""A progress bar in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(what: str, count: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar in a terminal, and yield the function that advances it by one.

    Args:
        what: What is counted.
        count: How many there are.
    """
    if not sys.stderr.isatty():
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
    except ImportError:  # Prediction with a file needs only NumPy, Pillow and ONNX Runtime.
        yield lambda: None
        return

    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task(what, total=count)
        yield lambda: bars.advance(bar)
