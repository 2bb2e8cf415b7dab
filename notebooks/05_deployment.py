# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a big network to a small file: distil, export, quantize, compare
#
# A teacher, a student of a fifteenth of its size, and the student as a file that runs without PyTorch, in 8-bit
# integers as well. Each file is compared with the network that it came from before it takes its place.
#
# At the command line: `cnnlab fit --config digits --run T`,
# `cnnlab fit --config digits --model Distillation --model.teacher T --run S`, `cnnlab export S`, `cnnlab quantize S`,
# `cnnlab infer S/model.int8.onnx IMAGES`.

# %%
import json
import tempfile
from pathlib import Path

import lightning
import numpy as np
import torch

from cnnlab.callbacks import default_callbacks
from cnnlab.data import Digits
from cnnlab.deploy.runtime import OnnxPredictor
from cnnlab.deploying import export_task, quantize_task
from cnnlab.loggers import MetricsCsv
from cnnlab.run import Run
from cnnlab.tasks import Classification, Distillation

lightning.seed_everything(0)
scratch = Path(tempfile.mkdtemp())
data = Digits(batch_size=32, degrees=10, translate=0.1, scale=0.1)
settings = {
    "network": "simple_cnn",
    "dropout": 0.2,
    "optimizer": "adamw",
    "lr": 0.01,
    "weight_decay": 0.05,
    "schedule": "onecycle",
}


def trained(task: lightning.LightningModule, name: str, epochs: int) -> Run:
    run = Run(scratch / name)
    trainer = lightning.Trainer(
        default_root_dir=run.folder,
        max_epochs=epochs,
        callbacks=default_callbacks(),
        logger=MetricsCsv(run.metrics),
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, datamodule=data)
    trainer.test(task, datamodule=data, ckpt_path=run.best, weights_only=True, verbose=False)
    return run


# %%
teacher = trained(Classification.for_data(data, **settings), "teacher", epochs=12)

# %% [markdown]
# The student sees the labels and, softened, what the teacher makes of each image (Hinton et al. 2015).

# %%
small = {"network_args": {"widths": [8, 16, 32], "hidden": 64}, "dropout": 0.0}
student = trained(
    Distillation.for_data(data, teacher=str(teacher.folder), **{**settings, **small}), "student", epochs=16
)
task = Classification.load_from_checkpoint(student.best, weights_only=True).eval()
for run in (teacher, student):
    print(run.folder.name, json.loads(run.test.read_text())["test/accuracy"])
print(sum(parameter.numel() for parameter in task.parameters()), "parameters in the student")

# %% [markdown]
# ## Files
#
# The whole path from pixels to probabilities is inside; the certificate says how far the file is from the network.

# %%
data.setup("fit")
certificate = export_task(task, data, student.best, student.onnx)
certificate["differences"]

# %%
integers = quantize_task(task, data, student.best, student.onnx.with_suffix(".int8.onnx"))
for name, said in (("float", certificate), ("int8", integers)):
    size = sum(part["bytes"] for part in said["files"].values())
    metric, latency = said["metric"], said["latency"]
    print(f"{name:6}{size:9,} bytes, {metric['name']} {metric['file']:.4f}, {latency['file_ms']:.3f} ms an image")

# %% [markdown]
# ## Without PyTorch
#
# `OnnxPredictor` needs NumPy, Pillow and ONNX Runtime only, and takes files, folders, PIL images or arrays.

# %%
predictor = OnnxPredictor(student.onnx)
images = torch.cat([batch.images for batch in data.val_dataloader()])[::60].numpy()
for found in predictor(list(np.moveaxis(images, 1, -1))):
    print(found.names[0], round(float(found.probabilities.max()), 3))
