"""cnnlab data show, cnnlab data check."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from cnnlab.commands.arguments import take_option
from cnnlab.commands.messages import say
from cnnlab.commands.training import make
from cnnlab.data import ImageFolder, VisionDataModule
from cnnlab.errors import InputError, nearest

_USAGE = """\
usage: cnnlab data show RUN|--config C [OPTIONS OF fit] [--out FILE]
       cnnlab data check RUN|--config C [OPTIONS OF fit]

show writes a contact sheet of a training batch, augmented and with its labels (RUN/pictures/batch.png or batch.png).
check reads all image files: it names those that cannot be read, and those that stand in more than one split."""


def data(command: str, arguments: list[str]) -> None:
    """Run data show or data check.

    Raises:
        InputError: If there is something to mend, in the command line or in the data.
    """
    actions = {"show": _show, "check": _check}
    if not arguments or arguments[0] in ("-h", "--help") or {"-h", "--help"} & set(arguments[1:]):
        print(_USAGE)
        return
    if arguments[0] not in actions:
        raise InputError(f"cnnlab data {arguments[0]}: {nearest(arguments[0], actions)}")
    actions[arguments[0]](arguments[1:])


def _show(arguments: list[str]) -> None:
    from cnnlab.figures import contact_sheet

    out, rest = take_option("--out", arguments)
    task, module, run = make(rest)
    if not isinstance(module, VisionDataModule):
        raise InputError(f"{type(module).__name__} is not one of cnnlab's data modules")
    module.adopt(getattr(task, "preprocessing", None))
    module.prepare_data()
    module.setup("fit")
    module.num_workers = 0
    images, targets = next(iter(module.train_dataloader()))
    path = Path(out) if out is not None else (run.pictures if run is not None else Path()) / "batch.png"
    shown = min(len(images), 32)
    titles = [_label(target, list(module.class_names)) for target in targets[:shown]]
    size = f"{images.shape[-1]} x {images.shape[-2]}"
    contact_sheet(
        list(images[:shown].numpy()), titles, path, f"{shown} training images, {size}, as the network sees them"
    )
    say(f"training images  {path}")


def _label(target: torch.Tensor, names: list[str]) -> str:
    if not target.ndim:
        return names[int(target)]
    shares = {names[i]: float(target[i]) for i in target.nonzero().flatten().tolist()}
    return "\n".join(name if share == 1 else f"{name} {share:.0%}" for name, share in shares.items()) or "-"


def _check(arguments: list[str]) -> None:
    _, module, _ = make([*arguments, "--data.on_error", "skip"])
    if not isinstance(module, ImageFolder):
        raise InputError(f"{type(module).__name__} keeps no image files to check")
    trouble, copies = module.check()
    counts = {split: len(samples) for split, samples in module.listing.of.items()}
    say(f"{sum(counts.values()):,} images can be read: {counts}")
    for message in trouble:
        say(f"broken: {message}")
    for paths in copies:
        say(f"the same image in several splits: {', '.join(paths)}")
    by_class = Counter(label for sample in module.listing.of["train"] for label in sample.labels)
    say("training images by class: " + ", ".join(f"{name} {by_class[name]}" for name in module.class_names))
    if trouble or copies:
        raise InputError(
            f"{len(trouble)} files cannot be read, {len(copies)} images stand in more than one split: remove them, or "
            "leave the broken ones out with --data.on_error skip"
        )
