"""Private names of PyTorch that cnnlab uses; tests/test_torch_compat.py fails if the meaning of one changes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# There is no public name for tensors with a shape and without values, except those on the meta device.
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch.fx.node import map_aggregate
from torch.optim import Optimizer

# There is no public name for the base class of dispatch modes; PyTorch's documentation imports it from here.
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils.data import DataLoader


def is_mutable(operation: Any) -> bool:
    """Whether an ATen operation writes into its arguments: OpOverload has no public schema."""
    return bool(operation._schema.is_mutable)


def view_base(tensor: Tensor) -> Tensor | None:
    """The tensor that a view is part of, or None: Tensor has no public attribute for it."""
    return tensor._base


def steps_scaled(optimizer: Optimizer) -> bool:
    """Whether an optimizer unscales gradients in its step, as fused ones do: there is no public attribute for it."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def tree_leaves(values: Any) -> list[Any]:
    """The values in nested tuples, lists and dicts: torch.utils has no public tree functions, but torch.fx has."""
    leaves: list[Any] = []
    map_aggregate(values, leaves.append)
    return leaves


def has_bf16_units() -> bool:
    """Whether the processor computes in bfloat16: the public torch.cpu.get_capabilities is newer than PyTorch 2.11."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def end_workers(loader: DataLoader[Any]) -> None:
    """End the workers of a loader that keeps them, so that its next epoch starts others: there is no public way."""
    if (end := getattr(loader._iterator, "_shutdown_workers", None)) is not None:
        end()
    loader._iterator = None


def compile_if_possible(network: nn.Module) -> None:
    """Compile a network in place; what cannot be compiled runs as it is.

    There is no public name for the second half: without a C++ compiler, for example, a compiled network fails.
    """
    torch._dynamo.config.suppress_errors = True
    network.compile()


def uncompile(network: nn.Module) -> None:
    """Undo ``network.compile()``, for which there is no public method."""
    network._compiled_call_impl = None
