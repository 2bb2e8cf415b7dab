"""Export of model.onnx and its certificate after training."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from cnnlab.data import VisionDataModule
from cnnlab.deploying import export_task
from cnnlab.errors import InputError
from cnnlab.run import Run
from cnnlab.tasks import VisionTask
from cnnlab.tasks.base import load_task


class OnnxExport(Callback):
    """Writes a run's best network into its folder as model.onnx, as ``cnnlab export`` does, on the first process.

    Args:
        dynamic_size: Whether the file takes images of any height and width; if None, it does for segmentation, but not
            for classification.
        opset: ONNX's operator set; the exporter's own if None.
        tolerance: The largest difference from the network that passes.
        images: The maximum number of validation images to compute both metrics on, since this runs on the CPU.
    """

    def __init__(
        self, dynamic_size: bool | None = None, opset: int | None = None, tolerance: float = 1e-4, images: int = 1000
    ) -> None:
        if images < 1:
            raise InputError(f"callbacks.onnx.images is {images}, expected 1 or more")
        self.dynamic_size = dynamic_size
        self.opset = opset
        self.tolerance = tolerance
        self.images = images

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check before the training whether the export is possible.

        Raises:
            InputError: If a library is missing, or if the task or its data are of a kind that cannot be exported.
        """
        if stage != "fit":
            return
        for library in ("onnx", "onnxscript", "onnxruntime"):
            if importlib.util.find_spec(library) is None:
                raise InputError(f'callbacks.onnx needs {library}: pip install "cnnlab[deploy]"')
        data = getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, VisionTask) or pl_module.kind is None or not isinstance(data, VisionDataModule):
            raise InputError(
                f"callbacks.onnx cannot export {type(pl_module).__name__} on {type(data).__name__}: switch it off"
            )
        data.eval_transform()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the best checkpoint."""
        if not trainer.is_global_zero:
            return
        run = Run(Path(trainer.default_root_dir))
        checkpoint = run.to_evaluate()
        data: VisionDataModule = trainer.datamodule  # type: ignore[attr-defined]
        export_task(
            load_task(checkpoint),
            data,
            checkpoint,
            run.onnx,
            dynamic_size=self.dynamic_size,
            opset=self.opset,
            tolerance=self.tolerance,
            most=self.images,
        )
        rank_zero_info(f"exported {run.onnx}")
