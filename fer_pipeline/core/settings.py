"""Read `params.yaml` into frozen, checked models; an error is one line that says what to correct.

Every stage owns the section of its own name as `class Config(Settings)`. What several stages share (classes, seeds,
data sets, recipes) is at the top level and is read as `ProjectSettings`. When a stage ends it reports a `Summary`.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fer_pipeline.core.documents import DocumentError, brief, find_alias, one_line, read_yaml
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.folds import Protocol, Published

Split = Literal["train", "val", "test"]
Rule = Literal["margin", "probability", "probability_margin"]  # what a pool face is chosen by, the largest value first
RULES: tuple[Rule, ...] = get_args(Rule)
PARAMS, STORE = Path("params.yaml"), Path(".store")  # unless the command line names others
EXPERIMENT = "DVC_EXP_BASELINE_REV"  # set in the environment by DVC while it runs an experiment
FACES = Path("data/faces")  # <set>/<split> below
PLAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
PlainName = Annotated[str, Field(pattern=PLAIN_NAME)]
# What no shell reads as more than one word, within single quotes: DVC pastes it into the commands of stages.
PLAIN_TEXT = re.compile(r"[\w./][\w @%+=:,./-]*")
PLAIN_RULE = "is made of letters, digits, blanks and _ . / - @ % + = : , and begins with a letter, digit, _ . or /"


def _is_plain(path: Path) -> Path:
    if not PLAIN_TEXT.fullmatch(str(path)):
        raise ValueError(f"a path that DVC hands to a shell {PLAIN_RULE}; rename it")
    return path


PlainPath = Annotated[Path, AfterValidator(_is_plain)]


Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")


class Settings(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


DataName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,79}$")]  # as publishers call their sets
Behind = Literal["the model", "its teacher", "the labeller", "the start of its distilled images"]


class Seen(Settings):
    """Which data sets registered weights were trained on, and what they are to a model: `how` and `of` say it."""

    data: Annotated[tuple[DataName, ...], Field(min_length=1)]
    how: Literal["is in", "taught", "is behind"] = "is in"
    of: Behind = "the model"


AllSeen = dict[PlainName, Seen]  # by the name of the weights


def pass_on(seen: Mapping[str, Seen], to: Behind) -> dict[str, Seen]:
    """Returns what is behind a model as it is behind one that was made by it: `to` says what the first is to that.

    A training that starts from a model goes on with it, and passes nothing on: what was behind it is as it was.
    """
    found = {}
    for name, one in seen.items():
        if one.of != "the model":
            change = {"how": "is behind", "of": to}  # further back than words are worth
        elif to == "its teacher" and one.how == "is in":
            change = {"how": "taught"}
        else:
            change = {"of": to}
        found[name] = one.model_copy(update=change)
    return found


def dump_seen(seen: Mapping[str, Seen]) -> dict[str, Any]:
    """Returns the entry of a file with it; none where nothing is known, so that other files keep their bytes."""
    return {"seen": {name: one.model_dump(mode="json") for name, one in seen.items()}} if seen else {}


class DatasetSettings(Settings):
    """Where a data set lies, how its labels are read and how it is divided."""

    adapter: str
    path: Path
    split: Split | None = None  # of rows whose source names none
    protocol: Protocol | None = None  # divides all of the set anew; null: its own splits
    classes: dict[str, str | None] = {}  # label of the source -> class; null drops the rows, counted
    drop_unknown: bool = False  # labels outside the classes: rejected and counted instead of an error
    options: dict[str, Any] = {}  # the adapter's own

    @model_validator(mode="after")
    def _one_thing_divides(self) -> "DatasetSettings":
        if self.protocol is not None and self.split is not None:
            raise ValueError(f"both split and protocol {self.protocol.name} say what is tested; leave one of them out")
        if isinstance(self.protocol, Published) and "fold" in self.options:
            raise ValueError("both options.fold and protocol.fold name a fold; leave options.fold out")
        return self

    def shares_source(self, other: "DatasetSettings") -> bool:
        """Tells whether both read the same files."""
        return (self.adapter, self.path) == (other.adapter, other.path)

    def divides_as(self, other: "DatasetSettings") -> bool:
        """Tells whether both are divided alike, whichever part of their source they are."""
        mine, others = ({**one.options, "part": None} for one in (self, other))
        return (self.protocol, self.classes, mine) == (other.protocol, other.classes, others)

    def adapter_options(self) -> dict[str, Any]:
        """Returns the options that the adapter is called with: its own, and the fold of a published protocol."""
        return {**self.options, "fold": self.protocol.fold} if isinstance(self.protocol, Published) else self.options


def _known_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError("use auto, cpu, cuda or cuda:<number>")
    return name


class RaySettings(Settings):
    """A Ray cluster; `RAY_ADDRESS` in the environment counts where `address` is null, else a local one is started."""

    address: str | None = None
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    gpus_per_worker: Annotated[float | None, Field(gt=0)] = None  # null: one where the device is a GPU
    wait_seconds: Annotated[float, Field(gt=0)] = 900  # without a worker: a cluster that grows takes minutes


class Resources(Settings):
    """Where the work runs. No stage's result depends on it beyond float noise, so it is no dependency of any stage."""

    device: Annotated[str, AfterValidator(_known_device)] = "auto"
    workers: Annotated[int, Field(ge=1)] = 2  # processes, each with one CPU thread
    backend: Literal["local", "ray"] = "local"  # where shards are made
    gpus: Annotated[int | None, Field(ge=1)] = None  # GPUs that local workers spread over; null: all there are
    retries: Annotated[int, Field(ge=0)] = 2  # of a shard whose worker was lost
    ray: RaySettings = RaySettings()
    memory_gb: Annotated[float | None, Field(ge=0)] = None  # for images of trainings; null: half of what is free
    gpu_memory_share: Annotated[float, Field(ge=0, le=0.9)] = 0.4  # of a GPU's free memory, for the same
    parallel: Literal["seeds", "data"] | None = None  # what a training divides; null: seeds, where it has one, its data


