"""The traced receptive field equals the footprint of gradients, to the pixel and on both axes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.analysis.cost import network_cost
from cnnlab.analysis.receptive_field import Field, FieldState, Layer, receptive_field
from cnnlab.analysis.tracing import FieldTracer
from cnnlab.errors import InputError
from cnnlab.models import UNet
from cnnlab.models.blocks import BasicBlock, ConvNeXtBlock, MBConv


def trace(network: nn.Module, images: Tensor) -> FieldState:
    tracer = FieldTracer()
    with torch.no_grad(), tracer:
        tracer.track(images)
        state = tracer.state_of(network(images))
    assert state is not None
    return state


def footprint(network: nn.Module, images: Tensor) -> tuple[list[list[int]], list[int]]:
    """First and last row and column that the middle unit's gradient reaches, and that unit's position.

    Weights and images are positive, so that no two paths cancel. Means replace maxima, so that gradients reach all of a
    window.
    """
    network = network.double().eval()
    for name, module in network.named_modules():
        if isinstance(module, nn.MaxPool2d):
            network.set_submodule(name, nn.AvgPool2d(module.kernel_size, module.stride, module.padding))
    for tensor in [*network.parameters(), *network.buffers()]:
        if tensor.is_floating_point():
            tensor.data = torch.full_like(tensor, 0.1) + 0.01 * torch.rand_like(tensor)
    images = (1 + 0.1 * torch.rand_like(images.double())).requires_grad_()
    features = network(images)
    middle = [size // 2 for size in features.shape[2:]]
    features[0, :, middle[0], middle[1]].sum().backward()
    assert images.grad is not None
    reached = images.grad[0].abs().sum(0) > 0
    ends = [torch.nonzero(reached.any(1 - axis)).flatten() for axis in (0, 1)]
    return [[int(end[0]), int(end[-1])] for end in ends], middle


def matches(network: nn.Module, size: tuple[int, int]) -> bool:
    """Whether tracer and gradients agree; the middle unit's field must lie inside the image."""
    images = torch.rand(1, 3, *size)
    state = trace(network.eval(), images)
    assert state.unknown is None
    ends, middle = footprint(network, images)
    fields = [
        (field.low + unit * field.jump, field.high + unit * field.jump)
        for field, unit in zip(state.fields, middle, strict=True)
    ]
    assert all(low > 0 and high < length - 1 for (low, high), length in zip(fields, size, strict=True)), fields
    return [[int(low), int(high)] for low, high in fields] == ends


def conv(inputs: int, outputs: int, kernel: int | tuple[int, int], **settings: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **settings)  # type: ignore[arg-type]


