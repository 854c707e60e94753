"""Control the statistics of batch norms: freeze or do not record those of odd images, share them between processes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
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


@contextmanager
def unrecorded_statistics(network: nn.Module, *, dropout: bool = False) -> Iterator[None]:
    """Batch norms that learn take the statistics of the batch and record none; all else predicts, or has its dropout.

    This is what public code of semi-supervised learning calls frozen on unlabelled images. Running statistics lag
    behind a network that starts at random: by them all its answers are alike at first, and nothing is learned of them.
    """
    modes = {module: module.training for module in network.modules()}
    norms = [module for module, training in modes.items() if isinstance(module, _BatchNorm) and training]
    tracked = {norm: norm.track_running_stats for norm in norms}
    if not dropout:
        network.eval()
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for norm, before in tracked.items():
            norm.track_running_stats = before


def forward_with_pool(
    network: nn.Module, faces: Sequence[Tensor], pool: Sequence[Tensor], *, joint: bool
) -> tuple[list[Float[Tensor, "_ c"]], list[Float[Tensor, "_ c"]]]:
    """Scores of faces with labels and of views of the pool, each as long as its input.

    `joint` is one forward pass, in which batch norm mixes both; else the pool passes by itself, and batch norm takes
    its statistics without recording them.
    """

    def scores(parts: Sequence[Tensor]) -> list[Tensor]:
        inputs = torch.cat(list(parts)).contiguous(memory_format=torch.channels_last)
        return list(network(inputs).split([len(part) for part in parts]))

    if joint:
        found = scores([*faces, *pool])
        return found[: len(faces)], found[len(faces) :]
    own = scores(faces)
    with unrecorded_statistics(network, dropout=True):
        return own, scores(pool)


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
