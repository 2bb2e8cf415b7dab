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
# # Segmentation: a class for each pixel
#
# A small U-Net on generated circles, squares and triangles. For data of your own put images into `photos/images/train`
# and masks of the same names into `photos/masks/train`, and take `MaskFolder` instead of `Shapes`; at the command line,
# `cnnlab fit --config segmentation --data.root photos`.

# %%
import json
import tempfile
from pathlib import Path

import lightning
from PIL import Image

from cnnlab.callbacks import default_callbacks
from cnnlab.data import Shapes
from cnnlab.loggers import MetricsCsv
from cnnlab.run import Run
from cnnlab.tasks import Segmentation

lightning.seed_everything(0)
scratch = Path(tempfile.mkdtemp())
run = Run(scratch / "run")

# %% [markdown]
# The loss is cross-entropy and Dice, half and half; scores are those of all pixels together.

# %%
data = Shapes(root=str(scratch / "shapes"), images=320, augment="light", batch_size=8, num_workers=0)
task = Segmentation.for_data(
    data,
    network="unet",
    network_args={"base": 8},
    lr=1e-2,
    schedule="onecycle",
)
trainer = lightning.Trainer(
    default_root_dir=run.folder,
    max_epochs=15,
    log_every_n_steps=5,
    callbacks=default_callbacks(),
    logger=MetricsCsv(run.metrics),
    use_distributed_sampler=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(task, datamodule=data)
trainer.test(task, datamodule=data, ckpt_path=run.best, weights_only=True, verbose=False)
trainer.predict(task, datamodule=data, return_predictions=False)
{name: round(value, 3) for name, value in json.loads(run.test.read_text()).items()}

# %% [markdown]
# Each class for itself:

# %%
print(run.table("classes").read_text())

# %% [markdown]
# Validation images, their masks, and what is predicted, as they were drawn while it trained:

# %%
Image.open(run.pictures / "validation.png")

# %% [markdown]
# `predict` writes masks with a palette, and overlays: the original beside the classes.

# %%
print(len(list((run.folder / "masks").iterdir())), "masks")
Image.open(sorted((run.folder / "overlays").iterdir())[2])
