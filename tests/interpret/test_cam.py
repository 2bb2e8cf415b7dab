"""Class activation maps: against values by hand and pytorch-grad-cam, on many networks, whose state is restored."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.errors import InputError
from cnnlab.interpret import METHODS, GradCAM, ScoreCAM, default_layer, feature_maps
from cnnlab.interpret.layers import to_grid
from cnnlab.models import SimpleCNN, UNet, create_network, create_segmenter


class Two(nn.Module):
    """Two channels that equal the image's, one for each class."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.pick = nn.Conv2d(2, 2, 1, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(2, 2, bias=False)
        self.pick.weight.data = torch.eye(2)[..., None, None]
        self.head.weight.data = weights

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.act(self.pick(images)).mean(dim=(2, 3)))
        return logits


class Curved(nn.Module):
    """The first class's logit contains squared activations, so that gradients differ by position."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        lit = self.act(images)
        total = lit.sum(dim=(1, 2, 3)) + (lit**2).sum(dim=(1, 2, 3))
        return torch.stack([total, -total], dim=1)


def corners() -> Tensor:
    """An image (1, 2, 2, 2) whose first channel is lit at the upper left, and the second at the lower right."""
    image = torch.zeros(1, 2, 2, 2)
    image[0, 0, 0, 0], image[0, 1, 1, 1] = 4.0, 2.0
    return image


def test_gradcam_by_hand() -> None:
    network = Two(torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    explanation = GradCAM(network, "act")(corners())
    # The gradients' means are 1/16 and 0.5/16: 4 at one corner and 0.5 * 2 at the other.
    assert explanation.classes.tolist() == [0]
    assert explanation.maps[0].tolist() == [[1.0, 0.0], [0.0, 0.25]]
    other = GradCAM(network, "act")(corners(), classes=1)
    assert other.maps[0].tolist() == [[0.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("method", ["gradcam", "gradcam++"])
def test_negative_evidence_gives_a_map_of_zeros_and_not_nan(method: str) -> None:
    network = Two(torch.tensor([[-1.0, -1.0], [0.0, 0.0]]))
    explanation = METHODS[method](network, "act")(corners(), classes=0)
    assert explanation.maps.equal(torch.zeros(1, 2, 2))
    # Nor have a black image, or a class that does not depend on the layer, a map.
    assert METHODS[method](network, "act")(torch.zeros(1, 2, 2, 2), classes=0).maps.equal(torch.zeros(1, 2, 2))
    assert METHODS[method](network, "act")(corners(), classes=1).maps.equal(torch.zeros(1, 2, 2))


def by_hooks(network: nn.Module, layer: str, images: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM by the paper's formula, image by image."""
    maps = []
    for image, chosen in zip(images, classes, strict=True):
        saved: dict[str, Tensor] = {}
        handle = network.get_submodule(layer).register_forward_hook(
            lambda module, args, output, saved=saved: saved.update(output=output)
        )
        score = network(image[None])[0, chosen]
        handle.remove()
        (gradient,) = torch.autograd.grad(score, saved["output"])
        cam = (gradient.mean(dim=(2, 3), keepdim=True) * saved["output"]).sum(dim=1, keepdim=True).relu().detach()
        cam = F.interpolate(cam, images.shape[2:], mode="bilinear")[0, 0]
        maps.append((cam - cam.min()) / (cam.max() - cam.min()))
    return torch.stack(maps)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "simple_cnn": lambda: SimpleCNN(num_classes=5, channels=3),
    "resnet": lambda: timm.create_model("resnet18", num_classes=5, zero_init_last=False),
    "convnext": lambda: timm.create_model("convnext_atto", num_classes=5, ls_init_value=1.0),
    "torchvision": lambda: create_network("torchvision/mobilenet_v3_small", 5, 3),
    "transfer": lambda: create_network("mobilenetv4_conv_small", 5, 3, head="mlp"),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_batch_is_explained_as_each_image_alone(kind: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[kind]().eval()
    images = torch.randn(3, 3, 64, 96)
    layer = default_layer(network, images)
    explanation = GradCAM(network)(images, classes=[0, 1, 4])
    # Without in-place activations, for which the reference would need other hooks.
    plain = copy.deepcopy(network)
    for module in plain.modules():
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010
    expected = by_hooks(plain, layer, images, torch.tensor([0, 1, 4]))
    torch.testing.assert_close(explanation.maps, expected, atol=1e-4, rtol=0)
    assert explanation.maps.amax(dim=(1, 2)).tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer4"),
        ("convnext_atto", "norm_pre"),
        ("vit_tiny_patch16_224", "blocks.11.norm1"),
        ("swin_tiny_patch4_window7_224", "norm"),
    ],
)
@pytest.mark.parametrize("method", ["gradcam", "gradcam++"])
def test_layers_of_timms_networks(name: str, layer: str, method: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3)
    images = torch.randn(2, 3, 224, 224)
    assert default_layer(network, images) == layer
    maps = METHODS[method](network)(images, classes=1).maps
    assert maps.shape == (2, 224, 224)
    assert maps.std() > 0


