"""pictures/gradcam/: Grad-CAM of the same validation images over the epochs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.functional import interpolate

from cnnlab.batch import Batch
from cnnlab.callbacks.pace import Pace
from cnnlab.errors import InputError
from cnnlab.filmstrips import add_frame, stack_strips
from cnnlab.imaging import Pixels, overlay_heatmap
from cnnlab.interpret import METHODS, CamMethod, default_layer, get_layer
from cnnlab.loggers import write_picture
from cnnlab.pictures import as_rgb, numpy_answers, numpy_targets
from cnnlab.run import Run
from cnnlab.strategies import spreads_weights
from cnnlab.tasks import VisionTask

_LARGEST = 1024
"""Larger images of segmentation are shrunk: whole, they may not fit into memory, and a frame is small."""


class _Shown(NamedTuple):
    """A validation image."""

    number: int
    """Its index in the validation set."""
    image: Tensor
    """(1, C, H, W)."""
    chosen: Tensor | None
    """(1,) the class to explain; the predicted one if None."""


class GradCamSnapshots(Callback):
    """Draws a filmstrip for each of some validation images: Grad-CAM of the true class, epochs from left to right.

    The strips are in the run's folder, pictures/gradcam/NUMBER.png, and all together in pictures/gradcam.png, which is
    also sent to wandb and TensorBoard. They are drawn on the first process, with the weights that are validated. A
    resumed run continues them. The training is not affected. If a network has no maps, there is one warning.

    The task chooses the class (outputs.Output.to_explain). In segmentation it is the largest class of the image's mask,
    except for the most common class of all images.

    Args:
        images: The number of images, evenly spaced over the validation set.
        every_n_epochs: Epochs between frames. If None, after the first epoch and ten times in a run; after epochs 1, 2,
            4, 8, ... if the run's length is given in steps; and fewer where they would take too long: see pace.Pace.
        method: A name in interpret.METHODS.
        layer: The layer whose activations are used, by its name in the network; interpret.default_layer if None.

    Raises:
        InputError: If ``images`` or ``every_n_epochs`` is below 1, or if there is no such method.
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
        self._shown: list[_Shown] = []
        self._off = False
        self._pace = Pace()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layer before anything has been trained."""
        self._off = not isinstance(pl_module, VisionTask) or pl_module.kind is None
        self._pace.start()
        if spreads_weights(trainer.strategy) and not self._off:
            # A forward pass on one process would wait for the others.
            self._off = True
            rank_zero_warn("callbacks.gradcam draws nothing: the network's weights are spread over the processes")
        if self.layer is not None and not self._off:
            get_layer(pl_module.network, self.layer)  # type: ignore[arg-type]

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a frame to each strip, while the network has the weights that are validated (perhaps averaged ones)."""
        first = batch_idx == dataloader_idx == 0
        if self._off or not first or not trainer.is_global_zero or not self._is_due(trainer):
            return
        assert isinstance(pl_module, VisionTask)
        with self._pace.timed():
            self._add_frames(trainer, pl_module)

    def _add_frames(self, trainer: Trainer, pl_module: VisionTask) -> None:
        """Add a frame to each strip; if there can be none, say why and draw no more."""
        folder = Run(Path(trainer.default_root_dir)).pictures
        try:
            if self._cam is None:
                self._shown = _chosen_images(trainer.val_dataloaders, self.images, pl_module)
                standardized = pl_module.standardize(self._shown[0].image.to(pl_module.device))
                layer = default_layer(pl_module.network, standardized) if self.layer is None else self.layer
                self._cam = METHODS[self.method](pl_module, f"network.{layer}", pl_module.decode.scores)
            paths = [self._draw(shown, trainer.current_epoch, folder / "gradcam", pl_module) for shown in self._shown]
        except InputError as error:
            self._off = True
            rank_zero_warn(f"callbacks.gradcam draws nothing: {error}")
            return
        stack_strips(paths, folder / "gradcam.png")
        write_picture(trainer, "val/gradcam", folder / "gradcam.png", trainer.global_step - 1)

    def _is_due(self, trainer: Trainer) -> bool:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return False
        epoch, length = trainer.current_epoch + 1, trainer.max_epochs
        if self.every_n_epochs is not None:
            return epoch == 1 or epoch % self.every_n_epochs == 0
        endless = length is None or length < 0
        due = epoch & (epoch - 1) == 0 if endless else epoch == 1 or epoch % math.ceil((length or 0) / 10) == 0
        return due and self._pace.allows(trainer)

    def _draw(self, shown: _Shown, epoch: int, folder: Path, task: VisionTask) -> Path:
        """Add a frame to one image's strip."""
        assert self._cam is not None
        pixels, heat, name, certainty = draw_explanation(self._cam, task, shown.image, shown.chosen)
        path = folder / f"{shown.number:05}.png"
        if epoch == 0 or not path.is_file():
            add_frame(path, -1, pixels, [name])
        add_frame(path, epoch, heat, [f"epoch {epoch + 1}", certainty])
        return path


def draw_explanation(
    method: CamMethod, task: VisionTask, image: Tensor, wanted: Tensor | int | None
) -> tuple[Pixels, Pixels, str, str]:
    """Explain a class of an image (1, C, H, W); the predicted one if None.

    Returns:
        The image (H, W, 3), the same with the heat map over it, the class's name, and the network's certainty of it.
    """
    explanation = method(image.to(task.device), wanted)
    chosen = int(explanation.classes)
    with torch.inference_mode():
        answers = numpy_answers(task.decode(explanation.predictions))
    pixels = as_rgb(image[0])
    heat = overlay_heatmap(pixels, explanation.maps[0].cpu().numpy())
    return pixels, heat, task.output.names[chosen], task.output.certainty(answers, chosen)


def _chosen_images(loader: Any, count: int, task: VisionTask) -> list[_Shown]:
    """Choose images that are evenly spaced over the validation set."""
    dataset = loader.dataset
    # At most as many as there are images, so that each is a different one.
    places = torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().int().tolist()
    batches = [Batch.of(loader.collate_fn(_items(dataset, place))) for place in places]
    truths = [task.output.known(numpy_targets(batch.targets)[0]) for batch in batches]
    chosen = [None if one is None else torch.tensor([one]) for one in task.output.to_explain(truths)]
    return [_Shown(*one) for one in zip(places, (shrunk(b.images, task) for b in batches), chosen, strict=True)]


def _items(dataset: Any, index: int) -> Any:
    """Return what a loader would pass to its collate_fn."""
    return dataset.__getitems__([index]) if hasattr(dataset, "__getitems__") else [dataset[index]]


def shrunk(image: Tensor, task: VisionTask) -> Tensor:
    """Shrink an image (1, C, H, W) to the task's window size, or to a size that surely fits into memory."""
    scale = (task.hparams.get("window") or _LARGEST) / max(image.shape[2:])
    if scale >= 1 or not task.output.dense:
        return image
    size = [max(1, round(side * scale)) for side in image.shape[2:]]
    return interpolate(image, size, mode="bilinear", antialias=True)
