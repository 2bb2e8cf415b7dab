"""Networks with fewer channels, and what a checkpoint needs to make them again."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cnnlab.deploy.prune import prune_channels, prune_weights, weighted
from cnnlab.errors import InputError
from cnnlab.models.channel_removal import read_removals, remove_channels
from cnnlab.models.factory import create_network
from cnnlab.models.simple_cnn import SimpleCNN
from cnnlab.models.unet import UNet


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_half_of_a_simple_cnn_s_channels() -> None:
    network = SimpleCNN().eval()
    removed = prune_channels(network, torch.randn(2, 1, 28, 28), 0.5)
    assert count(network) == 33_130
    assert [block[0].out_channels for block in network.features if isinstance(block, nn.Sequential)] == [16, 32, 64]
    assert network(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    assert json.loads(json.dumps(removed)) == removed  # plain lists


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("simple_cnn", (2, 3, 28, 28)),
        ("resnet18", (2, 3, 64, 64)),
        ("tf_efficientnet_lite0", (2, 3, 64, 64)),
        ("mobilenetv3_small_100", (2, 3, 64, 64)),
        ("densenet121", (2, 3, 64, 64)),
        ("unet", (2, 3, 32, 48)),
    ],
)
@pytest.mark.parametrize("everywhere", [False, True])
def test_removing_the_same_channels_from_another_gives_the_same_network(
    name: str, shape: tuple[int, ...], everywhere: bool
) -> None:
    torch.manual_seed(0)
    network = UNet(3, base=8) if name == "unet" else create_network(name, 7, 3)
    network.eval().requires_grad_(False)
    other = copy.deepcopy(network)
    before = count(network)
    removed = prune_channels(network, torch.randn(shape), 0.3, everywhere)
    assert count(network) < 0.8 * before
    assert not any(parameter.requires_grad for parameter in network.parameters())
    remove_channels(other, json.loads(json.dumps(removed)))
    for (key, value), (own, mine) in zip(network.state_dict().items(), other.state_dict().items(), strict=True):
        assert key == own
        torch.testing.assert_close(value, mine, rtol=0, atol=0)
    images = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(network(images), other(images))
        assert network(images).shape[1] == (3 if name == "unet" else 7)


def test_the_channels_with_the_smallest_weights_go_with_all_that_belongs_to_them() -> None:
    network = SimpleCNN().eval()
    first: Any = network.features[0]
    second: Any = network.features[2]
    with torch.no_grad():
        for layer in weighted(network):
            layer.weight.fill_(1.0)
        first[0].weight[5] = 0.01
        first[0].bias.copy_(torch.arange(32.0))
        first[1].weight[5] = 0.01
        second[0].weight[:, 5] = 0.01
    removed = prune_channels(network, torch.randn(2, 1, 28, 28), 0.04)
    gone = {(name, side): channels for name, side, channels in removed}
    assert 5 in gone["features.0.0", "out"]
    assert gone["features.0.0", "out"] == gone["features.0.1", "out"] == gone["features.2.0", "in"]
    assert 5.0 not in first[0].bias.tolist()
    assert first[0].weight.min() == 1.0
    assert second[0].weight.min() == 1.0


def test_what_cannot_be_pruned_is_named() -> None:
    images = torch.randn(2, 3, 32, 32)
    with pytest.raises(InputError, match="outside of layers"):
        prune_channels(create_network("convnext_atto", 5, 3).eval(), images, 0.5)
    for share in (0.0, 1.0):
        with pytest.raises(InputError, match="above 0, below 1"):
            prune_channels(SimpleCNN().eval(), images, share)
        with pytest.raises(InputError, match="above 0, below 1"):
            prune_weights(SimpleCNN(), share)
    with pytest.raises(InputError, match="no convolution or linear layer"):
        prune_channels(nn.Sequential(nn.Flatten()), images, 0.5)
    with pytest.raises(InputError, match="which this one lacks"):
        remove_channels(SimpleCNN(), [["other", "out", [0]]])
    with pytest.raises(InputError, match="cannot be removed from features"):
        remove_channels(SimpleCNN(), [["features.0.0", "out", [32]]])
    with pytest.raises(InputError, match="cannot be removed"):
        remove_channels(SimpleCNN(), [["features.1", "out", [0]]])


def test_a_file_of_removals(tmp_path: Path) -> None:
    path = tmp_path / "pruned.json"
    with pytest.raises(InputError, match="no such file"):
        read_removals(path)
    path.write_text("{}[")
    with pytest.raises(InputError, match="holds no list"):
        read_removals(path)
    path.write_text('[["a", "out", [1, 2]]]')
    assert read_removals(path) == [["a", "out", [1, 2]]]


def test_the_smallest_weights_of_all_layers_become_zero() -> None:
    network = SimpleCNN().to(memory_format=torch.channels_last)
    before = [layer.weight.detach().clone() for layer in weighted(network)]
    names = set(network.state_dict())
    zeros = prune_weights(network, 0.25)
    total = sum(weight.numel() for weight in before)
    assert zeros == round(total / 4)
    assert set(network.state_dict()) == names
    kept = torch.cat([layer.weight[layer.weight != 0].abs() for layer in weighted(network)])
    gone = torch.cat([old[layer.weight == 0].abs() for old, layer in zip(before, weighted(network), strict=True)])
    assert gone.max() <= kept.min()
