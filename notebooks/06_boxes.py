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
# # Boxes: where objects are
#
# A small detector on generated circles and squares, with labels in YOLO's form: a text file for each image, and in each
# line the class and the box (center, width and height) in shares of the image. For data of your own put images into
# `photos/images/train` and labels into `photos/labels/train`; at the command line,
# `cnnlab fit --config detection --data.root photos`. COCO's JSON and Pascal VOC's XML are read too.

# %%
import csv
import json
import tempfile
from pathlib import Path

import lightning
import numpy as np
from PIL import Image, ImageDraw

from cnnlab.callbacks import default_callbacks
from cnnlab.data import BoxFolder
from cnnlab.loggers import MetricsCsv
from cnnlab.run import Run
from cnnlab.tasks import Detection

lightning.seed_everything(0)
scratch = Path(tempfile.mkdtemp())
root = scratch / "photos"
generator = np.random.default_rng(0)
for split, count in (("train", 120), ("val", 24), ("test", 24)):
    for folder in ("images", "labels"):
        (root / folder / split).mkdir(parents=True)
    for number in range(count):
        picture = Image.fromarray(generator.integers(40, 120, (72, 96, 3), dtype=np.uint8))
        lines = []
        for _ in range(number % 5):
            side = int(generator.integers(10, 30))
            left, top = int(generator.integers(0, 96 - side)), int(generator.integers(0, 72 - side))
            kind = int(generator.integers(2))
            draw = (ImageDraw.Draw(picture).ellipse, ImageDraw.Draw(picture).rectangle)[kind]
            draw((left, top, left + side - 1, top + side - 1), fill=tuple(generator.integers(130, 255, 3).tolist()))
            box = ((left + side / 2) / 96, (top + side / 2) / 72, side / 96, side / 72)
            lines.append(" ".join([str(kind), *(f"{value:.6f}" for value in box)]))
        picture.save(root / "images" / split / f"{number:03}.png")
        (root / "labels" / split / f"{number:03}.txt").write_text("\n".join(lines))
(root / "data.yaml").write_text("names: [circle, square]\ntrain: images/train\nval: images/val\ntest: images/test\n")

# %% [markdown]
# Images without objects are examples too. The data module says how many there are, and names what it does not
# understand by file and line.

# %%
data = BoxFolder(root=str(root), size=96, augment="light", batch_size=8, num_workers=0)
run = Run(scratch / "run")
task = Detection.for_data(
    data,
    network="one_stage_s",
    encoder="resnet10t",
    network_args={"width": 32},
    lr=2e-3,
    optimizer="adamw",
    schedule="cosine",
    warmup=0.05,
)
trainer = lightning.Trainer(
    default_root_dir=run.folder,
    max_epochs=30,
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

# %% [markdown]
# Average precision is COCO's: the mean over the classes, and over the IoU from which on a box is right, 0.5 to 0.95.

# %%
measured = json.loads(run.test.read_text())
print({name: round(measured[f"test/{name}"], 3) for name in ("map", "map50", "map75")})
with run.table("intervals").open() as file:
    for row in csv.DictReader(file):
        print(f"{row['metric']}: {float(row['low']):.3f} to {float(row['high']):.3f} (95 %, over images)")

# %% [markdown]
# Each class has the threshold with the best F1 on the validation images; predictions.csv says which objects reach it.

# %%
with run.table("classes").open() as file:
    for row in csv.DictReader(file):
        print(row)

# %% [markdown]
# The objects of test images, the hardest images first. At the left are the true objects, at the right the found ones.

# %%
Image.open(run.pictures / "predictions.png")