RECIPE_DEPS = 3  # dvc.yaml names so many dependencies of a recipe, one by one: its templates know no lists there
NEW_RECIPE = (
    "a recipe is written {strategy: supervised, sources: {labelled: data/faces/SET/train, mined: data/auxiliary}, "
    "deps: [data/faces/SET/train, data/auxiliary, data/auxiliary]}"
)


class RecipeSettings(Settings):
    """How one final model is made: a strategy, the source of each of its streams, and its overrides of `train_final`.

    `deps` repeats the paths of the sources for DVC, filled up to three by repeating one of them.
    """

    strategy: str
    sources: Annotated[dict[PlainName, PlainPath], Field(min_length=1)]
    deps: tuple[Path, ...] = ()
    overrides: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _is_no_old_form(cls, values: Any) -> Any:
        if isinstance(values, dict) and (old := [key for key in ("use", "data") if key in values]):
            raise ValueError(f"{old[0]!r} is of an old form; {NEW_RECIPE}")
        return values

    @model_validator(mode="after")
    def _deps_are_the_sources(self) -> "RecipeSettings":
        for name, path in self.sources.items():
            if path.name != "train" and path.parent.parent == FACES:
                raise ValueError(f"the source {name} is a {path.name} split, {path}; name the train split of a set")
        paths = [path.as_posix() for path in self.sources.values()]
        if len(paths) > RECIPE_DEPS:
            raise ValueError(
                f"{len(paths)} sources, {', '.join(self.sources)}, but dvc.yaml names {RECIPE_DEPS} dependencies of a "
                f"recipe; leave some out, or name a folder that holds several sets"
            )
        if len(self.deps) != RECIPE_DEPS or {path.as_posix() for path in self.deps} != set(paths):
            wanted = (paths + paths[-1:] * RECIPE_DEPS)[:RECIPE_DEPS]
            raise ValueError(f"deps must repeat the paths of the sources: deps: [{', '.join(wanted)}]")
        return self


