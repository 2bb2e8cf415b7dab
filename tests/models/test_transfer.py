from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from cnnlab.errors import InputError
from cnnlab.models import SimpleCNN, TransferModel, create_network, layer_groups
from cnnlab.models.factory import create_classifier, fetch_weights, preprocessing
from cnnlab.models.norms_and_checkpointing import batch_to_group_norm, checkpoint_stages
from cnnlab.models.weights import architecture_only


def size(parameters: object) -> int:
    return sum(parameter.numel() for parameter in parameters)  # type: ignore[attr-defined]


def test_a_resnet_50_with_an_mlp_head_has_the_stated_parameters() -> None:
    network = create_network("resnet50", 5, 3, head="mlp")
    groups = layer_groups(network)
    assert [group.name for group in groups] == [
        "backbone.conv1", "backbone.layer1", "backbone.layer2", "backbone.layer3", "backbone.layer4", "head",
    ]  # fmt: skip
    sizes = [size(parameter for _, parameter in group.parameters_of(network)) for group in groups]
    assert sum(sizes) == size(network.parameters()) == 24_559_685
    assert sizes[-1] == 1_051_653
    assert sum(sizes[-3:]) == 23_114_757


@pytest.mark.parametrize(
    "name",
    ["resnet18", "tf_efficientnet_lite0", "convnext_atto", "mobilenetv3_small_050", "vit_tiny_patch16_224",
     "coat_tiny", "tresnet_m", "rdnet_tiny", "simple_cnn", "small_resnet",
     "torchvision/resnet18", "torchvision/mobilenet_v3_small", "torchvision/vgg11"],
)  # fmt: skip
def test_each_parameter_is_in_one_group_and_the_head_is_the_last(name: str) -> None:
    with torch.device("meta"):
        network = create_network(name, 7, 3)
    groups = layer_groups(network)
    names = [name for group in groups for name, _ in group.parameters_of(network)]
    assert sorted(names) == sorted(name for name, _ in network.named_parameters())
    assert len({group.name for group in groups}) == len(groups) >= 4
    last = dict(groups[-1].parameters_of(network))
    assert any(parameter.shape[0] == 7 for parameter in last.values())


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vgg11", "lcnet_035", "mobilenetv4_conv_small", "resnet10t"])
def test_a_head_fits_what_the_backbone_returns(name: str) -> None:
    network = create_network(name, 5, 3, head="linear").eval()
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def save_weights(name: str, folder: Path, **changes: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(1)
    state = {**timm.create_model(name, num_classes=1000).state_dict(), **changes}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / f"{name}.pth")
    return state


@pytest.mark.parametrize("where", ["file", "folder", "variable"])
def test_weights_come_from_local_places_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    state = save_weights("resnet10t", tmp_path / "w")
    monkeypatch.setenv("CNNLAB_WEIGHTS", str(tmp_path / "w"))
    given = {"file": str(tmp_path / "w/resnet10t.pth"), "folder": str(tmp_path / "w"), "variable": "pretrained"}[where]
    network = create_network("resnet10t", 4, 3, weights=given, head="linear")
    assert isinstance(network, TransferModel)
    own = network.backbone.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in own)
    with architecture_only():
        empty = create_network("resnet10t", 4, 3, weights="/nowhere", head="linear")
    assert not torch.equal(empty.state_dict()["backbone.conv1.0.weight"], state["conv1.0.weight"])


def test_torchvisions_weights_come_from_a_file_too(tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(1)
    theirs = torchvision.models.resnet18()
    # timm also has a resnet18, with other weights.
    save_weights("resnet18", tmp_path)
    (tmp_path / "torchvision").mkdir()
    torch.save(theirs.state_dict(), tmp_path / "torchvision/resnet18.pth")
    for head in ("mlp", None):
        network = create_network("torchvision/resnet18", 4, 3, weights=str(tmp_path), head=head)
        state = (network.backbone if isinstance(network, TransferModel) else network).state_dict()
        assert torch.equal(state["layer4.1.conv2.weight"], theirs.layer4[1].conv2.weight)
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 4)


def test_weights_for_one_channel_are_those_of_three_summed(tmp_path: Path) -> None:
    state = save_weights("resnet10t", tmp_path)
    network = create_network("resnet10t", 4, 1, weights=str(tmp_path), head="linear")
    first = network.state_dict()["backbone.conv1.0.weight"]
    assert torch.allclose(first, state["conv1.0.weight"].sum(dim=1, keepdim=True), atol=1e-6)


