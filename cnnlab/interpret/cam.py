"""Class activation maps: where in an image a network sees a class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.errors import InputError
from cnnlab.interpret.layers import default_layer, grid, hooked, layer_named
from cnnlab.interpret.undisturbed import undisturbed


class Explanation(NamedTuple):
    """Where a network sees a class in each image."""

    maps: Tensor
    """(B, H, W) float32 in 0..1, as large as the image: 0 least, 1 most; 0 everywhere where nothing speaks for it."""
    classes: Tensor
    """(B,) int64, the classes."""
    predictions: Tensor
    """What the network returned: logits (B, K), or (B, K, H, W) of pixels."""


class CamMethod(ABC):
    """A weighted sum of a layer's channels, its negative part cut off, at the image's size.

    The network is left as it was: modes, hooks, gradients, requires_grad and random states. It may be frozen, compiled
    (the uncompiled one is run), or change activations in place; it may be called in inference mode and in mixed
    precision.

    Args:
        network: Images to logits (B, K), or (B, K, H, W) for segmentation.
        layer: A layer's name as in named_modules; layers.default_layer of the first images if None.

    Raises:
        InputError: If there is no such layer.
    """

    def __init__(self, network: nn.Module, layer: str | None = None) -> None:
        self.network = network
        self.layer = layer
        if layer is not None:
            layer_named(network, layer)

    def __call__(self, images: Tensor, classes: int | Sequence[int] | Tensor | None = None) -> Explanation:
        """Explain a batch, in one pass.

        Args:
            images: (B, C, H, W), what the network takes.
            classes: The class to look for, one for all or one for each image; the predicted one if None. In
                segmentation the predicted one is that of most pixels, and the pixels that are predicted to be
                of the class are what is explained.

        Raises:
            InputError: If the layer gives no map, or if the network has no such class.
        """
        with undisturbed(self.network):
            # What was made in inference mode cannot be used outside.
            images = images.clone() if images.is_inference() else images
            if self.layer is None:
                self.layer = default_layer(self.network, images)
            maps, chosen, predictions = self._explain(images, classes)
            maps = F.interpolate(maps.clamp(min=0)[:, None], images.shape[2:], mode="bilinear", align_corners=False)
        return Explanation(_stretched(maps[:, 0]), chosen, predictions)

    @abstractmethod
    def _explain(self, images: Tensor, classes: int | Sequence[int] | Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The maps (B, h, w), the classes (B,), and what the network returned."""

    def _run(self, images: Tensor, hook: Callable[..., Tensor | None]) -> Tensor:
        """The network's predictions, with a forward hook on the layer."""
        assert self.layer is not None
        with hooked(layer_named(self.network, self.layer), hook, self.layer):
            predictions: Tensor = self.network(images)
        return predictions

    def _as_grid(self, activations: Tensor, images: Tensor) -> Tensor:
        assert self.layer is not None
        return grid(self.network, self.layer, activations, (images.shape[2], images.shape[3])).float()


