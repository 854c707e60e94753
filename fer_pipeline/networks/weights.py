"""Load published weights, by their registered name or from a local file, into a network, and report what was filled.

Nothing is left to chance: every name of the file and every tensor of the backbone is in the report, as loaded, missing,
unexpected, mis-shaped or left out (the old head), and a file that fills less than the stated share is refused.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fer_pipeline.core.documents import one_line
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.files import file_sha256, refuse_stand_in
from fer_pipeline.core.settings import Settings, first_difference
from fer_pipeline.networks import pretrained
from fer_pipeline.networks.backbones import Layout, build, family, leaving_out
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.preprocessing import Normalisation, Preprocessing
from fer_pipeline.networks.settings import Card, NetworkSettings, card_beside, preprocessing_of

PIXELS = Normalisation(mean=(0, 0, 0), std=(1, 1, 1), scale=1.0)  # as they are
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "backbone", "params")
PREFIXES = ("module.", "_orig_mod.")
OWN_PREFIXES = ("backbone.", "neck.", "head.", "confidence.")


class WeightSettings(Settings):
    """Which weights a network starts from: registered ones by `name`, or those in a file."""

    name: str | None = None  # of `python -m fer_pipeline weights list`
    path: Path | None = None  # with a name: where its file is; null: where it was installed
    layout: str = "auto"  # torchvision, timm, vgg_face, vgg_face_dag, arcface; checkpoint for one of our own
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    least_filled: Annotated[float, Field(ge=0, le=1)] = 0.95  # share of the backbone's numbers that must come from it
    head: bool = False  # of our own checkpoints: also take the head
    licence: str | None = None  # of a file without a name, for the card
    # Target data sets that they, or what is behind them, learned from, and that are to be evaluated on all the same.
    allow_seen: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _says_which(self) -> "WeightSettings":
        if self.name is None and self.path is None:
            raise ValueError("set name (registered weights) or path (a file)")
        if self.name is not None:
            own = {"layout": "auto", "sha256": None, "head": False, "licence": None}
            if stated := [key for key, value in own.items() if getattr(self, key) != value]:
                raise ValueError(f"registered weights bring their own {stated[0]}; leave it out, or the name")
        return self

    def __str__(self) -> str:
        return self.name or str(self.path)


@dataclass
class LoadReport:
    """The fate of every tensor; `filled` is the share of the backbone's numbers that the file gave."""

    layout: str
    normalisation: Normalisation
    origin: dict[str, str] = field(default_factory=dict)  # sha256, licence and more, for the card
    notes: list[str] = field(default_factory=list)  # what a user should know of them
    filled: float = 0.0
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshaped: list[str] = field(default_factory=list)  # "name: found (…), expected (…)"
    left_out: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        line = f"{self.filled:.1%} of the backbone from the {self.layout} layout; {len(self.loaded)} tensors loaded"
        fates = {"missing": self.missing, "unexpected": self.unexpected, "mis-shaped": self.misshaped}
        for word, names in fates.items():
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            line += f"; {len(names)} {word}" + (f" ({shown})" if names else "")
        return f"{line}; {len(self.left_out)} left out"


def initial_network(
    network: NetworkSettings, weights: WeightSettings | None, *, num_classes: int, seed: int
) -> tuple[ExpressionNet, Preprocessing, LoadReport | None]:
    """Builds a sized network as a training starts from it: drawn from the seed, then filled from published weights.

    Every final training of a seed starts here, and whatever asks what it starts from.
    """
    model = build(network, num_classes, seed)
    if network.members:
        report = load_members(model, network)
    else:
        report = load_weights(model, network, weights) if weights else None
    return model, preprocessing_of(network, report.normalisation if report else None), report


