"""Losses for segmentation: cross-entropy, Dice, Tversky and focal, without one-hot masks.

They take logits (B, K, H, W) and targets (B, H, W) int64, and return a scalar. Pixels with the target ``ignore_index``
are ignored; if all are, the loss and its gradients are 0. All losses compute in float32.
"""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cnnlab.errors import InputError, nearest
from cnnlab.losses.parts import PartsLoss, images_of


class ClassSums(NamedTuple):
    """Sums of an image's probabilities, for each class, over the pixels that are not ignored: (B, K) each."""

    overlap: Tensor
    """The sum of the class's probability over the pixels of the class."""
    mass: Tensor
    """The sum of the class's probability over all pixels."""
    log_likelihood: Tensor
    """The sum of the logarithm of the class's probability over the pixels of the class."""
    pixels: Tensor
    """The number of pixels of the class; no gradient."""


def class_sums(logits: Tensor, target: Tensor, ignore_index: int = 255) -> ClassSums:
    """Sum softmax probabilities by class: the sums that cross-entropy, Dice and Tversky are computed from.

    Forward and backward pass handle one image at a time. They keep the logits, the target and one float per pixel; the
    probabilities of more than one image are never in memory. Float16 and bfloat16 are converted to float32, the dtype
    of the sums.

    Args:
        logits: (B, K, H, W), any floats.
        target: (B, H, W), int64 in 0..K-1, or ignore_index.
        ignore_index: The target of ignored pixels.

    Raises:
        InputError: If the shapes do not match.

    >>> sums = class_sums(torch.zeros(1, 2, 1, 3), torch.tensor([[[0, 1, 255]]]))
    >>> sums.overlap.tolist(), sums.mass.tolist(), sums.pixels.tolist()
    ([[0.5, 0.5]], [[1.0, 1.0]], [[1.0, 1.0]])
    """
    if logits.ndim != 4 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise InputError(
            f"logits have the shape {tuple(logits.shape)} and targets {tuple(target.shape)}, expected (batch, "
            "classes, height, width) and (batch, height, width)"
        )
    with _full_precision(logits):
        return ClassSums(*_ClassSums.apply(logits, target, ignore_index))


def _full_precision(values: Tensor) -> torch.autocast:
    """Turn autocast off: mixed precision would multiply matrices in half precision."""
    return torch.autocast(values.device.type, enabled=False)


class _ClassSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, ...]:
        batch, classes = logits.shape[:2]
        kind = torch.promote_types(logits.dtype, torch.float32)
        sums = logits.new_zeros(4, batch, classes, dtype=kind)
        normalizers = logits.new_empty(batch, target[0].numel(), dtype=kind)
        for i in range(batch):
            levels, pixels, valid = _image(logits[i], target[i], ignore_index, kind)
            top = levels.amax(dim=0)
            powers = torch.sub(levels, top).exp_()
            total = powers.sum(dim=0)
            normalizer = total.log().add_(top)
            own = levels.gather(0, pixels[None])[0].sub_(normalizer).mul_(valid)
            sums[1, i] = _weighted_by_class(powers, valid / total)
            for which, values in ((0, own.exp().mul_(valid)), (2, own), (3, valid)):
                sums[which, i] = _by_class(values, pixels, classes)
            # This makes all probabilities of an ignored pixel 0 in the backward pass.
            normalizers[i] = normalizer.masked_fill_(valid == 0, torch.inf)
        ctx.save_for_backward(logits, target, normalizers)
        ctx.ignore_index = ignore_index
        overlap, mass, log_likelihood, count = sums.unbind()
        ctx.mark_non_differentiable(count)
        return overlap, mass, log_likelihood, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, overlap: Tensor, mass: Tensor, log_likelihood: Tensor, _: Tensor) -> tuple[Any, ...]:
        logits, target, normalizers = ctx.saved_tensors
        gradients = torch.empty_like(logits)
        for i, normalizer in enumerate(normalizers):
            levels, pixels, valid = _image(logits[i], target[i], ctx.ignore_index, normalizer.dtype)
            probabilities = torch.sub(levels, normalizer).exp_()
            # The direct gradient of the logit of a pixel's own class. Softmax then subtracts it from all classes, in
            # proportion to their probabilities.
            bonus = probabilities.gather(0, pixels[None])[0].mul_(overlap[i][pixels])
            bonus.add_(log_likelihood[i][pixels]).mul_(valid)
            with _full_precision(logits):
                given = torch.mv(probabilities.t(), mass[i]).add_(bonus)
            changed = torch.sub(mass[i][:, None], given).mul_(probabilities)
            changed.scatter_add_(0, pixels[None], bonus[None])
            gradients[i].copy_(changed.view_as(gradients[i]))
        return gradients, None, None


