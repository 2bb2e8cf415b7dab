from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from cnnlab.analysis.catalog import RELEASED, Coefficients, catalog, compound_scaling, efficientnet_family, instantiate
from cnnlab.analysis.cost import network_cost
from cnnlab.analysis.layers import convolutions
from cnnlab.analysis.memory import PRECISIONS, training_memory
from cnnlab.analysis.meta import build_on_meta
from cnnlab.errors import InputError
from cnnlab.models import LeNet5, SimpleCNN, UNet, create_network, factory


def test_simple_cnn_by_hand() -> None:
    cost = network_cost(SimpleCNN(), (1, 28, 28))
    by_hand = {
        "features.0.0": (1 * 32 * 9, 28 * 28),
        "features.2.0": (32 * 64 * 9, 14 * 14),
        "features.4.0": (64 * 128 * 9, 7 * 7),
        "head.2": (128 * 256, 1),
        "head.5": (256 * 10, 1),
    }
    counted = {layer.name: layer.multiply_adds for layer in cost.layers if layer.multiply_adds}
    assert counted == {name: weights * positions for name, (weights, positions) in by_hand.items()}
    assert cost.multiply_adds == sum(counted.values())
    assert cost.parameters == sum(layer.parameters for layer in cost.layers) == 128_714
    assert cost.activation_bytes == sum(layer.activation_bytes for layer in cost.layers)
    # Max pooling saves its indices, eight bytes each. A ReLU in place saves its result, which the next layer shares.
    saved = {layer.name: layer.activation_bytes for layer in cost.layers}
    assert saved["features.1"] == 32 * 14 * 14 * 8
    # A convolution saves its input, except for the image, and no weights.
    assert [saved[name] for name in ("features.0.0", "features.2.0", "head.5")] == [0, 4 * 32 * 14 * 14, 4 * 256]


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "efficientnet_b0", "swin_tiny_patch4_window7_224"]
)
def test_rows_add_up(name: str) -> None:
    network = build_on_meta(lambda: create_network(name, 1000, 3))
    cost = network_cost(network, (3, 224, 224))
    assert sum(layer.multiply_adds for layer in cost.layers) == cost.multiply_adds
    assert sum(layer.parameters for layer in cost.layers) == cost.parameters
    assert sum(p.numel() for p in network.parameters()) == cost.parameters
    folded = cost.fold(1)
    assert sum(layer.multiply_adds for layer in folded) == cost.multiply_adds
    assert len(folded) < len(cost.layers) / 5
    with pytest.raises(InputError, match="depth is 0"):
        cost.fold(0)


def test_the_network_is_left_alone() -> None:
    network = SimpleCNN().eval()
    network.features.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    cost = network_cost(network, (1, 28, 28))
    training_memory(network, (1, 28, 28), 4)
    assert not network.training
    assert cost.trainable == sum(p.numel() for p in network.head.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    # Frozen layers save nothing for the backward pass.
    trained = {layer.name.split(".")[0] for layer in cost.layers if layer.activation_bytes}
    assert trained == {"head"}


def test_layers_that_are_shared_or_nested_count_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1)])
            self.weight = nn.Parameter(torch.zeros(5, 3))

        def forward(self, images: Tensor) -> Tensor:
            features = self.stages[0](self.stages[0](images))
            return F.linear(features.mean((2, 3)), self.weight)

    cost = network_cost(Shared(), (3, 8, 8))
    rows = {layer.name: layer.multiply_adds for layer in cost.layers}
    assert rows == {"stages.0": 2 * 81 * 64, "": 15}


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    class Curious(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images if float(images.sum()) > 0 else -images

    class Strict(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert images.shape[2] == 9, "nine rows"
            return images

    for network, image, message in (
        (Curious(), (3, 8, 8), "values"),
        (SimpleCNN(), (3, 28, 28), "images of 3x28x28"),
        (Strict(), (3, 8, 8), "nine rows"),
    ):
        for ask in (lambda: network_cost(network, image), lambda: training_memory(network, image, 2)):  # noqa: B023
            with pytest.raises(InputError, match=message):
                ask()


def test_networks_without_parameters_and_with_unknown_operations() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LocalResponseNorm(3), nn.Conv2d(4, 4, 3))
    cost = network_cost(network, (3, 16, 16))
    assert cost.last_map is not None
    assert str(cost.last_map.receptive_field) == "?"
    assert "avg_pool" in str(cost.last_map.receptive_field.unknown)
    assert training_memory(nn.AvgPool2d(2), (3, 8, 8), 2).gradients == 0


def test_a_constructor_that_reads_values_runs_on_the_default_device() -> None:
    class Computing(nn.Module):
        def __init__(self, num_classes: int, channels: int) -> None:
            super().__init__()
            self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]
            self.layer = nn.Conv2d(channels, num_classes, 3)

    network = build_on_meta(lambda: factory.build("own", Computing, num_classes=2, channels=3))
    assert network.rates == [0, 0.5, 1]
    with pytest.raises(InputError, match="no network 'nothing'"):
        build_on_meta(lambda: create_network("nothing", 2, 3))