@torch.no_grad()
def load_weights(model: ExpressionNet, network: NetworkSettings, settings: WeightSettings) -> LoadReport:
    """Fills the backbone in place; refuses a file that fits too little of it."""
    tensors = _tensors_of(settings)
    name, layout = choose_layout(network, settings, tensors)
    report = LoadReport(name, layout.normalisation, describe_origin(settings), note_unknown(settings, layout=name))
    ignored = () if settings.head else ("head.",)
    targets = {
        key: value
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked") and not key.startswith(ignored)
    }
    for source, tensor in tensors.items():
        target = layout.rename(source)
        if target is None or source.endswith("num_batches_tracked"):
            report.left_out.append(source)
        elif target not in targets:  # of registered weights all names are known: these are of a part that we leave out
            (report.left_out if settings.name else report.unexpected).append(source)
        elif (reshaped := fit_shape(tensor, targets[target])) is None:
            expected = tuple(targets[target].shape)
            report.misshaped.append(f"{source}: found {tuple(tensor.shape)}, expected {expected}")
        elif target in report.loaded:
            raise DataError(f"weights {settings} give {target} twice in the {name} layout; choose another layout")
        else:
            targets[target].copy_(reshaped)
            report.loaded.append(target)
    backbone = {key: value.numel() for key, value in targets.items() if key.startswith("backbone.")}
    report.filled = sum(backbone.get(key, 0) for key in report.loaded) / sum(backbone.values())
    absent = set(targets) - set(report.loaded)
    report.missing = [key for key in targets if key in absent and not key.startswith(("neck.", "head."))]
    if report.filled < settings.least_filled:
        raise DataError(
            f"weights {settings} fill {report.line}; expected at least {settings.least_filled:.0%}: "
            f"choose weights of {network.name}, another layout or a lower least_filled"
        )
    return report


def choose_layout(network: NetworkSettings, settings: WeightSettings, keys: Collection[str]) -> tuple[str, Layout]:
    """Returns the layout that the settings name, or the only one that recognises the file; names are of the model's."""
    if settings.name is not None:
        check_fit(settings, network)
        one = pretrained.find(settings.name)
        return settings.name, Layout(one.normalisation, lambda keys: True, lambda source: f"backbone.{source}")
    published: dict[str, Layout] = family(network.name).layouts(network)
    name, is_own = settings.layout, all(key.startswith(OWN_PREFIXES) for key in keys)
    if name == "checkpoint" or (name == "auto" and is_own):
        return "checkpoint", _own_layout(settings)
    if name == "auto":
        fitting = [choice for choice, layout in published.items() if layout.recognises(keys)]
        if len(fitting) != 1:
            candidates = " or ".join(fitting) if fitting else f"none of {', '.join(['checkpoint', *published])}"
            raise ConfigError(f"weights {settings} could be {candidates}; say which with the setting layout")
        name = fitting[0]
    elif name not in published:
        known = ", ".join(["auto", "checkpoint", *published])
        raise ConfigError(f"weights of {network.name} have no layout {name!r}; choose one of {known}")
    layout = published[name]

    def rename(source: str) -> str | None:
        target = layout.rename(source)
        return None if target is None else f"backbone.{target}"

    return name, replace(layout, rename=rename)


def own_card(settings: WeightSettings | None) -> Card | None:
    """Returns the card beside the file where the weights are those of a checkpoint of ours."""
    return card_beside(settings.path) if settings else None


def _own_layout(settings: WeightSettings) -> Layout:
    normalisation = Normalisation()
    if card := own_card(settings):
        normalisation = Normalisation.model_validate(card.preprocessing.model_dump(exclude={"size", "grey"}))
    return Layout(normalisation, lambda keys: True, (lambda name: name) if settings.head else leaving_out("head."))


