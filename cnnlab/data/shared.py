"""Arrays that reader processes share with the one that has started them, however they are started."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class SharedArray(np.ndarray[Any, np.dtype[Any]]):
    """An array in shared memory: another process that is sent it gets the same memory."""

    tensor: Tensor
    """The tensor that owns the memory."""

    def __reduce__(self) -> Any:
        # A part of a shared array is a new array without a tensor, and is sent as a copy.
        return (_of_tensor, (self.tensor,)) if hasattr(self, "tensor") else super().__reduce__()


def shared(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy of an array in shared memory; the array itself, if it is there."""
    if isinstance(array, SharedArray) and hasattr(array, "tensor"):
        return array
    tensor = torch.from_numpy(np.array(array))
    tensor.share_memory_()  # type: ignore[no-untyped-call]
    return _of_tensor(tensor)


def _of_tensor(tensor: Tensor) -> npt.NDArray[Any]:
    array = tensor.numpy().view(SharedArray)
    array.tensor = tensor
    return array
