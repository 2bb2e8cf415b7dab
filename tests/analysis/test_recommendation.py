from __future__ import annotations

import shlex

import pytest
import timm

from cnnlab.analysis.recommendation import GUIDE, Need, recommend
from cnnlab.errors import InputError
from cnnlab.models.segmentation import SEGMENTERS
from tests.conftest import Cnnlab

ROWS = [
    (Need(images=9_999), "under 10,000 images", "resnet50", "image_folder"),
    (Need(images=10_000), "10,000 to a million images", "convnext_tiny", "image_folder"),
    (Need(images=1_000_000), "10,000 to a million images", "convnext_tiny", "image_folder"),
    (Need(images=1_000_001), "above a million images", "vit_base_patch16_224", "finetune"),
    (Need(latency=33), "real time", "mobilenetv3_large_100", "image_folder"),
    (Need(device="edge"), "edge", "efficientnet_b0", "image_folder"),
    (Need(accuracy=True), "highest accuracy", "convnext_large", "image_folder"),
    (Need(task="segmentation"), "pixels", "unet", "segmentation_pretrained"),
    (Need(task="segmentation", accuracy=True), "pixels, highest accuracy", "deeplabv3plus", "segmentation_pretrained"),
    (Need(task="medical"), "medical", "unet", "attention_unet"),
    (Need(task="detection"), "objects", "Faster R-CNN", None),
    (Need(task="detection", latency=20), "objects, fast", "SSDlite", None),
    (Need(task="instances"), "instances", "Mask R-CNN", None),
]


@pytest.mark.parametrize(("need", "case", "network", "recipe"), ROWS, ids=[row[1] for row in ROWS])
def test_each_row_of_the_guide(cnnlab: Cnnlab, need: Need, case: str, network: str, recipe: str | None) -> None:
    found = recommend(need)
    assert (found.case, found.network, found.recipe) == (case, network, recipe)
    if found.command is None:
        assert recipe is None
        assert any(f"no task for {need.task} yet" in reason for reason in found.reasons)
        return
    _, *arguments = shlex.split(found.command)
    result = cnnlab(*arguments, "--print_config")
    assert result.code == 0, result.err
    assert f"network: {network}\n" in result.out


def test_every_row_can_be_reached_and_every_network_exists() -> None:
    assert {row[1] for row in ROWS} == {row.case for row in GUIDE}
    for row in GUIDE:
        for network in row.networks if row.recipe is not None else ():
            if network not in SEGMENTERS:
                known = timm.get_pretrained_cfg(network)
                assert known is not None
                assert known.has_weights, network


def test_a_target_of_time_takes_the_first_that_keeps_it() -> None:
    taken = {"resnet50": 90.0, "resnet34": 70.0, "resnet18": 45.0, "mobilenetv3_large_100": 9.0}
    asked = []

    def time(name: str, size: int) -> float:
        asked.append((name, size))
        return taken.get(name, 5.0)

    found = recommend(Need(latency=50), time)
    assert found.network == "resnet18"
    assert asked == [("resnet50", 224), ("resnet34", 224), ("resnet18", 224)]
    assert "resnet18 takes 45.0 ms an image here, of 50" in found.reasons
    assert found.alternatives == ("mobilenetv3_large_100", "mobilenetv3_small_100")
    assert recommend(Need(latency=40), time).network == "mobilenetv3_large_100"
    # Where none is fast enough, the fastest, and that it is not.
    late = recommend(Need(latency=1), time)
    assert late.network == "mobilenetv3_small_100"
    assert any("is done in 1 ms" in reason for reason in late.reasons)


def test_what_fits_into_memory() -> None:
    plenty = recommend(Need(memory=8))
    assert plenty.batch == 32
    assert plenty.command is not None
    assert "--data.batch_size" not in plenty.command
    little = recommend(Need(memory=1.4))
    assert little.batch is not None
    assert 2 <= little.batch < 32
    assert little.command is not None
    assert f"--data.batch_size {little.batch} --trainer.accumulate_grad_batches {32 // little.batch}" in little.command
    assert recommend(Need(memory=0.35)).network == "resnet18"
    with pytest.raises(InputError, match=r"not even two images of resnet18 fit into 0\.1 GB.*--data\.size"):
        recommend(Need(memory=0.1))
    gpu = recommend(Need(memory=8, device="gpu"))
    assert gpu.command is not None
    assert "--trainer.precision bf16-mixed" in gpu.command


def test_small_and_large_images() -> None:
    assert str(recommend(Need(size=64)).command).endswith("--data.size 64")
    assert "--data.size" not in str(recommend(Need(size=2000)).command)
    # A ViT's size is fixed.
    assert "--data.size" not in str(recommend(Need(size=64, images=2_000_000)).command)
    for size in (513, 2000):
        assert "--data.crop 512 --model.window 768" in str(recommend(Need(task="segmentation", size=size)).command)
    assert "--data.crop" not in str(recommend(Need(task="segmentation", size=512)).command)


def test_a_library_that_is_missing_is_no_recommendation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = recommend(Need(task="segmentation", accuracy=True))
    assert found.network == "unet"
    assert any("cnnlab[segmentation]" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("need", "message"),
    [
        (Need(task="poetry"), "task is 'poetry', expected classification"),
        (Need(device="toaster"), "device is 'toaster'"),
        (Need(images=0), "images is 0"),
        (Need(memory=-1), "memory is -1"),
        (Need(latency=float("nan")), "latency is nan"),
        (Need(memory=float("inf")), "memory is inf"),
    ],
)
def test_bad_needs_are_named(need: Need, message: str) -> None:
    with pytest.raises(InputError, match=message):
        recommend(need)