@torch.no_grad()
def load_members(model: ExpressionNet, network: NetworkSettings) -> LoadReport:
    """Fills the networks that `joined` joins from their registered weights, in place."""
    report = LoadReport("members", PIXELS, filled=1.0)
    for number, member in enumerate(network.members):
        if member.onnx is not None:
            pretrained.read_onnx_net(member.onnx)  # whether it runs
            report.origin[str(member)] = f"sha256 {member.onnx.sha256}"
            report.notes.append(f"the licence of {member} and what it was trained on are not known here")
            continue
        assert member.name is not None, "a member has a name or a file"
        prefix = f"backbone.members.{number}."
        own, tensors = model.get_submodule(prefix.rstrip(".")), pretrained.read_tensors(member.name)
        own.load_state_dict({name: tensors[name] for name in own.state_dict()})
        settings = WeightSettings(name=member.name)
        origin = describe_origin(settings)
        report.origin[member.name] = ", ".join(f"{key} {origin[key]}" for key in ("source", "licence", "sha256"))
        report.notes += note_unknown(settings, layout="members")
        report.loaded += [prefix + name for name in own.state_dict()]
    return report


def check_members(
    network: NetworkSettings, weights: WeightSettings | None, targets: Mapping[str, Collection[str]]
) -> None:
    """Refuses members that cannot be joined or were trained on a target, and what does not go with members."""
    if network.name != "joined":
        if network.members:
            raise ConfigError(f"members are of the network joined alone, found {network.name}; leave them out")
        return
    if weights is not None or network.normalisation is not None:
        raise ConfigError("the members of joined bring weights and normalisation; leave weights and normalisation out")
    for member in network.members:
        if member.name is not None:
            check_unseen(WeightSettings(name=member.name), targets)
    family(network.name).build(network)


def check_fit(settings: WeightSettings, network: NetworkSettings) -> None:
    """Refuses registered weights that are of another network, or whose pixels are prepared in another way."""
    if settings.name is None:
        return
    one = pretrained.find(settings.name)
    if family(network.name).__name__.rpartition(".")[2] != one.network:
        raise ConfigError(f"the weights {settings.name} are of {one.network}, found network.name: {network.name}")
    if network.normalisation not in (None, one.normalisation):
        found, own = (dump.model_dump(mode="json") for dump in (network.normalisation, one.normalisation))
        key, value, expected = first_difference(found, own) or ("", None, None)
        raise ConfigError(
            f"the weights {settings.name} were trained with {key} {expected}, found network.normalisation.{key}: "
            f"{value}; leave network.normalisation out"
        )


def check_unseen(settings: WeightSettings, targets: Mapping[str, Collection[str]]) -> None:
    """Refuses weights that were trained on a target, which goes by some names, or that have such ones behind them."""
    seen = pretrained.seen_by_weights(settings.name, settings.path)
    where = "" if settings.name else f"{settings}: "
    for target, names in targets.items():
        if (said := pretrained.describe_seen(seen, names)) and target not in settings.allow_seen:
            raise ConfigError(
                f"{where}{said}, which the target {target!r} is, and its figures would be of pictures that were "
                f"learned from; take it out of targets, or set allow_seen: [{target}]"
            )


def require_members(*networks: NetworkSettings) -> None:
    """Refuses members whose weights are not installed or cannot be read here, before any work; each is read once."""
    pretrained.require_installed([member for network in networks for member in network.members])


def require_file(settings: WeightSettings) -> None:
    """Refuses weights that are not there, or not the published ones, before any work."""
    if settings.name is not None:
        pretrained.read_files(settings.name, settings.path)
    elif settings.path is not None and not settings.path.is_file():
        raise DataError(f"weights {settings.path} do not exist; put the file there or change the setting")


def own_side(settings: WeightSettings | None) -> int | None:
    """Returns the side of the input that weights with a template of their own were trained on; None for others."""
    if settings is None:
        return None
    own = pretrained.find(settings.name).normalisation if settings.name else _own_layout(settings).normalisation
    return own.template.side if own.template else None


def sha256_of(settings: WeightSettings) -> str | None:
    """Returns the sha256 of the weights, without reading those whose bytes are pinned; None where there is no file."""
    if settings.name is not None:
        return pretrained.find(settings.name).sha256
    return file_sha256(settings.path) if settings.path and settings.path.is_file() else None


