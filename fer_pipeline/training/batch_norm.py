"""Control the running statistics of batch norms: freeze them for odd images, share them between processes."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.training.worker import Worker


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norms use and keep their running statistics; their scales and shifts still learn."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def share_statistics(strategy: nn.Module, worker: Worker) -> None:
    """Makes batch norms take their statistics over the batches of all processes that train together."""
    if worker.world_size == 1 or not any(isinstance(module, _BatchNorm) for module in strategy.modules()):
        return
    if worker.device.type != "cuda":
        raise ConfigError(
            "batch norms share their statistics on GPUs only; set network.norm: group or resources.parallel: seeds"
        )
    from timm.layers.norm_act import convert_sync_batchnorm  # knows timm's own layers, torch's does not

    convert_sync_batchnorm(strategy)