class Branches(nn.Module):
    """A short branch and a long branch, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.short = conv(3, 4, 1)
        self.long = nn.Sequential(conv(3, 4, 5, padding=2), conv(4, 4, (1, 7), padding=(0, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.short(images), self.long(images)], 1)


class Unshuffled(nn.Module):
    """Moves every second row and column into channels, as Swin and some stems do."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = conv(3, 4, 3, padding=1), nn.Linear(16, 6)
        self.last = conv(6, 6, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        batch, channels, height, width = (features := self.before(images)).shape
        patches = features.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        merged: Tensor = self.after(patches.flatten(3)).permute(0, 3, 1, 2)
        result: Tensor = self.last(merged)
        return result


class Mixed(nn.Module):
    """Patches as channels, mixed by convolutions of the same width; with ``twice``, concatenated with themselves."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.twice = twice
        self.first, self.second = conv(24 if twice else 12, 12, 3, padding=1), conv(12, 12, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        patches = images.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
        patches = patches.reshape(batch, 4 * channels, height // 2, width // 2)
        result: Tensor = self.second(self.first(torch.cat([patches, patches], 1) if self.twice else patches))
        return result


class Written(nn.Module):
    """A convolution's result overwrites part of the channels, as in FasterNet."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.part = conv(3, 4, 1), conv(2, 2, 5, padding=2)

    def forward(self, images: Tensor) -> Tensor:
        features = self.before(images).clone()
        features[:, :2] = self.part(features[:, :2].clone())
        result: Tensor = features
        return result


class Attention(nn.Module):
    """Attention from every position to all others, or to a coarser grid; then a convolution."""

    def __init__(self, reduction: int) -> None:
        super().__init__()
        self.before, self.after = conv(3, 4, 3, padding=1), conv(4, 4, 3, padding=1)
        self.query, self.key, self.value = conv(4, 4, 1), conv(4, 4, 1), conv(4, 4, 1)
        self.reduced = conv(4, 4, reduction, stride=reduction)

    def forward(self, images: Tensor) -> Tensor:
        features = self.before(images)
        others = self.reduced(features)
        query, key, value = (
            layer(given).flatten(2)
            for layer, given in ((self.query, features), (self.key, others), (self.value, others))
        )
        attended = (query.transpose(1, 2) @ key).softmax(-1) @ value.transpose(1, 2)
        result: Tensor = self.after(features + attended.transpose(1, 2).reshape(features.shape))
        return result


class Focus(nn.Module):
    """Moves every second row and column into channels by slicing, as YOLO does."""

    def __init__(self) -> None:
        super().__init__()
        self.after = conv(12, 4, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        slices = [images[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        result: Tensor = self.after(torch.cat(slices, 1))
        return result


def resnet_stem() -> nn.Module:
    network = torchvision.models.resnet18()
    return nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool, network.layer1)


def without_gate() -> nn.Module:
    blocks = [MBConv(8, 8, 5), MBConv(8, 12, 3, stride=2)]
    for block in blocks:
        block.residual[-3] = nn.Identity()
    return nn.Sequential(conv(3, 8, 3, stride=2, padding=1), *blocks)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "VGG-16 to pool3": (lambda: torchvision.models.vgg16().features[:17], (96, 112)),
    "ResNet-18's stem": (resnet_stem, (128, 96)),
    "dilated": (
        lambda: nn.Sequential(*[conv(3, 3, 3, padding=rate, dilation=rate) for rate in (1, 2, 4)]),
        (48, 40),
    ),
    "MBConv without its gate": (without_gate, (64, 64)),
    "a residual block": (lambda: BasicBlock(3, 8, stride=2), (40, 48)),
    "branches": (Branches, (32, 32)),
    "ConvNeXt's block": (lambda: nn.Sequential(conv(3, 8, 4, stride=4), ConvNeXtBlock(8)), (96, 96)),
    "patches": (Unshuffled, (32, 40)),
    "slices": (Focus, (32, 40)),
    "pixels to channels": (lambda: nn.Sequential(conv(3, 2, 3), nn.PixelUnshuffle(2), conv(8, 4, 3)), (34, 34)),
    "channels that change places": (
        lambda: nn.Sequential(nn.AvgPool2d(3, 2), conv(3, 4, (3, 1)), nn.ChannelShuffle(2)),
        (40, 48),
    ),
    "patches mixed": (lambda: Mixed(twice=False), (40, 40)),
    "patches joined and mixed": (lambda: Mixed(twice=True), (40, 40)),
    "written over": (Written, (32, 32)),
    "pooled unevenly": (lambda: nn.Sequential(conv(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d((6, 5))), (60, 50)),
    "no padding": (lambda: nn.Sequential(conv(3, 4, 5), nn.AvgPool2d(2), conv(4, 4, 3)), (40, 40)),
    "padding apart": (
        lambda: nn.Sequential(nn.ZeroPad2d((1, 2, 2, 1)), conv(3, 4, 4), nn.ReflectionPad2d(1)),
        (24, 24),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_traced_field_is_what_gradients_reach(name: str) -> None:
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    assert matches(make(), size)


def test_each_layer_of_vgg() -> None:
    cost = network_cost(torchvision.models.vgg16().features[:17], (3, 224, 224))
    shown = [layer for layer in cost.layers if layer.kind in ("Conv2d", "MaxPool2d")]
    sizes = [layer.receptive_field.sizes for layer in shown]
    assert [size for size in sizes if size is not None] == [
        (size, size) for size in (3, 5, 6, 10, 14, 16, 24, 32, 40, 44)
    ]
    assert shown[-1].receptive_field.fields is not None
    assert shown[-1].receptive_field.fields[0].jump == 8
    window, pool = Layer(3, padding=1), Layer(2, stride=2)
    listed = receptive_field([window, window, pool] * 2 + [window] * 3 + [pool])
    assert [field.size for field in listed] == [3, 5, 6, 10, 14, 16, 24, 32, 40, 44]
    assert listed[-1].jump == 8
    assert listed[-1] == shown[-1].receptive_field.fields[0]


def test_a_gate_sees_the_whole_image_and_keeps_the_window() -> None:
    block = nn.Sequential(conv(3, 8, 3, padding=1), MBConv(8, 8, 5))
    images = torch.rand(1, 3, 40, 40)
    state = trace(block.eval(), images)
    assert state.whole_image
    assert [field.size for field in state.fields] == [7, 7]
    ends, _ = footprint(block, images)
    assert ends == [[0, 39], [0, 39]]


@pytest.mark.parametrize("reduction", [1, 4])
def test_attention_sees_the_whole_image_and_keeps_the_grid(reduction: int) -> None:
    network = Attention(reduction)
    images = torch.rand(1, 3, 24, 24)
    state = trace(network.eval(), images)
    assert state.whole_image
    assert [(field.size, field.jump) for field in state.fields] == [(5, 1), (5, 1)]
    ends, _ = footprint(network, images)
    assert ends == [[0, 23], [0, 23]]


@pytest.mark.parametrize("gate_first", [True, False])
def test_a_gate_may_stand_on_either_side(gate_first: bool) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = conv(3, 4, 3, padding=1), conv(4, 4, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            features = self.before(images)
            gate = F.adaptive_max_pool2d(features, 1).sigmoid()
            result: Tensor = self.after(gate * features if gate_first else features * gate)
            return result

    state = trace(Gated().eval(), torch.rand(1, 3, 24, 24))
    assert state.whole_image
    assert [field.size for field in state.fields] == [5, 5]


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 1, 2), (3, 2, 1), (4, 2, 1), (5, 3, 2), (3, 2, 2), (3, 4, 2)]
)
def test_transposed_convolutions_of_all_kinds(kernel: int, stride: int, dilation: int) -> None:
    network = nn.Sequential(nn.ConvTranspose2d(3, 4, kernel, stride, padding=1, dilation=dilation))
    images = torch.rand(1, 3, 24, 24)
    (field, _) = trace(network.eval(), images).fields
    features = network.double()(images.double().requires_grad_())
    reached = []
    for row in range(features.shape[2] // 2, features.shape[2] // 2 + stride):
        given = images.double().requires_grad_()
        network(given)[0, :, row].sum().backward()
        assert given.grad is not None
        rows = torch.nonzero(given.grad[0].abs().sum((0, 2))).flatten()
        reached.append(int(rows[-1] - rows[0] + 1) if len(rows) else 0)
    assert field.size == max(reached)


@pytest.mark.parametrize("upsampling", ["transposed", "bilinear", "nearest", "shuffled"])
def test_upsampled_units_see_no_less_than_gradients_reach(upsampling: str) -> None:
    """Units between others have smaller fields; the largest counts."""
    larger: dict[str, nn.Module] = {
        "transposed": nn.ConvTranspose2d(4, 4, 2, stride=2),
        "shuffled": nn.Sequential(conv(4, 16, 1), nn.PixelShuffle(2)),
    }
    layer = larger.get(upsampling) or nn.Upsample(scale_factor=2, mode=upsampling)
    network = nn.Sequential(conv(3, 4, 3, padding=1), nn.AvgPool2d(2), layer, conv(4, 4, 3, padding=1))
    images = torch.rand(1, 3, 48, 48)
    state = trace(network.eval(), images)
    ends, _ = footprint(network, images)
    reached = ends[0][1] - ends[0][0] + 1
    assert reached <= state.fields[0].size <= reached + 2
    assert state.fields[0].jump == 1


def test_a_u_net_sees_what_its_margin_says() -> None:
    """The README's margin of 112 pixels is half of the field, rounded up to a multiple of 16."""
    cost = network_cost(UNet(num_classes=2, base=4), (3, 256, 256))
    assert str(cost.layers[-1].receptive_field) == "200"
    network = UNet(num_classes=2, base=4)
    images = torch.rand(1, 3, 256, 256)
    ends, _ = footprint(network, images)
    assert ends[0][1] - ends[0][0] + 1 <= 200


@pytest.mark.parametrize(
    "name",
    ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "mixer_s16_224", "xcit_tiny_12_p16_224", "pvt_v2_b0"],
)
def test_tokens_are_traced(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
        images = torch.empty(1, 3, 224, 224)
    state = trace(network.eval(), images)
    assert state.unknown is None
    assert state.whole_image
    cost = network_cost(network, (3, 224, 224))
    jumps = {layer.receptive_field.fields[0].jump for layer in cost.layers if layer.receptive_field.fields is not None}
    steps = {"swin": {4, 8, 16, 32}, "vit_": {16}, "mixe": {16}, "xcit": {2, 4, 8, 16}, "pvt_": {4, 8, 16, 32}}[
        name[:4]
    ]
    assert min(steps) in jumps
    assert max(jumps) == max(steps)
    # The first layer has windows only.
    assert not cost.layers[0].receptive_field.whole_image


def test_an_operation_without_a_rule_is_named() -> None:
    class Odd(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            result: Tensor = torch.fft.fft2(images).real
            return result

    unknown = trace(Odd(), torch.rand(1, 3, 8, 8)).unknown
    assert unknown is not None
    assert "fft" in unknown


def test_bad_layers_are_refused() -> None:
    with pytest.raises(InputError, match="layer 1 is Layer"):
        receptive_field([Layer(3), Layer(0)])
    assert receptive_field([]) == []
    assert Field(-3.0, 3.0, 2.0).center == 0
