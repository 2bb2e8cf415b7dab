"""Recommend a network, a recipe and a command for a task, with the reasons."""

from __future__ import annotations

import importlib.util
import math
import shlex
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

from torch import nn

from cnnlab.analysis.cost import network_cost
from cnnlab.analysis.memory import training_memory
from cnnlab.analysis.meta import build_on_meta
from cnnlab.errors import InputError
from cnnlab.models.detection import create_detector
from cnnlab.models.factory import create_network, preprocessing
from cnnlab.models.segmentation import create_segmenter

TASKS = ("classification", "segmentation", "medical", "detection", "instances")
"""Medical is segmentation of small structures in images that differ from those of any pretraining."""
DEVICES = ("cpu", "gpu", "edge")
REAL_TIME = 1000 / 30
"""Milliseconds per image, at 30 images a second."""

_CROP = 512
"""Training on larger images takes crops of this height and width."""

_TILE = 640
"""The recipes' size of images with objects."""
_FINDING = ("detection", "instances")
"""Tasks that find objects."""

_Timer = Callable[[str, int], float]
"""A network's name and an image's height and width to milliseconds per image."""


class Requirements(NamedTuple):
    """The task, the data and the constraints."""

    task: str = "classification"
    """One of TASKS."""
    images: int = 1000
    """The number of training images."""
    size: int | None = None
    """The images' typical height or width in pixels, if known."""
    latency: float | None = None
    """The limit for one image in milliseconds."""
    memory: float | None = None
    """The limit for a training step in gigabytes."""
    device: str = "cpu"
    """The device that the network runs on, one of DEVICES."""
    accuracy: bool = False
    """Whether only accuracy counts."""
    root: str = "photos"
    """The folder of the images."""


class Row(NamedTuple):
    """A row of the guide."""

    case: str
    applies: Callable[[Requirements], bool]
    networks: tuple[str, ...]
    """In order of preference."""
    recipe: str
    reason: str


GUIDE = (
    Row(
        "instances, fast",
        lambda requirements: requirements.task == "instances" and _needs_real_time(requirements),
        ("instances_s",),
        "instances",
        "each object has its own mask: a small one-stage detector with a branch for masks (He et al. 2017)",
    ),
    Row(
        "instances",
        lambda requirements: requirements.task == "instances",
        ("instances_m", "instances_s"),
        "instances",
        "each object has its own mask: a one-stage detector with a branch for masks (He et al. 2017)",
    ),
    Row(
        "objects, fast",
        lambda requirements: requirements.task == "detection" and _needs_real_time(requirements),
        ("one_stage_s",),
        "detection",
        "boxes and classes at once, for real time, on MobileNetV3 (Tian et al. 2019, Howard et al. 2019)",
    ),
    Row(
        "objects, highest accuracy",
        lambda requirements: requirements.task == "detection" and requirements.accuracy,
        ("one_stage_l", "one_stage_m"),
        "detection",
        "boxes and classes at once, on a ResNet-50 (Tian et al. 2019)",
    ),
    Row(
        "objects",
        lambda requirements: requirements.task == "detection",
        ("one_stage_m", "one_stage_s"),
        "detection",
        "boxes and classes at once, on EfficientNet-Lite0 (Tian et al. 2019)",
    ),
    Row(
        "medical",
        lambda requirements: requirements.task == "medical",
        ("unet",),
        "attention_unet",
        "small structures, unlike any photograph: a U-Net with attention gates, from scratch (Oktay et al. 2018)",
    ),
    Row(
        "pixels, highest accuracy",
        lambda requirements: requirements.task == "segmentation" and requirements.accuracy,
        ("deeplabv3plus", "unet"),
        "segmentation_pretrained",
        "a class for each pixel, with a wide view at full resolution: DeepLabV3+ (Chen et al. 2018)",
    ),
    Row(
        "pixels",
        lambda requirements: requirements.task == "segmentation",
        ("unet",),
        "segmentation_pretrained",
        "a class for each pixel: a U-Net (Ronneberger et al. 2015) on a pretrained encoder",
    ),
    Row(
        "edge",
        lambda requirements: requirements.device == "edge",
        ("efficientnet_b0", "mobilenetv3_large_100", "mobilenetv3_small_100"),
        "image_folder",
        "a small device: few parameters and multiply-adds count most",
    ),
    Row(
        "real time",
        lambda requirements: requirements.latency is not None and requirements.latency <= REAL_TIME,
        ("mobilenetv3_large_100", "mobilenetv3_small_100"),
        "image_folder",
        "30 images a second and more: MobileNetV3 (Howard et al. 2019)",
    ),
    Row(
        "highest accuracy",
        lambda requirements: requirements.accuracy,
        ("convnext_large", "tf_efficientnet_b7", "tf_efficientnet_b5", "tf_efficientnet_b4"),
        "image_folder",
        "nothing counts but accuracy: the largest convolutional networks with weights of ImageNet",
    ),
    Row(
        "under 10,000 images",
        lambda requirements: requirements.images < 10_000,
        ("resnet50", "resnet34", "resnet18"),
        "image_folder",
        "fewer than 10,000 images: a pretrained ResNet, whose training forgives most (He et al. 2016)",
    ),
    Row(
        "10,000 to a million images",
        lambda requirements: requirements.images <= 1_000_000,
        ("convnext_tiny", "efficientnet_b2", "efficientnet_b0"),
        "image_folder",
        "10,000 to a million images: ConvNeXt or EfficientNet, more accurate for what they cost",
    ),
    Row(
        "above a million images",
        lambda requirements: True,
        ("vit_base_patch16_224", "vit_small_patch16_224", "convnext_tiny"),
        "finetune",
        "above a million images: attention learns from the data what convolution takes for granted (Dosovitskiy 2020)",
    ),
)
"""The first row that applies is used."""


