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
        if not isinstance(size, (list, tuple)) or crop is None or interpolation is None:
            return None
        if len(mean) != self.hparams["channels"]:
            return None
        return Preprocessing((int(size[0]), int(size[1])), crop, interpolation, mean, std)

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
        said = self._match_names(checkpoint.get("hyper_parameters", {}), given, fitting)
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
        )

    def _match_names(self, settings: Mapping[str, Any], given: Mapping[str, Tensor], fitting: dict[str, Tensor]) -> str:
        """Match the rows of the last layer by their names, in place, if the names differ; say what was done."""
        kind = "class_names" if self.hparams.get("class_names") else "value_names"
        names, theirs = (list(of.get(kind) or []) for of in (self.hparams, settings))
        if not names or not theirs or names == theirs or _are_numbers(names) or _are_numbers(theirs):
            return ""
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
        return f"; the {what} are matched by name: {len(known)} of {len(names)} are known" + "".join(
            f", {which}: {', '.join(some[:10])}{', ...' if len(some) > 10 else ''}"
            for which, some in (("new", new), ("left out", lost))
            if some
        )

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
    """Whether classes have no names: a task numbers them then."""
    return list(names) == [str(i) for i in range(len(names))]
