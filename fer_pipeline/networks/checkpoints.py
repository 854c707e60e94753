"""Save and load checkpoints: folders with `weights.safetensors` and `card.json`.

    model = load_checkpoint("models/final/das/10")
    probabilities = model.predict(faces)            # uint8 [n h w 3], aligned as in training

The card says all that is needed to use the weights: network, order of the classes, preprocessing, and what they were
trained with and on. The same weights and card give the same bytes.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import save_file
from torch import Tensor

from fer_pipeline.core.documents import brief, one_line
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import file_sha256, replacing, write_json
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.devices import resolve_device
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.settings import CARD, Card, read_card
from fer_pipeline.networks.weights import read_tensors

WEIGHTS = "weights.safetensors"


class Classifier:
    """A trained network with its card, which turns aligned crops into probabilities or features, in batches."""

    def __init__(self, model: ExpressionNet, card: Card, *, device: torch.device, batch_size: int = 256) -> None:
        self.model = model.eval().to(device=device).to(memory_format=torch.channels_last)  # pyright: ignore
        self.card, self.device, self.batch_size = card, device, batch_size
        self.classes = card.classes  # the columns of `predict`

    @torch.inference_mode()
    def predict(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n c"]:
        return self._map(lambda x: self.model(x).float().softmax(1), images, len(self.classes))

    @torch.inference_mode()
    def features(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d"]:
        return self._map(lambda x: self.model.features(x).float(), images, self.model.feature_dim)

    def _map(self, function: Callable[[Tensor], Tensor], images: np.ndarray, columns: int) -> np.ndarray:
        results = [np.zeros((0, columns), np.float32)]
        for start in range(0, len(images), self.batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + self.batch_size])).to(self.device)
            results.append(function(self.card.preprocessing.apply(batch)).cpu().numpy())
        return np.concatenate(results)


def save_checkpoint(folder: Path, model: ExpressionNet, card: Card) -> None:
    """Writes weights and card; the card comes last, so that a folder with a card is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    write_json(folder / CARD, card.model_dump(mode="json"))


def load_checkpoint(folder: Path | str, *, classes: Sequence[str] | None = None, device: str = "cpu") -> Classifier:
    """Loads the classifier of a checkpoint; refuses one whose classes are not `classes` in this very order."""
    folder = Path(folder)
    card = read_card(folder)
    if classes is not None and tuple(classes) != card.classes:
        raise DataError(
            f"{folder} was trained with the classes {', '.join(card.classes)}, expected {', '.join(classes)} in this "
            "order; train it again or set classes to its own"
        )
    tensors = read_tensors(folder / WEIGHTS)
    try:
        with torch.device("meta"):  # shapes alone: what a card asks for may be larger than any memory
            expected = _build(card).state_dict()
    except (NotImplementedError, RuntimeError):  # a network of timm's may compute with its numbers as it is built
        expected = _build(card).state_dict()
    if fault := _first_difference(tensors, expected):
        raise DataError(f"{folder / WEIGHTS} does not fit its card ({fault}); train the model again")
    model = _build(card)
    model.load_state_dict(tensors)
    return Classifier(model, card, device=resolve_device(device))


def predictor_parts(folder: Path) -> list[Any]:
    """Returns all that a checkpoint's predictions depend on; how it was trained is no part of it."""
    own = {"network", "classes", "preprocessing", "confidence"}
    return [file_sha256(folder / WEIGHTS), read_card(folder).model_dump(mode="json", include=own)]


def checkpoint_folders(folder: Path) -> list[Path]:
    """Returns a checkpoint's folder, or those of the checkpoints below (of several seeds); DataError for none."""
    found = [folder] if (folder / CARD).is_file() else sorted(path.parent for path in folder.glob(f"*/{CARD}"))
    if not found:
        raise DataError(f"no checkpoint in {folder} or in a folder of it; train it first (dvc repro) or name another")
    return found


def _build(card: Card) -> ExpressionNet:
    model = build(card.network, len(card.classes), seed=0)
    if card.confidence:
        model.add_confidence()
    return model


def read_head(folder: Path) -> tuple[Float[np.ndarray, "c d"], Float[np.ndarray, " c"]]:
    """Reads the weight and the bias of the last layer alone, in single precision."""
    tensors = read_tensors(folder / WEIGHTS)
    weight, bias = (tensors.get(f"head.{name}") for name in ("weight", "bias"))
    if weight is None or bias is None or weight.dim() != 2 or bias.shape != weight.shape[:1]:
        raise DataError(f"{folder / WEIGHTS} has no linear head; train the model again")
    return weight.float().numpy(), bias.float().numpy()


def features_id(folder: Path) -> str:
    """Returns what a checkpoint's features are known by: the hash of its weights, and the stages its card names."""
    weights, grids = file_sha256(folder / WEIGHTS), read_card(folder).mining_features
    return weights if grids is None else " ".join([weights, *(f"{stage}@{grids[stage]}" for stage in sorted(grids))])


def _first_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Describes the first tensor that is missing, unknown or of another shape or type; empty where there is none."""
    for name in [*expected, *found]:
        if name not in found:
            return f"it lacks {name}"
        if name not in expected:
            return f"it has the unknown tensor {one_line(name, 80)}"
        shape, wanted = tuple(found[name].shape), tuple(expected[name].shape)
        if shape != wanted:
            return f"{name} has the shape {brief(shape)}, expected {wanted}"
        if found[name].is_floating_point() != expected[name].is_floating_point():
            return f"{name} holds {found[name].dtype}, expected {expected[name].dtype}"
    return ""
