"""The command line in processes that are forked from one that has imported torch and Lightning already.

A process that starts from nothing imports for four seconds, and the tests start some hundred. Each is a process of its
own all the same: its number, its signals, its exit status, its children and the end of its threads are real.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from lightning.pytorch.strategies.launchers import subprocess_script as launcher

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["cnnlab.cli", "cnnlab.commands.training", "cnnlab.tasks", "cnnlab.data", "cnnlab.models", "cnnlab.callbacks"]
)


class Forked:
    """A command that has been started; like subprocess.Popen, with what it prints in two files."""

    def __init__(self, arguments: list[str], cwd: Path, files: Path, session: bool, variables: dict[str, str]) -> None:
        self.arguments = arguments
        self._files = [files / "out.txt", files / "err.txt"]
        environment = {**os.environ, **variables}
        self._process = _SERVER.Process(
            target=_run, args=(arguments, str(cwd), [str(file) for file in self._files], environment, session)
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit status, None as long as it runs; -n if signal n ended it."""
        return self._process.exitcode

    def send_signal(self, signum: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, signum)

    def finish(self, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        """Wait for its end; a process that outlasts this many seconds is killed."""
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            self._process.kill()
            raise subprocess.TimeoutExpired(self.arguments, timeout)
        return subprocess.CompletedProcess(self.arguments, code, *(file.read_text() for file in self._files))


class _Spare:
    """A further process of a run, as Lightning's launcher knows it: a process that has waited for its command."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("fork")
        self._order, ours = context.Pipe()
        self._process = context.Process(target=_wait_for_order, args=(ours, self._order))
        self._process.start()
        ours.close()

    def start(self, arguments: list[str], environment: dict[str, str]) -> None:
        """Run the command in the process that waits."""
        self._order.send((arguments, environment))
        self._order.close()

    def dismiss(self) -> None:
        """It has nothing to do any more, if it still waits."""
        self._order.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self._process.exitcode

    def send_signal(self, signum: int) -> None:
        if self._process.is_alive():
            os.kill(self._process.pid or 0, signum)


def _wait_for_order(ours: Connection, theirs: Connection) -> None:
    theirs.close()
    with contextlib.suppress(EOFError):
        arguments, environment = ours.recv()
        _command(arguments, environment, ours.close)


def _run(arguments: list[str], cwd: str, files: list[str], environment: dict[str, str], session: bool) -> None:
    if session:
        os.setsid()
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(cwd)
    # As Python does for "python -m": the working folder comes first.
    sys.path.insert(0, cwd)
    # Before the command starts threads, which a fork would not have.
    spares = [_Spare() for _ in range(2)]
    waiting = list(spares)

    def launch(command: list[str], env: dict[str, str], cwd: str | None) -> _Spare | subprocess.Popen[bytes]:
        if not waiting or command[:3] != [sys.executable, "-m", "cnnlab.__main__"]:
            return subprocess.Popen(command, env=env, cwd=cwd)
        waiting[0].start(command[3:], env)
        return waiting.pop(0)

    def dismiss() -> None:
        for spare in spares:
            spare.dismiss()

    with patch.object(launcher, "subprocess", SimpleNamespace(Popen=launch)):
        _command(arguments, environment, dismiss)


def _command(arguments: list[str], environment: dict[str, str], at_end: Callable[[], None]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["cnnlab", *arguments]
    try:
        runpy.run_module("cnnlab", run_name="__main__", alter_sys=True)
    finally:
        at_end()
        # A forked process leaves these out at its end.
        atexit._run_exitfuncs()