def test_no_weights_is_an_error_never_random_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNLAB_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"weights of resnet10t could not be had.*cnnlab fetch"):
        create_network("resnet10t", 4, 3, weights="pretrained")
    with pytest.raises(InputError, match=r"has no resnet10t\.safetensors"):
        create_network("resnet10t", 4, 3, weights=str(tmp_path))
    with pytest.raises(InputError, match="nowhere: there is no such file"):
        create_network("resnet10t", 4, 3, weights="/nowhere")
    with pytest.raises(InputError, match="timm's inception_v3"):
        create_network("torchvision/inception_v3", 4, 3)
    with pytest.raises(InputError, match="takes neither weights nor a head"):
        create_network("simple_cnn", 4, 3, weights="pretrained")
    torch.save({"a.weight": torch.zeros(2)}, tmp_path / "foreign.pth")
    for head in ("mlp", None):
        with pytest.raises(InputError, match=r"foreign\.pth does not hold weights for resnet10t"):
            create_network("resnet10t", 4, 3, weights=str(tmp_path / "foreign.pth"), head=head)
    save_weights("resnet10t", tmp_path / "bad", **{"layer1.0.conv1.weight": torch.zeros(2)})
    with pytest.raises(InputError, match=r"bad/resnet10t\.pth does not hold weights for resnet10t"):
        create_network("resnet10t", 4, 3, weights=str(tmp_path / "bad"))


def test_downloaded_classifiers_of_torchvision_are_checked_like_those_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNNLAB_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match="3 channels, not 1"):
        create_classifier("torchvision/resnet18", 1000, 1, "pretrained")
    with pytest.raises(InputError, match="timm's inception_v3"):
        create_classifier("torchvision/googlenet", 1000, 3, "pretrained")


def test_fetch_keeps_what_is_there(tmp_path: Path) -> None:
    save_weights("resnet10t", tmp_path)
    assert fetch_weights("timm/resnet10t", tmp_path) == tmp_path / "resnet10t.pth"
    save_weights("resnet18", tmp_path)
    (tmp_path / "torchvision").mkdir()
    shutil.copy(tmp_path / "resnet18.pth", tmp_path / "torchvision")
    assert fetch_weights("torchvision/resnet18", tmp_path) == tmp_path / "torchvision/resnet18.pth"
    assert fetch_weights("resnet18", tmp_path) == tmp_path / "resnet18.pth"
    with pytest.raises(InputError, match="no pretrained weights"):
        fetch_weights("simple_cnn", tmp_path)


def test_preprocessing_is_that_of_the_pretraining() -> None:
    known = preprocessing("tf_efficientnet_lite0", 3)
    assert known is not None
    assert (known.size, known.crop, known.interpolation) == ((224, 224), 0.875, "bicubic")
    assert (list(known.mean), list(known.std)) == ([0.5] * 3, [0.5] * 3)
    theirs = preprocessing("torchvision/resnet18", 1)
    assert theirs is not None
    assert (theirs.size, theirs.crop, theirs.interpolation) == ((224, 224), 224 / 256, "bilinear")
    assert theirs.mean == pytest.approx([0.449])
    assert preprocessing("simple_cnn", 1) is None


def test_checkpointed_stages_give_the_same_gradients_and_statistics() -> None:
    torch.manual_seed(0)
    plain, saving = (create_network("resnet10t", 3, 3, zero_init_last=False) for _ in range(2))
    saving.load_state_dict(plain.state_dict())
    checkpoint_stages(saving, ["layer1", "layer2"])
    images = torch.randn(4, 3, 32, 32)
    for network in (plain, saving):
        network(images).square().sum().backward()
    for (name, one), (_, other) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name  # type: ignore[arg-type]
    for (name, before), (_, after) in zip(plain.named_buffers(), saving.named_buffers(), strict=True):
        assert torch.equal(before, after), name
    assert list(saving.state_dict()) == list(plain.state_dict())
    with pytest.raises(InputError, match="layer1"):
        checkpoint_stages(plain, ["layer11"])


def test_checkpointed_stages_take_less_memory() -> None:
    saved = []
    for stages in ([], ["layer1", "layer2", "layer3", "layer4"]):
        network = create_network("resnet10t", 3, 3)
        checkpoint_stages(network, stages)
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(torch.randn(4, 3, 64, 64))
        saved.append(total)
    assert saved[1] < 0.6 * saved[0]


def test_batch_norms_become_group_norms() -> None:
    network = SimpleCNN(10, channels=3)
    assert batch_to_group_norm(network) == 3
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    image = torch.randn(1, 3, 8, 8)
    network.train()
    torch.manual_seed(0)
    alone = network.features(image)
    assert torch.allclose(alone, network.features(torch.cat([image, torch.randn(3, 3, 8, 8)]))[:1], atol=1e-5)
    other = create_network("tf_efficientnet_lite0", 4, 3)
    assert batch_to_group_norm(other) > 40
    assert other(torch.randn(2, 3, 32, 32)).shape == (2, 4)
