"""Normalization layers compared, and the initialization of networks."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from cnnlab.analysis.layers import initialization, normalizations
from cnnlab.errors import InputError
from cnnlab.models import SmallResNet


def test_what_norms_depend_on() -> None:
    kinds = {kind.name: kind for kind in normalizations((4, 12, 5, 6), groups=3)}
    assert {name for name, kind in kinds.items() if kind.depends_on_batch} == {"batch"}
    assert {name for name, kind in kinds.items() if not kind.same_in_evaluation} == {"batch"}
    assert {name: kind.statistics for name, kind in kinds.items()} == {
        "batch": 12,
        "layer": 4,
        "layer, of each position": 4 * 5 * 6,
        "instance": 4 * 12,
        "group": 4 * 3,
    }
    assert {kind.parameters for kind in kinds.values()} == {24}
    with pytest.raises(InputError, match="two images"):
        normalizations((1, 12, 5, 6))
    with pytest.raises(InputError, match="divisor of 12"):
        normalizations((4, 12, 5, 6), groups=5)


@pytest.mark.parametrize(
    ("initialize", "scheme"),
    [
        (lambda weight: nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="relu"), "Kaiming (fan in)"),
        (lambda weight: nn.init.kaiming_uniform_(weight, mode="fan_out", nonlinearity="relu"), "Kaiming (fan out)"),
        (nn.init.xavier_normal_, "Xavier"),
        (lambda weight: nn.init.trunc_normal_(weight, std=0.02), "truncated normal, 0.02"),
        (nn.init.zeros_, "zero"),
        (lambda weight: nn.init.normal_(weight, std=0.5), "other"),
        (lambda weight: weight, "PyTorch's default"),
    ],
)
def test_schemes_are_told_by_their_spread(initialize: object, scheme: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 128, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        initialize(network[1].weight)  # type: ignore[operator]
    layers = {layer.name: layer for layer in initialization(network, torch.randn(4, 3, 16, 16))}
    assert layers["1"].scheme == scheme


def test_signals_keep_their_size_where_the_scheme_fits_the_depth() -> None:
    torch.manual_seed(0)
    sizes = []
    for initialize in (nn.init.kaiming_normal_, nn.init.normal_):
        layers: list[nn.Module] = []
        for _ in range(12):
            convolution = nn.Conv2d(16, 16, 3, padding=1, bias=False)
            initialize(convolution.weight, *(() if initialize is nn.init.kaiming_normal_ else (0.0, 0.03)))
            layers += [convolution, nn.ReLU()]
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        inits = initialization(network, torch.randn(8, 16, 16, 16))
        sizes.append((inits[-1].activations / inits[0].activations, inits[0].gradients / inits[-1].gradients))
    assert all(0.2 < change < 5 for change in sizes[0])
    assert all(change < 1e-4 for change in sizes[1])


def test_activations_in_place_change_nothing() -> None:
    results = []
    for inplace in (False, True):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3), nn.ReLU(inplace), nn.Conv2d(8, 8, 3), nn.ReLU(inplace)]
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        results.append(initialization(network, torch.randn(4, 3, 16, 16)))
    assert results[0] == results[1]


def test_auxiliary_heads_are_left_out() -> None:
    network = torchvision.models.googlenet(weights=None, init_weights=False)
    names = [layer.name for layer in initialization(network, torch.randn(2, 3, 64, 64))]
    assert "conv1.conv" in names
    assert not [name for name in names if name.startswith("aux")]


def test_the_network_is_as_it_was() -> None:
    network = SmallResNet().eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    layers = initialization(network, torch.randn(2, 3, 32, 32))
    assert layers[0].scheme == "Kaiming (fan out) or Xavier"
    assert layers[-1].scheme == "PyTorch's default"
    assert not network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    resnext = torchvision.models.resnext50_32x4d()
    grouped = {layer.name: layer.scheme for layer in initialization(resnext, torch.randn(2, 3, 64, 64))}
    assert grouped["layer1.0.conv2"] == "Kaiming (fan out) or Xavier"
