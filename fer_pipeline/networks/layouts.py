"""Describe published layouts of weights: how a file names its tensors, and the input its network was trained on."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from fer_pipeline.networks.preprocessing import Normalisation

IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
ARCFACE = Normalisation(mean=(127.5, 127.5, 127.5), std=(128.0, 128.0, 128.0), scale=1.0)


@dataclass(frozen=True)
class Layout:
    """One way to publish a family's weights.

    `rename` maps a name in the file to a name in our backbone, or None for what we know and leave out (the old head).
    """

    normalisation: Normalisation
    recognises: Callable[[Collection[str]], bool]
    rename: Callable[[str], str | None]


def has(*names: str) -> Callable[[Collection[str]], bool]:
    """Recognises a file by names that only this layout has."""
    return lambda keys: all(name in keys for name in names)


def leaving_out(*prefixes: str) -> Callable[[str], str | None]:
    """Keeps all names but those of the old head."""
    return lambda name: None if name.startswith(prefixes) else name
