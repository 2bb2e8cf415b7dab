from __future__ import annotations

import shlex

import pytest
import timm

from cnnlab.analysis.recommendation import GUIDE, Requirements, recommend
from cnnlab.errors import InputError
from cnnlab.models import DETECTORS
from cnnlab.models.segmentation import SEGMENTERS
from tests.conftest import Cnnlab

ROWS = [
    (Requirements(images=9_999), "under 10,000 images", "resnet50", "image_folder"),
    (Requirements(images=10_000), "10,000 to a million images", "convnext_tiny", "image_folder"),
    (Requirements(images=1_000_000), "10,000 to a million images", "convnext_tiny", "image_folder"),
    (Requirements(images=1_000_001), "above a million images", "vit_base_patch16_224", "finetune"),
    (Requirements(latency=33), "real time", "mobilenetv3_large_100", "image_folder"),
    (Requirements(device="edge"), "edge", "efficientnet_b0", "image_folder"),
    (Requirements(accuracy=True), "highest accuracy", "convnext_large", "image_folder"),
    (Requirements(task="segmentation"), "pixels", "unet", "segmentation_pretrained"),
    (
        Requirements(task="segmentation", accuracy=True),
        "pixels, highest accuracy",
        "deeplabv3plus",
        "segmentation_pretrained",
    ),
    (Requirements(task="medical"), "medical", "unet", "attention_unet"),
    (Requirements(task="detection"), "objects", "one_stage_m", "detection"),
    (Requirements(task="detection", latency=20), "objects, fast", "one_stage_s", "detection"),
    (Requirements(task="detection", accuracy=True), "objects, highest accuracy", "one_stage_l", "detection"),
    (Requirements(task="instances"), "instances", "instances_m", "instances"),
    (Requirements(task="instances", device="edge"), "instances, fast", "instances_s", "instances"),
]


@pytest.mark.parametrize(("requirements", "case", "network", "recipe"), ROWS, ids=[row[1] for row in ROWS])
def test_each_row_of_the_guide(
    cnnlab: Cnnlab, requirements: Requirements, case: str, network: str, recipe: str
) -> None:
    recommendation = recommend(requirements)
    assert (recommendation.case, recommendation.network, recommendation.recipe) == (case, network, recipe)
    _, *arguments = shlex.split(recommendation.command)
    result = cnnlab(*arguments, "--print_config")
    assert result.code == 0, result.err
    assert f"network: {network}\n" in result.out


def test_every_row_can_be_reached_and_every_network_exists() -> None:
    assert {row[1] for row in ROWS} == {row.case for row in GUIDE}
    for row in GUIDE:
        for network in row.networks:
            if network not in (*SEGMENTERS, *DETECTORS):
                known = timm.get_pretrained_cfg(network)
                assert known is not None
                assert known.has_weights, network


def test_a_required_latency_takes_the_first_network_that_keeps_it() -> None:
    latencies = {"resnet50": 90.0, "resnet34": 70.0, "resnet18": 45.0, "mobilenetv3_large_100": 9.0}
    measured = []

    def measure_latency(name: str, size: int) -> float:
        measured.append((name, size))
        return latencies.get(name, 5.0)

    recommendation = recommend(Requirements(latency=50), measure_latency)
    assert recommendation.network == "resnet18"
    assert measured == [("resnet50", 224), ("resnet34", 224), ("resnet18", 224)]
    assert "resnet18 takes 45.0 ms an image here, of 50" in recommendation.reasons
    assert recommendation.alternatives == ("mobilenetv3_large_100", "mobilenetv3_small_100")
    assert recommend(Requirements(latency=40), measure_latency).network == "mobilenetv3_large_100"
    # If none is fast enough, the fastest is taken, and a reason says so.
    late = recommend(Requirements(latency=1), measure_latency)
    assert late.network == "mobilenetv3_small_100"
    assert any("is done in 1 ms" in reason for reason in late.reasons)


def test_what_fits_into_memory() -> None:
    plenty = recommend(Requirements(memory=8))
    assert plenty.batch == 32
    assert plenty.command is not None
    assert "--data.batch_size" not in plenty.command
    little = recommend(Requirements(memory=1.4))
    assert little.batch is not None
    assert 2 <= little.batch < 32
    assert little.command is not None
    assert f"--data.batch_size {little.batch} --trainer.accumulate_grad_batches {32 // little.batch}" in little.command
    assert recommend(Requirements(memory=0.35)).network == "resnet18"
    with pytest.raises(InputError, match=r"not even two images of resnet18 fit into 0\.1 GB.*--data\.size"):
        recommend(Requirements(memory=0.1))
    gpu = recommend(Requirements(memory=8, device="gpu"))
    assert gpu.command is not None
    assert "--trainer.precision bf16-mixed" in gpu.command


def test_small_and_large_images() -> None:
    assert str(recommend(Requirements(size=64)).command).endswith("--data.size 64")
    assert "--data.size" not in str(recommend(Requirements(size=2000)).command)
    # A ViT's size is fixed.
    assert "--data.size" not in str(recommend(Requirements(size=64, images=2_000_000)).command)
    for size in (513, 2000):
        assert "--data.crop 512 --model.window 768" in str(
            recommend(Requirements(task="segmentation", size=size)).command
        )
    assert "--data.crop" not in str(recommend(Requirements(task="segmentation", size=512)).command)


def test_a_network_whose_library_is_missing_is_not_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    recommendation = recommend(Requirements(task="segmentation", accuracy=True))
    assert recommendation.network == "unet"
    assert any("cnnlab[segmentation]" in reason for reason in recommendation.reasons)


@pytest.mark.parametrize(
    ("requirements", "message"),
    [
        (Requirements(task="poetry"), "task is 'poetry', expected classification"),
        (Requirements(device="toaster"), "device is 'toaster'"),
        (Requirements(images=0), "images is 0"),
        (Requirements(memory=-1), "memory is -1"),
        (Requirements(latency=float("nan")), "latency is nan"),
        (Requirements(memory=float("inf")), "memory is inf"),
    ],
)
def test_bad_requirements_are_named(requirements: Requirements, message: str) -> None:
    with pytest.raises(InputError, match=message):
        recommend(requirements)
