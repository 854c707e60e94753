"""A distillation in the middle of its way, on disk: one safetensors file an epoch, whole or not at all.

Images, step sizes, the outer optimiser's moments, the epoch and the history so far stand in *one* file, so that a kill
between two writes cannot leave halves of two epochs.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import replacing
from fer_pipeline.distillation.synthetic import Synthetic

STATE = "state.safetensors"
Row = dict[str, float]


@dataclass(frozen=True)
class Progress:
    """Finished outer epochs and what was noted after each."""

    epoch: int
    history: list[Row]


def save_state(folder: Path, synthetic: Synthetic, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Replaces the state in `folder` by this one."""
    tensors = {"images": synthetic.images, "raw_sizes": synthetic.raw_sizes}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
    metadata = {"epoch": str(progress.epoch), "history": json.dumps(progress.history)}
    with replacing(folder / STATE) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary, metadata)


def load_state(folder: Path, synthetic: Synthetic, optimizer: torch.optim.Optimizer) -> Progress:
    """Puts the state of `folder` into the tensors and the optimiser; without one they stay and epoch 0 comes back."""
    path = folder / STATE
    if not path.exists():
        return Progress(epoch=0, history=[])
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata()
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it to distil from the start") from None
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            entries.setdefault(int(index), {})[key] = value
    with torch.no_grad():
        synthetic.images.copy_(tensors["images"])
        synthetic.raw_sizes.copy_(tensors["raw_sizes"])
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    return Progress(epoch=int(metadata["epoch"]), history=json.loads(metadata["history"]))