class Recommendation(NamedTuple):
    """A network, a recipe and a command, with the reasons."""

    case: str
    """The guide's row."""
    network: str
    alternatives: tuple[str, ...]
    """Other networks that are possible."""
    recipe: str
    command: str
    """The command to type."""
    reasons: tuple[str, ...]
    multiply_adds: int | None = None
    """Multiply-adds for one image of the network's input size."""
    batch: int | None = None
    """Images per step on the device."""


def recommend(requirements: Requirements, measure_latency: _Timer | None = None) -> Recommendation:
    """Recommend a network, a recipe and a command.

    Args:
        requirements: The task, the data and the constraints.
        measure_latency: A network's name and an image's height and width to milliseconds per image. Without it, a
            required latency only selects the row and the candidates.

    Raises:
        InputError: If a value is out of its range, or no network fits into the memory.

    >>> recommendation = recommend(Requirements(images=3000))
    >>> recommendation.network, recommendation.command
    ('resnet50', 'cnnlab fit --config image_folder --data.root photos --model.network resnet50')
    """
    if requirements.task not in TASKS:
        raise InputError(f"task is {requirements.task!r}, expected {', '.join(TASKS)}")
    if requirements.device not in DEVICES:
        raise InputError(f"device is {requirements.device!r}, expected {', '.join(DEVICES)}")
    for name in ("images", "size", "latency", "memory"):
        value = getattr(requirements, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise InputError(f"{name} is {value}, expected more than 0")
    row = next(row for row in GUIDE if row.applies(requirements))
    reasons: list[str] = [row.reason]
    segments = requirements.task in ("segmentation", "medical")
    finds = requirements.task in _FINDING
    candidates = [_Candidate(name, requirements) for name in _candidate_names(row, requirements, reasons)]
    chosen, step = _choose(candidates, requirements, measure_latency, reasons)
    command = ["cnnlab", "fit", "--config", row.recipe, "--data.root", requirements.root]
    if segments:
        command += ["--model.network", chosen.name] if chosen.name != "unet" else []
        if requirements.size is not None and requirements.size > _CROP:
            command += ["--data.crop", str(_CROP), "--model.window", "768"]
            reasons.append(f"images of {requirements.size} pixels: training on crops, prediction window by window")
    else:
        command += ["--model.network", chosen.name]
        if finds and requirements.size is not None and requirements.size > 2 * _TILE:
            command += ["--data.size", str(requirements.size), "--model.tile", str(_TILE)]
            reasons.append(
                f"images of {requirements.size} pixels: in tiles, so that small objects stay as large as they are"
            )
        elif finds and chosen.size != _TILE:
            command += ["--data.size", str(chosen.size)]
        elif not finds and chosen.size != chosen.own_size:
            command += ["--data.size", str(chosen.size)]
            reasons.append(f"images of {requirements.size} pixels: at {chosen.size}, pretraining had {chosen.own_size}")
    command += step.flags
    multiply_adds = network_cost(chosen.network, (3, chosen.size, chosen.size)).multiply_adds
    others = tuple(candidate.name for candidate in candidates[candidates.index(chosen) + 1 :])
    return Recommendation(
        row.case, chosen.name, others, row.recipe, shlex.join(command), tuple(reasons), multiply_adds, step.batch
    )


def _needs_real_time(requirements: Requirements) -> bool:
    return requirements.device == "edge" or (requirements.latency is not None and requirements.latency <= REAL_TIME)


def _candidate_names(row: Row, requirements: Requirements, reasons: list[str]) -> list[str]:
    """The row's networks that are installed, and smaller ones if the latency is limited."""
    names = list(row.networks)
    if requirements.task == "classification" and requirements.latency is not None:
        names += [name for name in ("mobilenetv3_large_100", "mobilenetv3_small_100") if name not in names]
    if "deeplabv3plus" in names and importlib.util.find_spec("segmentation_models_pytorch") is None:
        reasons.append('DeepLabV3+ needs a library that is not installed: pip install "cnnlab[segmentation]"')
        names.remove("deeplabv3plus")
    return names


def build_recommended(name: str, task: str) -> nn.Module:
    """Build a network of the guide with random weights and ten classes.

    Args:
        name: The network's name in the guide.
        task: One of TASKS.
    """
    if task == "classification":
        return create_network(name, 10, 3)
    if task in _FINDING:
        return create_detector(name, 10, 3)
    if task == "medical":
        return create_segmenter(name, 10, 3, base=32, attention=True)
    return create_segmenter(name, 10, 3, encoder="tf_efficientnet_lite0")


class _Candidate:
    """A network that may be recommended; it is built on the meta device on first access."""

    def __init__(self, name: str, requirements: Requirements) -> None:
        self.name = name
        self._task = requirements.task
        own = preprocessing(name, 3) if self._task == "classification" else None
        self.own_size = own.size[0] if own is not None else 224
        # A ViT takes a fixed number of tokens.
        fixed = name.startswith("vit_")
        smaller = requirements.size is not None and requirements.size < self.own_size and not fixed
        self.size = max(requirements.size or 0, 32) if smaller else self.own_size
        if self._task in _FINDING:
            self.size = math.ceil(min(requirements.size or _TILE, _TILE) / 32) * 32
        elif self._task != "classification":
            self.size = min(requirements.size or _CROP, _CROP)

    @cached_property
    def network(self) -> nn.Module:
        """The network on the meta device."""
        return build_on_meta(lambda: build_recommended(self.name, self._task))


class _Step(NamedTuple):
    """A training step that fits into memory."""

    batch: int | None
    """None if the memory is unknown."""
    flags: list[str]


def _choose(
    candidates: list[_Candidate], requirements: Requirements, measure_latency: _Timer | None, reasons: list[str]
) -> tuple[_Candidate, _Step]:
    """The first candidate that is fast enough and fits into memory; otherwise the fastest that fits."""
    if requirements.latency is not None and measure_latency is None:
        reasons.append(f"{requirements.latency:g} ms an image: not measured, since no {requirements.device} is here")
    slow: dict[_Candidate, float] = {}
    for candidate in candidates:
        if requirements.latency is not None and measure_latency is not None:
            latency = measure_latency(candidate.name, candidate.size)
            if latency > requirements.latency:
                slow[candidate] = latency
                continue
            reasons.append(f"{candidate.name} takes {latency:.1f} ms an image here, of {requirements.latency:g}")
        if (step := _fit_step(candidate, requirements, reasons)) is not None:
            return candidate, step
    for candidate in sorted(slow, key=slow.__getitem__):
        if (step := _fit_step(candidate, requirements, reasons)) is not None:
            reasons.append(
                f"none of {', '.join(other.name for other in slow)} is done in {requirements.latency:g} ms here: "
                f"{candidate.name} takes {slow[candidate]:.1f}; cnnlab export and quantize make it faster"
            )
            return candidate, step
    smaller = "smaller images (--data.size) need less memory, and so does --model.checkpoint_stages"
    raise InputError(f"{'; '.join(reasons[1:])}: {smaller}")


def _fit_step(candidate: _Candidate, requirements: Requirements, reasons: list[str]) -> _Step | None:
    """The recipe's step, or smaller accumulated ones; None if two images do not fit."""
    if requirements.memory is None:
        return _Step(None, [])
    recipe_batch = {"classification": 32, "detection": 16}.get(requirements.task, 8)
    precision = "bf16-mixed" if requirements.device == "gpu" else "32-true"
    flags = [] if precision == "32-true" else ["--trainer.precision", precision]
    batch = recipe_batch
    while batch >= 2:
        peak = training_memory(candidate.network, (3, candidate.size, candidate.size), batch, precision).peak
        if peak <= 0.9e9 * requirements.memory:  # The rest is for memory outside of PyTorch.
            reasons.append(f"a step of {batch} images takes {peak / 1e9:.1f} GB, of {requirements.memory:g}")
            if batch < recipe_batch:
                steps = recipe_batch // batch
                flags += ["--data.batch_size", str(batch), "--trainer.accumulate_grad_batches", str(steps)]
                reasons.append(f"{steps} such steps are accumulated, for the recipe's batch of {recipe_batch} images")
            return _Step(batch, flags)
        batch //= 2
    reasons.append(f"not even two images of {candidate.name} fit into {requirements.memory:g} GB")
    return None