class FinalNetwork(BaseModel):
    """What `train_final` says of its models' initial weights, for stages that start there; that stage checks it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    network: dict[str, Any] = {}
    weights: dict[str, Any] | None = None


class ProjectSettings(BaseModel):
    """What the stages share: the top level of `params.yaml`, and of the stages' own sections the final network."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    classes: tuple[PlainName, ...]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    anchor: PlainName
    train: PlainName
    pools: Annotated[tuple[PlainName, ...], Field(min_length=1)]
    targets: Annotated[tuple[PlainName, ...], Field(min_length=1)]
    datasets: dict[PlainName, DatasetSettings]
    recipes: Annotated[dict[PlainName, RecipeSettings], Field(min_length=1)]
    resources: Resources = Resources()
    train_final: Annotated[FinalNetwork, BeforeValidator(lambda value: value or {})] = FinalNetwork()

    @model_validator(mode="after")
    def _names_agree(self) -> "ProjectSettings":
        if len(self.classes) < 2:
            raise ValueError(f"classes must name at least two expressions, found {list(self.classes)}")
        for key in ("classes", "seeds", "pools", "targets"):
            twice = [value for value, count in Counter(getattr(self, key)).items() if count > 1]
            if twice:
                raise ValueError(f"{key} names {twice[0]!r} twice")
        for key in ("datasets", "recipes"):
            if dotted := [name for name in getattr(self, key) if "." in name]:
                cure = f"rename it, for example to {dotted[0].replace('.', '_')}"
                raise ValueError(f"{key} has the name {dotted[0]!r}, in which DVC reads a dot as a step deeper; {cure}")
        for key in ("anchor", "train", "pools", "targets"):
            value = getattr(self, key)
            for name in (value,) if isinstance(value, str) else value:
                if name not in self.datasets:
                    raise ValueError(f"{key} names the data set {name!r}, but datasets has {sorted(self.datasets)}")
        for name, recipe in self.recipes.items():
            path = recipe.sources.get("labelled", FACES)
            if path.is_relative_to(FACES) and path.parts[2:3] not in ((), (self.train,)):
                raise ValueError(
                    f"train is {self.train!r}, but the recipe {name} learns from {path}; name the same set"
                )
        for pool in (name for name in self.pools if self.datasets[name].options.get("part") != "unlabelled"):
            own = self.datasets[pool]
            for name, one in self.datasets.items():
                is_divided = one.protocol is not None and not isinstance(one.protocol, Published)
                if name != pool and is_divided and own.shares_source(one) and not own.divides_as(one):
                    raise ValueError(
                        f"the pool {pool} shows persons whom a fold of {name} tests; give datasets.{pool} the "
                        f"protocol, classes and options of datasets.{name}, all but part, and vary both together: "
                        f"datasets.{name}.protocol.fold+datasets.{pool}.protocol.fold=1,2"
                    )
        if self.anchor in self.pools:
            raise ValueError(f"the anchor {self.anchor!r} cannot be its own pool; take it out of pools")
        return self

    def dataset(self, name: str) -> DatasetSettings:
        """Returns the settings of a data set; ConfigError where there is none of that name."""
        return _named(self.datasets, name, "data set")

    def names_of(self, name: str) -> set[str]:
        """Returns what a data set may be known as elsewhere: its name, its adapter's and its folder's."""
        dataset = self.datasets.get(name)  # a stage by hand may name a set of its own
        return {name, dataset.adapter, dataset.path.name} if dataset else {name}

    def recipe(self, name: str) -> RecipeSettings:
        """Returns the settings of a recipe; ConfigError where there is none of that name."""
        return _named(self.recipes, name, "recipe")


