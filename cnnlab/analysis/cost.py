"""The cost of each layer of a network, and its receptive field: parameters, multiply-adds, activation memory."""

from __future__ import annotations

import math
from collections import defaultdict
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cnnlab.analysis.meta import copy_without_values, explain_failure, first_tensor
from cnnlab.analysis.receptive_field import Field
from cnnlab.analysis.tracing import FieldTracer
from cnnlab.models.blocks import check_positive


class ReceptiveField(NamedTuple):
    """The part of the image that a layer's units depend on."""

    fields: tuple[Field, Field] | None
    """Along rows and columns, through windows; None if the output has no rows and columns left."""
    whole_image: bool
    """Whether the units also depend on the whole image: by global pooling, squeeze-and-excitation or attention."""
    unknown: str | None = None
    """An operation on the path that has no rule, after which the field is unknown."""

    @property
    def sizes(self) -> tuple[float, float] | None:
        """Height and width in pixels."""
        return None if self.fields is None else (self.fields[0].size, self.fields[1].size)

    def __str__(self) -> str:
        """The size, with a + if the units also depend on the whole image; "all" for only that; "?" if unknown."""
        if self.fields is None:
            return "all" if self.whole_image else "?"
        height, width = (f"{field.size:g}" for field in self.fields)
        return (height if height == width else f"{height}x{width}") + ("+" if self.whole_image else "")


class LayerCost(NamedTuple):
    """The cost of one layer for one image."""

    name: str
    """The name in named_modules()."""
    kind: str
    """The name of its class."""
    output: tuple[int, ...]
    """The shape of its output without the batch dimension."""
    parameters: int
    multiply_adds: int
    activation_bytes: int
    """Tensors saved for the backward pass that no earlier layer has saved, in float32."""
    receptive_field: ReceptiveField


class NetworkCost(NamedTuple):
    """The cost of a network for one image, in total and by layer."""

    image: tuple[int, int, int]
    """Channels, height, width."""
    layers: list[LayerCost]
    parameters: int
    trainable: int
    """The number of trainable parameters."""
    multiply_adds: int
    activation_bytes: int

    @property
    def last_map(self) -> LayerCost | None:
        """The last layer that returns features with rows and columns."""
        maps = (layer for layer in reversed(self.layers) if len(layer.output) == 3 and max(layer.output[1:]) > 1)
        return next(maps, None)

    def fold(self, depth: int) -> list[LayerCost]:
        """Sum the layers below ``depth`` levels of names; each sum has its last layer's output and field.

        >>> from cnnlab.models import SimpleCNN
        >>> [layer.name for layer in network_cost(SimpleCNN(), (1, 28, 28)).fold(1)]
        ['features', 'head']
        """
        check_positive(depth=depth)
        groups: dict[str, list[LayerCost]] = defaultdict(list)
        for layer in self.layers:
            groups[".".join(layer.name.split(".")[:depth])].append(layer)
        return [
            group[-1]._replace(
                name=name,
                kind=group[0].kind if len(group) == 1 else f"{len(group)} layers",
                parameters=sum(layer.parameters for layer in group),
                multiply_adds=sum(layer.multiply_adds for layer in group),
                activation_bytes=sum(layer.activation_bytes for layer in group),
            )
            for name, group in groups.items()
        ]


