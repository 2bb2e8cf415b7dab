"""One writer at a time: a lock file in a folder, which works on shared file systems and survives kill -9."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from cnnlab.errors import InputError

_VARIABLE = "CNNLAB_LOCK"
"""The environment variable by which the processes that an owner starts know that its locks are theirs."""
_HALF_WRITTEN = 2.0
"""Seconds after which a lock without a content was left by a process that died while it wrote it."""


@contextmanager
def locked(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Hold a folder's lock; the folder is created. Processes that the owner starts hold it with the owner.

    The lock of an owner that is surely dead is broken: a process of this machine that has ended, or an earlier start
    of the same SLURM job.

    Args:
        folder: The folder.
        name: The lock's file in it.

    Raises:
        InputError: If another process holds the lock.
        OSError: If the folder cannot be written.
    """
    path, own = folder / name, _identity()
    token = json.dumps(own)
    if (owner := _read(path)) is not None and token_of(owner) in (token_of(own), os.environ.get(_VARIABLE)):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    while not _create(path, token):
        owner = _read(path)
        if owner is not None and not _is_dead(owner, own):
            raise InputError(_in_use(folder, path, owner, own))
        _break(path, owner)
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = token_of(own)
    try:
        yield
    finally:
        os.environ.pop(_VARIABLE)
        if before is not None:
            os.environ[_VARIABLE] = before
        with contextlib.suppress(OSError):
            if _read(path) == own:
                path.unlink()


def is_held(folder: Path, name: str = ".lock") -> bool:
    """Whether another, living process holds a folder's lock."""
    owner, own = _read(folder / name), _identity()
    return owner is not None and token_of(owner) != token_of(own) and not _is_dead(owner, own)


def is_alive(pid: int) -> bool:
    """Whether this machine has a process of this number."""
    return _start_of(pid) is not None


def token_of(owner: dict[str, Any]) -> str:
    """The process of a lock's content, as text."""
    return "/".join(str(owner.get(name)) for name in ("host", "system", "pid", "started"))


def _identity() -> dict[str, Any]:
    """What a lock says of this process."""
    return {
        "host": socket.gethostname(),
        "system": _system(),
        "pid": os.getpid(),
        "started": _start_of(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restart": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        "command": " ".join(["cnnlab", *sys.argv[1:]])[:200],
    }


def _system() -> str:
    """What distinguishes machines and containers of one name: the start of the system, and the space of process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """When a living process of this machine started, in the system's ticks; "" if unknown, None if it is not there."""
    try:
        # After the name, which may contain anything: the state, and 19 fields later the start.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    if sys.platform == "win32":
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return ""
    return ""


def _is_dead(owner: dict[str, Any], own: dict[str, Any]) -> bool:
    if (owner.get("host"), owner.get("system")) == (own["host"], own["system"]):
        return _start_of(int(owner["pid"])) != owner.get("started")
    # SLURM has queued the job again, so its earlier start has ended, wherever it ran.
    same_job = own["job"] is not None and owner.get("job") == own["job"]
    return same_job and int(owner.get("restart", 0)) < own["restart"]


def _in_use(folder: Path, path: Path, owner: dict[str, Any], own: dict[str, Any]) -> str:
    since = datetime.fromtimestamp(path.stat().st_mtime).strftime("%H:%M") if path.exists() else "now"
    text = (
        f"{folder} is in use by process {owner['pid']} on {owner['host']} since {since} ({owner.get('command')}): "
        "wait for its end, or choose another folder"
    )
    if (owner["host"], owner.get("system")) != (own["host"], own["system"]):
        text += f"; if that process has surely ended, remove {path}"
    return text


def _create(path: Path, content: str) -> bool:
    """Create the lock; False if there is one. O_EXCL is atomic on NFS as well."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(file, content.encode())
        os.fsync(file)
    except OSError as error:
        path.unlink(missing_ok=True)
        error.filename = str(path)
        raise
    finally:
        os.close(file)
    return True


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a lock says; None if there is none, or if its writer died before it had a content."""
    deadline = time.monotonic() + _HALF_WRITTEN
    while True:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return {**content, "pid": int(content["pid"]), "host": str(content["host"])}
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError):
            if time.monotonic() > deadline:
                return None
            time.sleep(0.05)


def _break(path: Path, owner: dict[str, Any] | None) -> None:
    """Remove the lock of a dead owner, unless another process has broken and taken it meanwhile."""
    taken = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(taken)
        if _read(taken) != owner and not path.exists():
            taken.rename(path)
        taken.unlink(missing_ok=True)
