"""pictures/gradcam/: where the network looks in the same validation images, from epoch to epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import default_collate

from cnnlab.errors import InputError
from cnnlab.figures import as_bytes
from cnnlab.filmstrips import add_frame, stack_strips
from cnnlab.imaging import heated
from cnnlab.interpret import METHODS, CamMethod
from cnnlab.loggers import write_picture
from cnnlab.run import Run
from cnnlab.tasks import Classification, Segmentation


class GradCamSnapshots(Callback):
    """A film-strip for each of some validation images: Grad-CAM of its true class, epochs from left to right.

    The strips lie in the run's folder, pictures/gradcam/NUMBER.png, and all together in pictures/gradcam.png, which
    wandb and TensorBoard get as well. They are drawn on the first process, of the weights that are validated. A
    resumed run goes on with them. Nothing of the training changes.

    Args:
        images: How many, evenly taken from the validation set.
        every_n_epochs: How often; ten times in a run, and after its first epoch, if None.
        method: A name in interpret.METHODS.
        layer: Whose activations, by its name in the network; interpret.default_layer if None.

    Raises:
        InputError: If an argument does not fit.
    """

    def __init__(
        self, images: int = 8, every_n_epochs: int | None = None, method: str = "gradcam", layer: str | None = None
    ) -> None:
        if images < 1:
            raise InputError(f"callbacks.gradcam.images is {images}, expected 1 or more")
        if every_n_epochs is not None and every_n_epochs < 1:
            raise InputError(f"callbacks.gradcam.every_n_epochs is {every_n_epochs}, expected 1 or more")
        if method not in METHODS:
            raise InputError(f"callbacks.gradcam.method is {method!r}, expected one of {', '.join(METHODS)}")
        self.images = images
        self.every_n_epochs = every_n_epochs
        self.method = method
        self.layer = layer
        self._cam: CamMethod | None = None
        self._indices: list[int] = []
        self._shown: tuple[Tensor, Tensor | None] | None = None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a frame to each strip, now that the network is the one that is validated (averaged weights, perhaps)."""
        if batch_idx or dataloader_idx or not trainer.is_global_zero or not self._is_due(trainer):
            return
        if not isinstance(pl_module, (Classification, Segmentation)):
            return
        if self._cam is None:
            self._cam = METHODS[self.method](pl_module, None if self.layer is None else f"network.{self.layer}")
            self._indices, self._shown = self._choose(trainer, batch, pl_module)
        assert self._shown is not None
        images, classes = self._shown
        explanation = self._cam(images.to(pl_module.device), classes)
        names = pl_module.class_names
        folder = Run(Path(trainer.default_root_dir)).pictures
        paths = [folder / "gradcam" / f"{index:05}.png" for index in self._indices]
        certain = _probabilities(explanation.predictions, explanation.classes)
        for path, image, heat, chosen, share in zip(
            paths, images, explanation.maps.cpu().numpy(), explanation.classes.tolist(), certain, strict=True
        ):
            pixels = np.moveaxis(as_bytes(image), 0, -1)
            if trainer.current_epoch == 0 or not path.is_file():
                plain = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
                add_frame(path, -1, plain, [names[chosen]])
            add_frame(path, trainer.current_epoch, heated(pixels, heat), [f"epoch {trainer.current_epoch + 1}", share])
        stack_strips(paths, folder / "gradcam.png")
        write_picture(trainer, "val/gradcam", folder / "gradcam.png", trainer.global_step - 1)

    def _is_due(self, trainer: Trainer) -> bool:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return False
        every = self.every_n_epochs or max(1, (trainer.max_epochs or 1) // 10)
        return trainer.current_epoch == 0 or (trainer.current_epoch + 1) % every == 0

    def _choose(
        self, trainer: Trainer, batch: Any, task: Classification | Segmentation
    ) -> tuple[list[int], tuple[Tensor, Tensor | None]]:
        """The images' places in the validation set, they themselves, and the class to look for in each."""
        loaders: Any = trainer.val_dataloaders
        dataset = getattr(loaders, "dataset", None)
        indices = list(range(min(self.images, len(batch[0]))))
        if dataset is not None and hasattr(dataset, "__len__"):
            places = torch.linspace(0, len(dataset) - 1, min(self.images, len(dataset))).round().int()
            indices = sorted(set(places.tolist()))
            batch = _items(dataset, indices)
        images, targets = batch[0][: len(indices)], batch[1][: len(indices)]
        if isinstance(task, Segmentation):
            return indices, (images, _main_classes(targets, task))
        return indices, (images, targets if targets.ndim == 1 and not targets.is_floating_point() else None)


def _items(dataset: Any, indices: list[int]) -> Any:
    try:
        return dataset.__getitems__(indices)
    except AttributeError:
        return default_collate([dataset[index] for index in indices])


def _main_classes(targets: Tensor, task: Segmentation) -> Tensor:
    """The largest class of each mask, the commonest of all left aside, which is the background or the like."""
    counts = torch.stack(
        [torch.bincount(mask[mask != task.hparams["ignore_index"]], minlength=task.num_classes) for mask in targets]
    )
    others = counts.clone()
    others[:, counts.sum(dim=0).argmax()] = 0
    return torch.where(others.sum(dim=1) > 0, others.argmax(dim=1), counts.argmax(dim=1))


def _probabilities(predictions: Tensor, classes: Tensor) -> list[str]:
    """How likely the network holds each image's class for; of which share of the pixels it is predicted."""
    if predictions.ndim == 4:
        shares = (predictions.argmax(dim=1) == classes.view(-1, 1, 1)).float().mean(dim=(1, 2))
        return [f"{share:.0%} of pixels" for share in shares.tolist()]
    own = predictions.float().softmax(dim=1).gather(1, classes[:, None])[:, 0]
    return [f"{share:.0%}" for share in own.tolist()]
