from __future__ import annotations

import torch
from torch import nn

from cnnlab.callbacks import SyncNorm
from cnnlab.models import create_network
from tests.conftest import Cnnlab


def test_synchronised_norms_keep_timms_activations() -> None:
    network = create_network("tf_efficientnet_lite0", 4, 3).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = network(images)
        converted = SyncNorm().apply(network)
        norms = [module for module in converted.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
        assert len(norms) > 40
        assert torch.allclose(before, SyncNorm().revert(converted)(images), atol=1e-6)


def test_the_trainers_flag_takes_it(fit_photos: Cnnlab) -> None:
    """One process needs no synchronization; the flag and the plugin must not exclude each other."""
    result = fit_photos(
        "--trainer.sync_batchnorm", "true", "--trainer.max_epochs", "1", "--callbacks.unfreezing", "false"
    )
    assert result.code == 0, result.err
