import copy
from collections.abc import Callable

import pytest
import torch
from timm.layers import DropPath as TimmDropPath
from torch import Tensor, nn
from torchvision.models import convnext, efficientnet, resnet
from torchvision.ops import SqueezeExcitation as TorchvisionSqueezeExcitation
from torchvision.ops import StochasticDepth

from cnnlab.errors import InputError
from cnnlab.models.blocks import BasicBlock, Bottleneck, ConvNeXtBlock, DropPath, MBConv, SqueezeExcitation


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def scatter(network: nn.Module) -> None:
    """Move norms' statistics and weights, biases and layer scales away from 0 and 1, which would hide mistakes."""
    for values in network.state_dict().values():
        if values.ndim in (1, 3):
            values.uniform_(0.5, 1.5)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    names, values = target.state_dict(), source.state_dict().values()
    target.load_state_dict(dict(zip(names, values, strict=True)))


def outcome(block: nn.Module, features: Tensor, train: bool) -> list[Tensor]:
    """Output, gradients and state after one forward and backward pass."""
    features = features.clone().requires_grad_()
    torch.manual_seed(0)
    output = block.train(train)(features)
    output.square().sum().backward()
    assert features.grad is not None
    gradients = [parameter.grad for parameter in block.parameters() if parameter.grad is not None]
    return [output, features.grad, *gradients, *block.state_dict().values()]


def assert_equal(mine: nn.Module, reference: nn.Module, features: Tensor, train: bool) -> None:
    scatter(reference)
    copy_weights(reference, mine)
    expected = outcome(reference, features, train)
    torch.testing.assert_close(outcome(mine, features, train), expected, rtol=1e-4, atol=1e-4)


def torchvision_bottleneck(inputs: int, width: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Module:
    # torchvision gives the width relative to 64, for a block with 4 x planes output channels.
    planes = outputs // 4
    block: nn.Module = resnet.Bottleneck(
        inputs, planes, stride, torchvision_shortcut(inputs, outputs, stride), groups, base_width=64 * width // planes
    )
    return block


def torchvision_shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if inputs == outputs and stride == 1:
        return None
    return nn.Sequential(resnet.conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))


def torchvision_mbconv(
    inputs: int, outputs: int, kernel: int, stride: int, expansion: int, drop_path: float = 0.0
) -> nn.Module:
    config = efficientnet.MBConvConfig(expansion, kernel, stride, inputs, outputs, num_layers=1)
    block: nn.Module = efficientnet.MBConv(config, drop_path, nn.BatchNorm2d)
    return block


BLOCKS: list[Callable[[], nn.Module]] = [
    lambda: SqueezeExcitation(8, 2),
    lambda: BasicBlock(8, 8),
    lambda: BasicBlock(8, 16, stride=2),
    lambda: Bottleneck(8, 4, 8),
    lambda: Bottleneck(8, 2, 16, stride=2, groups=4),
    lambda: MBConv(8, 8),
    lambda: MBConv(8, 16, kernel=5, stride=2, expansion=1),
    lambda: ConvNeXtBlock(8),
]
"""All take 8 channels."""

SIZES = [(6, 6), (7, 10)]


def test_blocks_have_the_published_numbers_of_parameters() -> None:
    assert parameters(BasicBlock(256, 256)) == 1_180_672
    assert parameters(Bottleneck(256, 64, 256)) == 70_400
    # A block of ResNeXt-50 32x4d costs about what ResNet-50's does: 256 x 128 twice, 3x3 x 128 x 4, batch norms.
    assert parameters(Bottleneck(256, 4, 256, groups=32)) == 2 * 256 * 128 + 9 * 128 * 4 + 2 * (128 + 128 + 256)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(8, 8, 1), (8, 16, 1), (8, 8, 2), (8, 16, 2)])