@pytest.mark.parametrize("name", list(catalog()))
def test_the_catalog_has_its_networks_figures(name: str) -> None:
    known = catalog()[name]
    network = instantiate(name)
    assert sum(p.numel() for p in network.parameters()) == known.parameters
    cost = network_cost(network, known.image)
    assert cost.multiply_adds == pytest.approx(known.multiply_adds, rel=0.02)
    assert (known.top1 is None) == (known.source is None)


def test_the_catalog_s_figures() -> None:
    known = catalog()
    assert list(known) == [
        "LeNet-5",
        "AlexNet",
        "VGG-16",
        "GoogLeNet",
        "ResNet-50",
        "ResNeXt-50",
        "SENet-154",
        "EfficientNet-B0",
        "EfficientNet-B7",
        "ViT-B/16",
        "ConvNeXt-T",
        "ConvNeXt-L",
    ]
    assert known["LeNet-5"].parameters == sum(p.numel() for p in LeNet5().parameters()) == 61_706
    weights = torchvision.models.ResNet50_Weights.DEFAULT
    assert known["ResNet-50"].top1 == weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    with pytest.raises(InputError, match="did you mean 'ResNet-50'"):
        instantiate("ResNet50")


def test_convolutions_cost_each_weight_at_each_position() -> None:
    kinds = {kind.name: kind for kind in convolutions(inputs=8, outputs=24, kernel=5, size=14, groups=2)}
    for name, kind in kinds.items():
        biases = 50 if name == "deformable" else 0
        assert kind.multiply_adds == (kind.parameters - biases) * 14**2, name
    assert kinds["standard"].parameters == 8 * 24 * 25
    assert kinds["grouped"].multiply_adds * 2 == kinds["standard"].multiply_adds
    assert kinds["depthwise-separable"].parameters == 8 * 25 + 8 * 24
    assert kinds["dilated"].multiply_adds == kinds["standard"].multiply_adds
    assert kinds["transposed, stride 2"].output == (24, 28, 28)
    assert kinds["deformable"].parameters == 8 * 24 * 25 + (8 * 50 * 25 + 50)
    for settings, message in (({"kernel": 4}, "kernel is 4"), ({"groups": 3}, "divisor"), ({"size": 0}, "size is 0")):
        with pytest.raises(InputError, match=message):
            convolutions(**settings)


STAGES = ((1, 16), (2, 24), (2, 40), (3, 80), (3, 112), (4, 192), (1, 320))
"""Blocks and channels of EfficientNet-B0's stages (Tan and Le 2019, table 1)."""


def relative_cost(coefficients: Coefficients) -> float:
    """Depth x width^2 x resolution^2, relative to B0."""
    return coefficients.depth * coefficients.width**2 * (coefficients.resolution / 224) ** 2


def scaled_stages(coefficients: Coefficients) -> list[tuple[int, int]]:
    """The number of blocks and of channels in each of the seven stages."""
    return [
        (math.ceil(blocks * coefficients.depth), round_channels(channels * coefficients.width))
        for blocks, channels in STAGES
    ]


