"""The processes of a run: what a launcher has started must be what the trainer expects."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from cnnlab.commands.messages import say
from cnnlab.errors import InputError
from cnnlab.lightning_compat import start_method
from cnnlab.run import global_rank

_SECONDS = 5.0
"""How long the first process waits for an answer at its own address."""


def launched_processes() -> tuple[str, int]:
    """The launcher that has started this process, and how many it has started; ("", 1) if there is none.

    SLURM's variables alone, as in an interactive session or a script without srun, are no launcher.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun", int(os.environ["WORLD_SIZE"])
    if "SLURM_NTASKS" in os.environ and "SLURM_PROCID" in os.environ:
        return "SLURM (srun)", int(os.environ.get("SLURM_STEP_NUM_TASKS", os.environ["SLURM_NTASKS"]))
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        return "mpirun", int(os.environ["OMPI_COMM_WORLD_SIZE"])
    return "", 1


def cluster_environment() -> ClusterEnvironment | None:
    """The plugin that tells the trainer of SLURM's processes, or of their absence; None to leave it to Lightning."""
    launcher, count = launched_processes()
    if launcher.startswith("SLURM"):
        # Lightning demands this variable, which srun sets only if its option was given.
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(max(count // nodes, 1)))
        for name in ("LOCALID", "NODEID"):
            os.environ.setdefault(f"SLURM_{name}", "0" if nodes > 1 or name == "NODEID" else os.environ["SLURM_PROCID"])
        # The job's script requeues it (cnnlab.cluster); Lightning would save inside its signal handler.
        return SLURMEnvironment(auto_requeue=False)
    if launcher or "SLURM_NTASKS" not in os.environ:
        return None
    if os.environ["SLURM_NTASKS"] != "1" and global_rank() == 0 and "LOCAL_RANK" not in os.environ:
        say(
            f"SLURM has reserved {os.environ['SLURM_NTASKS']} tasks, but srun has not started this process: it runs by "
            "itself (cnnlab slurm, or srun cnnlab, starts all)"
        )
    return LightningEnvironment()


def refuse_strategy(strategy: object) -> None:
    """Refuse a strategy that starts processes which do not run this command line.

    Raises:
        InputError: If its processes are forked or spawned from this one.
    """
    method = start_method(strategy)
    name = strategy if isinstance(strategy, str) else f"{type(strategy).__name__}(start_method={method!r})"
    if method != "popen":
        raise InputError(
            f"trainer.strategy {name} forks or spawns its processes from this one, and their results do not come back "
            "to it: use ddp, which starts them by themselves"
        )


@contextmanager
def explain_refusals(settings: Mapping[str, Any], trains: bool) -> Iterator[None]:
    """Refuse settings of the trainer that it would take, or refuse with a traceback, in a line.

    Args:
        settings: The trainer's arguments.
        trains: Whether it is about to train.

    Raises:
        InputError: If an amount is out of range, if the launcher has started another number of processes, or if
            Lightning refuses a setting.
    """
    for name, least in (("accumulate_grad_batches", 1), ("check_val_every_n_epoch", 1), ("gradient_clip_val", 0)):
        value = settings.get(name)
        if isinstance(value, (int, float)) and value < least:
            raise InputError(f"trainer.{name} is {value}, expected {least} or more")
    if trains and settings.get("limit_train_batches") == 0:
        raise InputError("trainer.limit_train_batches is 0, so that nothing would be trained: leave it out")
    launcher, count = launched_processes()
    devices, nodes = str(settings.get("devices")), int(settings.get("num_nodes") or 1)
    if launcher and devices.isdigit() and int(devices) * nodes != count and int(devices) > 0:
        _refuse(InputError(_mismatch(launcher, count, nodes, int(devices))))
    try:
        yield
    except (ValueError, MisconfigurationException) as error:
        if isinstance(error, InputError):
            raise
        _refuse(InputError(f"trainer: {' '.join(str(error).split())}"))


def _refuse(error: InputError) -> NoReturn:
    """Raise an error; of several processes, only the first one prints the reason."""
    if global_rank() > 0:
        raise SystemExit(error.exit_code) from None
    raise error


def check_processes(trainer: Trainer) -> None:
    """Check that the launcher has started as many processes as the trainer expects, and that they can connect.

    Raises:
        InputError: If the numbers differ, or if the first process cannot be reached at MASTER_ADDR and MASTER_PORT.
        SystemExit: The same on further processes, of which only the first one prints the reason.
    """
    launcher, count = launched_processes()
    try:
        if launcher and count != trainer.world_size:
            raise InputError(_mismatch(launcher, count, trainer.num_nodes, trainer.num_devices))
        if trainer.world_size > 1 and global_rank() == 0:
            _check_address()
    except InputError as error:
        _refuse(error)


def _mismatch(launcher: str, count: int, nodes: int, devices: int) -> str:
    return (
        f"{launcher} has started {count} processes, but the trainer expects {nodes * devices} (trainer.num_nodes "
        f"{nodes} x trainer.devices {devices}): each would train by itself. Set --trainer.devices to the processes of "
        "a node, or start as many as it says"
    )


def _check_address() -> None:
    """Check what the processes need to find each other, if it is given."""
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return  # torchrun itself listens there.
    if port is not None and (re.fullmatch(r"\d{1,5}", port) is None or not 0 < int(port) < 65536):
        raise InputError(f"MASTER_PORT is {port!r}, expected a free port from 1 to 65535")
    if address is not None:
        try:
            socket.getaddrinfo(address, None)
        except OSError as error:
            raise InputError(
                f"MASTER_ADDR is {address!r}, which is no address that this machine knows ({error.strerror}): set it "
                "to the first machine's name or IP address, or leave it unset on a single machine"
            ) from error
    with socket.create_server(("", 0)) if port is None else _listen(int(port)) as server:
        if address is None:
            return
        try:
            socket.create_connection((address, server.getsockname()[1]), timeout=_SECONDS).close()
        except OSError as error:
            raise InputError(
                f"the first process does not reach itself at MASTER_ADDR {address} ({error.strerror or error}): set it "
                "to this machine's name or IP address"
            ) from error


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("", port))
    except OSError as error:
        raise InputError(
            f"MASTER_PORT {port} cannot be used ({os.strerror(error.errno or 0)}): set it to a free port, or leave it "
            "unset on a single machine"
        ) from error