def test_basic_block_is_torchvisions(
    inputs: int, outputs: int, stride: int, size: tuple[int, int], train: bool
) -> None:
    reference = resnet.BasicBlock(inputs, outputs, stride, torchvision_shortcut(inputs, outputs, stride))
    assert_equal(BasicBlock(inputs, outputs, stride), reference, torch.randn(3, inputs, *size), train)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("inputs", "width", "outputs", "stride", "groups"),
    [(16, 4, 16, 1, 1), (8, 4, 16, 2, 1), (16, 2, 16, 1, 4), (8, 2, 16, 2, 4), (16, 8, 16, 1, 1)],
)
def test_bottleneck_is_torchvisions(
    inputs: int, width: int, outputs: int, stride: int, groups: int, size: tuple[int, int], train: bool
) -> None:
    reference = torchvision_bottleneck(inputs, width, outputs, stride, groups)
    block = Bottleneck(inputs, width, outputs, stride, groups)
    assert_equal(block, reference, torch.randn(3, inputs, *size), train)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("outputs", "kernel", "stride", "expansion"),
    [(8, 3, 1, 6), (8, 5, 1, 6), (16, 3, 1, 6), (8, 5, 2, 4), (16, 3, 2, 1), (8, 3, 1, 1)],
)
def test_mbconv_is_torchvisions(
    outputs: int, kernel: int, stride: int, expansion: int, size: tuple[int, int], train: bool
) -> None:
    reference = torchvision_mbconv(8, outputs, kernel, stride, expansion)
    assert_equal(MBConv(8, outputs, kernel, stride, expansion), reference, torch.randn(3, 8, *size), train)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_convnext_block_is_torchvisions(size: tuple[int, int], train: bool) -> None:
    reference = convnext.CNBlock(8, layer_scale=1e-6, stochastic_depth_prob=0.0)
    assert_equal(ConvNeXtBlock(8), reference, torch.randn(3, 8, *size), train)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
def test_squeeze_excitation_is_torchvisions(activation: type[nn.Module], size: tuple[int, int]) -> None:
    reference = TorchvisionSqueezeExcitation(8, 2, activation)
    assert_equal(SqueezeExcitation(8, 2, activation), reference, torch.randn(3, 8, *size), train=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("mine", "reference"),
    [
        (MBConv(8, 8, drop_path=0.5), torchvision_mbconv(8, 8, 3, 1, 6, drop_path=0.5)),
        (MBConv(8, 16, drop_path=0.5), torchvision_mbconv(8, 16, 3, 1, 6, drop_path=0.5)),
        (ConvNeXtBlock(8, drop_path=0.5), convnext.CNBlock(8, 1e-6, stochastic_depth_prob=0.5)),
    ],
)
def test_blocks_drop_the_samples_that_torchvision_drops(
    mine: nn.Module, reference: nn.Module, size: tuple[int, int]
) -> None:
    assert_equal(copy.deepcopy(mine), copy.deepcopy(reference), torch.randn(6, 8, *size), train=True)


@pytest.mark.parametrize("reference", [StochasticDepth(0.3, mode="row"), TimmDropPath(0.3)])
@pytest.mark.parametrize("shape", [(64, 3, 2, 2), (64, 5)])
def test_drop_path_drops_the_same_samples_as_others(reference: nn.Module, shape: tuple[int, ...]) -> None:
    branch = torch.randn(shape)
    torch.manual_seed(0)
    expected = reference.train()(branch)
    torch.manual_seed(0)
    torch.testing.assert_close(DropPath(0.3)(branch), expected)


def test_drop_path_drops_whole_samples_and_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    dropped = DropPath(0.2)(torch.ones(20_000, 2, 1, 3)).flatten(start_dim=1)
    assert (dropped == dropped[:, :1]).all()
    torch.testing.assert_close(dropped.unique(), torch.tensor([0, 1.25]))
    # The mean's standard deviation is sqrt(0.2 / 0.8 / 20,000) = 0.0035.
    assert dropped[:, 0].mean().item() == pytest.approx(1, abs=0.014)


def test_drop_path_is_the_identity_in_eval_mode_and_at_rate_0() -> None:
    branch = torch.randn(4, 3, 2, 2)
    assert DropPath(0.9).eval()(branch) is branch
    assert DropPath(0).train()(branch) is branch


def test_drop_path_works_in_half_precision() -> None:
    branch = torch.ones(64, 3, 2, 2, dtype=torch.bfloat16)
    assert DropPath(0.5)(branch).dtype == torch.bfloat16
    assert set(DropPath(0.5)(branch).unique().tolist()) == {0, 2}


