"""StartingWeights: the part of VisionTask that loads the weights of another run before the first step."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from cnnlab.checkpoint import read_checkpoint
from cnnlab.errors import InputError
from cnnlab.models.groups import backbone_names
from cnnlab.strategies import spreads_weights

_PREFIX = "network."


class StartingWeights(LightningModule):
    """Loads the weights of the hyperparameter ``init_from``, unless a run is resumed."""

    network: nn.Module

    def on_fit_start(self) -> None:
        """Switch to training mode, and load the weights of init_from."""
        self.train()
        if not spreads_weights(self.trainer.strategy):
            self._start()

    def on_train_start(self) -> None:
        """Load the weights of init_from under strategies that read checkpoints later than others."""
        if spreads_weights(self.trainer.strategy):
            self._start()

    def _start(self) -> None:
        if self.hparams["init_from"] and self.trainer.ckpt_path is None:
            self._take(self.hparams["init_from"])

    def _take(self, path: str) -> None:
        """Load all tensors of the same name and shape, and those of the backbone under any head or decoder."""
        network = self.network
        own = network.state_dict()
        checkpoint = read_checkpoint(path)
        given = {n.removeprefix(_PREFIX): v for n, v in checkpoint["state_dict"].items() if n.startswith(_PREFIX)}
        theirs = backbone_names(given, checkpoint["cnnlab"].get("backbone"))
        sources = {name: theirs.get(inner) for inner, name in backbone_names(own, network).items()}
        sources |= {name: name for name in own if name in given}
        fitting: dict[str, Tensor] = {
            name: given[source]
            for name, source in sources.items()
            if source is not None and given[source].shape == own[name].shape
        }
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
        )
