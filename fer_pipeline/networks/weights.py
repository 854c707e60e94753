"""Weights from a local file into a network: settings in, a strict report of what was filled out.

Nothing is left to chance: every name of the file and every tensor of the backbone is in the report, as loaded, missing,
unexpected, mis-shaped or left out (the old head), and a file that fills less than the stated share is refused.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.settings import Settings
from fer_pipeline.networks.backbones import family
from fer_pipeline.networks.cards import read_card
from fer_pipeline.networks.layouts import Layout
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.preprocessing import Normalisation
from fer_pipeline.networks.settings import NetworkSettings
from fer_pipeline.networks.tensors import read_tensors

OWN_PREFIXES = ("backbone.", "neck.", "head.")


class WeightSettings(Settings):
    """A local file of weights."""

    path: Path
    layout: str = "auto"  # torchvision, timm, vgg_face, vgg_face_dag, arcface; checkpoint for one of our own
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    least_filled: Annotated[float, Field(ge=0, le=1)] = 0.95  # share of the backbone's numbers that must come from it
    head: bool = False  # of our own checkpoints: also take the head


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor; `filled` is the share of the backbone's numbers that the file gave."""

    layout: str
    filled: float
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]  # "name: found (…), expected (…)"
    left_out: tuple[str, ...]
    normalisation: Normalisation

    @property
    def line(self) -> str:
        """The report in one line, with the first names of what did not fit."""
        parts = [
            f"{self.filled:.1%} of the backbone from the {self.layout} layout",
            f"{len(self.loaded)} tensors loaded",
        ]
        for word, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("mis-shaped", self.misshaped),
            ("left out", self.left_out),
        ):
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            parts.append(f"{len(names)} {word}" + (f" ({shown})" if names and word != "left out" else ""))
        return "; ".join(parts)


def load_weights(model: ExpressionNet, network: NetworkSettings, settings: WeightSettings) -> LoadReport:
    """Fills the backbone in place; refuses a file that fits too little of it."""
    tensors = read_tensors(settings.path, sha256=settings.sha256)
    name, layout = choose_layout(network, settings, tensors)
    targets = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    if not settings.head:
        targets = {key: value for key, value in targets.items() if not key.startswith("head.")}
    loaded, unexpected, misshaped, left_out = [], [], [], []
    with torch.no_grad():
        for source, tensor in tensors.items():
            target = layout.rename(source)
            if target is None or source.endswith("num_batches_tracked"):
                left_out.append(source)
            elif target not in targets:
                unexpected.append(source)
            elif (found := fitted(tensor, targets[target])) is None:
                expected = tuple(targets[target].shape)
                misshaped.append(f"{source}: found {tuple(tensor.shape)}, expected {expected}")
            else:
                targets[target].copy_(found)
                loaded.append(target)
    twice = [key for key, count in Counter(loaded).items() if count > 1]
    if twice:
        raise DataError(f"weights {settings.path} give {twice[0]} twice in the {name} layout; choose another layout")
    backbone = {key: value.numel() for key, value in targets.items() if key.startswith("backbone.")}
    filled = sum(backbone.get(key, 0) for key in loaded) / sum(backbone.values())
    missing = tuple(key for key in targets if key not in set(loaded) and not key.startswith(("neck.", "head.")))
    report = LoadReport(
        layout=name,
        filled=filled,
        loaded=tuple(loaded),
        missing=missing,
        unexpected=tuple(unexpected),
        misshaped=tuple(misshaped),
        left_out=tuple(left_out),
        normalisation=layout.normalisation,
    )
    if filled < settings.least_filled:
        raise DataError(
            f"weights {settings.path} fill {report.line}; expected at least {settings.least_filled:.0%}: "
            f"choose weights of {network.name}, another layout or a lower least_filled"
        )
    return report


def choose_layout(network: NetworkSettings, settings: WeightSettings, keys: Collection[str]) -> tuple[str, Layout]:
    """The layout that the settings name, or the only one that recognises the file; names refer to the whole network."""
    published: dict[str, Layout] = family(network.name).layouts(network)
    choices = {name: _in_backbone(layout) for name, layout in published.items()}
    own = _own_layout(settings)
    if settings.layout == "checkpoint" or (settings.layout == "auto" and own.recognises(keys)):
        return "checkpoint", own
    if settings.layout != "auto":
        if settings.layout not in choices:
            known = ", ".join(["auto", "checkpoint", *choices])
            raise ConfigError(f"weights of {network.name} have no layout {settings.layout!r}; choose one of {known}")
        return settings.layout, choices[settings.layout]
    fitting = [name for name, layout in choices.items() if layout.recognises(keys)]
    if len(fitting) != 1:
        found = " or ".join(fitting) if fitting else f"none of {', '.join(['checkpoint', *choices])}"
        raise ConfigError(f"weights {settings.path} could be {found}; say which with the setting layout")
    return fitting[0], choices[fitting[0]]


def _in_backbone(layout: Layout) -> Layout:
    def rename(name: str) -> str | None:
        target = layout.rename(name)
        return None if target is None else f"backbone.{target}"

    return Layout(layout.normalisation, layout.recognises, rename)


def _own_layout(settings: WeightSettings) -> Layout:
    card = settings.path.parent / "card.json"
    normalisation = Normalisation()
    if card.is_file():
        chosen = read_card(settings.path.parent).preprocessing.model_dump(exclude={"size", "grey"})
        normalisation = Normalisation.model_validate(chosen)

    def rename(name: str) -> str | None:
        return None if name.startswith("head.") and not settings.head else name

    return Layout(normalisation, lambda keys: all(key.startswith(OWN_PREFIXES) for key in keys), rename)


def fitted(tensor: Tensor, target: Tensor) -> Tensor | None:
    """The tensor in the shape of its target, None where it does not fit."""
    if tensor.shape == target.shape:
        return tensor
    # Converted Caffe weights keep the first fully connected layer as a convolution over the whole map.
    if tensor.ndim == 4 and target.ndim == 2 and tensor.flatten(1).shape == target.shape:
        return tensor.flatten(1)
    return None