class _ByGradients(CamMethod):
    """Methods that weigh channels by the gradients of the class's logit."""

    def _explain(self, images: Tensor, classes: int | Sequence[int] | Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        assert self.layer is not None
        found: list[Tensor] = []

        def begin(module: nn.Module, args: object, output: object) -> Tensor:
            if not isinstance(output, Tensor):
                raise InputError(f"layer {self.layer!r} gives {type(output).__name__}, expected a tensor")
            # What lies before needs no gradients, nor does it keep anything for them.
            torch.set_grad_enabled(True)
            found.append(output.detach().requires_grad_())
            # What comes next may change its input in place.
            return found[-1].clone()

        predictions = self._run(images, begin)
        chosen = _chosen(predictions, classes)
        scores = _scores(predictions, chosen, _places(predictions, chosen))
        # Only of the activations: the weights' gradients are neither made nor touched; 0 where none lead to the logits.
        gradients = torch.zeros_like(found[-1])
        if scores.requires_grad:
            (gradients,) = torch.autograd.grad(scores.sum(), found[-1:], allow_unused=True, materialize_grads=True)
        torch.set_grad_enabled(False)
        activations = self._as_grid(found[-1].detach(), images)
        weights = self._weights(activations, self._as_grid(gradients, images))
        return (weights[:, :, None, None] * activations).sum(dim=1), chosen, predictions.detach()

    @abstractmethod
    def _weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """(B, C) of (B, C, h, w) each."""


class GradCAM(_ByGradients):
    """Grad-CAM: channels weigh as much as their mean gradient (Selvaraju et al. 2017, arXiv:1610.02391).

    All images go forwards and backwards at once, and backwards no further than the layer.

    >>> from cnnlab.models import SimpleCNN
    >>> explanation = GradCAM(SimpleCNN())(torch.rand(4, 1, 28, 28))
    >>> explanation.maps.shape, explanation.classes.shape
    (torch.Size([4, 28, 28]), torch.Size([4]))
    """

    def _weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return gradients.mean(dim=(2, 3))


class GradCAMPlusPlus(_ByGradients):
    """Grad-CAM++: places of a channel count by second and third powers of gradients; it finds several objects better.

    Chattopadhay et al. 2018 (arXiv:1710.11063), equation 19, for the exponential of the class's logit.
    """

    def _weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        square = gradients**2
        below = 2 * square + activations.sum(dim=(2, 3), keepdim=True) * square * gradients
        places = torch.where(below != 0, square / torch.where(below != 0, below, 1.0), 0.0)
        return (places * gradients.clamp(min=0)).sum(dim=(2, 3))


class ScoreCAM(CamMethod):
    """Score-CAM: channels weigh by the class's logit of the image where they alone let it through; no gradients.

    The softmax over the channels of those logits (Wang et al. 2020, arXiv:1910.01279). A forward pass for each channel.

    Args:
        network: See CamMethod.
        layer: See CamMethod.
        batch_size: How many of those passes are done at once.
    """

    def __init__(self, network: nn.Module, layer: str | None = None, batch_size: int = 32) -> None:
        super().__init__(network, layer)
        self.batch_size = batch_size

    def _explain(self, images: Tensor, classes: int | Sequence[int] | Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        assert self.layer is not None
        found: list[Tensor] = []
        predictions = self._run(images, lambda module, args, output: found.append(output.clone()))
        activations = self._as_grid(found[-1], images)
        chosen = _chosen(predictions, classes)
        places = _places(predictions, chosen)
        pixels = images if images.is_floating_point() else images.float() / 255
        weights = torch.stack(
            [
                self._of_one(pixels[i], activations[i], chosen[i], None if places is None else places[i])
                for i in range(len(images))
            ]
        )
        return (weights[:, :, None, None] * activations).sum(dim=1), chosen, predictions

    def _of_one(self, image: Tensor, activations: Tensor, chosen: Tensor, places: Tensor | None) -> Tensor:
        """Weights (C,) of an image (channels, H, W) with activations (C, h, w)."""
        scores = []
        for part in torch.split(activations, self.batch_size):
            masks = F.interpolate(part[:, None], image.shape[1:], mode="bilinear", align_corners=False)
            masked = image * _stretched(masks[:, 0])[:, None]
            predictions = self.network(masked.to(image.dtype))
            # Where the whole image is predicted to be of the class, whatever becomes of those pixels.
            there = None if places is None else places.expand(len(part), -1, -1)
            scores.append(_scores(predictions, chosen.expand(len(part)), there))
        return torch.cat(scores).softmax(dim=0)


METHODS: dict[str, type[CamMethod]] = {"gradcam": GradCAM, "gradcam++": GradCAMPlusPlus, "scorecam": ScoreCAM}
"""Methods by name."""


def _chosen(predictions: Tensor, classes: int | Sequence[int] | Tensor | None) -> Tensor:
    """(B,) the classes to look for."""
    if not isinstance(predictions, Tensor) or predictions.ndim not in (2, 4):
        shape = tuple(predictions.shape) if isinstance(predictions, Tensor) else type(predictions).__name__
        raise InputError(f"the network returns {shape}, expected logits (batch, classes), or of each pixel")
    batch, count = predictions.shape[:2]
    if classes is None:
        of_places = predictions.detach().argmax(dim=1)
        return of_places if predictions.ndim == 2 else of_places.flatten(1).mode(dim=1).values
    # Cloned: what was made in inference mode cannot be used outside.
    chosen = torch.as_tensor(classes, device=predictions.device).clone().expand(batch)
    if chosen.is_floating_point() or not ((chosen >= 0) & (chosen < count)).all():
        raise InputError(f"classes are {chosen.tolist()}, expected 0 to {count - 1}")
    return chosen.long()


def _places(predictions: Tensor, chosen: Tensor) -> Tensor | None:
    """(B, H, W) where a class is predicted, in segmentation."""
    return None if predictions.ndim == 2 else predictions.detach().argmax(dim=1) == chosen.view(-1, 1, 1)


def _scores(predictions: Tensor, chosen: Tensor, places: Tensor | None) -> Tensor:
    """(B,) the class's logit; in segmentation its mean over places."""
    logits = predictions.float()
    own = logits.gather(1, chosen.view(-1, 1, *[1] * (logits.ndim - 2)).expand(-1, 1, *logits.shape[2:]))[:, 0]
    if places is None:
        return own
    return (own * places).sum(dim=(1, 2)) / places.sum(dim=(1, 2)).clamp(min=1)


def _stretched(maps: Tensor) -> Tensor:
    """Each of (B, H, W) to 0..1; one that is the same everywhere is 0."""
    low = maps.amin(dim=(1, 2), keepdim=True)
    span = maps.amax(dim=(1, 2), keepdim=True) - low
    return torch.where(span > 0, (maps - low) / torch.where(span > 0, span, 1.0), 0.0)
