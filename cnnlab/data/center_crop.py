"""CenterCropDataModule: image files whose center is looked at in evaluation, with a cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from cnnlab.data.augmentation import InputSpec
from cnnlab.data.cache import ImageCache
from cnnlab.data.file_data import FileDataModule, fill, height_and_width
from cnnlab.data.files import Opener
from cnnlab.data.listing import SPLITS, SampleIndex
from cnnlab.errors import InputError
from cnnlab.imaging import LazyImage, Preprocessing, resampling

_CACHE = Path("~/.cache/cnnlab/images")


class CenterCropDataModule(FileDataModule):
    """Image files with one answer for the whole image: evaluation resizes them and crops the center.

    Args:
        root: The folder; paths in a table start from it.
        size: Height and width of what the network sees (or both in one number); the pretrained network's if
            None, 224 without one.
        crop: See imaging.Preprocessing; the pretrained network's if None, 0.875 without one.
        interpolation: See imaging.INTERPOLATIONS; the pretrained network's if None, bilinear without one.
        cache: Keep decoded images, no larger than evaluation needs them, in memory or on disk.
        cache_folder: The folder of the cache on disk; ~/.cache/cnnlab/images if None.
        **kwargs: See FileDataModule.

    Raises:
        InputError: If an argument is out of range.
    """

    RESOLVED: ClassVar[tuple[str, ...]] = ("size", "crop", "interpolation")

    def __init__(
        self,
        root: str,
        size: int | Sequence[int] | None = None,
        crop: float | None = None,
        interpolation: str | None = None,
        cache: Literal["memory", "disk"] | None = None,
        cache_folder: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        if crop is not None and not 0 < crop <= 1:
            raise InputError(f"data.crop is {crop}, expected above 0, to 1")
        if interpolation is not None:
            resampling(interpolation)
        sides = height_and_width("size", size)
        # A checkpoint holds plain lists.
        self.hparams["size"] = list(sides) if sides is not None else None
        # adopt() changes the hyperparameters; another task may expect something else.
        self._asked = {"size": self.hparams["size"], "crop": crop, "interpolation": interpolation}

    def input_spec(self) -> InputSpec:
        """As asked, else as the pretrained network expects it."""
        given: dict[str, Any] = {"size": (224, 224), "crop": 0.875, "interpolation": "bilinear", "mean": self.mean}
        if self.preprocessing is not None:
            given |= self.preprocessing._asdict()
        given |= {name: value for name, value in self._asked.items() if value is not None}
        height, width = given["size"]
        return InputSpec((height, width), self.channels, fill(given["mean"]), given["crop"], given["interpolation"])

    def adopt(self, preprocessing: Preprocessing | None) -> None:
        """Take over what a pretrained network expects, where nothing else was asked for."""
        super().adopt(preprocessing)
        spec = self.input_spec()
        self.hparams["size"] = list(spec.size)
        self.hparams["crop"], self.hparams["interpolation"] = spec.crop, spec.interpolation

    def prepare_data(self) -> None:
        """Write the cache on disk; Lightning calls this on one process of a machine."""
        self.adopt_from_trainer()
        if self.hparams["cache"] == "disk" and not self._predicts_elsewhere:
            self._leave_out_broken()
            self.opener(self.listing, SPLITS)

    def opener(self, listing: SampleIndex, splits: Sequence[str]) -> Opener:
        """What opens the images of these splits; the cache on disk holds all splits."""
        if self.hparams["cache"] is None:
            return LazyImage
        if self.hparams["cache"] == "memory":
            return ImageCache([sample.path for split in splits for sample in listing.of[split]], self.input_spec())
        folder = Path(self.hparams["cache_folder"] or _CACHE).expanduser()
        return ImageCache([sample.path for sample in listing.samples], self.input_spec(), folder)
