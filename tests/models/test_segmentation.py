"""Networks for segmentation: published sizes, any height and width, encoders, gradients everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from cnnlab.errors import InputError
from cnnlab.models import DeepLabV3Plus, EncoderUNet, UNet, create_segmenter, layer_groups
from cnnlab.models.norms_and_checkpointing import checkpoint_stages
from cnnlab.models.unet import AttentionGate


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_unet_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert parameters(UNet(num_classes=21)) == 31_038_933


NETWORKS = {
    "unet": lambda: create_segmenter("unet", 5, base=4),
    "attention": lambda: create_segmenter("unet", 5, base=4, attention=True),
    "encoder": lambda: create_segmenter("unet", 5, encoder="tf_efficientnet_lite0"),
    "encoder of stride 4": lambda: create_segmenter("unet", 5, encoder="convnext_atto", attention=True),
    "encoder with channels last": lambda: create_segmenter("unet", 5, encoder="mambaout_femto"),
    "decoder of stride 2": lambda: create_segmenter("unet", 5, encoder="tf_efficientnet_lite0", stride=2),
    "deeplab": lambda: create_segmenter("deeplabv3plus", 5, encoder="resnet10t"),
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("size", [(1, 1), (17, 33), (64, 48)])
def test_any_height_and_width_in_training_and_evaluation(kind: str, size: tuple[int, int]) -> None:
    network = NETWORKS[kind]()
    images = torch.randn(2, 3, *size)
    assert network.train()(images).shape == (2, 5, *size)
    with torch.no_grad():
        assert network.eval()(images[:1]).shape == (1, 5, *size)


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_parameter_receives_a_gradient_and_is_in_one_group(kind: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[kind]()
    network(torch.randn(2, 3, 64, 64)).square().mean().backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []
    groups = layer_groups(network)
    names = [name for group in groups for name, _ in group.parameters_of(network)]
    assert sorted(names) == sorted(name for name, _ in network.named_parameters())
    assert groups[-1].name == "head"
    assert len(groups) >= 3


def test_padding_repeats_the_edge_and_is_cut_off_again() -> None:
    network = create_segmenter("unet", 3, base=4).eval()
    image = torch.randn(1, 3, 20, 30)
    by_hand = torch.cat([image, image[..., -1:].expand(1, 3, 20, 2)], dim=3)
    by_hand = torch.cat([by_hand, by_hand[..., -1:, :].expand(1, 3, 12, 32)], dim=2)
    with torch.no_grad():
        torch.testing.assert_close(network(image), network(by_hand)[..., :20, :30])


def test_a_gate_weighs_each_pixel_between_0_and_1() -> None:
    skip, gate = torch.rand(2, 8, 5, 7) + 0.5, torch.randn(2, 16, 5, 7)
    share = AttentionGate(8, 16)(skip, gate) / skip
    assert ((share > 0) & (share < 1)).all()
    assert share.std(dim=1).max() < 1e-5
    assert share.std() > 0.01


def test_the_unet_is_the_published_one() -> None:
    network = UNet(num_classes=2, base=4)
    kernels = [layer.kernel_size for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert kernels == [(3, 3)] * 18 + [(1, 1)]
    ups = [layer for layer in network.modules() if isinstance(layer, nn.ConvTranspose2d)]
    assert [(layer.in_channels, layer.out_channels, layer.stride) for layer in ups] == [
        (64, 32, (2, 2)), (32, 16, (2, 2)), (16, 8, (2, 2)), (8, 4, (2, 2)),
    ]  # fmt: skip


def test_a_decoder_of_stride_2_lacks_the_last_step() -> None:
    whole, half = (create_segmenter("unet", 3, encoder="resnet10t", stride=stride).eval() for stride in (1, 2))
    assert isinstance(half, EncoderUNet)
    state, smaller = whole.state_dict(), half.state_dict()
    assert [name for name in state if name not in smaller and name.endswith(".0.weight")] == [
        "decoder.4.convolutions.0.weight"
    ]
    small: list[torch.Tensor] = []
    half.head.register_forward_hook(lambda module, args, output: small.append(output))
    with torch.no_grad():
        logits = half(torch.randn(1, 3, 64, 96))
    assert small[0].shape == (1, 3, 32, 48)
    torch.testing.assert_close(logits, F.interpolate(small[0], size=(64, 96), mode="bilinear"))


@pytest.mark.parametrize("name", ["unet", "deeplabv3plus"])
def test_an_encoders_weights_come_from_a_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    pretrained = timm.create_model("resnet10t", zero_init_last=False)
    torch.save(pretrained.state_dict(), tmp_path / "resnet10t.pth")
    network = create_segmenter(name, 3, encoder="resnet10t", weights=str(tmp_path))
    assert isinstance(network, (EncoderUNet, DeepLabV3Plus))
    loaded = {
        key.rpartition("layer2.0.")[2]: value for key, value in network.state_dict().items() if "layer2.0." in key
    }
    assert len(loaded) > 10
    for key, value in loaded.items():
        assert value.equal(pretrained.state_dict()[f"layer2.0.{key}"]), key


def test_incomplete_weights_are_refused(tmp_path: Path) -> None:
    state = timm.create_model("resnet10t").state_dict()
    del state["layer3.0.conv1.weight"]
    torch.save(state, tmp_path / "resnet10t.pth")
    with pytest.raises(InputError, match=r"does not hold weights for resnet10t: .*layer3\.0\.conv1\.weight"):
        create_segmenter("unet", 3, encoder="resnet10t", weights=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("unett", {}, "did you mean 'unet'"),
        ("resnet18", {}, "no network 'resnet18' for segmentation"),
        ("unet", {"bas": 3}, "bas"),
        ("unet", {"base": 0}, "base is 0"),
        ("unet", {"dropout": 1.5}, "dropout is 1.5"),
        ("unet", {"weights": "pretrained"}, "has no encoder that model.weights 'pretrained' could be for"),
        ("unet", {"encoder": "resnet181"}, "resnet18"),
        ("unet", {"encoder": "resnet10t", "stride": 3}, "stride is 3, expected one of 1, 2, 4, 8, 16"),
        ("unet", {"encoder": "simple_cnn"}, "is not timm's"),
        ("unet", {"encoder": "vit_tiny_patch16_224"}, "such as resnet18"),
        ("deeplabv3plus", {"nope": 1}, "nope"),
        ("deeplabv3plus", {"encoder": "vit_tiny_patch16_224"}, "cannot be made"),
        ("deeplabv3plus", {"encoder": "resnet181"}, "resnet18"),
    ],
)
def test_bad_arguments_are_named(name: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_segmenter(name, 3, **args)  # type: ignore[arg-type]


def test_a_users_network_comes_by_import_path() -> None:
    assert isinstance(create_segmenter("cnnlab.models.unet.UNet", 3, base=4), UNet)


def test_checkpointed_levels_give_the_same_gradients() -> None:
    plain, saving = (UNet(num_classes=3, base=4) for _ in range(2))
    saving.load_state_dict(plain.state_dict())
    checkpoint_stages(saving, ["encoder.0", "encoder.1", "decoder.3"])
    images = torch.randn(2, 3, 32, 32)
    for network in (plain, saving):
        network(images).square().mean().backward()
    for (name, one), (_, other) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name  # type: ignore[arg-type]


def test_2000_by_3000_pixels_go_through_the_training_forward() -> None:
    network = UNet(num_classes=3, base=2)
    with torch.no_grad():
        assert network.train()(torch.zeros(2, 3, 2000, 3000)).shape == (2, 3, 2000, 3000)