@dataclass(frozen=True)
class Summary:
    """One line, counts and warnings; `failed` makes the command exit with 1 after all possible work was done."""

    stage: str
    line: str
    counts: dict[str, int | float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    failed: bool = False


def _named(group: Mapping[str, Model], name: str, what: str) -> Model:
    if name not in group:
        raise ConfigError(f"no {what} {name!r} in the settings; they have {', '.join(sorted(group))}")
    return group[name]


def load_params(params: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file of settings."""
    try:
        loaded = read_yaml(params)
        alias = find_alias(params.read_text(encoding="utf-8")) if EXPERIMENT in os.environ else None
    except FileNotFoundError:
        line = f"{params} does not exist; run in the project's folder or name the file with --params"
        raise ConfigError(line) from None
    except IsADirectoryError:
        raise ConfigError(f"{params} is a folder; name the file of settings with --params") from None
    except DocumentError as error:
        raise ConfigError(f"{params} is not valid YAML: {error}; correct it") from None
    if not isinstance(loaded, dict):
        found = f"{params} holds a {type(loaded).__name__}, expected a mapping of sections"
        raise ConfigError(f"{found}; correct it, or name another file with --params")
    if alias is not None:
        line, name = alias
        raise ConfigError(
            f"{params}, line {line}: *{name} repeats what &{name} names, and an override by `dvc exp run -S` changes "
            "both or neither; write the values out in both places and commit"
        )
    return loaded


def validate(model: type[Model], values: Any, *, where: str) -> Model:
    """Returns `values` as a `model`; ConfigError names the key, what was found and the known keys in one line."""
    try:
        return model.model_validate(values if values is not None else {})
    except ValidationError as error:
        raise ConfigError(f"{where}: {describe(error, model)}") from None


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Describes the first error of a validation in one line, with the known keys where a key is unknown."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}; known keys are {', '.join(_known_keys(model, first['loc'][:-1]))}"
    if first["type"] == "missing":
        return f"the key {key!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    value = f", found {brief(first['input'])}" if not isinstance(first["input"], dict) else ""
    return " ".join(one_line(f"{key + ': ' if key else ''}{message}{value}{more}", 500).split())


def _known_keys(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    models = [model]
    for part in location:
        found = [one.model_fields[part].annotation for one in models if part in one.model_fields]
        kinds = [kind for one in found for kind in (one, *get_args(one)) if isinstance(kind, type)]
        inner = [kind for kind in kinds if issubclass(kind, BaseModel)]
        # The name of a member of a union; that of an entry of a mapping leaves its models.
        named = [
            one for one in models if any(part in get_args(field.annotation) for field in one.model_fields.values())
        ]
        models = inner or named or models
    return sorted({name for one in models for name in one.model_fields})


def read_project(params: Path) -> ProjectSettings:
    """Returns what the stages share."""
    return validate(ProjectSettings, load_params(params), where=str(params))


def values_in(group: Any, kind: type[Value]) -> Iterator[Value]:
    """Yields the values of a type in settings or in mappings and lists of them, however deep."""
    if isinstance(group, kind):
        yield group
    elif isinstance(group, BaseModel):
        yield from values_in(dict(group), kind)
    elif isinstance(group, Mapping):
        for item in group.values():
            yield from values_in(item, kind)
    elif isinstance(group, list | tuple):
        for item in group:
            yield from values_in(item, kind)


def merge_settings(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with those of `over` in their place, however deep."""
    merged = dict(base)
    for name, value in over.items():
        old = base.get(name)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("name", old.get("name")) == old.get("name"):
            merged[name] = merge_settings(old, value)
        else:
            merged[name] = value  # an optimizer or schedule of another name brings all its settings
    return merged


def first_difference(before: Any, now: Any, place: str = "", *, common: bool = False) -> tuple[str, Any, Any] | None:
    """Returns the dotted place where nested settings differ first, and both values; None where they do not.

    With `common`, a key that one side lacks makes no difference, nor does null. Equally long lists of settings are
    compared one by one.
    """
    if all(isinstance(one, list | tuple) and all(isinstance(item, dict) for item in one) for one in (before, now)):
        if len(before) == len(now):
            before, now = ({str(number): item for number, item in enumerate(one)} for one in (before, now))
    if not (isinstance(before, dict) and isinstance(now, dict)):
        differs = before != now and not (common and None in (before, now))
        return (place, before, now) if differs else None
    for key in {**before, **now}:
        if key in before and key in now:
            found = first_difference(before[key], now[key], f"{place}.{key}".lstrip("."), common=common)
        else:
            found = None if common else (f"{place}.{key}".lstrip("."), before.get(key), now.get(key))
        if found:
            return found
    return None