def describe_origin(settings: WeightSettings) -> dict[str, str]:
    """Returns what a card says of the weights that a training started from."""
    if settings.name is None:
        return {"path": str(settings.path), "sha256": sha256_of(settings) or "", "licence": settings.licence or ""}
    one = pretrained.find(settings.name)
    known = ("licence", "data_licence", "trained_on", "sha256")
    return {"name": settings.name, "source": str(one.source), **{key: getattr(one, key) for key in known}}


def note_unknown(settings: WeightSettings, *, layout: str) -> list[str]:
    """Returns a line for what nobody has stated of the weights: their licence, or all that they were trained on."""
    if settings.name is None:
        stated = settings.licence is not None or layout == "checkpoint"
        return [] if stated else [f"the licence of the weights {settings} is not stated; write it into weights.licence"]
    one = pretrained.find(settings.name)
    line = f"the weights {settings.name} were trained on {one.trained_on}"
    return [] if one.knows_all_seen else [f"{line}; whether pictures of a target were among them is not known"]


def _tensors_of(settings: WeightSettings) -> dict[str, Tensor]:
    if settings.name is not None:
        return pretrained.read_tensors(settings.name, settings.path)
    assert settings.path is not None, "settings have a name or a path"
    return read_tensors(settings.path, sha256=settings.sha256)


def fit_shape(tensor: Tensor, target: Tensor) -> Tensor | None:
    """Returns the tensor in the shape of its target, None where it does not fit."""
    # Converted Caffe weights keep the first fully connected layer as a convolution over the whole map.
    flat = tensor.flatten(1) if tensor.ndim == 4 and target.ndim == 2 else tensor
    return flat if flat.shape == target.shape else None


def read_tensors(path: Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """Reads a weights file into a flat mapping, its hash checked first where one is given.

    By safetensors, or by `torch.load(weights_only=True)`, which runs no code: it refuses all but plain tensors.
    """
    if not path.is_file():
        raise DataError(f"weights {path} do not exist; put the file there or change the setting")
    refuse_stand_in(path)
    if sha256 is not None and (digest := file_sha256(path)) != sha256.lower():
        raise DataError(f"weights {path} have sha256 {digest}, expected {sha256}; fetch the file again")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle.UnpicklingError, and what a damaged pickle may raise besides
        fault = "cannot be read ({}); fetch the file again"
        if not isinstance(error, SafetensorError | RuntimeError | EOFError | OSError | ValueError):
            fault = "hold more than tensors and are refused ({}); save a plain state_dict"
        raise DataError(f"weights {path} {fault.format(one_line(error, 160))}") from None
    tensors = {name: tensor for name, tensor in _unwrap(loaded, path).items() if isinstance(tensor, Tensor)}
    for name, tensor in tensors.items():  # a stride of 0 makes any shape of a few bytes
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or not is_dense(tensor):
            raise DataError(
                f"weights {path} hold {one_line(name, 80)}, which is no plain tensor; save a plain state_dict"
            )
    return tensors


def is_dense(tensor: Tensor) -> bool:
    """Tells whether a tensor has the bytes that its shape says, and repeats none of them."""
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _unwrap(loaded: Any, path: Path) -> dict[str, Any]:
    while not (isinstance(loaded, Mapping) and any(isinstance(value, Tensor) for value in loaded.values())):
        choices = [loaded.get(name) for name in WRAPPERS] if isinstance(loaded, Mapping) else []
        inner = [choice for choice in choices if isinstance(choice, Mapping)]
        if not inner:
            raise DataError(
                f"weights {path} hold no state_dict, found {type(loaded).__name__}; save a plain state_dict"
            )
        loaded = inner[0]
    names = {name: value for name, value in loaded.items() if isinstance(name, str)}
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in names):
            names = {name.removeprefix(prefix): value for name, value in names.items()}
    return names