@pytest.mark.parametrize("make", [BasicBlock, lambda *args, **rate: Bottleneck(8, 4, 8, **rate)])
def test_residual_blocks_drop_the_residual_and_not_the_shortcut(make: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    features = torch.randn(32, 8, 4, 4)
    shortcut_only = (make(8, 8, drop_path=0.5)(features) == features.relu()).flatten(start_dim=1).all(dim=1)
    assert 0 < shortcut_only.sum() < 32


@pytest.mark.parametrize("make", BLOCKS)
def test_every_parameter_receives_a_gradient(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    block = make()
    block(torch.randn(4, 8, 6, 6)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in block.parameters())


@pytest.mark.parametrize("make", BLOCKS)
def test_a_block_leaves_its_input_as_it_is(make: Callable[[], nn.Module]) -> None:
    features = torch.randn(4, 8, 6, 6)
    before = features.clone()
    make()(features)
    assert torch.equal(features, before)


@pytest.mark.parametrize("block", [BasicBlock(8, 8), Bottleneck(8, 4, 8)])
def test_the_sum_outlives_the_forward_pass(block: BasicBlock | Bottleneck) -> None:
    # Grad-CAM keeps outputs until the backward pass: they must not be changed in place.
    sums: list[Tensor] = []
    hook = block.relu.register_forward_pre_hook(lambda _, inputs: sums.append(inputs[0]))
    block(torch.randn(4, 8, 6, 6))
    hook.remove()
    assert sums[0].min() < 0


def test_convnext_block_starts_as_the_identity_almost() -> None:
    features = torch.randn(2, 8, 6, 6)
    block = ConvNeXtBlock(8)
    assert torch.equal(block.layer_scale, torch.full((8, 1, 1), 1e-6))
    torch.testing.assert_close(block(features), features, rtol=0, atol=1e-4)
    assert not torch.equal(block(features), features)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BasicBlock(0, 8), r"^inputs is 0, expected 1 or more"),
        (lambda: BasicBlock(8, -1), r"^outputs is -1"),
        (lambda: BasicBlock(8, 8, stride=0), r"^stride is 0"),
        (lambda: BasicBlock(8, 8, drop_path=1.5), r"drop_path rate is 1\.5, expected 0 up to"),
        (lambda: Bottleneck(0, 4, 8), r"^inputs is 0"),
        (lambda: Bottleneck(8, 0, 8), r"^width is 0"),
        (lambda: Bottleneck(8, 4, 0), r"^outputs is 0"),
        (lambda: Bottleneck(8, 4, 8, stride=0), r"^stride is 0"),
        (lambda: Bottleneck(8, 4, 8, groups=0), r"^groups is 0"),
        (lambda: Bottleneck(8, 4, 8, drop_path=-0.1), r"drop_path rate is -0\.1"),
        (lambda: SqueezeExcitation(0, 1), r"^channels is 0"),
        (lambda: SqueezeExcitation(8, 0), r"^squeezed is 0"),
        (lambda: MBConv(0, 8), r"^inputs is 0"),
        (lambda: MBConv(8, 0), r"^outputs is 0"),
        (lambda: MBConv(8, 8, kernel=4), r"^kernel is 4, expected an odd number"),
        (lambda: MBConv(8, 8, kernel=-1), r"^kernel is -1"),
        (lambda: MBConv(8, 8, stride=0), r"^stride is 0"),
        (lambda: MBConv(8, 8, expansion=0), r"^expansion is 0"),
        (lambda: MBConv(8, 8, reduction=0), r"^reduction is 0"),
        (lambda: MBConv(8, 16, drop_path=1.0), r"drop_path rate is 1\.0"),
        (lambda: ConvNeXtBlock(0), r"^channels is 0"),
        (lambda: ConvNeXtBlock(8, layer_scale=0), r"^layer_scale is 0, expected a value above 0"),
        (lambda: ConvNeXtBlock(8, layer_scale=float("nan")), r"^layer_scale is nan"),
        (lambda: ConvNeXtBlock(8, drop_path=1.0), r"drop_path rate is 1\.0"),
        (lambda: DropPath(1.0), r"rate is 1\.0"),
        (lambda: DropPath(float("nan")), r"rate is nan"),
    ],
)
def test_a_wrong_argument_is_named(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
