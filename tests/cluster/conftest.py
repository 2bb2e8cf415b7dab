"""A real SLURM on this machine: a controller and two nodes, for as long as the tests need them."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_CONF = """\
ClusterName=cnnlab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
SchedulerType=sched/backfill
JobRequeue=1
KillWait=5
MinJobAge=600
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A running SLURM; its commands find it by the environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            # Both nodes are this machine, whose name may not be known.
            "CNNLAB_ADDRESS": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
            # What is added up in which order depends on it.
            "OMP_NUM_THREADS": "1",
        }

    def ask(self, *command: str) -> str:
        """What one of SLURM's commands prints."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def state(self, job: str) -> dict[str, str]:
        """What scontrol says of a job, by its words: JobState, Restarts, ExitCode."""
        said = self.ask("scontrol", "--oneliner", "show", "job", job)
        return dict(word.split("=", 1) for word in said.split() if "=" in word)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """SLURM, where its programs are installed and this is root."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(
            f"needs {', '.join(missing) or 'root'} (make system-packages installs Debian's slurm-wlm and munge)"
        )
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(_CONF.format(host=host, ports=_free_ports(3), folder=folder))
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    running = Slurm(folder)
    environment = {**os.environ, "SLURM_CONF": running.environment["SLURM_CONF"]}
    munged = [f"--key-file={key}", f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid"]
    munged += [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
    commands = [
        ["munged", "--foreground", "--force", *munged],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-N", "n1"],
        ["slurmd", "-D", "-N", "n2"],
    ]
    daemons: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        for command in commands:
            log = stack.enter_context((folder / f"{len(daemons)}-{command[0]}.out").open("wb"))
            daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            if command[0] == "munged":
                _wait_for(lambda: (folder / "munge.socket").exists(), "munged", folder)
        try:
            _wait_for(lambda: _idle_nodes(environment) == 2, "two nodes", folder)
            yield running
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
            for daemon in daemons:
                try:
                    daemon.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    daemon.kill()


def _idle_nodes(environment: dict[str, str]) -> int:
    done = subprocess.run(
        ["sinfo", "--noheader", "--states=idle", "--format=%D"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return sum(map(int, done.stdout.split())) if done.returncode == 0 else 0


def _wait_for(ready: object, what: str, folder: Path) -> None:
    assert callable(ready)
    deadline = time.monotonic() + 60
    while not ready():
        logs = "\n".join(path.read_text(errors="replace")[-1000:] for path in sorted(folder.glob("*.out")))
        assert time.monotonic() < deadline, f"{what}: not there after 60 s\n{logs}"
        time.sleep(0.2)
