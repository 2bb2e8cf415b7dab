from typing import Any

import pytest
import torch
from torch import nn

from cnnlab.errors import InputError
from cnnlab.models import SimpleCNN, Standardize, create_network


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_simple_cnn_has_the_published_number_of_parameters() -> None:
    assert parameters(SimpleCNN(num_classes=10)) == 128_714


def test_simple_cnn_has_the_published_layers() -> None:
    network = SimpleCNN()
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [32, 64, 128]
    assert [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)] == [0.5]
    assert network.features(torch.zeros(2, 1, 28, 28)).shape == (2, 128, 7, 7)


@pytest.mark.parametrize("size", [(28, 28), (4, 4), (33, 61)])
def test_simple_cnn_takes_any_size(size: tuple[int, int]) -> None:
    assert SimpleCNN(num_classes=3, channels=2)(torch.zeros(2, 2, *size)).shape == (2, 3)


def test_every_parameter_receives_a_gradient() -> None:
    network = SimpleCNN()
    network(torch.randn(4, 1, 28, 28)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


@pytest.mark.parametrize("name", ["simple_cnn", "resnet10t", "timm/resnet10t"])
def test_networks_come_by_name_with_any_channels(name: str) -> None:
    assert create_network(name, num_classes=7, channels=1).eval()(torch.zeros(1, 1, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize("name", ["torchvision/mobilenet_v3_small", "mobilenet_v3_small"])
def test_torchvisions_networks_come_by_name(name: str) -> None:
    assert create_network(name, num_classes=7, channels=3).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize("name", ["simple_cnn", "timm/resnet10t", "torchvision/mobilenet_v3_small"])
def test_dropout_means_the_same_for_all(name: str) -> None:
    network = create_network(name, num_classes=7, channels=3, dropout=0.4)
    rates = [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)]
    assert 0.4 in rates or vars(network)["drop_rate"] == 0.4
    with pytest.raises(InputError, match=r"dropout is 1\.5"):
        create_network(name, num_classes=7, channels=3, dropout=1.5)


def test_a_users_network_comes_by_import_path() -> None:
    assert isinstance(create_network("cnnlab.models.simple_cnn.SimpleCNN", 3, 1, dropout=0.1), SimpleCNN)


@pytest.mark.parametrize(
    ("name", "channels", "kwargs", "message"),
    [
        ("simple_cn", 1, {}, "simple_cnn"),
        ("resnet5O", 3, {}, "resnet50"),
        ("torchvision/resnet51", 3, {}, "resnet50"),
        ("resnet18.nope", 3, {}, "nope"),
        ("my_networks.Net", 3, {}, "my_networks"),
        ("cnnlab.models.simple_cnn.SimpleCNM", 3, {}, "SimpleCNN"),
        ("simple_cnn", 1, {"drop": 1}, "drop"),
        ("torchvision/mobilenet_v3_small", 1, {}, "3 channels"),
    ],
)
def test_a_wrong_name_or_argument_is_named(name: str, channels: int, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_network(name, 10, channels, **kwargs)


def test_standardize_takes_bytes_and_floats_alike() -> None:
    layer = Standardize([0.1, 0.2], [0.3, 0.4])
    pixels = torch.randint(0, 256, (2, 2, 3, 3), dtype=torch.uint8)
    floats = (pixels.float() / 255 - torch.tensor([0.1, 0.2]).view(1, 2, 1, 1)) / torch.tensor([0.3, 0.4]).view(
        1, 2, 1, 1
    )
    torch.testing.assert_close(layer(pixels), floats)
    torch.testing.assert_close(layer(pixels / 255), floats)


def test_standardize_travels_in_the_state() -> None:
    assert set(Standardize([0.1], [0.3]).state_dict()) == {"mean", "std"}


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 8, 8)])
def test_standardize_refuses_other_channels(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"made for 1 channel"):
        Standardize([0.1], [0.3])(torch.zeros(shape))


@pytest.mark.parametrize(("mean", "std"), [([0.1], [0.1, 0.2]), ([], []), ([0.1], [0.0])])
def test_standardize_refuses_what_does_not_fit(mean: list[float], std: list[float]) -> None:
    with pytest.raises(InputError):
        Standardize(mean, std)
