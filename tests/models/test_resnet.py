import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from cnnlab.errors import InputError
from cnnlab.models.resnet import SmallResNet


def test_small_resnet_has_the_stated_number_of_parameters() -> None:
    network = SmallResNet(num_classes=10)
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_785_354


def test_small_resnet_has_the_published_stages() -> None:
    network = SmallResNet(channels=1)
    features = network.stem(torch.zeros(2, 1, 64, 48))
    assert features.shape == (2, 64, 16, 12)
    shapes = []
    for stage in network.stages:
        features = stage(features)
        shapes.append(tuple(features.shape[1:]))
    assert shapes == [(64, 16, 12), (128, 8, 6), (256, 4, 3)]


def test_layer_groups_come_in_order_from_input_to_head() -> None:
    network = SmallResNet()
    assert [name for name, _ in network.named_children()] == ["stem", "stages", "head"]
    assert [len(list(stage.children())) for stage in network.stages] == [2, 2, 2]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (33, 50)])
def test_small_resnet_is_resnet18_without_its_last_stage(size: tuple[int, int], train: bool) -> None:
    torch.manual_seed(0)
    reference = resnet18()
    reference.layer4, reference.fc = nn.Identity(), nn.Linear(256, 7)
    for values in reference.state_dict().values():
        if values.ndim == 1:
            values.uniform_(0.5, 1.5)
    network = SmallResNet(num_classes=7)
    network.load_state_dict(dict(zip(network.state_dict(), reference.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, *size)
    torch.testing.assert_close(network.train(train)(images), reference.train(train)(images), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (33, 61)])
def test_small_resnet_takes_any_size(size: tuple[int, int]) -> None:
    assert SmallResNet(num_classes=3, channels=2)(torch.zeros(2, 2, *size)).shape == (2, 3)


def test_convolutions_start_with_the_variance_of_kaiming() -> None:
    torch.manual_seed(0)
    for layer in SmallResNet().modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
            assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
            assert layer.weight.mean().item() == pytest.approx(0, abs=0.05 * (2 / fan_out) ** 0.5)


def test_every_parameter_receives_a_gradient() -> None:
    torch.manual_seed(0)
    network = SmallResNet(num_classes=3)
    network(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_stages_outputs_outlive_the_forward_pass() -> None:
    # Grad-CAM keeps outputs until the backward pass: they must not be changed in place.
    network, outputs = SmallResNet(num_classes=3), list[tuple[Tensor, Tensor]]()
    for stage in network.stages:
        for block in stage.children():
            block.register_forward_hook(lambda _module, _inputs, output: outputs.append((output, output.clone())))
    network(torch.randn(2, 3, 32, 32))
    assert len(outputs) == 6
    for tensor, value in outputs:
        assert torch.equal(tensor, value)


def test_dropout_comes_before_the_classifier() -> None:
    network = SmallResNet(dropout=0.4)
    assert [type(layer) for layer in network.head][-2:] == [nn.Dropout, nn.Linear]
    assert [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)] == [0.4]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_classes": 0}, r"^num_classes is 0, expected 1 or more"),
        ({"channels": -1}, r"^channels is -1"),
        ({"dropout": 1.0}, r"^dropout is 1\.0, expected 0 up to"),
        ({"dropout": -0.1}, r"^dropout is -0\.1"),
    ],
)
def test_a_wrong_argument_is_named(kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SmallResNet(**kwargs)
