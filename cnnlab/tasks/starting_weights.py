"""StartingWeights: the part of VisionTask that loads the weights of another run before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from cnnlab.checkpoint import read_checkpoint, read_header
from cnnlab.errors import InputError
from cnnlab.imaging import Preprocessing
from cnnlab.models.groups import backbone_names
from cnnlab.models.standardize import Standardize
from cnnlab.models.weights import requested
from cnnlab.run import find
from cnnlab.strategies import spreads_weights

_PREFIX = "network."


class StartingWeights(LightningModule):
    """Loads the weights of the hyperparameter ``init_from``, unless a run is resumed.

    The preprocessing comes with them: mean and std, and for the data the size, crop and interpolation of the other run.
    The rows of the last layer are matched by the names of the classes, or of the values.
    """

    network: nn.Module
    standardize: Standardize

    @property
    def preprocessing(self) -> Preprocessing | None:
        """The preprocessing that the starting weights expect: those of init_from, else the pretrained ones."""
        return self._preprocessing

    @preprocessing.setter
    def preprocessing(self, pretrained: Preprocessing | None) -> None:
        # A run that is resumed or tested has all of it in its own checkpoint.
        start = requested(self.hparams["init_from"])
        self._preprocessing = pretrained if start is None else self._preprocessing_of(start) or pretrained

    def _preprocessing_of(self, path: str) -> Preprocessing | None:
        """The preprocessing of a checkpoint; None if its images had no fixed size, or other channels."""
        header = read_header(start_checkpoint(path))
        task, data = (header.get(key, {}) for key in ("hyper_parameters", "datamodule_hyper_parameters"))
        size, crop, interpolation = (data.get(name) for name in ("size", "crop", "interpolation"))
        mean, std = list(task.get("mean", [])), list(task.get("std", []))
        masks = getattr(self, "kind", None) == "masks" and "mask_values" in data
        if size is None or interpolation is None or (crop is None) != masks or len(mean) != self.hparams["channels"]:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        return Preprocessing((height, width), 1.0 if masks else crop, interpolation, mean, std, whole=masks)

    def on_fit_start(self) -> None:
        """Switch to training mode, and load the weights of init_from."""
        self.train()
        if not spreads_weights(self.trainer.strategy):
            self._start()

    def on_train_start(self) -> None:
        """Load the weights of init_from under strategies that read checkpoints later than others."""
        if spreads_weights(self.trainer.strategy):
            self._start()

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load weights; the hyperparameters mean and std become those that the weights were trained with."""
        done = super().load_state_dict(state_dict, *args, **kwargs)
        self._tell_standardization()
        return done

    def _tell_standardization(self) -> None:
        """Let the hyperparameters say what the layer does; it has rounded them."""
        for name in ("mean", "std"):
            true, said = getattr(self.standardize, name).flatten().tolist(), self.hparams[name]
            if len(true) != len(said) or any(abs(a - b) > 1e-6 for a, b in zip(true, said, strict=True)):
                self.hparams[name] = true

    def _start(self) -> None:
        if self.hparams["init_from"] and self.trainer.ckpt_path is None:
            self._take(self.hparams["init_from"])

    def _take(self, path: str) -> None:
        """Load all tensors of the same name and shape, and those of the backbone under any head or decoder."""
        network = self.network
        own = network.state_dict()
        checkpoint = read_checkpoint(start_checkpoint(path))
        state = checkpoint["state_dict"]
        given = {n.removeprefix(_PREFIX): v for n, v in state.items() if n.startswith(_PREFIX)}
        theirs = backbone_names(given, checkpoint["cnnlab"].get("backbone"))
        sources = {name: theirs.get(inner) for inner, name in backbone_names(own, network).items()}
        sources |= {name: name for name in own if name in given}
        fitting: dict[str, Tensor] = {
            name: given[source]
            for name, source in sources.items()
            if source is not None and given[source].shape == own[name].shape
        }
        said = self._match_names(checkpoint, given, fitting)
        if not fitting:
            raise InputError(f"init_from {path}: none of its weights fits network {self.hparams['network']!r}")
        if spreads_weights(self.trainer.strategy):
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

            set_model_state_dict(network, dict(fitting), options=StateDictOptions(full_state_dict=True, strict=False))
        else:
            network.load_state_dict(fitting, strict=False)
        left = sorted(set(own) - set(fitting))
        moved = sum(sources[name] != name for name in fitting)
        rank_zero_info(
            f"init_from {path}: took {len(fitting)} of {len(own)} tensors"
            + (f", {moved} of them of its backbone" if moved else "")
            + (f"; as initialized: {', '.join(left)}" if left else "")
            + said
            + self._take_standardization(state)
            + self._say_size()
        )

    def _match_names(self, start: Mapping[str, Any], given: Mapping[str, Tensor], fitting: dict[str, Tensor]) -> str:
        """Match the rows of the last layer by the names of the classes or values, if they differ; say what was done.

        Args:
            start: The checkpoint.
            given: The tensors of its network.
            fitting: The tensors that are taken, changed in place.
        """
        kind = "class_names" if self.hparams.get("class_names") else "value_names"
        names, theirs, by = self._comparable_names(kind, start)
        if not names or not theirs or names == theirs:
            return ""
        if _are_numbers(names) != _are_numbers(theirs):
            same = len(names) == len(theirs)
            done = "are taken in their order" if same else "cannot be matched"
            return f"; the classes are numbers on one side and names on the other, and {done}"
        own = self.network.state_dict()
        # A value has a second row for its spread, behind the rows of all values.
        sizes = [len(names), 2 * len(names)] if kind == "value_names" else [len(names)]
        last = [name for name, tensor in own.items() if tensor.ndim > 1 and len(tensor) in sizes][-1:]
        layer = [name for name in own if last and name.rpartition(".")[0] == last[0].rpartition(".")[0]]
        known = {i: theirs.index(name) for i, name in enumerate(names) if name in theirs}
        for name in layer:
            tensor, blocks = given.get(name), len(own[name]) // len(names)
            fitting.pop(name, None)
            if not known or tensor is None or len(tensor) != blocks * len(theirs):
                continue
            if tensor.shape[1:] != own[name].shape[1:]:
                continue
            # New names keep their fresh rows.
            fitting[name] = own[name].detach().clone()
            for block in range(blocks):
                rows = [block * len(names) + i for i in known]
                fitting[name][rows] = tensor[[block * len(theirs) + i for i in known.values()]].to(own[name])
        new = [name for i, name in enumerate(names) if i not in known]
        lost = [name for name in theirs if name not in names]
        what = "classes" if kind == "class_names" else "values"
        return f"; the {what} are matched by {by}: {len(known)} of {len(names)} are known" + "".join(
            f", {which}: {', '.join(some[:10])}{', ...' if len(some) > 10 else ''}"
            for which, some in (("new", new), ("left out", lost))
            if some
        )

    def _comparable_names(self, kind: str, start: Mapping[str, Any]) -> tuple[list[str], list[str], str]:
        """The names of the own classes and of a checkpoint's, and what they are: name, or value.

        They are the values in the masks if only one side has names.
        """
        names, theirs = (list(of.get(kind) or []) for of in (self.hparams, start.get("hyper_parameters", {})))
        data = getattr(getattr(self.trainer, "datamodule", None), "hparams", {})
        values = (list(of.get("mask_values") or []) for of in (data, start.get("datamodule_hyper_parameters", {})))
        own, other = ([str(value) for value in of] for of in values)
        if _are_numbers(names) != _are_numbers(theirs) and own and other:
            return own, other, "value"
        return names, theirs, "name"

    def _say_size(self) -> str:
        """Say the size that the data have taken from the other run."""
        data, taken = getattr(getattr(self.trainer, "datamodule", None), "hparams", {}), self.preprocessing
        if taken is None or list(taken.size) != data.get("size"):
            return ""
        return f"; images are resized to {taken.size[0]} x {taken.size[1]} pixels, as there"

    def _take_standardization(self, state: Mapping[str, Tensor]) -> str:
        """Take mean and std, if the images have as many channels, and say it."""
        layer = self.standardize
        given = {name: state.get(f"standardize.{name}") for name in ("mean", "std")}
        for name, value in given.items():
            if value is None or value.shape != getattr(layer, name).shape:
                return "; mean and std stay those of the data"
        layer.load_state_dict({name: value for name, value in given.items() if value is not None})
        self._tell_standardization()
        mean, std = ([round(value, 4) for value in self.hparams[name]] for name in ("mean", "std"))
        return f"; mean {mean} and std {std} come with them"


def start_checkpoint(path: str) -> Path:
    """Find the checkpoint of ``init_from``, a run's folder or a checkpoint.

    Raises:
        InputError: If there is none.
    """
    try:
        return find(path)[1]
    except InputError as error:
        raise InputError(f"model.init_from {path}: {error}") from error


def _are_numbers(names: Sequence[str]) -> bool:
    """Whether classes have no names: their folders, or the values in their masks, are numbers."""
    return all(name.isdecimal() for name in names)