def test_tokens_of_images_that_are_not_square() -> None:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=(64, 128), depth=2)
    tokens = torch.arange(-1.0, 32)[None, :, None]
    # The first token is the class token.
    assert to_grid(network, "blocks.1.norm1", tokens, (64, 128))[0, 0].equal(torch.arange(32.0).view(4, 8))
    assert GradCAM(network)(torch.randn(2, 3, 64, 128)).maps.shape == (2, 64, 128)


def test_channels_last_outputs_become_channels_first() -> None:
    network = timm.create_model("swin_tiny_patch4_window7_224")
    images = torch.randn(1, 3, 224, 224)
    maps = feature_maps(network, images, ["patch_embed.proj", "layers.0"])
    assert [tuple(values.shape) for values in maps.values()] == [(1, 96, 56, 56)] * 2
    torch.testing.assert_close(maps["patch_embed.proj"], network.get_submodule("patch_embed.proj")(images).detach())


def test_segmentation_explains_the_pixels_of_a_class() -> None:
    torch.manual_seed(0)
    network = UNet(num_classes=3, base=4, depth=2).eval()
    images = torch.randn(2, 3, 40, 24)
    assert default_layer(network, images) == "encoder.2"
    explanation = GradCAM(network)(images)
    assert explanation.maps.shape == (2, 40, 24)
    predicted = explanation.predictions.argmax(dim=1)
    assert explanation.classes.tolist() == [image.flatten().bincount().argmax().item() for image in predicted]
    assert default_layer(create_segmenter("unet", 3, encoder="resnet10t"), torch.randn(1, 3, 64, 64)).startswith("enc")


def test_scorecam_lets_through_what_counts() -> None:
    network = Two(torch.tensor([[8.0, 0.0], [0.0, 8.0]]))
    for chosen, place in ((0, (0, 0)), (1, (1, 1))):
        maps = ScoreCAM(network, "act")(corners(), classes=chosen).maps[0]
        assert maps[place] == 1
        assert maps.sum() < 1.1


def test_gradcam_plus_plus_by_hand() -> None:
    # The first channel is lit at 8 of 16 places, the second at one. Gradients are 3 where a place is lit, else 1.
    image = torch.zeros(1, 2, 4, 4)
    image[0, 0, :2] = 1.0
    image[0, 1, 3, 3] = 1.0
    means = GradCAM(Curved(), "act")(image, classes=0).maps[0]
    assert means[0, 0] == 1
    assert means[3, 3].item() == pytest.approx((3 + 15 * 1) / (8 * 3 + 8 * 1))
    # Places weigh 9 / (2 * 9 + 27 * lit) and 1 / (2 + lit): the small object is no longer the weaker one.
    places = METHODS["gradcam++"](Curved(), "act")(image, classes=0).maps[0]
    assert places[3, 3] == 1
    assert places[0, 0].item() == pytest.approx(
        (8 * 3 * 9 / (18 + 27 * 8) + 8 / (2 + 8)) / (3 * 9 / (18 + 27) + 15 / 3)
    )


@pytest.mark.parametrize("method", METHODS)
def test_all_methods_explain_segmentation(method: str) -> None:
    torch.manual_seed(0)
    network = UNet(num_classes=3, base=4, depth=2)
    maps = METHODS[method](network)(torch.randn(2, 3, 40, 24), classes=[0, 1]).maps
    assert maps.shape == (2, 40, 24)
    assert maps.isfinite().all()


