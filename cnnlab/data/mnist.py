"""MNIST, FashionMNIST and KMNIST, from torchvision's files."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cnnlab.data.in_memory import InMemoryDataModule
from cnnlab.errors import InputError
from cnnlab.writing import write_atomically

_DIGITS = [str(digit) for digit in range(10)]
_CLOTHES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


class _Facts(NamedTuple):
    class_names: list[str]
    mean: float
    std: float


# Mean and std are those of all pixels of the 60,000 training images, in 0..1 (a test computes MNIST's).
_FACTS = {
    "MNIST": _Facts(_DIGITS, 0.1307, 0.3081),
    "FashionMNIST": _Facts(_CLOTHES, 0.2860, 0.3530),
    "KMNIST": _Facts(["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"], 0.1918, 0.3483),
}


class MNIST(InMemoryDataModule):
    """60,000 training and 10,000 test images, 28x28 gray, 10 classes.

    The files are torchvision's, under ROOT/NAME/raw, and are downloaded if they are missing. LeCun et al. 1998,
    "Gradient-based learning applied to document recognition"; Xiao et al. 2017 (FashionMNIST); Clanuwat et al. 2018
    (KMNIST).

    Args:
        root: The folder that contains the data set's own folder.
        dataset: Which of the three.
        download: Download the files if they are missing.
        val_size: Number of training images used for validation. The test set is never used for it.
        **kwargs: See InMemoryDataModule.

    Raises:
        InputError: In prepare_data(), if a file cannot be unpacked, or if files are missing and not downloaded.
    """

    channels = 1

    def __init__(
        self,
        root: str = "data",
        dataset: Literal["MNIST", "FashionMNIST", "KMNIST"] = "MNIST",
        download: bool = True,
        val_size: int = 5000,
        **kwargs: Any,
    ) -> None:
        super().__init__(val_size=val_size, **kwargs)
        self.root = root
        self.dataset = dataset
        self.download = download
        facts = _FACTS[dataset]
        self.class_names = facts.class_names
        self.mean = [facts.mean]
        self.std = [facts.std]

    def prepare_data(self) -> None:
        """Download the files if they are missing; Lightning calls this on one process of a machine."""
        folder = Path(self.root) / self.dataset / "raw"
        for packed in folder.glob("*-ubyte.gz"):
            # torchvision would reject files that were compressed by another gzip, and download them again.
            if not packed.with_suffix("").exists():
                try:
                    with gzip.open(packed) as file:
                        write_atomically(packed.with_suffix(""), file.read())
                except (OSError, EOFError, zlib.error) as error:
                    raise InputError(f"{packed} cannot be unpacked ({error}): copy or download it again") from error
        try:
            self._open(train=True, download=self.download)
        except (RuntimeError, OSError) as error:
            raise InputError(
                f"{self.dataset} is not in {folder.resolve()} and could not be downloaded "
                f"({str(error).splitlines()[0]}): where there is no internet, copy its four files "
                "(train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, "
                "t10k-labels-idx1-ubyte.gz) there, packed or not, or name the folder above it with --data.root"
            ) from error

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return images (N, 1, 28, 28) uint8 and targets (N,) int64 of the training or the test set."""
        source = self._open(train, download=False)
        return source.data.unsqueeze(1), source.targets.to(torch.int64)

    def _open(self, train: bool, download: bool) -> Any:
        import torchvision

        return getattr(torchvision.datasets, self.dataset)(self.root, train=train, download=download)
