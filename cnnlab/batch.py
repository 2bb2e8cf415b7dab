"""Batch: the type that every loader yields, in every stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cnnlab.errors import InputError

_FORMS = (
    ("image", "images"),
    ("mask", "label", "labels", "target", "targets", "bbox_xyxy", "bbox"),
    ("path", "paths", "filename"),
)
"""The keys of images, targets and paths in other libraries' batches."""


class Batch:
    """Images, their targets, and their indices and paths.

    A user's LightningModule may also unpack it as a pair: ``images, targets = batch``. It is no dataclass, so that
    Lightning does not round its targets to a half-precision network's numbers.

    Args:
        images: (B, C, H, W), uint8 0..255 or float 0..1.
        targets: The targets from the data: B items that can be sliced. Classes (B,) int64, -1 if unknown; several
            labels (B, K) float; masks (B, H, W) int64, ignore_index if unknown; values (B, V) float, NaN if unknown.
        indices: (B,) int64, each image's index in the data set; -1 if the data do not provide it.
        paths: Each image's file, "" if it has none.
        group_counts: (P,) what the loss counts (see VisionTask.loss_counts) in all batches of this process that belong
            to the same optimizer step; None if the loader does not know it.
        has_unknown: Whether the targets are classes (B,) of which some are unknown; looked up if None.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Any,
        indices: Tensor,
        paths: Sequence[str],
        group_counts: Tensor | None = None,
        has_unknown: bool | None = None,
    ) -> None:
        self.images = images
        self.targets = targets
        self.indices = indices
        self.paths = paths
        self.group_counts = group_counts
        if has_unknown is None:
            # Looked up here, before the batch is on a device that would have to be waited for.
            classes = isinstance(targets, Tensor) and targets.ndim == 1 and not targets.is_floating_point()
            has_unknown = classes and bool((targets < 0).any())
        self.has_unknown = has_unknown

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def __iter__(self) -> Iterator[Any]:
        """Images and targets."""
        return iter((self.images, self.targets))

    def __getitem__(self, place: int) -> Any:
        """The images at 0, the targets at 1."""
        return (self.images, self.targets)[place]

    @classmethod
    def of(cls, batch: Any) -> Batch:
        """Convert any loader's batch to a Batch: a Batch itself, (images, targets), or torchgeo's dictionaries.

        Raises:
            InputError: If the batch has another form.
        """
        if isinstance(batch, Batch):
            return batch
        indices, paths = None, None
        if isinstance(batch, Mapping):
            images, targets, paths = (next((batch[k] for k in keys if k in batch), None) for keys in _FORMS)
            indices = batch.get("index")
            if isinstance(targets, Tensor) and "mask" in batch and targets.ndim == 4 and targets.shape[1] == 1:
                targets = targets[:, 0]
        elif isinstance(batch, (tuple, list)) and len(batch) == 2:
            images, targets = batch
        else:
            images = targets = None
        if not isinstance(images, Tensor) or targets is None:
            form = (
                f"with the keys {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else "that cannot be read"
            )
            raise InputError(
                f"a batch is a {type(batch).__name__} {form}, expected a Batch, (images, targets) or a dictionary with "
                "image and one of mask, label or bbox"
            )
        if indices is None:
            indices = torch.full((len(images),), -1)
        return cls(images, targets, indices, [""] * len(images) if paths is None else list(paths))

    def first(self, count: int) -> Batch:
        """The first ``count`` images; none for 0, for a process that has fewer batches than others."""
        return Batch(self.images[:count], self.targets[:count], self.indices[:count], self.paths[:count])

    def to(self, device: torch.device | str, **kwargs: Any) -> Batch:
        """The batch on a device; Lightning calls it."""
        device = torch.device(device)
        kwargs.setdefault("non_blocking", device.type == "cuda")
        return self._changed("to", device, **kwargs)

    def pin_memory(self, device: Any = None) -> Batch:
        """The batch in page-locked memory; PyTorch's DataLoader calls it."""
        return self._changed("pin_memory")

    def replace(self, **parts: Any) -> Batch:
        """A batch with other images, targets, indices or paths."""
        return Batch(**{**vars(self), **parts})

    def _changed(self, method: str, *args: Any, **kwargs: Any) -> Batch:
        """Call a method of images, targets and indices, where they have it."""
        values = {name: getattr(self, name) for name in ("images", "targets", "indices")}
        changed = {
            name: getattr(value, method)(*args, **kwargs) for name, value in values.items() if hasattr(value, method)
        }
        return self.replace(**changed)
