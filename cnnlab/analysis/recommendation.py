"""From what somebody has, and needs, to a network, a recipe and the command to type, with the reasons."""

from __future__ import annotations

import importlib.util
import math
import shlex
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from cnnlab.analysis.cost import network_cost
from cnnlab.analysis.memory import training_memory
from cnnlab.analysis.skeleton import made_on_meta
from cnnlab.errors import InputError
from cnnlab.models.factory import create_network, preprocessing
from cnnlab.models.segmentation import create_segmenter

TASKS = ("classification", "segmentation", "medical", "detection", "instances")
"""Medical is segmentation of small structures unlike any that networks are pretrained on."""
DEVICES = ("cpu", "gpu", "edge")
REAL_TIME = 1000 / 30
"""Milliseconds an image, at 30 images a second."""


_CROP = 512
"""Larger images are trained on in parts of this height and width."""


class Need(NamedTuple):
    """What is to be done, and with what."""

    task: str = "classification"
    """Of TASKS."""
    images: int = 1000
    """For training."""
    size: int | None = None
    """The images' typical height or width in pixels, if it is known."""
    latency: float | None = None
    """Milliseconds that one image may take."""
    memory: float | None = None
    """Gigabytes for a training step."""
    device: str = "cpu"
    """What it will run on, of DEVICES."""
    accuracy: bool = False
    """Whether nothing counts but accuracy."""
    root: str = "photos"
    """Where the images are."""


class Row(NamedTuple):
    """A row of the guide."""

    case: str
    applies: Callable[[Need], bool]
    networks: tuple[str, ...]
    """The first choice first."""
    recipe: str | None
    """None where cnnlab has no such task yet."""
    reason: str


GUIDE = (
    Row(
        "instances",
        lambda need: need.task == "instances",
        ("Mask R-CNN",),
        None,
        "each object has its own mask: a detector with a branch for masks (He et al. 2017)",
    ),
    Row(
        "objects, fast",
        lambda need: need.task == "detection" and _is_fast(need),
        ("SSDlite", "RetinaNet", "FCOS"),
        None,
        "one stage: boxes and classes at once, for real time (Liu et al. 2016, Lin et al. 2017)",
    ),
    Row(
        "objects",
        lambda need: need.task == "detection",
        ("Faster R-CNN", "RetinaNet", "FCOS"),
        None,
        "two stages: regions first, then their classes, the more accurate way (Ren et al. 2015)",
    ),
    Row(
        "medical",
        lambda need: need.task == "medical",
        ("unet",),
        "attention_unet",
        "small structures, unlike any photograph: a U-Net with attention gates, from scratch (Oktay et al. 2018)",
    ),
    Row(
        "pixels, highest accuracy",
        lambda need: need.task == "segmentation" and need.accuracy,
        ("deeplabv3plus", "unet"),
        "segmentation_pretrained",
        "a class for each pixel, with a wide view at full resolution: DeepLabV3+ (Chen et al. 2018)",
    ),
    Row(
        "pixels",
        lambda need: need.task == "segmentation",
        ("unet",),
        "segmentation_pretrained",
        "a class for each pixel: a U-Net (Ronneberger et al. 2015) on a pretrained encoder",
    ),
    Row(
        "edge",
        lambda need: need.device == "edge",
        ("efficientnet_b0", "mobilenetv3_large_100", "mobilenetv3_small_100"),
        "image_folder",
        "a small device: few parameters and multiply-adds count most",
    ),
    Row(
        "real time",
        lambda need: need.latency is not None and need.latency <= REAL_TIME,
        ("mobilenetv3_large_100", "mobilenetv3_small_100"),
        "image_folder",
        "30 images a second and more: MobileNetV3 (Howard et al. 2019)",
    ),
    Row(
        "highest accuracy",
        lambda need: need.accuracy,
        ("convnext_large", "tf_efficientnet_b7", "tf_efficientnet_b5", "tf_efficientnet_b4"),
        "image_folder",
        "nothing counts but accuracy: the largest convolutional networks with weights of ImageNet",
    ),
    Row(
        "under 10,000 images",
        lambda need: need.images < 10_000,
        ("resnet50", "resnet34", "resnet18"),
        "image_folder",
        "fewer than 10,000 images: a pretrained ResNet, whose training forgives most (He et al. 2016)",
    ),
    Row(
        "10,000 to a million images",
        lambda need: need.images <= 1_000_000,
        ("convnext_tiny", "efficientnet_b2", "efficientnet_b0"),
        "image_folder",
        "10,000 to a million images: ConvNeXt or EfficientNet, more accurate for what they cost",
    ),
    Row(
        "above a million images",
        lambda need: True,
        ("vit_base_patch16_224", "vit_small_patch16_224", "convnext_tiny"),
        "finetune",
        "above a million images: attention learns from the data what convolution takes for granted (Dosovitskiy 2020)",
    ),
)
"""The first that applies counts."""


