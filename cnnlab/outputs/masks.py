"""Masks: one class for each pixel."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from cnnlab.errors import InputError
from cnnlab.imaging import ImageSource, Pixels, Place, as_png, mask_as_png, overlay_mask, resize
from cnnlab.outputs.base import Arrays, Output
from cnnlab.outputs.labels import probabilities_of

_MOST_CLASSES = 256


class MaskPrediction(NamedTuple):
    """The classes of an image's pixels."""

    path: str
    """The image's file, "" if it has none."""
    classes: Pixels
    """(H, W), the numbers of the classes, at the size of the image."""
    probabilities: npt.NDArray[np.float32] | None
    """(K, h, w), at the size of the network's input."""


class Masks(Output):
    """The probabilities (B, K, H, W) of each pixel's classes.

    Args:
        names: The classes in order.
        ignore_index: The value of ignored pixels in a truth, including pixels whose class is unknown.

    Raises:
        InputError: In answers(), if there are more classes than a PNG mask can store.
    """

    kind = "masks"
    arrays = ("probabilities",)
    dense = True
    shares = ("wrong pixels",)

    def __init__(self, names: Sequence[str], ignore_index: int = 255) -> None:
        super().__init__(names)
        self.ignore_index = ignore_index

    def decode(self, raw: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Logits (B, K, H, W) to probabilities."""
        return {"probabilities": probabilities_of(raw["logits"], sigmoid=False)}

    def answers(self, arrays: Arrays, paths: Sequence[str], places: Sequence[Place | None]) -> list[MaskPrediction]:
        """The most probable class of each pixel, resized to the image's size with nearest-neighbor sampling.

        Args:
            arrays: probabilities (B, K, h, w), or only classes (B, h, w).
            paths: See Output.
            places: See Output.
        """
        if len(self.names) > _MOST_CLASSES:
            raise InputError(
                f"a PNG mask has room for {_MOST_CLASSES} classes, the network has {len(self.names)}: take the arrays "
                "from trainer.predict"
            )
        probabilities = arrays.get("probabilities", [None] * len(paths))
        predictions = []
        for i, (path, place) in enumerate(zip(paths, places, strict=True)):
            classes = arrays["classes"][i] if "classes" in arrays else arrays["probabilities"][i].argmax(axis=0)
            own = classes.astype(np.uint8)[..., None]
            at_size = own if place is None else resize(own, place.size, "nearest")
            predictions.append(MaskPrediction(path, at_size[..., 0], probabilities[i]))
        return predictions

    @property
    def columns(self) -> list[str]:
        """The mask's file, and each class's share of the image."""
        return ["mask", *self.names]

    def rows(
        self, answer: MaskPrediction, truth: npt.NDArray[Any] | None, files: Mapping[str, str]
    ) -> list[list[object]]:
        """One row."""
        shares = np.bincount(answer.classes.flatten(), minlength=len(self.names)) / answer.classes.size
        return [[files.get("masks", ""), *(f"{share:.6g}" for share in shares)]]

    def files(
        self, answer: MaskPrediction, image: ImageSource, overlays: bool, probabilities: bool
    ) -> Iterator[tuple[str, str, bytes]]:
        """masks/NAME.png with a palette; overlays/NAME.png: the image, and beside it the image colored by class.

        probabilities/NAME.npz has ``probabilities``, float16 (K, h, w), at the size of the network's input.
        """
        count = len(self.names)
        yield "masks", ".png", mask_as_png(answer.classes, count)
        if overlays:
            pixels = image.read()
            both = np.concatenate([pixels, overlay_mask(pixels, answer.classes, count)], axis=1)
            yield "overlays", ".png", as_png(Image.fromarray(both))
        if probabilities and answer.probabilities is not None:
            file = io.BytesIO()
            np.savez_compressed(file, probabilities=answer.probabilities.astype(np.float16))
            yield "probabilities", ".npz", file.getvalue()

    def describe(self, answer: MaskPrediction, truth: npt.NDArray[Any] | None) -> dict[str, Any]:
        """The share of wrong pixels among those that are not ignored."""
        return {} if truth is None else {"wrong pixels": round(1 - self._right(answer, truth), 6)}

    def caption(self, answer: MaskPrediction, truth: npt.NDArray[Any] | None) -> str:
        """The share of right pixels, or the classes with the most pixels."""
        return self.label(answer.classes) if truth is None else f"{self._right(answer, truth):.0%} right"

    def picture(self, pixels: Pixels, answer: MaskPrediction, truth: npt.NDArray[Any] | None) -> Pixels:
        """The image, its true classes if they are known, and its predicted classes, side by side."""
        shown = [answer.classes] if truth is None else [truth, answer.classes]
        return np.concatenate([pixels, *(overlay_mask(pixels, one, len(self.names)) for one in shown)], axis=1)

    def drawn(self, pixels: Pixels, target: npt.NDArray[Any]) -> Pixels:
        """The image, colored by its classes."""
        return overlay_mask(pixels, target, len(self.names))

    def label(self, target: npt.NDArray[Any]) -> str:
        """The three classes with the most pixels."""
        counts = np.bincount(target[(target >= 0) & (target < len(self.names))].ravel(), minlength=len(self.names))
        most = [number for number in np.argsort(-counts, kind="stable").tolist() if counts[number]][:3]
        return "\n".join(f"{self.names[number]} {counts[number] / target.size:.0%}" for number in most) or "-"

    def known(self, target: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
        """None if all pixels are ignored."""
        return target if (target != self.ignore_index).any() else None

    def to_explain(self, truths: Sequence[npt.NDArray[Any] | None]) -> list[int | None]:
        """Each mask's largest class; the most frequent class of all masks, such as background, only if it is alone."""
        count = len(self.names)
        counts = np.zeros((len(truths), count), dtype=np.int64)
        for row, truth in zip(counts, truths, strict=True):
            if truth is not None:
                row += np.bincount(truth[truth != self.ignore_index].ravel(), minlength=count)
        others = counts.copy()
        others[:, counts.sum(axis=0).argmax()] = 0
        largest = np.where(others.sum(axis=1) > 0, others.argmax(axis=1), counts.argmax(axis=1))
        return [None if truth is None else int(one) for truth, one in zip(truths, largest, strict=True)]

    def certainty(self, arrays: Arrays, name: int) -> str:
        """The share of pixels with this predicted class."""
        return f"{(arrays['probabilities'].argmax(axis=1) == name).mean():.0%} of pixels"

    def _right(self, answer: MaskPrediction, truth: npt.NDArray[Any]) -> float:
        counted = truth != self.ignore_index
        return float((answer.classes == truth)[counted].mean()) if counted.any() else 0.0
