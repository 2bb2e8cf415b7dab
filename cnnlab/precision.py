"""The choice of a run's precision from its device, and from a trial where the device alone does not tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from cnnlab.torch_compat import has_bf16_units

MIXED = ("bf16-mixed", "16-mixed")
LEAST_GAIN = 1.1
"""How many times faster bf16-mixed must be than 32-true on a processor to be chosen."""


class Device(NamedTuple):
    """What counts of a device."""

    kind: str
    """cpu, cuda, mps, or another of torch's names."""
    name: str = ""
    capability: tuple[int, int] = (0, 0)
    """The compute capability of a GPU."""
    bf16: bool = False
    """Whether it has units that compute in bfloat16."""

    @classmethod
    def of(cls, device: torch.device) -> Device:
        """Look at a device of this machine."""
        if device.type == "cuda":
            with torch.cuda.device(device):
                bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            return cls("cuda", torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device), bf16)
        return cls(device.type, bf16=device.type == "cpu" and has_bf16_units())


class Trial(NamedTuple):
    """The seconds of a training step in both precisions, and the images of such a step."""

    full: float
    mixed: float
    images: int


class Choice(NamedTuple):
    """A precision, one of Lightning's names, and the reason for it."""

    precision: str
    reason: str
    float32_matmul: str | None = None
    """An argument for torch.set_float32_matmul_precision; None to leave that as it is."""


def choose(device: Device, trial: Callable[[], Trial | str], possible: Sequence[str] = MIXED) -> Choice:
    """Choose the precision of a training.

    A GPU's compute capability tells what is faster. A processor's name does not: small layers gain nothing.

    Args:
        device: Where the run trains.
        trial: Measures steps of the run on a processor, or returns the reason why it does not.
        possible: The mixed precisions that the strategy knows.

    >>> choose(Device("cuda", "A100", (8, 0), bf16=True), lambda: "").precision
    'bf16-mixed'
    >>> choose(Device("cpu", bf16=True), lambda: Trial(full=0.066, mixed=0.041, images=32)).reason
    '1.6x as fast as 32-true here (41 and 66 ms a step of 32 images)'
    """
    if device.kind == "cuda":
        return _for_gpu(device, possible)
    if device.kind != "cpu":
        return Choice("32-true", f"mixed precision is not chosen on {device.kind} devices")
    if not device.bf16:
        return Choice("32-true", "this processor has no units for bf16")
    if "bf16-mixed" not in possible:
        return Choice("32-true", "the strategy does not take bf16-mixed")
    measured = trial()
    if isinstance(measured, str):
        return Choice("32-true", measured)
    gain = measured.full / measured.mixed
    times = f"{_milliseconds(measured.mixed)} and {_milliseconds(measured.full)} ms a step of {measured.images} images"
    if gain < LEAST_GAIN:
        return Choice("32-true", f"bf16-mixed is only {gain:.2f}x as fast here ({times})")
    return Choice("bf16-mixed", f"{gain:.1f}x as fast as 32-true here ({times})")


def float32_hint(device: Device, precision: str) -> list[str]:
    """A line on what a run in 32-true leaves unused of a GPU; none if nothing.

    Args:
        device: Where it runs.
        precision: Its precision.
    """
    if device.kind != "cuda" or device.capability < (8, 0) or precision != "32-true":
        return []
    return [
        "precision: 32-true, as asked: --trainer.precision auto takes bf16-mixed on this GPU, and "
        "--trainer.float32_matmul_precision high multiplies float32 matrices in TF32; both are faster"
    ]


def _for_gpu(device: Device, possible: Sequence[str]) -> Choice:
    about = f"{device.name}, compute capability {device.capability[0]}.{device.capability[1]}"
    ampere = device.capability >= (8, 0)
    if ampere and device.bf16 and "bf16-mixed" in possible:
        return Choice("bf16-mixed", f"this GPU computes in bf16 ({about})")
    if (7, 0) <= device.capability < (8, 0) and "16-mixed" in possible:
        return Choice("16-mixed", f"this GPU computes in 16 bits, but not in bf16 ({about})")
    if ampere:
        # What stays in 32 bits is then the network itself; beside mixed precision only what needs all digits is.
        return Choice("32-true", f"the strategy takes no mixed precision ({about})", "high")
    return Choice("32-true", f"this GPU has no tensor cores, or the strategy does not take 16-mixed ({about})")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g}" if seconds < 0.1 else f"{seconds * 1000:,.0f}"
