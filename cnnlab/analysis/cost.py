"""What each layer of a network costs, and what it sees: parameters, multiply-adds, activations, receptive field."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cnnlab.analysis.receptive_field import Field
from cnnlab.analysis.seen import Seen
from cnnlab.analysis.skeleton import first_tensor, on_meta, skeleton
from cnnlab.analysis.tracing import FieldTracer
from cnnlab.errors import InputError


class Sight(NamedTuple):
    """What the units of a layer see of the image."""

    fields: tuple[Field, Field] | None
    """Along rows and columns, through windows; None where nothing is left of rows and columns."""
    whole_image: bool
    """Whether they see all of it besides: a mean over it, squeeze-and-excitation, attention."""
    unknown: str | None = None
    """An operation on the way that is not understood, where nothing can be said."""

    @property
    def sizes(self) -> tuple[float, float] | None:
        """Height and width in pixels."""
        return None if self.fields is None else (self.fields[0].size, self.fields[1].size)

    def __str__(self) -> str:
        """The size, and a + where the whole image is seen besides; "all" where nothing else is; "?" if unknown."""
        if self.fields is None:
            return "all" if self.whole_image else "?"
        height, width = (f"{field.size:g}" for field in self.fields)
        return (height if height == width else f"{height}x{width}") + ("+" if self.whole_image else "")


class LayerCost(NamedTuple):
    """A layer of a network, for one image."""

    name: str
    """As in named_modules()."""
    kind: str
    """Its class."""
    output: tuple[int, ...]
    """The shape of what it returns, without the batch."""
    parameters: int
    multiply_adds: int
    activation_bytes: int
    """What the backward pass needs of this layer's forward pass and no layer has kept before, in float32."""
    sight: Sight


class NetworkCost(NamedTuple):
    """A network, layer by layer, for one image."""

    image: tuple[int, int, int]
    """Channels, height, width."""
    layers: list[LayerCost]
    parameters: int
    trainable: int
    """Of the parameters."""
    multiply_adds: int
    activation_bytes: int

    @property
    def last_map(self) -> LayerCost | None:
        """The last layer that returns features with rows and columns."""
        maps = (layer for layer in reversed(self.layers) if len(layer.output) == 3 and max(layer.output[1:]) > 1)
        return next(maps, None)

    def folded(self, depth: int) -> list[LayerCost]:
        """The same with so many levels of names: layers below are added up, and the last one's output counts.

        >>> from cnnlab.models import SimpleCNN
        >>> [layer.name for layer in network_cost(SimpleCNN(), (1, 28, 28)).folded(1)]
        ['features', 'head']
        """
        if depth < 1:
            raise InputError(f"depth is {depth}, expected 1 or more")
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
    """Count what a network costs for one image, without computing anything.

    Multiply-adds are half of the operations that torch's FLOP counter counts: convolutions and matrix products.
    Activations are what autograd keeps in training mode; parameters are not among them.

    Args:
        network: From images (B, C, H, W) to predictions; it is left alone.
        image: Channels, height and width.

    Raises:
        InputError: If the network does not take such images, or if it cannot be followed without numbers.

    >>> from cnnlab.models import SimpleCNN
    >>> cost = network_cost(SimpleCNN(), (1, 28, 28))
    >>> cost.parameters, cost.multiply_adds, str(cost.layers[-1].sight)
    (128714, 7486464, 'all')
    """
    with on_meta(image):
        own = skeleton(network)
        # Two images, since batch norm refuses one where nothing is left but channels.
        kept = _kept(own.train(), torch.empty(2, *image))
    with torch.device("meta"):
        called, flops, sights = _forward(own.eval().requires_grad_(False), torch.empty(1, *image))
    names = {module: name for name, module in own.named_modules()}
    alone = {names[module]: flops.get(names[module], 0) for module in called}
    for name in list(alone):
        above = name
        while above:
            above = above.rpartition(".")[0]
            if above in alone:
                alone[above] -= flops.get(name, 0)
                break
    # What a module uses of one that it never calls is its own.
    held = dict.fromkeys(alone, 0)
    for name, module in own.named_modules():
        size = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        while name not in held and name:
            name = name.rpartition(".")[0]
        held[name] = held.get(name, 0) + size
    layers = []
    for module, output in called.items():
        name = names[module]
        parameters = held[name]
        is_whole = any(True for _ in module.children())
        if not isinstance(module, nn.Identity) and (not is_whole or alone[name] or parameters):
            kind = type(module).__name__
            kept_bytes = kept.get(module, 0) // 2
            layers.append(LayerCost(name, kind, output, parameters, alone[name] // 2, kept_bytes, sights[module]))
    # What is kept by functions between the layers belongs to no row.
    return NetworkCost(
        image,
        layers,
        sum(parameter.numel() for parameter in network.parameters()),
        sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad),
        flops.get("", 0) // 2,
        sum(kept.values()) // 2,
    )


_Shapes = dict[nn.Module, tuple[int, ...]]


def _forward(network: nn.Module, images: Tensor) -> tuple[_Shapes, dict[str, int], dict[nn.Module, Sight]]:
    """The modules that were called, in the order in which they were done; operations by name; what they see."""
    tracer = FieldTracer()
    called: _Shapes = {}
    sights: dict[nn.Module, Sight] = {}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is not None:
            called[module] = tuple(tensor.shape[1:])
            sights[module] = _sight(tracer.of(tensor))

    counter = FlopCounterMode(display=False)
    for module in network.modules():
        module.register_forward_hook(note)
    with torch.no_grad(), counter, tracer:
        tracer.begin(images)
        network(images)
    root = type(network).__name__
    counts = {
        "" if name in ("Global", root) else name.removeprefix(f"{root}."): sum(by_operation.values())
        for name, by_operation in counter.get_flop_counts().items()
    }
    return called, counts, sights


def _sight(seen: Seen | None) -> Sight:
    if seen is None:
        return Sight(None, False)
    if seen.unknown:
        return Sight(None, False, seen.unknown)
    local = all(math.isfinite(field.size) for field in seen.fields)
    return Sight(seen.fields if local else None, seen.everything)


def _kept(network: nn.Module, images: Tensor) -> dict[nn.Module, int]:
    """Bytes that autograd keeps for the backward pass, by the module that was running."""
    running: list[nn.Module] = [network]
    kept: dict[nn.Module, int] = defaultdict(int)
    not_counted = {id(tensor.untyped_storage()) for tensor in [images, *network.parameters(), *network.buffers()]}
    storages: dict[int, object] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in storages and id(storage) not in not_counted:
            storages[id(storage)] = storage  # Alive, so that no other has its number.
            kept[running[-1]] += storage.nbytes()
        return tensor

    def enter(module: nn.Module, args: Any) -> None:
        running.append(module)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    hooks = [module.register_forward_pre_hook(enter) for module in network.modules()]
    hooks += [module.register_forward_hook(leave, always_call=True) for module in network.modules()]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(images)
    for hook in hooks:
        hook.remove()
    return kept
