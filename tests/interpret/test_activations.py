"""Filters, feature maps and embeddings against what the network itself computes."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from cnnlab.errors import InputError
from cnnlab.interpret import embeddings, feature_maps, filters, project
from cnnlab.models import SimpleCNN


@pytest.fixture
def network() -> SimpleCNN:
    torch.manual_seed(0)
    return SimpleCNN(num_classes=4)


def test_filters_are_the_kernels_from_0_to_1(network: SimpleCNN) -> None:
    kernels = filters(network)
    assert kernels.shape == (32, 1, 3, 3)
    assert kernels.amin(dim=(1, 2, 3)).equal(torch.zeros(32))
    assert kernels.amax(dim=(1, 2, 3)).equal(torch.ones(32))
    weight = network.get_parameter("features.0.0.weight")[3].detach()
    torch.testing.assert_close(kernels[3], (weight - weight.min()) / (weight.max() - weight.min()))
    kernels.zero_()
    assert network.get_parameter("features.0.0.weight").abs().sum() > 0
    assert filters(network, "features.4.0").shape == (128, 64, 3, 3)
    with pytest.raises(InputError, match=r"'head\.2' is a Linear, expected a 2D convolution: features\.0\.0"):
        filters(network, "head.2")
    with pytest.raises(InputError, match="Linear has no 2D convolution"):
        filters(nn.Linear(1, 1))


def test_feature_maps_are_what_the_layer_gave_before_anything_was_changed_in_place(network: SimpleCNN) -> None:
    images = torch.rand(2, 1, 28, 28)
    maps = feature_maps(network, images, ["features.0.1", "features"])
    assert network.training
    with torch.no_grad():
        first = network.eval().get_submodule("features.0")
        expected = nn.Sequential(*list(first.children())[:2])(images)
        torch.testing.assert_close(maps["features"], network.get_submodule("features")(images))
    # The ReLU after the norm is in place.
    torch.testing.assert_close(maps["features.0.1"], expected)
    assert maps["features.0.1"].min() < 0
    with pytest.raises(InputError, match="did you mean 'features'"):
        feature_maps(network, images, ["feature"])
    with pytest.raises(InputError, match=r"gives \(2, 256\), expected a map"):
        feature_maps(network, images, ["head.2"])


def test_embeddings_are_what_goes_into_the_classifier(network: SimpleCNN) -> None:
    images = torch.rand(10, 1, 28, 28)
    before = copy.deepcopy(network.state_dict())
    with torch.inference_mode():
        rows = embeddings(network, torch.split(images, 4), limit=7)
    assert rows.shape == (7, 256)
    with torch.no_grad():
        network.eval()
        torch.testing.assert_close(rows, network.head[:-1](network.features(images[:7])))
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    convolution = timm.create_model("resnet10t", num_classes=3)
    assert embeddings(convolution, [torch.rand(2, 3, 64, 64)], layer="layer4").shape == (2, 256)
    with pytest.raises(InputError, match="no linear layer"):
        embeddings(nn.Conv2d(1, 1, 1), [images])
    vit = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32)
    assert embeddings(vit, [torch.rand(2, 3, 32, 32)], layer="blocks.0").shape == (2, 192)
    # The input as it was before the layer changes it in place.
    changing = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True), nn.Linear(3, 3))
    assert embeddings(changing, [torch.full((2, 3), -1.0)], layer="1").equal(torch.full((2, 3), -1.0))
    network.spare = nn.Linear(1, 1)
    with pytest.raises(InputError, match="'spare' takes no part"):
        embeddings(network, [images], layer="spare")
    with pytest.raises(InputError, match="no image"):
        embeddings(network, [])


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_neighbors_stay_neighbors(method: str) -> None:
    pytest.importorskip("sklearn", reason="the extra interpret")
    torch.manual_seed(0)
    centers = torch.eye(3, 16) * 20
    values = torch.cat([center + torch.randn(30, 16) for center in centers])
    points = torch.from_numpy(project(values, method))  # type: ignore[arg-type]
    assert points.shape == (90, 2)
    assert points.equal(torch.from_numpy(project(values, method)))  # type: ignore[arg-type]
    nearest = torch.cdist(points, points).fill_diagonal_(torch.inf).argmin(dim=1)
    assert (nearest // 30 == torch.arange(90) // 30).all()
    with pytest.raises(InputError, match="too few"):
        project(values[:2])
    with pytest.raises(InputError, match="no method 'umap'"):
        project(values, "umap")  # type: ignore[arg-type]