class Recommendation(NamedTuple):
    """What to do."""

    case: str
    """The guide's row."""
    network: str
    alternatives: tuple[str, ...]
    """What else comes into question."""
    recipe: str | None
    command: str | None
    """To be typed; None where cnnlab has no such task yet."""
    reasons: tuple[str, ...]
    multiply_adds: int | None = None
    """For one image of the size that the network is given."""
    batch: int | None = None
    """Images a step on the device."""


def recommend(need: Need, time: Callable[[str, int], float] | None = None) -> Recommendation:
    """Recommend a network, a recipe and a command.

    Args:
        need: What there is, and what is needed.
        time: Milliseconds that a network of this name takes for an image of this height and width; without it a latency
            is not looked at but for which networks come into question.

    Raises:
        InputError: If a value is out of its range.

    >>> found = recommend(Need(images=3000))
    >>> found.network, found.command
    ('resnet50', 'cnnlab fit --config image_folder --data.root photos --model.network resnet50')
    """
    _check(need)
    row = next(row for row in GUIDE if row.applies(need))
    if row.recipe is None:
        reasons = (row.reason, f"cnnlab has no task for {need.task} yet, so there is no command to type")
        return Recommendation(row.case, row.networks[0], row.networks[1:], None, None, reasons)
    found: list[str] = [row.reason]
    segments = need.task in ("segmentation", "medical")
    fitting = [_Candidate(name, need, segments) for name in _available(_in_question(row, need), found)]
    chosen, step = _chosen(fitting, need, time, found)
    command = ["cnnlab", "fit", "--config", row.recipe, "--data.root", need.root]
    if segments:
        command += ["--model.network", chosen.name] if chosen.name != "unet" else []
        if need.size is not None and need.size > _CROP:
            command += ["--data.crop", str(_CROP), "--model.window", "768"]
            found.append(f"images of {need.size} pixels: training on crops, prediction window by window")
    else:
        command += ["--model.network", chosen.name]
        if chosen.size != chosen.own_size:
            command += ["--data.size", str(chosen.size)]
            found.append(f"images of {need.size} pixels: at {chosen.size}, not at the pretraining's {chosen.own_size}")
    command += step.flags
    others = tuple(candidate.name for candidate in fitting[fitting.index(chosen) + 1 :])
    return Recommendation(
        row.case, chosen.name, others, row.recipe, shlex.join(command), tuple(found), chosen.multiply_adds, step.batch
    )


