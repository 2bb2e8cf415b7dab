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
# # Your own photographs: transfer learning, step by step
#
# A network that was trained on ImageNet has most of what it takes; what is missing is a new head, and a little care
# not to spoil the rest. Put your photographs into a folder for each class (`photos/train/cat/1.jpg`, ...); here
# `write_photos` lays down generated ones of three classes, sixteen of each for training.
#
# At the command line: `cnnlab fit --config image_folder --data.root photos --run R`.

# %%
import json
import tempfile
from pathlib import Path

import lightning
from PIL import Image

from cnnlab.callbacks import Phase, ProgressiveUnfreezing, default_callbacks
from cnnlab.data import ImageFolder, write_photos
from cnnlab.figures import contact_sheet
from cnnlab.imaging import overlay_heatmap
from cnnlab.interpret import GradCAM
from cnnlab.loggers import MetricsCsv
from cnnlab.pictures import as_rgb
from cnnlab.run import Run
from cnnlab.tasks import Classification

lightning.seed_everything(0)
scratch = Path(tempfile.mkdtemp())
write_photos(scratch / "photos", images=16, side=192)
run = Run(scratch / "run")

# %% [markdown]
# The network's pretraining says how its images were standardized, and the task does the same: `weights="pretrained"`
# looks into the folder of prefetched weights, then asks the hub.

# %%
data = ImageFolder(root=str(scratch / "photos"), size=192, augment="light", batch_size=16)
task = Classification.for_data(
    data,
    network="tf_efficientnet_lite0",
    weights="pretrained",
    head="mlp",
    optimizer="adamw",
    weight_decay=0.05,
    label_smoothing=0.1,
)

# %% [markdown]
# First the head alone, then the last layers, then all: each phase with its own learning rates, from the head down, and
# the lower a layer the slower. What is frozen has its batch norm frozen, too.

# %%
unfreezing = ProgressiveUnfreezing(
    phases=[
        Phase(epoch=0, lr=[2e-3]),
        Phase(epoch=2, lr=[1e-3, 3e-4]),
        Phase(epoch=5, lr=[1e-3, 3e-4, 1e-4]),
    ],
    decay=0.7,
)
trainer = lightning.Trainer(
    default_root_dir=run.folder,
    max_epochs=8,
    log_every_n_steps=1,
    callbacks=[unfreezing, *default_callbacks()],
    logger=MetricsCsv(run.metrics),
    use_distributed_sampler=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(task, datamodule=data)
trainer.test(task, datamodule=data, ckpt_path=run.best, weights_only=True, verbose=False)
json.loads(run.test.read_text())["test/accuracy"]

# %% [markdown]
# Does it look at what the photograph shows? The film-strip of the training:

# %%
Image.open(run.pictures / "gradcam.png")

# %% [markdown]
# And any image, any network: `cnnlab.interpret` needs no trainer. (At the command line, `cnnlab explain R IMAGES`.)

# %%
batch = next(iter(data.val_dataloader()))
images, targets = batch.images[::2], batch.targets[::2]
maps = GradCAM(task.eval().network)(task.standardize(images)).maps
pictures = [overlay_heatmap(as_rgb(image), heat) for image, heat in zip(images, maps.numpy(), strict=True)]
contact_sheet(
    [picture.transpose(2, 0, 1) for picture in pictures],
    [data.class_names[target] for target in targets],
    scratch / "maps.png",
    "What the network looks at",
)
Image.open(scratch / "maps.png")

# %% [markdown]
# Which network to begin with, for your number of images, your machine and your hurry: `cnnlab recommend --data photos`.
