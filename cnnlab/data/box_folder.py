"""BoxFolder: images with the boxes of their objects, in the formats of YOLO, COCO, Pascal VOC or a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from cnnlab.data.augmentation import Augmentation, InputSpec, NoAugmentation
from cnnlab.data.base import ClassesMixin, VisionDataModule
from cnnlab.data.file_data import FileDataModule, fill
from cnnlab.data.files import AugmentedFiles, FileDataset
from cnnlab.data.mixing import create_mixing
from cnnlab.data.object_annotation import ObjectAnnotation
from cnnlab.data.object_augmentation import ObjectTransform
from cnnlab.data.object_mixing import MixedFiles, ObjectMixing, check_scales
from cnnlab.data.objects.listing import ObjectListing, list_objects
from cnnlab.data.objects.places import read_sizes
from cnnlab.data.objects.survey import survey_objects
from cnnlab.data.objects.table import ObjectTable
from cnnlab.data.samples import Sample, SampleTable
from cnnlab.errors import InputError
from cnnlab.image_files import check_name, listed
from cnnlab.imaging import EvalTransform, ImageSource, fitted_size, height_and_width, resampling
from cnnlab.objects import Truth

_MULTIPLE = 32
"""Height and width of the input are multiples of this, the coarsest stride of most detectors."""
_MOST_SIZES = 2_000
"""Of how many images the size is looked up, to find the shape of the input."""


class BoxFolder(ClassesMixin, FileDataModule):
    """Images and the boxes of their objects.

    The files are YOLO's (data.yaml and a text file an image), COCO's (JSON), Pascal VOC's (XML), or a table with the
    columns path, x1, y1, x2, y2 and class. Without splits of their own, a fixed split is made. An image without objects
    is an example of what is none.

    Images keep their aspect ratio: each is fitted into the input, and what is left over at the right and below is
    filled.

    Args:
        root: The folder; paths in a table are relative to it.
        format: yolo, coco, voc or csv; auto finds out.
        class_names: The classes in order; those of the data in their order if None.
        size: Height and width of the input, or its longer side in one number: the other side is then the shortest one
            into which the images fit, a multiple of 32.
        interpolation: See imaging.INTERPOLATIONS.
        least_visible: An object of which a training image shows a smaller share of its box is left out, 0..1.
        repeat: Images with rare classes are drawn more often: one whose rarest class is in a share f of the images gets
            the weight max(1, sqrt(repeat / f)) (Gupta et al. 2019, arXiv:1908.03195); 0 draws all equally often.
        mixing: Mosaic, copy-paste and mixup of training images: arguments of object_mixing.ObjectMixing.
        multi_scale: The smallest and the largest size of a training batch, as factors of ``size``: each step has its
            own, a multiple of 32.
        batch_size: Samples per process and step, 1 or greater.
        **kwargs: See FileDataModule.

    Raises:
        InputError: If there are no images, if a file or a box is wrong, or if an argument is out of range.
    """

    kind: ClassVar[str | None] = "boxes"
    PROVIDES: ClassVar[tuple[str, ...]] = (*VisionDataModule.PROVIDES, "num_classes", "class_names", "category_ids")
    RESOLVED: ClassVar[tuple[str, ...]] = ("class_names", "size", *FileDataModule.RESOLVED)
    ANNOTATIONS: ClassVar[Literal["fixed", "masks", "boxes"]] = "boxes"
    MASK_SIDE: ClassVar[int] = 0
    """See ObjectAnnotation.mask_side."""

    def __init__(
        self,
        root: str,
        format: Literal["auto", "yolo", "coco", "voc", "csv"] = "auto",
        class_names: Sequence[str] | None = None,
        size: int | Sequence[int] = 640,
        interpolation: str = "bilinear",
        least_visible: float = 0.3,
        repeat: float = 0.0,
        mixing: dict[str, float] | None = None,
        multi_scale: Sequence[float] | None = None,
        batch_size: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, batch_size=batch_size, **kwargs)
        for name, value in (("least_visible", least_visible), ("repeat", repeat)):
            if not 0 <= value <= 1:
                raise InputError(f"data.{name} is {value}, expected 0 to 1")
        resampling(interpolation)
        self._mixing: ObjectMixing | None = create_mixing(mixing, ObjectMixing)
        self._scales = check_scales("data.multi_scale", multi_scale)
        self._format = format
        self._given_names = class_names
        self.class_names = list(class_names) if class_names is not None else list(self._found.class_names)
        for name in self.class_names:
            check_name(name)
        sides = height_and_width("data.size", size)
        assert sides is not None
        self._size = self._shape_for(size) if isinstance(size, int) else sides
        self.hparams["class_names"], self.hparams["size"] = self.class_names, list(self._size)

    @cached_property
    def _found(self) -> ObjectListing:
        on_error = self.hparams["on_error"]
        listing = self.usable(list_objects(self.root, self.csv, self._format, self._given_names, on_error))
        for note in listing.notes:
            rank_zero_warn(note)
        return listing

    def usable(self, found: ObjectListing) -> ObjectListing:
        """The images whose objects can be learned and measured: all of them."""
        return found

    @property
    def category_ids(self) -> list[int] | None:
        """COCO's number of each class; None for other formats."""
        return self._found.category_ids

    @property
    def image_ids(self) -> dict[str, int | str]:
        """COCO's number of each image, by its path; none for other formats."""
        return self._found.image_ids or {}

    @property
    def table(self) -> ObjectTable:
        """The objects of all images."""
        return self._found.table

    def _shape_for(self, longest: int) -> tuple[int, int]:
        """The smallest height and width into which the images fit with this longer side."""
        step = max(1, len(self.samples) // _MOST_SIZES)
        sizes = read_sizes(sample.path for sample in self.samples[::step]).tolist()
        shapes = [fitted_size(size, (longest, longest)) for size in sizes if min(size)]
        rows, columns = (
            _MULTIPLE * math.ceil(max(sides) / _MULTIPLE)
            for sides in zip(*(shapes or [(longest, longest)]), strict=True)
        )
        return rows, columns

    def list_samples(self) -> list[Sample]:
        """All images, each with its row in the table of objects."""
        return self._found.samples

    def describe_targets(self) -> str:
        """The classes, how the files lie, and how many images have no objects."""
        counts = self.table.counts
        empty = [sample.name for sample in self.listing.samples if not counts[sample.objects]]
        without = f"{len(empty):,} images have no objects ({listed(empty, most=3)})" if empty else ""
        return "; ".join(filter(None, (super().describe_targets(), self._found.layout, without)))

    def read_annotations(self, samples: SampleTable) -> ObjectReader:
        """The reader of the objects."""
        known = np.full(len(samples), -1) if samples.objects is None else samples.objects
        rows, paths = np.where(samples.splits > 0, known, -1).tolist(), list(samples.paths)
        return ObjectReader(self.table, paths, rows, self.hparams["least_visible"], self.MASK_SIDE)

    def try_reading(self, sample: Sample) -> None:
        """Read an image, and compare its size with its objects' file.

        Raises:
            ImageError: If the image cannot be read, or has another size.
        """
        image = self.open_image(sample.path)
        self.read_annotations(SampleTable.of([sample]))(0, image)
        image.read(self.channels)

    def inspect_training(self) -> None:
        """Check that there is something to learn.

        Raises:
            InputError: If no training image has an object.
        """
        super().inspect_training()
        counts = self._training_counts()
        if not counts.any():
            raise InputError(f"{self.root}: no training image has an object, so there is nothing to learn: add boxes")
        absent = [name for name, count in zip(self.class_names, counts.tolist(), strict=True) if not count]
        if absent:
            rank_zero_warn(f"{len(absent)} of {self.num_classes} classes have no training objects: {listed(absent)}")

    def _training_counts(self) -> np.ndarray[Any, Any]:
        labels = self.table.subset([sample.objects for sample in self.listing.of["train"]]).labels
        return np.bincount(labels, minlength=self.num_classes)

    def train_weights(self) -> Tensor | None:
        """(N,) relative sampling weight of each training image; None if each is drawn once an epoch."""
        if not self.hparams["repeat"]:
            return None
        training = self.table.subset([sample.objects for sample in self.listing.of["train"]])
        images = np.repeat(np.arange(len(training.offsets) - 1), np.diff(training.offsets))
        present = np.zeros((len(training.offsets) - 1, self.num_classes), dtype=bool)
        present[images, training.labels] = True
        share = present.mean(axis=0).clip(1e-12)
        of_class = np.maximum(1.0, np.sqrt(self.hparams["repeat"] / share))
        return torch.from_numpy(np.where(present, of_class, 1.0).max(axis=1))

    def input_spec(self) -> InputSpec:
        """The input of the network in training."""
        mean = self.mean if self.preprocessing is None else self.preprocessing.mean
        return InputSpec(self._size, self.channels, fill(mean), 1.0, self.hparams["interpolation"], fit=True)

    def create_train_set(self, source: FileDataset) -> AugmentedFiles:
        """The training images, augmented and mixed."""
        augmentation, spec = self.augmentation, self.input_spec()
        if self.training_size is not None:
            spec = spec._replace(size=(self.training_size,) * 2, whole=spec.size)
            augmentation = _of_parts(augmentation)
        return MixedFiles(
            source,
            augmentation,
            spec,
            self.seed,
            objects_mixing=self._mixing,
            scales=self._scales,
            total=self.samples_of_run(len(source)),
        )

    def eval_transform(self) -> EvalTransform:
        """The transform of a whole image, which is fitted into the size."""
        return self.with_tones(self.input_spec().eval_transform())

    def split_remedy(self, split: str) -> str:
        """Folders, or a table."""
        return f"name images for {split} in the data's own way, or give a table with a column split (data.csv)"

    def describe_training(self) -> str:
        """The number of training objects in each class."""
        counts = zip(self.class_names, self._training_counts().tolist(), strict=True)
        return "training objects by class: " + ", ".join(f"{name} {count:,}" for name, count in counts)

    def describe_images(self) -> list[str]:
        """Lines about the images and the objects, for ``cnnlab data check``."""
        samples = self.listing.samples
        own = self.table.subset([sample.objects for sample in samples])
        names, sizes = [sample.name for sample in samples], read_sizes(sample.path for sample in samples)
        found = survey_objects(own, self.class_names, sizes, self._size, names=names)
        return [*super().describe_images(), *found]

    def target_columns(self, samples: SampleTable) -> dict[str, Iterable[str]]:
        """How many objects of each class there are."""
        assert samples.objects is not None
        return {"objects": [self._counted(row) for row in samples.objects.tolist()]}

    def _counted(self, row: int) -> str:
        """How many objects of each class an image has, as text."""
        counts = np.bincount(self.table.labels_of(row), minlength=self.num_classes).tolist()
        return ";".join(f"{name} {count}" for name, count in zip(self.class_names, counts, strict=True) if count)


def _of_parts(augmentation: Augmentation) -> Augmentation:
    """The augmentation of images of which only parts are trained on.

    Raises:
        InputError: If it takes whole images.
    """
    if isinstance(augmentation, NoAugmentation):
        one = (1.0, 1.0)
        return ObjectTransform(one, one, flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    if not isinstance(augmentation, ObjectTransform):
        raise InputError(
            "data.augment albumentations takes whole images, and model.tile trains on parts of them: choose another, "
            "or leave model.tile out"
        )
    return augmentation


@dataclass(eq=False)
class ObjectReader:
    """Reads the objects of an image from the table."""

    table: ObjectTable
    paths: Sequence[str]
    rows: Sequence[int]
    """Each image's row in the table; -1 if its objects are unknown."""
    least_visible: float
    mask_side: int = 0
    """See ObjectAnnotation."""

    draws = ObjectAnnotation.draws

    def __call__(self, index: int, image: ImageSource) -> ObjectAnnotation:
        """The objects of an image.

        Raises:
            ImageError: If the image has another size than its objects' file says.
        """
        row, size = self.rows[index], image.size
        if row < 0:
            none = np.zeros(0)
            return ObjectAnnotation(
                np.zeros((0, 4)), none.astype(np.int64), none.astype(bool), size, known=False, mask_side=self.mask_side
            )
        own = self.table.of(row, size, self.paths[index])
        boxes, labels = own.boxes, own.labels.astype(np.int64)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) if own.areas is None else own.areas
        shapes = None if self.table.shapes is None else own.shapes
        truth = Truth(boxes, labels, own.crowd, areas, size, size, shapes)
        return ObjectAnnotation(
            boxes,
            labels,
            own.crowd,
            size,
            shapes,
            self.least_visible,
            truth,
            mask_side=self.mask_side,
            original=size,
        )