def _check(need: Need) -> None:
    if need.task not in TASKS:
        raise InputError(f"task is {need.task!r}, expected {', '.join(TASKS)}")
    if need.device not in DEVICES:
        raise InputError(f"device is {need.device!r}, expected {', '.join(DEVICES)}")
    for name in ("images", "size", "latency", "memory"):
        value = getattr(need, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise InputError(f"{name} is {value}, expected more than 0")


def _is_fast(need: Need) -> bool:
    return need.device == "edge" or (need.latency is not None and need.latency <= REAL_TIME)


def _in_question(row: Row, need: Need) -> list[str]:
    """The row's networks, and smaller ones for those who must hurry."""
    names = list(row.networks)
    if need.task == "classification" and need.latency is not None:
        names += [name for name in ("mobilenetv3_large_100", "mobilenetv3_small_100") if name not in names]
    return names


def recommended(name: str, task: str) -> nn.Module:
    """Make a network of the guide with random weights; ten classes stand for any number.

    Args:
        name: As in a row of the guide.
        task: Of TASKS.
    """
    if task == "classification":
        return create_network(name, 10, 3)
    if task == "medical":
        return create_segmenter(name, 10, 3, base=32, attention=True)
    return create_segmenter(name, 10, 3, encoder="tf_efficientnet_lite0")


def _available(names: list[str], reasons: list[str]) -> list[str]:
    """Without what needs a library that is not installed."""
    if "deeplabv3plus" in names and importlib.util.find_spec("segmentation_models_pytorch") is None:
        reasons.append('DeepLabV3+ needs a library that is not installed: pip install "cnnlab[segmentation]"')
        return [name for name in names if name != "deeplabv3plus"]
    return names


class _Candidate:
    """A network that comes into question, made without numbers when it is first asked for."""

    def __init__(self, name: str, need: Need, segments: bool) -> None:
        self.name = name
        self._task = need.task
        own = None if segments else preprocessing(name, 3)
        self.own_size = own.size[0] if own is not None else 224
        # ViT's tokens are as many as they were.
        fixed = name.startswith("vit_")
        smaller = need.size is not None and need.size < self.own_size and not fixed
        self.size = max(need.size or 0, 32) if smaller else self.own_size
        if segments:
            self.size = min(need.size or _CROP, _CROP)
        self._network: nn.Module | None = None

    @property
    def network(self) -> nn.Module:
        """On the meta device."""
        if self._network is None:
            self._network = made_on_meta(lambda: recommended(self.name, self._task))
        return self._network

    @property
    def multiply_adds(self) -> int:
        """For one image."""
        return network_cost(self.network, (3, self.size, self.size)).multiply_adds


class _Step(NamedTuple):
    """A training step that fits into memory."""

    batch: int | None
    """None where nobody has said how much memory there is."""
    flags: list[str]


def _chosen(
    candidates: list[_Candidate], need: Need, time: Callable[[str, int], float] | None, reasons: list[str]
) -> tuple[_Candidate, _Step]:
    """The first that is fast enough and fits into memory; the fastest that fits if none is fast enough."""
    if need.latency is not None and time is None:
        reasons.append(f"{need.latency:g} ms an image: not measured, since the {need.device} is not here")
    slow: dict[_Candidate, float] = {}
    for candidate in candidates:
        if need.latency is not None and time is not None:
            taken = time(candidate.name, candidate.size)
            if taken > need.latency:
                slow[candidate] = taken
                continue
            reasons.append(f"{candidate.name} takes {taken:.1f} ms an image here, of {need.latency:g}")
        if (step := _fitting_step(candidate, need, reasons)) is not None:
            return candidate, step
    for candidate in sorted(slow, key=slow.__getitem__):
        if (step := _fitting_step(candidate, need, reasons)) is not None:
            reasons.append(
                f"none of {', '.join(other.name for other in slow)} is done in {need.latency:g} ms here: "
                f"{candidate.name} takes {slow[candidate]:.1f}; cnnlab export and quantize make it faster"
            )
            return candidate, step
    smaller = "smaller images (--data.size) need less memory, and so does --model.checkpoint_stages"
    raise InputError(f"{'; '.join(reasons[1:])}: {smaller}")


def _fitting_step(candidate: _Candidate, need: Need, reasons: list[str]) -> _Step | None:
    """The recipe's step, or a smaller one that is added up to it; None where two images are too many."""
    if need.memory is None:
        return _Step(None, [])
    wanted = 32 if need.task == "classification" else 8
    precision = "bf16-mixed" if need.device == "gpu" else "32-true"
    flags = [] if precision == "32-true" else ["--trainer.precision", precision]
    batch = wanted
    while batch >= 2:
        peak = training_memory(candidate.network, (3, candidate.size, candidate.size), batch, precision).peak
        if peak <= 0.9e9 * need.memory:  # What is not PyTorch's own takes the rest.
            reasons.append(f"a step of {batch} images takes {peak / 1e9:.1f} GB, of {need.memory:g}")
            if batch < wanted:
                flags += ["--data.batch_size", str(batch), "--trainer.accumulate_grad_batches", str(wanted // batch)]
                reasons.append(f"{wanted // batch} such steps are added up, so that the recipe's {wanted} images stay")
            return _Step(batch, flags)
        batch //= 2
    reasons.append(f"not even two images of {candidate.name} fit into {need.memory:g} GB")
    return None
