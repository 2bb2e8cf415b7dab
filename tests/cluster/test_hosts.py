"""Two hosts that see each other over a network: namespaces of this machine, by torchrun."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY, processes, run_process

pytestmark = pytest.mark.slow


@pytest.fixture
def hosts() -> Iterator[list[tuple[str, str]]]:
    """The names of two namespaces, and of their ends of a cable: 10.77.0.1 and 10.77.0.2."""
    if shutil.which("ip") is None:
        pytest.skip("needs ip (make system-packages installs Debian's iproute2)")
    tag = os.getpid()
    names = [(f"cnnlab{tag}{end}", f"cable{tag % 10000}{end}") for end in "ab"]
    if subprocess.run(["ip", "netns", "add", names[0][0]], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make network namespaces")
    try:
        subprocess.run(["ip", "netns", "add", names[1][0]], check=True)
        (_, first), (_, second) = names
        subprocess.run(["ip", "link", "add", first, "type", "veth", "peer", "name", second], check=True)
        for number, (host, cable) in enumerate(names, start=1):
            subprocess.run(["ip", "link", "set", cable, "netns", host], check=True)
            for what in (["addr", "add", f"10.77.0.{number}/24", "dev", cable], ["link", "set", cable, "up"],
                         ["link", "set", "lo", "up"]):  # fmt: skip
                subprocess.run(["ip", "-n", host, *what], check=True)
        yield names
    finally:
        for host, _ in names:
            subprocess.run(["ip", "netns", "del", host], capture_output=True, check=False)


def test_two_hosts_train_as_two_processes_of_one(
    hosts: list[tuple[str, str]], tmp_path: Path, mnist_root: Path
) -> None:
    fit = ["fit", "--config", str(TINY), "--data.root", str(mnist_root), "--data.batch_size", "16"]
    started = []
    for rank, (host, cable) in enumerate(hosts):
        launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        launch += ["--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "10.77.0.1:29577"]
        # Both are called what this machine is called.
        launch += ["--rdzv-conf", f"is_host={int(rank == 0)}", "--rdzv-id", "x", "--local-addr", f"10.77.0.{rank + 1}"]
        arguments = [*launch, "-m", "--", "cnnlab", *fit, "--trainer.num_nodes", "2", "--trainer.devices", "1",
                     "--trainer.strategy", "ddp", "--run", "R"]  # fmt: skip
        started.append(
            subprocess.Popen(
                ["ip", "netns", "exec", host, *arguments], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                stderr=subprocess.STDOUT, env={**os.environ, "GLOO_SOCKET_IFNAME": cable, "OMP_NUM_THREADS": "1"},
            )
        )  # fmt: skip
    printed = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(printed)
    assert run_process(*fit, *processes(2), "--run", "here", cwd=tmp_path, OMP_NUM_THREADS="1").returncode == 0
    there, here = (torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True) for run in ("R", "here"))
    assert all(torch.equal(value, there["state_dict"][name]) for name, value in here["state_dict"].items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["R", "here"]