# Both functions sum in parts: a float32 sum over millions of pixels would lose precision.


def _by_class(values: Tensor, pixels: Tensor, classes: int) -> Tensor:
    """Sum values (N,) by the pixels' classes (N,), to (K,)."""
    parts, whole = _parts(len(pixels))
    sums = values.new_zeros(parts + 1, classes)
    sums[:parts].scatter_add_(1, pixels[:whole].view(parts, -1), values[:whole].view(parts, -1))
    sums[parts].scatter_add_(0, pixels[whole:], values[whole:])
    return sums.sum(dim=0)


def _weighted_by_class(values: Tensor, weights: Tensor) -> Tensor:
    """Sum values (K, N) times weights (N,), to (K,)."""
    parts, whole = _parts(len(weights))
    divided = values[:, :whole].reshape(len(values), parts, -1).transpose(0, 1)
    sums = torch.bmm(divided, weights[:whole].view(parts, -1, 1)).sum(dim=(0, 2))
    return sums.addmv_(values[:, whole:], weights[whole:])


def _parts(pixels: int) -> tuple[int, int]:
    """The number of parts for a number of pixels, and the pixels in them; the rest is less than the number of parts."""
    parts = math.isqrt(pixels)
    return parts, pixels // parts * parts


def _image(logits: Tensor, target: Tensor, ignore_index: int, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (K, N); the pixels' classes (N,), 0 if ignored; a mask (N,), 1 for pixels that are not ignored, else 0."""
    pixels = target.flatten()
    ignored = pixels == ignore_index
    return logits.flatten(1).to(kind), pixels.masked_fill(ignored, 0), (~ignored).to(kind)


class _SumsLoss(PartsLoss):
    """A loss whose parts are computed from class_sums."""

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def parts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Logits (B, K, H, W) and targets (B, H, W) to parts (P,), at least float32."""
        return torch.stack(self.of(class_sums(outputs, targets, self.ignore_index)))

    @abstractmethod
    def of(self, sums: ClassSums) -> list[Tensor]:
        """The parts from the class sums, scalars."""


class CrossEntropy(_SumsLoss):
    """Cross-entropy, the mean over all pixels that are not ignored; like torch's with less memory, and 0 without any.

    Args:
        class_weights: K weights of the classes, 0 or more; the mean is weighted with them.
        ignore_index: The target of ignored pixels.
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: Sequence[float] | None = None, ignore_index: int = 255) -> None:
        super().__init__(ignore_index)
        self.register_buffer("class_weights", _weights(class_weights), persistent=False)

    def of(self, sums: ClassSums) -> list[Tensor]:
        """See _SumsLoss."""
        surprise, count = -sums.log_likelihood, sums.pixels
        if self.class_weights is not None:
            surprise, count = surprise * self.class_weights, count * self.class_weights
        total = count.sum()
        return [surprise.sum() / torch.where(total > 0, total, 1.0)]

    def counts(self, targets: Tensor) -> Tensor:
        """The pixels that are not ignored, weighted by their classes (the largest weight counts as 1)."""
        if self.class_weights is None:
            return _counted(targets, self.ignore_index)
        weights = self.class_weights.to(targets.device) / self.class_weights.max().to(targets.device)
        ignored = targets == self.ignore_index
        return weights[targets.masked_fill(ignored, 0)].masked_fill(ignored, 0.0).sum()[None]


