"""CenterCropDataModule: image files with a center crop in evaluation, and a cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from cnnlab.data.augmentation import InputSpec
from cnnlab.data.cache import ImageCache
from cnnlab.data.file_data import FileDataModule, fill
from cnnlab.data.files import Opener
from cnnlab.data.samples import SPLITS, SampleIndex
from cnnlab.errors import InputError
from cnnlab.imaging import Preprocessing, height_and_width, resampling

_CACHE = Path("~/.cache/cnnlab/images")


class CenterCropDataModule(FileDataModule):
    """Image files with one target for the whole image: evaluation resizes them and crops the center.

    Args:
        root: The folder; paths in a table are relative to it.
        size: Height and width of the network's input (or both in one number); the pretrained network's if
            None, 224 without one.
        crop: See imaging.Preprocessing; the pretrained network's if None, 0.875 without one.
        interpolation: See imaging.INTERPOLATIONS; the pretrained network's if None, bilinear without one.
        cache: Keep decoded images, no larger than evaluation needs, in memory or on disk.
        cache_folder: The folder of the cache on disk; ~/.cache/cnnlab/images if None.
        **kwargs: See FileDataModule.

    Raises:
        InputError: If an argument is out of range.
    """

    RESOLVED: ClassVar[tuple[str, ...]] = ("size", "crop", "interpolation", *FileDataModule.RESOLVED)

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
        sides = height_and_width("data.size", size)
        # Checkpoints contain plain lists.
        self.hparams["size"] = list(sides) if sides is not None else None
        # The original arguments: adopt() changes the hyperparameters, and another task may expect other values.
        self._asked = {"size": self.hparams["size"], "crop": crop, "interpolation": interpolation}

    def input_spec(self) -> InputSpec:
        """The arguments' values; those of the pretrained network for arguments that are None."""
        given: dict[str, Any] = {"size": (224, 224), "crop": 0.875, "interpolation": "bilinear", "mean": self.mean}
        if self.preprocessing is not None:
            given |= self.preprocessing._asdict()
        given |= {name: value for name, value in self._asked.items() if value is not None}
        height, width = given["size"]
        return InputSpec((height, width), self.channels, fill(given["mean"]), given["crop"], given["interpolation"])

    def adopt(self, preprocessing: Preprocessing | None) -> None:
        """Adopt the preprocessing of a pretrained network for all arguments that are None."""
        super().adopt(preprocessing)
        spec = self.input_spec()
        self.hparams["size"] = list(spec.size)
        self.hparams["crop"], self.hparams["interpolation"] = spec.crop, spec.interpolation

    def prepare_data(self) -> None:
        """Write the cache on disk; Lightning calls this on one process of a machine."""
        self.adopt_from_trainer()
        if self.hparams["cache"] == "disk" and not self._predicts_elsewhere:
            if self.trainer is None or self.trainer.state.fn == "fit":
                self.find_tones()
            self.leave_out_broken()
            self.opener(self.listing, SPLITS)

    def opener(self, listing: SampleIndex, splits: Sequence[str]) -> Opener:
        """The function that opens the images of these splits; the cache on disk holds all splits."""
        if self.hparams["cache"] is None:
            return super().opener(listing, splits)
        spec, tones = self.input_spec(), self.eval_transform().tones
        if self.hparams["cache"] == "memory":
            return ImageCache([sample.path for split in splits for sample in listing.of[split]], spec, tones=tones)
        folder = Path(self.hparams["cache_folder"] or _CACHE).expanduser()
        return ImageCache([sample.path for sample in listing.samples], spec, folder, tones)
