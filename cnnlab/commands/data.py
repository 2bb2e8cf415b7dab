"""cnnlab data show, cnnlab data check."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cnnlab.commands.arguments import take_option
from cnnlab.commands.loading import load_config
from cnnlab.commands.messages import say
from cnnlab.data import ImageFolder, MaskFolder, VisionDataModule
from cnnlab.errors import InputError, nearest
from cnnlab.imaging import overlay_mask

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
    task, module, run = load_config(rest)
    if not isinstance(module, VisionDataModule):
        raise InputError(f"{type(module).__name__} is not one of cnnlab's data modules")
    module.adopt(getattr(task, "preprocessing", None))
    module.prepare_data()
    module.setup("fit")
    module.num_workers = 0
    images, targets = next(iter(module.train_dataloader()))
    path = Path(out) if out is not None else (run.pictures if run is not None else Path()) / "batch.png"
    shown = min(len(images), 32)
    names = list(module.class_names)
    titles = [_label(target, names) for target in targets[:shown]]
    size = f"{images.shape[-1]} x {images.shape[-2]}"
    pictures = list(images[:shown].numpy())
    if targets.ndim == 3:
        pictures = [_coloured(image, mask.numpy(), len(names)) for image, mask in zip(pictures, targets, strict=False)]
    contact_sheet(pictures, titles, path, f"{shown} training images, {size}, as the network sees them")
    say(f"training images  {path}")


def _coloured(image: Any, mask: Any, count: int) -> Any:
    """An image (C, H, W), coloured by the classes (H, W) of its pixels, (3, H, W)."""
    return np.moveaxis(overlay_mask(np.moveaxis(image, 0, -1), mask, count), -1, 0)


def _label(target: torch.Tensor, names: list[str]) -> str:
    if not target.ndim:
        return names[int(target)]
    if target.ndim == 2:
        known = target[(target >= 0) & (target < len(names))]
        found = known.bincount(minlength=len(names))
        most = [number for number in found.argsort(descending=True).tolist() if found[number]][:3]
        return "\n".join(f"{names[number]} {found[number] / target.numel():.0%}" for number in most) or "-"
    shares = {names[i]: float(target[i]) for i in target.nonzero().flatten().tolist()}
    return "\n".join(name if share == 1 else f"{name} {share:.0%}" for name, share in shares.items()) or "-"


def _shares(module: ImageFolder | MaskFolder) -> str:
    if isinstance(module, MaskFolder):
        shares = zip(module.class_names, module.class_shares().tolist(), strict=True)
        return "training pixels by class: " + ", ".join(f"{name} {share:.2%}" for name, share in shares)
    by_class = Counter(label for sample in module.listing.of["train"] for label in sample.labels)
    return "training images by class: " + ", ".join(f"{name} {by_class[name]}" for name in module.class_names)


def _check(arguments: list[str]) -> None:
    _, module, _ = load_config([*arguments, "--data.on_error", "skip"])
    if not isinstance(module, (ImageFolder, MaskFolder)):
        raise InputError(f"{type(module).__name__} keeps no image files to check")
    trouble, copies = module.check()
    counts = {split: len(samples) for split, samples in module.listing.of.items()}
    say(f"{sum(counts.values()):,} images can be read: {counts}")
    for message in trouble:
        say(f"broken: {message}")
    for paths in copies:
        say(f"the same image in several splits: {', '.join(paths)}")
    say(_shares(module))
    if trouble or copies:
        raise InputError(
            f"{len(trouble)} files cannot be read, {len(copies)} images stand in more than one split: remove them, or "
            "leave the broken ones out with --data.on_error skip"
        )
