"""Class activation maps: the regions of an image that speak for a class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.errors import InputError
from cnnlab.interpret.layers import default_layer, forward_hook, get_layer, preserve_state, to_grid


class Explanation(NamedTuple):
    """Class activation maps of a batch."""

    maps: Tensor
    """(B, H, W) float32 in 0..1, at the image's size; 1 speaks most for the class; all 0 if nothing does."""
    classes: Tensor
    """(B,) int64, the explained classes."""
    predictions: Any
    """The network's raw outputs: logits (B, K), or (B, K, H, W) in segmentation; a detector's by name."""


class CamMethod(ABC):
    """Base class of methods that sum a layer's weighted channels, set negative values to 0, and resize to the image.

    The network's modes, hooks, gradients, requires_grad and random states are restored afterwards. The network may be
    frozen, compiled (it runs uncompiled here), or change activations in place. Inference mode and mixed precision work.

    Args:
        network: Images to logits (B, K), or (B, K, H, W) for segmentation.
        layer: A layer's name in named_modules; layers.default_layer of the first images if None.
        scores: Converts the network's outputs to such logits, if they are something else.

    Raises:
        InputError: If there is no such layer.
    """

    def __init__(
        self, network: nn.Module, layer: str | None = None, scores: Callable[[Any], Tensor] = lambda outputs: outputs
    ) -> None:
        self.network = network
        self.layer = layer
        self.scores = scores
        if layer is not None:
            get_layer(network, layer)

    def __call__(self, images: Tensor, classes: int | Sequence[int] | Tensor | None = None) -> Explanation:
        """Explain a batch of images.

        Args:
            images: The network's input, (B, C, H, W).
            classes: The class to explain, one for all images or one for each; the predicted class if None. In
                segmentation, the predicted class is that of most pixels, and the pixels predicted as the class are
                explained.

        Raises:
            InputError: If the layer returns no map, or the network has no such class.
        """
        with preserve_state(self.network):
            # Inference tensors cannot be used outside inference mode.
            images = images.clone() if images.is_inference() else images
            if self.layer is None:
                self.layer = default_layer(self.network, images)
            maps, chosen, predictions = self._explain(images, classes)
            maps = F.interpolate(maps.clamp(min=0)[:, None], images.shape[2:], mode="bilinear", align_corners=False)
        return Explanation(_normalize_maps(maps[:, 0]), chosen, predictions)

    @abstractmethod
    def _explain(self, images: Tensor, classes: int | Sequence[int] | Tensor | None) -> tuple[Tensor, Tensor, Any]:
        """The maps (B, h, w), the classes (B,), and the network's raw outputs."""

    def _run(self, images: Tensor, hook: Callable[..., Tensor | None]) -> Any:
        """Run the network with a forward hook on the layer."""
        assert self.layer is not None
        with forward_hook(get_layer(self.network, self.layer), hook, self.layer):
            return self.network(images)

    def _to_grid(self, activations: Tensor, images: Tensor) -> Tensor:
        assert self.layer is not None
        return to_grid(self.network, self.layer, activations, (images.shape[2], images.shape[3])).float()