def round_channels(channels: float) -> int:
    """The nearest multiple of 8 that is at least 90 % of the number."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def test_compound_scaling() -> None:
    assert compound_scaling(1) == (1.2, 1.1, 258)
    assert compound_scaling(0) == RELEASED[0]
    for phi in range(1, 8):
        # 1.92 for each step.
        assert relative_cost(compound_scaling(phi)) == pytest.approx(2.0**phi, rel=0.27)
    with pytest.raises(InputError, match="phi"):
        compound_scaling(-1)


@pytest.mark.parametrize("number", RELEASED)
def test_the_released_coefficients_are_timm_s_networks(number: int) -> None:
    network = build_on_meta(lambda: timm.create_model(f"tf_efficientnet_b{number}"))
    built = []
    for stage in network.blocks:  # type: ignore[union-attr]
        projections = [module for name, module in stage.named_modules() if name.endswith(("conv_pwl", "conv_pw"))]
        built.append((len(stage), projections[-1].out_channels))
    assert scaled_stages(RELEASED[number]) == built
    known = timm.get_pretrained_cfg(f"tf_efficientnet_b{number}")
    assert known is not None
    assert known.input_size[1] == RELEASED[number].resolution


def test_the_family_grows_less_than_the_formula_says() -> None:
    networks = efficientnet_family()
    assert [scaled.name for scaled in networks] == [f"B{number}" for number in range(8)]
    assert networks[0].relative == 1
    assert networks[7].parameters == 66_347_960
    assert all(scaled.relative < scaled.expected for scaled in networks[1:])


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], int]] = {
    "SimpleCNN": (SimpleCNN, (1, 28, 28), 128),
    "ResNet-18": (lambda: timm.create_model("resnet18"), (3, 224, 224), 8),
    "U-Net": (lambda: UNet(num_classes=21, base=16), (3, 192, 192), 2),
}


def measure_peak(network: nn.Module, image: tuple[int, int, int], batch: int, computed: torch.dtype | None) -> int:
    """The peak of PyTorch's allocator in bytes, in a step after the first."""
    network.train()
    optimizer = torch.optim.AdamW(network.parameters())
    images = torch.randn(batch, *image)
    shape = network(images[:2]).shape
    targets = torch.zeros((batch, *shape[2:]), dtype=torch.int64)

    def step() -> None:
        with torch.autocast("cpu", computed or torch.bfloat16, enabled=computed is not None):
            loss = F.cross_entropy(network(images).float(), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    tensors = [*network.parameters(), *network.buffers(), *states, images]
    alive = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        step()
    peak = 0
    events = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", CASES)
def test_the_estimate_of_memory_is_what_is_measured(name: str, precision: str) -> None:
    make, image, batch = CASES[name]
    network = make()
    estimate = training_memory(network, image, batch, precision)
    peak = measure_peak(network, image, batch, PRECISIONS[precision][1])
    print(f"{name} {precision}: estimated {estimate.peak / 1e6:.1f} MB, measured {peak / 1e6:.1f} MB")
    assert estimate.peak == pytest.approx(peak, rel=0.15)


def test_the_parts_of_a_training_step() -> None:
    network = SimpleCNN()
    memory = training_memory(network, (1, 28, 28), 8)
    weights = 4 * 128_714
    assert memory.gradients == weights
    assert memory.optimizer == pytest.approx(2 * weights, rel=0.001)
    assert training_memory(network, (1, 28, 28), 8, optimizer="sgd").optimizer == weights
    twice = training_memory(network, (1, 28, 28), 16)
    assert twice.activations == pytest.approx(2 * memory.activations, rel=0.01)
    assert memory.peak >= memory.parameters + memory.optimizer + memory.activations
    mixed = training_memory(network, (1, 28, 28), 8, "bf16-mixed")
    assert 0.5 < mixed.activations / memory.activations < 0.7
    assert mixed.parameters == memory.parameters
    network.features.requires_grad_(False)
    assert training_memory(network, (1, 28, 28), 8).activations < 0.1 * memory.activations
    for settings, message in (
        ({"precision": "8"}, "bf16-mixed"),
        ({"optimizer": "x"}, "adamw"),
        ({"batch": 0}, "batch"),
    ):
        with pytest.raises(InputError, match=message):
            training_memory(network, (1, 28, 28), **{"batch": 8, **settings})  # type: ignore[arg-type]