def test_scorecams_weights_do_not_depend_on_the_size_of_segmented_images() -> None:
    network = UNet(num_classes=2, base=4, depth=2)
    torch.manual_seed(0)
    tile = torch.randn(1, 3, 16, 16)
    maps = [ScoreCAM(network, "encoder.2")(tile.repeat(1, 1, times, times), classes=0).maps for times in (2, 4)]
    # The middle of both sees the same, but for the borders of the larger one's masks.
    assert (maps[0][0, 8:24, 8:24] - maps[1][0, 24:40, 24:40]).abs().mean() < 0.1


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_network_is_restored(method: str, fails: bool) -> None:
    """pytorch-grad-cam left models in eval mode, zeroed gradients and swallowed IndexErrors."""
    torch.manual_seed(0)
    network = SimpleCNN(num_classes=3)
    # A network may draw random numbers in eval mode too.
    network.register_forward_hook(lambda module, args, output: output + 0 * torch.rand(()))
    network.features[0].eval().requires_grad_(False)
    parameter = network.get_parameter("head.5.weight")
    parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    requires_grad = [parameter.requires_grad for parameter in network.parameters()]
    images = torch.rand(2, 1, 28, 28)
    state, unchanged = torch.get_rng_state(), images.clone()
    if fails:
        with pytest.raises(InputError, match="classes are"):
            METHODS[method](network)(images, classes=7)
    else:
        METHODS[method](network)(images)
    assert torch.is_grad_enabled()
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == requires_grad
    assert [parameter.grad is None for parameter in network.parameters()].count(False) == 1
    assert parameter.grad.equal(torch.ones_like(parameter))
    assert torch.get_rng_state().equal(state)
    assert images.equal(unchanged)
    assert not any(module._forward_hooks or module._backward_hooks for module in list(network.modules())[1:])
    assert len(network._forward_hooks) == 1
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("frozen", [False, True])
def test_inference_mode_frozen_networks_and_in_place_activations(frozen: bool) -> None:
    """Users got no gradients in validation, where inference mode is on, and errors from in-place ReLUs.

    pytorch-grad-cam#381, pytorch/pytorch#61519.
    """
    torch.manual_seed(0)
    network = NETWORKS["resnet"]().eval().requires_grad_(not frozen)
    images = torch.randn(2, 3, 64, 64)
    expected, classes, _ = GradCAM(network)(images)
    predicted = classes.tolist()
    with torch.inference_mode():
        shifted = torch.randn(1) + images
        again = GradCAM(network)(shifted - (shifted - images), classes=torch.tensor(predicted))
        assert again.maps.allclose(expected, atol=1e-4)
        assert torch.is_inference_mode_enabled()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = GradCAM(network)(images).maps
    assert mixed.dtype == torch.float32
    assert (mixed - expected).abs().mean() < 0.05


def test_compiled_networks_run_uncompiled() -> None:
    torch.manual_seed(0)
    network = SimpleCNN(num_classes=3).eval()
    images = torch.rand(2, 1, 28, 28)
    expected = GradCAM(network)(images).maps

    def backend(*args: Any) -> Any:
        raise AssertionError("compiled")

    in_place = copy.deepcopy(network)
    in_place.compile(backend=backend)
    assert GradCAM(in_place)(images).maps.equal(expected)
    wrapped: Any = torch.compile(network, backend=backend)
    assert GradCAM(wrapped)(images).maps.equal(expected)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("featurs", "has no layer 'featurs': did you mean 'features'"),
        ("head.2", r"gives \(1, 256\), expected a map"),
    ],
)
def test_a_layer_that_has_no_map_is_named(layer: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GradCAM(SimpleCNN(), layer)(torch.rand(1, 1, 28, 28))


def test_a_layer_that_takes_no_part_is_named() -> None:
    network = SimpleCNN()
    network.spare = nn.Conv2d(1, 1, 1)
    for method in METHODS.values():
        with pytest.raises(InputError, match="'spare' takes no part"):
            method(network, "spare")(torch.rand(1, 1, 28, 28))


@pytest.mark.parametrize("method", ["gradcam", "gradcam++"])
@pytest.mark.parametrize("kind", ["simple_cnn", "resnet", "convnext"])
def test_equals_pytorch_grad_cam(kind: str, method: str) -> None:
    library = pytest.importorskip("pytorch_grad_cam", reason="a development dependency")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    torch.manual_seed(0)
    network = NETWORKS[kind]().eval()
    if method == "gradcam++":
        # The library adds a small number to the denominator, which dominates for the gradients of an untrained network.
        last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        last.weight.data *= 1e6
    images = torch.randn(4, 3, 96, 128)
    ours = METHODS[method](network)
    maps = ours(images, classes=[0, 1, 2, 3]).maps
    assert ours.layer is not None
    kinds = {"gradcam": library.GradCAM, "gradcam++": library.GradCAMPlusPlus}
    with kinds[method](model=network, target_layers=[network.get_submodule(ours.layer)]) as oracle:
        expected = oracle(images, [ClassifierOutputTarget(number) for number in range(4)])
    torch.testing.assert_close(maps, torch.from_numpy(expected), atol=1e-4, rtol=0)


def test_scorecam_is_what_its_paper_says() -> None:
    torch.manual_seed(0)
    network = NETWORKS["simple_cnn"]().eval()
    image = torch.rand(1, 3, 32, 32)
    maps = ScoreCAM(network, "features", batch_size=7)(image, classes=2).maps
    with torch.no_grad():
        activations = network.get_submodule("features")(image)[0]
        scores = []
        for channel in activations:
            mask = F.interpolate(channel[None, None], (32, 32), mode="bilinear")[0, 0]
            mask = (mask - mask.min()) / (mask.max() - mask.min()).clamp(min=1e-30)
            scores.append(network(image * mask)[0, 2])
        cam = (torch.stack(scores).softmax(dim=0).view(-1, 1, 1) * activations).sum(dim=0).relu()
        expected = F.interpolate(cam[None, None], (32, 32), mode="bilinear")[0]
    torch.testing.assert_close(maps, (expected - expected.min()) / (expected.max() - expected.min()), atol=1e-5, rtol=0)