class _GradientMethod(CamMethod):
    """Weighs channels by the gradients of the class's logit."""

    def _explain(self, images: Tensor, classes: int | Sequence[int] | Tensor | None) -> tuple[Tensor, Tensor, Any]:
        assert self.layer is not None
        outputs: list[Tensor] = []

        def detach_output(module: nn.Module, args: object, output: object) -> Tensor:
            if not isinstance(output, Tensor):
                raise InputError(f"layer {self.layer!r} gives {type(output).__name__}, expected a tensor")
            # Earlier layers run without gradients, and autograd saves nothing for them.
            torch.set_grad_enabled(True)
            outputs.append(output.detach().requires_grad_())
            # The next layer may change its input in place.
            return outputs[-1].clone()

        predictions = self._run(images, detach_output)
        logits = self.scores(predictions)
        chosen = _choose_classes(logits, classes)
        scores = _class_scores(logits, chosen, _predicted_pixels(logits, chosen))
        # Gradients of the activations only, never of the weights; 0 if the logits do not depend on them.
        gradients = torch.zeros_like(outputs[-1])
        if scores.requires_grad:
            (gradients,) = torch.autograd.grad(scores.sum(), outputs[-1:], allow_unused=True, materialize_grads=True)
        torch.set_grad_enabled(False)
        activations = self._to_grid(outputs[-1].detach(), images)
        weights = self._weights(activations, self._to_grid(gradients, images))
        return (weights[:, :, None, None] * activations).sum(dim=1), chosen, _detached(predictions)

    @abstractmethod
    def _weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Weights (B, C) from activations and gradients (B, C, h, w)."""


class GradCAM(_GradientMethod):
    """Grad-CAM: a channel's weight is its mean gradient (Selvaraju et al. 2017, arXiv:1610.02391).

    The batch takes one forward pass, and one backward pass that ends at the layer.

    >>> from cnnlab.models import SimpleCNN
    >>> explanation = GradCAM(SimpleCNN())(torch.rand(4, 1, 28, 28))
    >>> explanation.maps.shape, explanation.classes.shape
    (torch.Size([4, 28, 28]), torch.Size([4]))
    """

    def _weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return gradients.mean(dim=(2, 3))


class GradCAMPlusPlus(_GradientMethod):
    """Grad-CAM++: positions are weighted by powers of their gradients, which shows several objects better.

    Chattopadhay et al. 2018 (arXiv:1710.11063), equation 19, for the exponential of the class's logit.
    """

    def _weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        square = gradients**2
        denominator = 2 * square + activations.sum(dim=(2, 3), keepdim=True) * square * gradients
        alpha = torch.where(denominator != 0, square / torch.where(denominator != 0, denominator, 1.0), 0.0)
        return (alpha * gradients.clamp(min=0)).sum(dim=(2, 3))


class ScoreCAM(CamMethod):
    """Score-CAM: a channel's weight is the class's logit of the image masked by that channel; no gradients.

    The weights are the softmax of those logits over the channels (Wang et al. 2020, arXiv:1910.01279). It takes one
    forward pass per channel.

    Args:
        network: See CamMethod.
        layer: See CamMethod.
        scores: See CamMethod.
        batch_size: The number of channels per forward pass.
    """

    def __init__(
        self,
        network: nn.Module,
        layer: str | None = None,
        scores: Callable[[Any], Tensor] = lambda outputs: outputs,
        batch_size: int = 32,
    ) -> None:
        super().__init__(network, layer, scores)
        self.batch_size = batch_size

    def _explain(self, images: Tensor, classes: int | Sequence[int] | Tensor | None) -> tuple[Tensor, Tensor, Any]:
        assert self.layer is not None
        outputs: list[Tensor] = []
        predictions = self._run(images, lambda module, args, output: outputs.append(output.clone()))
        activations = self._to_grid(outputs[-1], images)
        chosen = _choose_classes(self.scores(predictions), classes)
        pixel_masks = _predicted_pixels(self.scores(predictions), chosen)
        pixels = images if images.is_floating_point() else images.float() / 255
        masks: list[Tensor | None] = [None] * len(images) if pixel_masks is None else list(pixel_masks)
        inputs = zip(pixels, activations, chosen, masks, strict=True)
        weights = torch.stack([self._channel_weights(*one) for one in inputs])
        return (weights[:, :, None, None] * activations).sum(dim=1), chosen, predictions

    def _channel_weights(self, image: Tensor, activations: Tensor, chosen: Tensor, mask: Tensor | None) -> Tensor:
        """Weights (C,) of an image (channels, H, W) with activations (C, h, w)."""
        scores = []
        for part in torch.split(activations, self.batch_size):
            resized = F.interpolate(part[:, None], image.shape[1:], mode="bilinear", align_corners=False)
            masked = image * _normalize_maps(resized[:, 0])[:, None]
            predictions = self.scores(self.network(masked.to(image.dtype)))
            # The pixels predicted as the class in the unmasked image, whatever they are in the masked one.
            own_pixels = None if mask is None else mask.expand(len(part), -1, -1)
            scores.append(_class_scores(predictions, chosen.expand(len(part)), own_pixels))
        return torch.cat(scores).softmax(dim=0)


METHODS: dict[str, type[CamMethod]] = {"gradcam": GradCAM, "gradcam++": GradCAMPlusPlus, "scorecam": ScoreCAM}
"""Methods by name."""


def _detached(outputs: Any) -> Any:
    """Raw outputs without their gradients."""
    if isinstance(outputs, Mapping):
        return {name: _detached(value) for name, value in outputs.items()}
    return outputs.detach()


def _choose_classes(predictions: Tensor, classes: int | Sequence[int] | Tensor | None) -> Tensor:
    """The classes to explain, (B,)."""
    if not isinstance(predictions, Tensor) or predictions.ndim not in (2, 4):
        shape = tuple(predictions.shape) if isinstance(predictions, Tensor) else type(predictions).__name__
        raise InputError(f"the network returns {shape}, expected logits (batch, classes), or those of each pixel")
    batch, count = predictions.shape[:2]
    if classes is None:
        predicted = predictions.detach().argmax(dim=1)
        return predicted if predictions.ndim == 2 else predicted.flatten(1).mode(dim=1).values
    # Cloned: inference tensors cannot be used outside inference mode.
    chosen = torch.as_tensor(classes, device=predictions.device).clone().expand(batch)
    if chosen.is_floating_point() or not ((chosen >= 0) & (chosen < count)).all():
        raise InputError(f"classes are {chosen.tolist()}, expected 0 to {count - 1}")
    return chosen.long()


def _predicted_pixels(predictions: Tensor, chosen: Tensor) -> Tensor | None:
    """In segmentation, the pixels predicted as the class, bool (B, H, W); None in classification."""
    return None if predictions.ndim == 2 else predictions.detach().argmax(dim=1) == chosen.view(-1, 1, 1)


def _class_scores(predictions: Tensor, chosen: Tensor, pixel_masks: Tensor | None) -> Tensor:
    """The class's logit (B,); in segmentation, its mean over the masked pixels."""
    logits = predictions.float()
    own = logits.gather(1, chosen.view(-1, 1, *[1] * (logits.ndim - 2)).expand(-1, 1, *logits.shape[2:]))[:, 0]
    if pixel_masks is None:
        return own
    return (own * pixel_masks).sum(dim=(1, 2)) / pixel_masks.sum(dim=(1, 2)).clamp(min=1)


def _normalize_maps(maps: Tensor) -> Tensor:
    """Scale each of (B, H, W) to 0..1; a constant map becomes 0."""
    low = maps.amin(dim=(1, 2), keepdim=True)
    span = maps.amax(dim=(1, 2), keepdim=True) - low
    return torch.where(span > 0, (maps - low) / torch.where(span > 0, span, 1.0), 0.0)
