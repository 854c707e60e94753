"""Sides of `loader`. In: labelled Parquet shards, the same pictures as files. A round gives out each image once.

Facts hold the sum of all pixels (of a first pass, outside the rounds), so that speed is only compared between equals.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

Round = Callable[[], dict[str, Any]]
BATCH = 64


def ours(shards: str, held: bool, order: str, threads: int) -> Round:
    """Our batches, decoded once before the rounds where they are `held`, else for every batch."""
    import torch

    from fer_pipeline.training.batches import Loader, Stream

    images = _images(shards, memory=1 << 40 if held else 0, threads=threads)
    loader = Loader({"labelled": Stream(images, BATCH, seed=0, order=order)}, torch.device("cpu"))
    steps = len(images) // BATCH
    turns = iter(range(1_000_000))

    def once() -> dict[str, Any]:
        turn = next(turns)
        return _used(batch["labelled"].images for batch in loader.batches(range(turn * steps, (turn + 1) * steps)))

    return _checked(once, (batch["labelled"].images for batch in loader.batches(range(steps))))


def pillow(files: str, workers: int) -> Round:
    """torch's DataLoader over a folder of JPEG files, each opened by Pillow."""
    import numpy as np
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    class Folder(Dataset):
        def __init__(self) -> None:
            self.paths = sorted(Path(files).rglob("*.jpg"))

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            with Image.open(self.paths[index]) as picture:
                return torch.from_numpy(np.array(picture.convert("RGB"))), int(self.paths[index].parent.name)

    loader = DataLoader(Folder(), batch_size=BATCH, shuffle=True, num_workers=workers, drop_last=True)
    return _checked(lambda: _used(images for images, _ in loader), (images for images, _ in loader))


def training(shards: str, scratch: str, held: bool, threads: int, steps: int) -> Round:
    """A training of a ResNet-18 at 112 px; the facts are the seconds of its steps and of waiting for images."""
    from tempfile import TemporaryDirectory

    from fer_pipeline.core.expressions import BASIC_7
    from fer_pipeline.networks.settings import NetworkSettings
    from fer_pipeline.strategies import supervised
    from fer_pipeline.training.fit import Execution, TrainingJob, train
    from fer_pipeline.training.settings import TrainingSettings
    from fer_pipeline.training.worker import make_worker

    images = _images(shards, memory=1 << 40 if held else 0, threads=threads)
    options = supervised.Options()
    job = TrainingJob(
        network=NetworkSettings(name="resnet18", size=112),
        weights=None,
        classes=BASIC_7,
        seed=0,
        settings=TrainingSettings(epochs=None, steps=steps, batch=BATCH, order="blocks", select="last"),
        build=partial(supervised.build, options),
        sources=supervised.sources(options),
    )

    def once() -> dict[str, Any]:
        with TemporaryDirectory(dir=scratch) as folder:
            state, out = Path(folder) / "state", Path(folder) / "out"
            state.mkdir()
            trained = train(job, {"labelled": images}, None, Execution(make_worker("cpu", "auto"), state, out))
        loss = trained.fitted.history[-1]["train_loss"]
        return {"seconds": trained.fitted.seconds, "waited": trained.fitted.waited, "loss": loss}

    return once


def _images(shards: str, *, memory: int, threads: int) -> Any:
    import torch

    from fer_pipeline.core.expressions import BASIC_7
    from fer_pipeline.training.images import MemoryBudget
    from fer_pipeline.training.sets import read_images

    return read_images(Path(shards), classes=BASIC_7, budget=MemoryBudget(torch.device("cpu"), memory, threads=threads))


def _used(batches: Iterable[Any]) -> dict[str, Any]:
    return {"items": sum(len(images) for images in batches)}


def _checked(once: Round, first: Iterable[Any]) -> Round:
    total = sum(int(images.numpy().sum()) for images in first)
    return lambda: once() | {"pixels": total}
