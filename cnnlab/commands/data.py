"""cnnlab data show, cnnlab data check, cnnlab data pack."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cnnlab.batch import Batch
from cnnlab.commands.arguments import parse_request, take_option
from cnnlab.commands.loading import load_config
from cnnlab.commands.messages import check_new, say
from cnnlab.commands.packing import pack
from cnnlab.data import VisionDataModule
from cnnlab.data.file_data import FileDataModule
from cnnlab.data.samples import SPLITS
from cnnlab.errors import InputError, nearest
from cnnlab.pictures import as_rgb, numpy_targets
from cnnlab.run import Run, choose
from cnnlab.tasks import VisionTask

_MOST = 32
"""The maximum number of images to show."""

_USAGE = """\
usage: cnnlab data show RUN|--config C [OPTIONS OF fit] [--out FILE]
       cnnlab data check RUN|--config C [OPTIONS OF fit]
       cnnlab data pack ROOT OUT [--size 1GB] [--format tar|zip]

show writes a contact sheet of a training batch, augmented and with its labels: RUN/pictures/batch.png, where
RUN is a new folder runs/data-NAME-TIME for a --config.
check reads all image files: it names those that cannot be read, and those that stand in more than one split.
pack puts all files of a folder into a few shards, which are read in place: --data.root OUT instead of ROOT."""


def data(command: str, arguments: list[str]) -> None:
    """Run data show, data check or data pack.

    Raises:
        InputError: If an argument is not valid, the data cannot be used, or the check finds broken or repeated images.
    """
    actions = {"show": _show, "check": _check, "pack": pack}
    if not arguments or arguments[0] in ("-h", "--help") or {"-h", "--help"} & set(arguments[1:]):
        print(_USAGE)
        return
    if arguments[0] not in actions:
        raise InputError(f"cnnlab data {arguments[0]}: {nearest(arguments[0], actions)}")
    actions[arguments[0]](arguments[1:])


def _show(arguments: list[str]) -> None:
    from cnnlab.figures import contact_sheet

    out, rest = take_option("--out", arguments)
    task, module, run = load_config(rest)
    if not isinstance(module, VisionDataModule):
        raise InputError(f"{type(module).__name__} is not one of cnnlab's data modules")
    if not isinstance(task, VisionTask) or task.kind is None:
        raise InputError(f"{type(task).__name__} does not say how its targets are drawn: its class has no kind")
    module.prepare_data()
    module.setup("fit")
    module.num_workers = 0
    batch = Batch.of(next(iter(module.train_dataloader()))).first(_MOST)
    if out is not None:
        check_new(Path(out))
    place = run or (Run(Path()) if out is not None else choose(None, f"data-{parse_request('fit', rest).recipe}"))
    path = Path(out) if out is not None else place.pictures / "batch.png"
    output, targets = task.output, numpy_targets(batch.targets)
    pictures = [
        np.moveaxis(output.drawn(as_rgb(image), target), -1, 0)
        for image, target in zip(batch.images, targets, strict=True)
    ]
    size = f"{batch.images.shape[-1]} x {batch.images.shape[-2]}"
    heading = f"{len(batch)} training images, {size}, as the network sees them"
    with place.replacing("data-show", () if out is not None else ("pictures/batch.png",)):
        contact_sheet(pictures, [output.label(target) for target in targets], path, heading)
    say(f"training images  {path}")


def _check(arguments: list[str]) -> None:
    _, module, _ = load_config([*arguments, "--data.on_error", "skip"])
    if not isinstance(module, FileDataModule):
        raise InputError(f"{type(module).__name__} keeps no image files to check")
    trouble, copies = module.check()
    module.compare_with_run(SPLITS)
    counts = {split: len(samples) for split, samples in module.listing.of.items()}
    say(f"{sum(counts.values()):,} images can be read: {counts}")
    say(module.describe_targets())
    for message in trouble:
        say(f"broken: {message}")
    for paths in copies:
        say(f"the same image in several splits: {', '.join(paths)}")
    if not module.listing.of["train"]:
        raise InputError("none of the training images can be read" + (f", such as {trouble[0]}" if trouble else ""))
    try:
        module.inspect_training()
    finally:
        for line in (*module.describe_images(), module.describe_training()):
            say(line)
    if trouble or copies:
        raise InputError(
            f"{len(trouble)} files cannot be read, {len(copies)} images stand in more than one split: mend or remove "
            "them, or leave the broken ones out with --data.on_error skip"
        )
