"""BackgroundCheckpointIO: writes Lightning's checkpoints while the training goes on."""

from __future__ import annotations

import copy
import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from cnnlab.checkpoint import read_checkpoint
from cnnlab.errors import TrainingError
from cnnlab.writing import written_aside


class BackgroundCheckpointIO(TorchCheckpointIO):
    """Writes checkpoint files atomically in a thread, and reads them with errors that name the file.

    What is written is the state at the time of saving, of which a copy is kept in memory until it is on disk. There is
    one such copy at most: the next saving waits for the last one. If the process is killed meanwhile, the file that was
    there before is whole.
    """

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: TrainingError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Begin to write a checkpoint.

        Args:
            checkpoint: The content.
            path: The file.
            storage_options: None, or {"also": further paths of the same file}.

        Raises:
            TrainingError: If the one before could not be written.
        """
        self.wait()
        paths = [Path(path), *map(Path, (storage_options or {}).get("also", ()))]
        self._thread = Thread(target=self._write, args=(snapshot(checkpoint), paths), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            TrainingError: If it cannot be written; an older file of that name is unchanged.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.raise_error()

    def raise_error(self) -> None:
        """Raise the error of what was written last, if there is one and it has not been raised.

        Raises:
            TrainingError: See wait().
        """
        error, self._error = self._error, None
        if error is not None:
            raise error

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Read a checkpoint, always with weights_only=True.

        Raises:
            InputError: See read_checkpoint.
        """
        self.wait()
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a file, after everything is written."""
        self.wait()
        super().remove_checkpoint(path)

    def teardown(self) -> None:
        """Wait until everything is written: see wait()."""
        self.wait()

    def _write(self, content: dict[str, Any], paths: Sequence[Path]) -> None:
        try:
            write_checkpoint(content, *paths)
        except TrainingError as error:
            self._error = error


def write_checkpoint(content: dict[str, Any], path: Path, *also: Path) -> None:
    """Write a checkpoint atomically, and give it further names.

    Args:
        content: The content.
        path: The file.
        *also: Further paths of the same file: hard links, where the disk has them. A later file of one of the names
            leaves the others alone.

    Raises:
        TrainingError: If it cannot be written; an older file of that name is unchanged.
    """
    place = path
    try:
        with written_aside(path) as file:
            torch.save(content, file)
        for place in also:
            _link(path, place)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        full = cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise TrainingError(
            f"cannot save {place} ({_bytes(content):,} bytes): {cause.strerror}; what was saved before is whole. "
            f"{'Make room' if full else 'Mend this'}, then resume the run"
        ) from error


def _link(source: Path, path: Path) -> None:
    """Give a file a second name, or copy it; a file of that name is replaced."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    aside.unlink(missing_ok=True)
    try:
        aside.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, aside)
    aside.replace(path)


def snapshot(content: Any, seen: dict[Any, Tensor] | None = None) -> Any:
    """A copy of a checkpoint's content in the CPU's memory, which nothing changes; equal views of a tensor stay one.

    Args:
        content: Tensors, numbers and texts, in dictionaries and lists.
        seen: The copies so far.
    """
    seen = {} if seen is None else seen
    if isinstance(content, Tensor):
        key = (content.device, content.data_ptr(), content.dtype, content.shape, content.stride())
        if key not in seen or not content.numel():
            seen[key] = content.detach().to("cpu", copy=True)
        return seen[key]
    if isinstance(content, Mapping):
        # A state_dict has an attribute of its own.
        found: Any = copy.copy(content)
        for name, value in content.items():
            found[name] = snapshot(value, seen)
        return found
    if type(content) in (list, tuple):
        return type(content)(snapshot(value, seen) for value in content)
    return copy.deepcopy(content)


def _bytes(content: Any) -> int:
    """The bytes of the tensors in a checkpoint's content."""
    if isinstance(content, Tensor):
        return content.nbytes
    if isinstance(content, Mapping):
        return sum(map(_bytes, content.values()))
    return sum(map(_bytes, content)) if isinstance(content, (list, tuple)) else 0