class Tversky(_SumsLoss):
    """1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth), soft, of each image and class; then the mean.

    TP, FP and FN are sums of softmax probabilities over the pixels that are not ignored (Salehi et al. 2017,
    arXiv:1706.05721). A class that is not in an image costs alpha FP / (alpha FP + smooth), which is 0 only without
    false positives. If ``absent`` is "skip", it is left out of that image's mean instead (and an image without any
    class costs 0).

    Args:
        alpha: The cost of a false positive, 0 or more.
        beta: The cost of a false negative, 0 or more.
        smooth: Added to numerator and denominator, above 0; it matters most for classes that are not in an image.
        batchwise: Treat the images of a batch as one, instead of taking the mean over images.
        absent: Whether to count or skip classes that are not in an image (batchwise: in a batch).
        ignore_index: The target of ignored pixels.

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        smooth: float = 1.0,
        batchwise: bool = False,
        absent: str = "count",
        ignore_index: int = 255,
    ) -> None:
        super().__init__(ignore_index)
        if min(alpha, beta) < 0 or not alpha + beta > 0:
            raise InputError(f"alpha is {alpha} and beta {beta}, expected 0 or more, not both 0")
        if not smooth > 0:
            raise InputError(f"smooth is {smooth}, expected above 0")
        if absent not in ("count", "skip"):
            raise InputError(f"absent is {absent!r}, expected count or skip")
        self.alpha, self.beta, self.smooth = alpha, beta, smooth
        self.batchwise, self.absent = batchwise, absent

    def of(self, sums: ClassSums) -> list[Tensor]:
        """See _SumsLoss."""
        overlap, mass, _, count = (part.sum(dim=0, keepdim=True) for part in sums) if self.batchwise else sums
        errors = self.alpha * (mass - overlap) + self.beta * (count - overlap)
        losses = 1 - (overlap + self.smooth) / (overlap + errors + self.smooth)
        if self.absent == "count":
            return [losses.mean()]
        present = (count > 0).to(losses.dtype)
        return [((losses * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)).mean()]

    def counts(self, targets: Tensor) -> Tensor:
        """The images; so batches that are treated as one image each are weighted with their images."""
        return images_of(targets)[None]


class Dice(Tversky):
    """1 - (2 TP + smooth) / (2 TP + FP + FN + smooth), soft, of each image and class; then the mean.

    Milletari et al. 2016 (arXiv:1606.04797), with plain sums in the denominator instead of squares. It equals the
    Tversky loss with alpha and beta 0.5 and half of the smoothing. The arguments are those of Tversky.

    >>> Dice()(torch.tensor([[[[30.0, 30.0]], [[0.0, 0.0]]]]), torch.tensor([[[0, 1]]])).item()
    0.375
    """

    def __init__(
        self, smooth: float = 1.0, batchwise: bool = False, absent: str = "count", ignore_index: int = 255
    ) -> None:
        super().__init__(0.5, 0.5, smooth / 2, batchwise, absent, ignore_index)


class CrossEntropyDice(_SumsLoss):
    """A weighted sum of cross-entropy and Dice, in one pass over the pixels.

    The first two arguments are their weights; the others are those of CrossEntropy and Dice.
    """

    num_parts = 2

    def __init__(
        self,
        cross_entropy: float = 0.5,
        dice: float = 0.5,
        class_weights: Sequence[float] | None = None,
        smooth: float = 1.0,
        batchwise: bool = False,
        absent: str = "count",
        ignore_index: int = 255,
    ) -> None:
        super().__init__(ignore_index)
        if min(cross_entropy, dice) < 0 or not cross_entropy + dice > 0:
            raise InputError(f"cross_entropy is {cross_entropy} and dice {dice}, expected 0 or more, not both 0")
        self.shares = (cross_entropy, dice)
        self.cross_entropy = CrossEntropy(class_weights, ignore_index)
        self.dice = Dice(smooth, batchwise, absent, ignore_index)

    def of(self, sums: ClassSums) -> list[Tensor]:
        """See _SumsLoss."""
        parts = (*self.cross_entropy.of(sums), *self.dice.of(sums))
        return [share * part for share, part in zip(self.shares, parts, strict=True)]

    def counts(self, targets: Tensor) -> Tensor:
        """Those of both."""
        return torch.cat([self.cross_entropy.counts(targets), self.dice.counts(targets)])


class Focal(PartsLoss):
    """Cross-entropy times (1 - p)^gamma, where p is the true class's probability (Lin et al. 2017, arXiv:1708.02002).

    Args:
        gamma: How much pixels with a high true probability are down-weighted, 0 or more; 0 is cross-entropy.
        class_weights: K weights of the classes, 0 or more (the paper's alpha); they scale, and the mean is over pixels.
        ignore_index: The target of ignored pixels.

    Raises:
        InputError: If gamma is negative.
    """

    class_weights: Tensor | None

    def __init__(
        self, gamma: float = 2.0, class_weights: Sequence[float] | None = None, ignore_index: int = 255
    ) -> None:
        super().__init__()
        if gamma < 0:
            raise InputError(f"gamma is {gamma}, expected 0 or more")
        self.gamma, self.ignore_index = gamma, ignore_index
        self.register_buffer("class_weights", _weights(class_weights), persistent=False)

    def parts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Logits (B, K, H, W) and targets (B, H, W) to one part, at least float32."""
        kind = torch.promote_types(outputs.dtype, torch.float32)
        surprise = F.cross_entropy(outputs.to(kind), targets, ignore_index=self.ignore_index, reduction="none")
        valid = targets != self.ignore_index
        # The surprise of ignored pixels is 0, and so is their loss.
        losses = (1 - torch.exp(-surprise)).clamp(min=torch.finfo(kind).tiny) ** self.gamma * surprise
        if self.class_weights is not None:
            losses = losses * self.class_weights[targets.masked_fill(~valid, 0)]
        return (losses.sum() / valid.sum().clamp(min=1))[None]

    def counts(self, targets: Tensor) -> Tensor:
        """The pixels that are not ignored."""
        return _counted(targets, self.ignore_index)


LOSSES: dict[str, type[nn.Module]] = {
    "cross_entropy": CrossEntropy,
    "dice": Dice,
    "cross_entropy_dice": CrossEntropyDice,
    "tversky": Tversky,
    "focal": Focal,
}
"""Losses by name, each called with ignore_index and its own arguments."""


def create_loss(name: str, ignore_index: int, args: dict[str, Any]) -> nn.Module:
    """Create the loss of this name in LOSSES.

    Raises:
        InputError: If there is no such loss, or if it does not take these arguments.
    """
    if name not in LOSSES:
        raise InputError(f"there is no loss {name!r}: {nearest(name, LOSSES)}")
    known = sorted(set(inspect.signature(LOSSES[name]).parameters) - {"ignore_index"})
    if unknown := sorted(set(args) - set(known)):
        raise InputError(f"loss {name!r} has no {unknown[0]!r}: {nearest(unknown[0], known)}")
    return LOSSES[name](ignore_index=ignore_index, **args)


def _counted(targets: Tensor, ignore_index: int) -> Tensor:
    return (targets != ignore_index).sum()[None].float()


def _weights(values: Sequence[float] | None) -> Tensor | None:
    if values is None:
        return None
    if min(values, default=-1.0) < 0 or not max(values) > 0:
        raise InputError(f"class_weights are {list(values)}, expected 0 or more for each class, not all 0")
    return torch.tensor(values, dtype=torch.float32)
