"""Pretrained weights from a file, a folder of prefetched weights, or the hub; missing weights are an error."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from cnnlab.errors import InputError

FOLDER_VARIABLE = "CNNLAB_WEIGHTS"
"""The environment variable that names the folder of prefetched weights."""
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_SECONDS = 5.0
"""How long a connection to a hub may take."""
_ARCHITECTURE_ONLY = ContextVar("architecture_only", default=False)


@contextlib.contextmanager
def architecture_only() -> Iterator[None]:
    """Build networks without pretrained weights, because a checkpoint will be loaded into them."""
    token = _ARCHITECTURE_ONLY.set(True)
    try:
        yield
    finally:
        _ARCHITECTURE_ONLY.reset(token)


def requested(weights: str | None) -> str | None:
    """The requested weights; None while architecture_only is active."""
    return None if _ARCHITECTURE_ONLY.get() else weights


def prefetched_folder() -> Path:
    """The folder where ``cnnlab fetch`` puts weights; it is searched before the hub."""
    return Path(os.environ.get(FOLDER_VARIABLE, "~/.cache/cnnlab/weights")).expanduser()


def find_weights(name: str, weights: str) -> Path | None:
    """Find the file of a network's weights; None if only the hub may have them.

    Args:
        name: The network's name, with the prefix torchvision/ for torchvision's networks.
        weights: "pretrained" for the folder of prefetched weights, then the hub; a file; or a folder with
            NAME.safetensors, .pth, .pt or .bin (torchvision/NAME for torchvision's networks).

    Raises:
        InputError: If the given file or folder does not exist, or does not have the network's weights.
    """
    folder = prefetched_folder() if weights == "pretrained" else Path(weights).expanduser()
    if folder.is_file():
        return folder
    file = find_file(folder, name)
    if file is not None or weights == "pretrained":
        return file
    if folder.is_dir():
        raise InputError(f"model.weights {folder} has no {name}{_SUFFIXES[0]} (or {', '.join(_SUFFIXES[1:])})")
    raise InputError(f"model.weights {weights}: there is no such file or folder (or say pretrained, for the hub's)")


def find_file(folder: Path, name: str) -> Path | None:
    """Find a network's file in a folder of prefetched weights; None if there is none."""
    return next((path for suffix in _SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def is_cached(repository: str | None, url: str) -> bool:
    """Whether Hugging Face's cache has a repository's weights, or, without a repository, torch's cache has a URL's."""
    if not repository:
        return (Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]).is_file()
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)


@contextlib.contextmanager
def explain_errors(name: str, source: Path | None) -> Iterator[None]:
    """Turn errors from loading weights into an InputError that names the network, the reason and a remedy."""
    try:
        yield
    except (InputError, TypeError):  # A TypeError comes from the network's arguments.
        raise
    except Exception as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:300]
        if source is not None:
            raise InputError(
                f"{source} does not hold weights for {name}: {reason}; they must have the names and shapes of the "
                "network's own state_dict"
            ) from error
        raise InputError(
            f"the pretrained weights of {name} could not be had ({reason}): name a file or a folder of them with "
            f"--model.weights, put them into {prefetched_folder()} (or ${FOLDER_VARIABLE}; cnnlab fetch does it where "
            "there is internet), or train from scratch (--config from_scratch, or "
            "--model.weights null)"
        ) from error


def check_hub(url: str) -> None:
    """Try to connect to a hub once: its libraries repeat it for a minute before they give up.

    Args:
        url: The address of the weights, or of the hub.

    Raises:
        OSError: If no connection can be made within some seconds.
    """
    place = urlsplit(url)
    proxies = {name.lower() for name in os.environ}
    if {"https_proxy", "all_proxy"} & proxies:
        return  # The proxy knows the hub's address, this machine may not.
    try:
        socket.create_connection((str(place.hostname), place.port or 443), timeout=_SECONDS).close()
    except OSError as error:
        raise OSError(f"no connection to {place.hostname}: {error.strerror or error}") from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state_dict from a .safetensors file, or from a file of torch.save with weights_only=True."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    content = torch.load(path, map_location="cpu", weights_only=True)
    weights: dict[str, Tensor] = content.get("state_dict", content)
    return weights


def save_prefetched(name: str, network: nn.Module, folder: Path) -> Path:
    """Save a network's weights in the folder that find_weights searches."""
    from safetensors.torch import save_model

    path = folder / f"{name}{_SUFFIXES[0]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    save_model(network, str(temporary))
    temporary.replace(path)
    return path