def network_cost(network: nn.Module, image: tuple[int, int, int]) -> NetworkCost:
    """Count the cost of a network for one image, on the meta device and without computation.

    Multiply-adds are half of the operations that torch's FLOP counter counts: convolutions and matrix products.
    Activations are the tensors that autograd saves in training mode, without parameters.

    Args:
        network: Images (B, C, H, W) to predictions; it is not changed.
        image: Channels, height and width.

    Raises:
        InputError: If the network does not take such images, or reads values of tensors.

    >>> from cnnlab.models import SimpleCNN
    >>> cost = network_cost(SimpleCNN(), (1, 28, 28))
    >>> cost.parameters, cost.multiply_adds, str(cost.layers[-1].receptive_field)
    (128714, 7486464, 'all')
    """
    with explain_failure(image), torch.device("meta"):
        own = copy_without_values(network)
        # Two images: batch norm rejects a single one if only channels are left.
        saved = _saved_bytes(own.train(), torch.empty(2, *image))
    with torch.device("meta"):
        outputs, flops, fields = _trace_forward(own.eval().requires_grad_(False), torch.empty(1, *image))
    names = {module: name for name, module in own.named_modules()}
    own_flops = {names[module]: flops.get(names[module], 0) for module in outputs}
    for name in list(own_flops):
        parent = name
        while parent:
            parent = parent.rpartition(".")[0]
            if parent in own_flops:
                own_flops[parent] -= flops.get(name, 0)
                break
    # Parameters of a module that is never called are counted for its parent module.
    own_parameters = dict.fromkeys(own_flops, 0)
    for name, module in own.named_modules():
        size = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        while name not in own_parameters and name:
            name = name.rpartition(".")[0]
        own_parameters[name] = own_parameters.get(name, 0) + size
    layers = []
    for module, output in outputs.items():
        name = names[module]
        parameters, multiply_adds = own_parameters[name], own_flops[name] // 2
        has_children = any(True for _ in module.children())
        if not isinstance(module, nn.Identity) and (not has_children or own_flops[name] or parameters):
            kind, saved_bytes = type(module).__name__, saved.get(module, 0) // 2
            layers.append(LayerCost(name, kind, output, parameters, multiply_adds, saved_bytes, fields[module]))
    # The total includes tensors saved by functions between the layers, which are in no row.
    return NetworkCost(
        image,
        layers,
        sum(parameter.numel() for parameter in network.parameters()),
        sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad),
        flops.get("", 0) // 2,
        sum(saved.values()) // 2,
    )


def _trace_forward(
    network: nn.Module, images: Tensor
) -> tuple[dict[nn.Module, tuple[int, ...]], dict[str, int], dict[nn.Module, ReceptiveField]]:
    """The called modules' output shapes, in the order they finished; operations by name; receptive fields."""
    tracer = FieldTracer()
    outputs: dict[nn.Module, tuple[int, ...]] = {}
    fields: dict[nn.Module, ReceptiveField] = {}

    def record(module: nn.Module, args: Any, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is not None:
            outputs[module] = tuple(tensor.shape[1:])
            state = tracer.state_of(tensor)
            if state is None or state.unknown:
                fields[module] = ReceptiveField(None, False, None if state is None else state.unknown)
            else:
                local = all(math.isfinite(field.size) for field in state.fields)
                fields[module] = ReceptiveField(state.fields if local else None, state.whole_image)

    counter = FlopCounterMode(display=False)
    for module in network.modules():
        module.register_forward_hook(record)
    with torch.no_grad(), counter, tracer:
        tracer.track(images)
        network(images)
    root = type(network).__name__
    counts = {
        "" if name in ("Global", root) else name.removeprefix(f"{root}."): sum(by_operation.values())
        for name, by_operation in counter.get_flop_counts().items()
    }
    return outputs, counts, fields


def _saved_bytes(network: nn.Module, images: Tensor) -> dict[nn.Module, int]:
    """Bytes that autograd saves for the backward pass, by the module that was running."""
    running: list[nn.Module] = [network]
    saved: dict[nn.Module, int] = defaultdict(int)
    excluded = [tensor.untyped_storage() for tensor in [images, *network.parameters(), *network.buffers()]]
    # Kept alive, so that no other storage gets the id of one.
    storages: dict[int, object] = {id(storage): storage for storage in excluded}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in storages:
            storages[id(storage)] = storage
            saved[running[-1]] += storage.nbytes()
        return tensor

    def enter(module: nn.Module, args: Any) -> None:
        running.append(module)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    with ExitStack() as stack:
        for module in network.modules():
            stack.enter_context(module.register_forward_pre_hook(enter))
            stack.enter_context(module.register_forward_hook(leave, always_call=True))
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            network(images)
    return saved
