"""A backbone keeps its weights when another head, or a decoder, stands on it."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from cnnlab.data import ImageFolder, Shapes
from cnnlab.errors import InputError
from cnnlab.models.factory import create_network
from cnnlab.models.groups import backbone_names, backbone_prefix
from cnnlab.models.segmentation import create_segmenter
from cnnlab.tasks import Classification, Segmentation
from tests.tasks.test_classification import trainer


def test_networks_say_where_their_backbone_is() -> None:
    assert backbone_prefix(create_network("simple_cnn", 3, 3)) == ""
    assert backbone_prefix(create_network("resnet10t", 3, 3)) == ""
    assert backbone_prefix(create_network("resnet10t", 3, 3, head="mlp")) == "backbone."
    assert backbone_prefix(create_segmenter("unet", 3, base=2)) == "encoder."
    assert backbone_prefix(create_segmenter("unet", 3, encoder="resnet10t")) == "encoder."
    own = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    own.backbone_prefix = "0."  # type: ignore[assignment]
    assert backbone_names(own.state_dict(), own) == {"weight": "0.weight", "bias": "0.bias"}


@pytest.mark.parametrize("network", ["resnet10t", "convnext_atto", "mobilenetv3_small_050", "tf_efficientnet_lite0"])
def test_an_encoder_has_the_names_of_the_classifier(network: str) -> None:
    """Weights of a classifier, whose layers timm calls otherwise in an encoder, were not found there."""
    classifier = create_network(network, 3, 3).state_dict()
    segmenter = create_segmenter("unet", 3, encoder=network)
    inside = backbone_names(segmenter.state_dict(), segmenter)
    known = backbone_names(classifier, "")
    fitting = {
        inner: name
        for inner, name in inside.items()
        if inner in known and classifier[known[inner]].shape == segmenter.state_dict()[name].shape
    }
    assert len(fitting) == len(inside) > 20


@pytest.fixture
def classifier(tmp_path: Path, photos: Path) -> Classification:
    """A trained classifier, saved as first.ckpt."""
    pl.seed_everything(0)
    task = Classification("resnet10t", 3, lr=0.05)
    run = trainer(tmp_path / "R")
    run.fit(task, datamodule=ImageFolder(str(photos), size=32, batch_size=8, num_workers=0))
    run.save_checkpoint(tmp_path / "first.ckpt")
    return task


def test_a_classifier_s_backbone_becomes_an_encoder_and_says_so(
    tmp_path: Path, classifier: Classification, caplog: pytest.LogCaptureFixture
) -> None:
    pl.seed_everything(1)
    data = Shapes(root=str(tmp_path / "shapes"), images=8, side=32, batch_size=4, num_workers=0)
    task = Segmentation(encoder="resnet10t", num_classes=4, init_from=str(tmp_path / "first.ckpt"))
    random = {name: value.clone() for name, value in task.network.state_dict().items()}
    with caplog.at_level("INFO"):
        trainer(tmp_path / "S", max_epochs=0).fit(task, datamodule=data)
    trained, own = classifier.network.state_dict(), task.network.state_dict()
    encoder = [name for name in own if name.startswith("encoder.")]
    for name in encoder:
        assert torch.equal(own[name], trained[name.removeprefix("encoder.")]), name
    assert any(not torch.equal(own[name], random[name]) for name in encoder)
    for name in set(own) - set(encoder):
        assert torch.equal(own[name], random[name]), name
    (said,) = [record.getMessage() for record in caplog.records if "init_from" in record.getMessage()]
    count = len(encoder)
    assert f"first.ckpt: took {count} of {len(own)} tensors, {count} of them of its backbone; as initialized: " in said
    assert "decoder.0.convolutions.0.weight" in said
    assert "encoder." not in said


def test_a_new_head_stands_on_the_same_backbone(tmp_path: Path, classifier: Classification, photos: Path) -> None:
    task = Classification("resnet10t", 3, head="mlp", init_from=str(tmp_path / "first.ckpt"))
    data = ImageFolder(str(photos), size=32, batch_size=8, num_workers=0)
    trainer(tmp_path / "S", max_epochs=0).fit(task, datamodule=data)
    trained = classifier.network.state_dict()
    for name, value in task.network.state_dict().items():
        if name.startswith("backbone."):
            assert torch.equal(value, trained[name.removeprefix("backbone.")]), name


def test_another_backbone_is_refused(tmp_path: Path, classifier: Classification) -> None:
    task = Segmentation(network_args={"base": 2, "depth": 2}, num_classes=4, init_from=str(tmp_path / "first.ckpt"))
    data = Shapes(root=str(tmp_path / "shapes"), images=8, side=32, batch_size=4, num_workers=0)
    with pytest.raises(InputError, match="none of its weights fits network 'unet'"):
        trainer(tmp_path / "S", max_epochs=0).fit(task, datamodule=data)
