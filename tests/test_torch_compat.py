"""What cnnlab takes for granted of PyTorch's private names."""

from __future__ import annotations

import multiprocessing
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cnnlab.torch_compat import (
    FakeTensorMode,
    TorchDispatchMode,
    compile_if_possible,
    end_workers,
    has_bf16_units,
    is_mutable,
    steps_scaled,
    tree_leaves,
    uncompile,
    view_base,
)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations that are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.called: list[Any] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called.append(operation)
        return operation(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_operations_and_whether_they_write() -> None:
    tensor = torch.zeros(3)
    with Recorder() as recorder:
        tensor.add_(1)
        tensor + 1
    assert [operation.overloadpacket for operation in recorder.called] == [torch.ops.aten.add_, torch.ops.aten.add]
    assert [is_mutable(operation) for operation in recorder.called] == [True, False]
    assert tensor.tolist() == [1, 1, 1]


def test_a_view_knows_its_whole() -> None:
    whole = torch.zeros(4)
    assert view_base(whole) is None
    assert view_base(whole[1:].view(3, 1)) is whole


def test_fake_tensors_have_shapes_and_no_memory() -> None:
    with FakeTensorMode():
        network = nn.Linear(2**20, 2**20)
        output = network(torch.empty(2, 2**20))
        output.sum().backward()
    assert output.shape == (2, 2**20)
    assert network.weight.grad is not None


@pytest.mark.parametrize("fused", [False, True])
def test_fused_optimizers_step_with_scaled_gradients(fused: bool) -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0, fused=fused)
    assert steps_scaled(optimizer) is fused
    if fused:
        # What torch.amp.GradScaler hands to such an optimizer.
        optimizer.grad_scale, optimizer.found_inf = torch.tensor([4.0]), torch.tensor([0.0])  # type: ignore[attr-defined]
        weight.grad = torch.tensor([8.0])
        optimizer.step()
        assert weight.item() == -2


def test_leaves_of_nested_values() -> None:
    a, b = torch.ones(1), torch.ones(2)
    leaves = tree_leaves(((a, [b, {"key": a}], None), {"other": 3}))
    assert [leaf is wanted for leaf, wanted in zip(leaves, [a, b, a, None, 3], strict=True)] == [True] * 5
    assert len(tree_leaves(torch.ones(2, 3).max(0))) == 2


def test_a_processor_says_whether_it_has_units_for_bf16() -> None:
    """As Linux does, where it is the system."""
    listed = Path("/proc/cpuinfo")
    if not listed.is_file() or platform.machine() != "x86_64":
        pytest.skip("only Linux on x86 lists what its processor can do in a file")
    flags = listed.read_text().split()
    assert has_bf16_units() == bool({"avx512_bf16", "amx_tile"} & set(flags))


def test_a_network_is_uncompiled() -> None:
    network = nn.Linear(2, 2)
    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(1)
        return graph

    network.compile(backend=backend)
    uncompile(network)
    network(torch.zeros(1, 2))
    assert not compiled


def test_a_network_runs_where_nothing_compiles_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without a compiler for C++."""
    monkeypatch.setattr("torch._dynamo.config.suppress_errors", False)
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    images = torch.rand(1, 1, 5, 5)
    plain = network(images)
    compile_if_possible(network)
    assert torch.equal(network(images), plain)


def test_the_workers_of_a_loader_end() -> None:
    loader = DataLoader(TensorDataset(torch.arange(8)), batch_size=2, num_workers=1, persistent_workers=True)
    before = {child.pid for child in multiprocessing.active_children()}
    first = [batch[0].tolist() for batch in loader]
    workers = [child for child in multiprocessing.active_children() if child.pid not in before]
    assert len(workers) == 1
    end_workers(loader)
    assert not workers[0].is_alive()
    assert [batch[0].tolist() for batch in loader] == first
    end_workers(loader)
    end_workers(loader)
