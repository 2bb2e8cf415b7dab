"""Pretrained weights: from a file, a folder of prefetched ones, or the hub; never silently none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from torch import Tensor, nn

from cnnlab.errors import InputError

FOLDER_VARIABLE = "CNNLAB_WEIGHTS"
"""The environment variable that names the folder of prefetched weights."""
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_ARCHITECTURE_ONLY = ContextVar("architecture_only", default=False)


@contextlib.contextmanager
def architecture_only() -> Iterator[None]:
    """Within this, networks are made without their pretrained weights: a checkpoint is about to fill them."""
    token = _ARCHITECTURE_ONLY.set(True)
    try:
        yield
    finally:
        _ARCHITECTURE_ONLY.reset(token)


def are_wanted(weights: str | None) -> bool:
    """Whether weights are to be loaded, here and now."""
    return weights is not None and not _ARCHITECTURE_ONLY.get()


def prefetched_folder() -> Path:
    """Where ``cnnlab fetch`` puts weights, and where they are looked for first."""
    return Path(os.environ.get(FOLDER_VARIABLE, "~/.cache/cnnlab/weights")).expanduser()


def find_weights(name: str, weights: str) -> Path | None:
    """The file of a network's weights; None if only the hub may have them.

    Args:
        name: The network, with torchvision/ before it if it is torchvision's.
        weights: "pretrained", for the folder of prefetched weights, else the hub; a file; or a folder that holds
            NAME.safetensors, .pth, .pt or .bin (torchvision/NAME for torchvision's, many of which timm has too).

    Raises:
        InputError: If a file or folder was named that is not there, or that lacks them.
    """
    folder = prefetched_folder() if weights == "pretrained" else Path(weights).expanduser()
    if folder.is_file():
        return folder
    found = find_in(folder, name)
    if found is not None or weights == "pretrained":
        return found
    if folder.is_dir():
        raise InputError(f"model.weights {folder} has no {name}{_SUFFIXES[0]} (or {', '.join(_SUFFIXES[1:])})")
    raise InputError(f"model.weights {weights}: there is no such file or folder (or say pretrained, for the hub's)")


def find_in(folder: Path, name: str) -> Path | None:
    """A network's file in a folder of prefetched weights, if it is there."""
    return next((path for suffix in _SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def downloaded(url: str) -> bool:
    """Whether torch's cache has the file of an address."""
    import torch

    return (Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]).is_file()


def hub_has(repository: str) -> bool:
    """Whether Hugging Face's cache has a repository's weights."""
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)


@contextlib.contextmanager
def explained(name: str, source: Path | None) -> Iterator[None]:
    """Say what cannot be loaded and what helps, whatever a hub's or a file's library raises."""
    try:
        yield
    except (InputError, TypeError):  # A TypeError is of the network's arguments.
        raise
    except Exception as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:300]
        if source is not None:
            raise InputError(
                f"{source} does not hold weights for {name}: {reason}; they must have the names and shapes of the "
                "network's own state_dict"
            ) from error
        raise InputError(
            f"the pretrained weights of {name} could not be had ({reason}): where there is internet, "
            f"cnnlab fetch --config ... puts them into a folder ({prefetched_folder()}, or ${FOLDER_VARIABLE}) that "
            "you can copy; or name a file with --model.weights"
        ) from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state_dict from a .safetensors file, or safely from one of torch.save."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True)
    weights: dict[str, Tensor] = content.get("state_dict", content)
    return weights


def save_prefetched(name: str, network: nn.Module, folder: Path) -> Path:
    """Write a network's weights where find_weights looks for them."""
    from safetensors.torch import save_model

    path = folder / f"{name}{_SUFFIXES[0]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    save_model(network, str(aside))
    aside.replace(path)
    return path
