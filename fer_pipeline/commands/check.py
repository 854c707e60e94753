"""Check all settings before any work is done: every stage's section of `params.yaml` and how they fit together.

Every stage calls `check_for` first, so that an error in the settings of the last stage is reported before the first one
has run. Checking everything imports every stage and with them torch; so the store remembers which settings were valid
for which code, and a stage that finds its own remembered imports only itself.
"""

import hashlib
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ruamel.yaml import YAML

import fer_pipeline
from fer_pipeline.core.documents import DocumentError, load_commented
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.files import refuse_damage, write_text
from fer_pipeline.core.plugins import available, load
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import (
    PARAMS,
    PLAIN_NAME,
    PLAIN_RULE,
    PLAIN_TEXT,
    ProjectSettings,
    load_params,
    validate,
    values_in,
)

GRAPH = Path("dvc.yaml")
NAME_RULE = "is made of letters without accents, digits and _ . - and begins with a letter or digit"
RESTORE = "correct it, or restore it from git: git checkout -- dvc.yaml"
WALK = tuple("synthesize align train_primitive embed score mine shard distill train_final evaluate report".split())


class CheckedSettings(NamedTuple):
    """The settings that stages share, and `Config` and module of every stage, or of the one that was asked for."""

    project: ProjectSettings
    configs: dict[str, Any]
    modules: dict[str, ModuleType]


def run(*, commands: bool = False, params: Path = PARAMS) -> str:
    """Check the settings, and that the data sets, files and devices that they name are there, without running anything.

    Args:
        commands: Check only what DVC puts into commands and outputs: that no shell reads it as code, at once.
        params: The file of settings.
    """
    if commands:
        check_commands(params)
        return f"{params}: every name and path in commands and outputs of {GRAPH} is plain"
    checked = check(params)
    refuse_leftovers(params)
    project = checked.project
    check_machine(params, checked)
    counts = f"{len(project.datasets)} data sets, {len(project.recipes)} recipes, {len(project.seeds)} seeds"
    baseline = checked.configs["report"].baseline
    lone = "" if baseline in project.recipes else f"; report.baseline {baseline!r} is no recipe: nothing is compared"
    return f"{params}: {counts}, all settings are valid{lone}"


def check_for(stage: str, params: Path, *, remembered: Path) -> CheckedSettings:
    """Returns one stage's settings, after all settings were checked, now or before by the same code."""
    package = Path(fer_pipeline.__file__).parent
    paths = sorted((*package.rglob("*.py"), *package.rglob("*.yaml")))  # the drawn world's tables are YAML
    files = [(path.relative_to(package), path.stat()) for path in paths]
    parts = [f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in files]
    # What it is else, the full check reports.
    parts += [file.read_bytes().hex() if file.is_file() else "" for file in (params, GRAPH)]
    state = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if not remembered.exists() or remembered.read_text(encoding="utf-8") != state:
        checked = check(params)
        refuse_leftovers(params)
        write_text(remembered, state)
        return checked
    values, module = load_params(params), load("fer_pipeline.stages", stage)
    config = validate(module.Config, values[stage], where=f"{params}, {stage}")
    return CheckedSettings(validate(ProjectSettings, values, where=str(params)), {stage: config}, {stage: module})


def check(params: Path) -> CheckedSettings:
    """Reads and checks the whole file of settings; ConfigError names the first error."""
    values = load_params(params)
    assert set(available("fer_pipeline.stages")) == set(WALK), "WALK does not list the stages"
    known = {*ProjectSettings.model_fields, *WALK}
    if unknown := sorted(set(map(str, values)) - known):
        owners = [stage for stage in WALK if unknown[0] in load("fer_pipeline.stages", stage).Config.model_fields]
        cure = f"write it in the section {' or '.join(owners)}" if owners else f"known are {', '.join(sorted(known))}"
        raise ConfigError(f"{params}: unknown section {unknown[0]!r}; {cure}")
    if missing := [stage for stage in WALK if stage not in values]:
        raise ConfigError(f"{params}: the section {missing[0]!r} is missing; `{missing[0]}: {{}}` takes the defaults")
    project = validate(ProjectSettings, values, where=str(params))
    modules = {stage: load("fer_pipeline.stages", stage) for stage in WALK}
    configs = {
        stage: validate(module.Config, values[stage], where=f"{params}, {stage}") for stage, module in modules.items()
    }
    _check_names(params, project, configs)
    for name, dataset in project.datasets.items():
        adapter = load("fer_pipeline.datasets", dataset.adapter)
        validate(adapter.Options, dataset.adapter_options(), where=f"{params}, datasets.{name}.options")
        if unknown := sorted({mapped for mapped in dataset.classes.values() if mapped} - set(project.classes)):
            fault = f"{params}, datasets.{name}.classes: {unknown[0]!r} is none of {list(project.classes)}"
            raise ConfigError(f"{fault}; write one of them, or null to leave such pictures out")
    from fer_pipeline.training.strategy import learns  # brings torch

    try:
        crop = configs["align"].crop
        stages = {stage: configs[stage] for stage in ("train_primitive", "train_final")}
        _check_networks(stages, project, crop)
        for name, recipe in modules["train_final"].check_recipes(configs["train_final"], project).items():
            if project.train == project.anchor:
                _check_parts(configs["train_primitive"].split, recipe.config, name)
            places = {f"recipes.{name}.overrides": recipe.config, f"recipes.{name} (options)": recipe.options}
            _check_networks(places, project, crop, trains=learns(recipe.module))
    except ConfigError as error:
        raise ConfigError(f"{params}, {error}") from None
    if GRAPH.exists():
        check_commands(params)
        _check_sources(params, project, values)
    return CheckedSettings(project, configs, modules)


def check_commands(params: Path) -> None:
    """Refuses what DVC would paste into a command for a shell to read as more than one word, or into an output's path.

    DVC removes an output before it runs the command. The settings are read by its own reader, for which a text may mean
    something else than for ours.
    """
    load_params(params)
    try:
        values = load_commented(params.read_text(encoding="utf-8"), YAML(typ="safe"))
    except DocumentError as error:
        raise ConfigError(f"{params}: DVC cannot read it: {error}") from None
    for name, stage in _graph_stages().items():
        for part, plain, rule in (("cmd", PLAIN_TEXT, PLAIN_RULE), ("outs", re.compile(PLAIN_NAME), NAME_RULE)):
            with refuse_damage(GRAPH, "is no graph of stages", RESTORE):
                texts = list(_pasted(stage, part, values))
            for text in texts:
                if not plain.fullmatch(text):
                    raise ConfigError(
                        f"{params}: {text[:80]!r} would stand in {part} of the stage {name} of {GRAPH}; what stands "
                        f"there {rule}: rename it"
                    )


def _pasted(stage: Mapping[str, Any], part: str, values: Any) -> Iterator[str]:
    """Yields the texts that DVC pastes into a part of a stage."""
    scopes = [values]
    if "foreach" in stage:
        entries = _entries(stage["foreach"], values)
        pairs = entries.items() if isinstance(entries, dict) else ((entry, entry) for entry in entries)
        scopes = [{**values, "key": key, "item": entry} for key, entry in pairs]
    for variable, listed in stage.get("matrix", {}).items():
        scopes += [{"key": entry, "item": {variable: entry}} for entry in _entries(listed, values)]
    for expression in re.findall(r"\$\{.*?\}", str(stage.get("do", stage).get(part, ""))):
        for scope in scopes:
            yield from _texts(_resolve(expression, scope))


def _entries(value: Any, scope: Any) -> dict[Any, Any] | list[Any]:
    """Returns what a stage loops over; nothing where it is no mapping or list, which DVC reports."""
    entries = _resolve(value, scope)
    return entries if isinstance(entries, dict | list) else []


def _resolve(value: Any, scope: Any) -> Any:
    """Returns what an expression `${a.b[0]}` names; None where it names nothing, which DVC reports."""
    if not (isinstance(value, str) and value.startswith("${")):
        return value
    for part in filter(None, re.split(r"[.\[\]]", value[2:-1])):
        try:
            scope = scope[int(part) if isinstance(scope, list) else part]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return scope


def _texts(value: Any) -> Iterator[str]:
    """Yields the keys and values in settings, however deep, as DVC writes them."""
    if isinstance(value, dict | list):
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _texts(item)
    elif value is not None:
        yield str(value)


def check_machine(params: Path, checked: CheckedSettings) -> None:
    """Refuses settings that cannot run here: a device or a file that is not there, a data set that cannot be read.

    Stages do not ask for that: one that trains needs no raw pictures, and may run where there are none.
    """
    from fer_pipeline.networks.devices import resolve_device  # brings torch
    from fer_pipeline.networks.weights import WeightSettings, require_file, require_members

    project, align = checked.project, checked.modules["align"]
    if project.resources.backend == "local":  # what a cluster has is known when it is at work
        try:
            resolve_device(project.resources.device)
        except ConfigError as error:
            raise ConfigError(f"{params}, resources: {error}") from None
    outs = _graph_outs(load_params(params)) if GRAPH.exists() else []
    places = {f"datasets.{name}.path": dataset.path for name, dataset in project.datasets.items()}
    sections = _sections(checked)
    places |= {key: path for key, section in sections.items() for path in values_in(section, Path)}
    for key, path in places.items():
        if not path.exists() and not _is_made(path, outs):
            advice = f"run `dvc pull {shlex.quote(str(path))}`" if _is_added(path) else "correct the path"
            raise ConfigError(f"{params}, {key}: {path} does not exist; {advice}")
    for section in sections.values():
        for weights in values_in(section, WeightSettings):
            require_file(weights)
    require_members(*networks_in(checked))
    with tempfile.TemporaryDirectory() as store:
        for name, dataset in project.datasets.items():
            if dataset.path.exists():
                try:
                    with progress(f"check {name}", None):
                        align.plan(checked.configs["align"], project, name=name, store=Path(store))
                except DataError as error:
                    raise DataError(f"{params}, datasets.{name}: {error}") from None


def networks_in(checked: CheckedSettings) -> list[Any]:
    """Returns the settings of every network that a stage or a recipe builds."""
    from fer_pipeline.networks.settings import NetworkSettings  # brings torch

    return [network for section in _sections(checked).values() for network in values_in(section, NetworkSettings)]


def _sections(checked: CheckedSettings) -> dict[str, Any]:
    """Returns the settings of every stage and recipe under what they are called in the file."""
    recipes = checked.modules["train_final"].check_recipes(checked.configs["train_final"], checked.project).items()
    return {**checked.configs, **{f"recipes.{name}": (dict(one.config), one.options) for name, one in recipes}}


def _check_names(params: Path, project: ProjectSettings, configs: Mapping[str, Any]) -> None:
    wanted = {project.anchor, *project.pools}
    if set(configs["embed"].sets) != wanted:
        fault = f"found {sorted(configs['embed'].sets)}, but the anchor and the pools are {sorted(wanted)}"
        raise ConfigError(f"{params}, embed.sets: {fault}; list just these")
    alike = configs["mine"].duplicates
    if alike and not configs["align"].hashes and (numbers := [key for key, one in alike if isinstance(one, int)]):
        raise ConfigError(
            f"{params}, mine.duplicates.{numbers[0]}: perceptual hashes are compared, but align.hashes is false; set "
            "align.hashes to true, or duplicates to {test: null, train: exact, pool: exact}"
        )
    report = configs["report"]
    for key, recipes in {
        "evaluate.recipes": configs["evaluate"].recipes,
        "report.controls": (*report.controls, *report.controls.values()),
        "report.descriptions": report.descriptions,
        "report.bounds": report.bounds,
    }.items():
        if unknown := sorted(set(recipes) - set(project.recipes)):
            raise ConfigError(f"{params}, {key}: no recipe {unknown[0]!r}; choose from {sorted(project.recipes)}")
    if both := sorted(set(report.peers) & set(project.recipes)):
        raise ConfigError(f"{params}, report.peers: {both[0]!r} is a recipe; name networks that no recipe trains")
    compared = {*project.recipes, *report.peers}
    if unknown := sorted({name for pair in report.pairs for name in pair} - compared):
        raise ConfigError(f"{params}, report.pairs: no recipe or peer {unknown[0]!r}; choose from {sorted(compared)}")
    drawn = configs["synthesize"].sets
    for name, dataset in project.datasets.items():
        if dataset.adapter == "synthetic" and dataset.path == Path("data/raw") / name and name not in drawn:
            raise ConfigError(
                f"{params}, datasets.{name}: no set of that name in synthesize.sets, which draws {sorted(drawn)}"
            )


def _check_parts(labeller: Any, final: Any, recipe: str) -> None:
    """Refuses a final validation part that is not the labeller's own: it would hold faces that taught the labeller."""
    parts = (final.validation, final.by_subject)
    if final.validation and parts != (labeller.validation, labeller.by_subject):
        wanted = f"{labeller.validation} and {str(labeller.by_subject).lower()}"
        raise ConfigError(
            f"train_final.validation and by_subject (recipe {recipe}): {parts[0]} and {str(parts[1]).lower()}, but "
            f"train_primitive.split has {wanted}, and both divide the same faces; make them equal, or validation 0"
        )


def _check_networks(groups: Mapping[str, Any], project: ProjectSettings, crop: int, *, trains: bool = True) -> None:
    """Refuses networks, stages and weights that do not fit, and weights that were trained on a target.

    Groups of settings stand under their place in the file. Of a network that is taken as it comes `evaluate` says what
    it was trained on: that is what others would pick.
    """
    from fer_pipeline.networks.backbones import NetworkSettings, check_stages, family, pooled_widths  # brings torch
    from fer_pipeline.networks.weights import WeightSettings, check_fit, check_members, check_unseen, own_side

    targets = {name: project.names_of(name) for name in project.targets} if trains else {}
    for place, settings in groups.items():
        for key, one in settings:
            where = f"{place}.{key}.name" if isinstance(one, NetworkSettings) else f"{place}.{key}"
            try:
                if isinstance(one, NetworkSettings):
                    family(one.name).layouts(one)
                    check_members(one, getattr(settings, "weights", None) if key == "network" else None, targets)
                for weights in values_in(one, WeightSettings):
                    check_unseen(weights, targets)
                    if key == "weights":
                        check_fit(weights, settings.network)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None
        side = own_side(getattr(settings, "weights", None)) or crop
        for key, one in settings:
            if isinstance(one, NetworkSettings) and one.features is not None:
                pooled_widths(one.sized(side), one.features, where=f"{place}.{key}.features")
        for grids in getattr(getattr(settings, "options", None), "mining_features", ()):
            if grids is not None:
                pooled_widths(settings.network.sized(side), grids, where=f"{place}.options.mining_features")
        first_trained = getattr(getattr(settings, "training", None), "frozen_until", None)
        if first_trained is not None:
            where = f"{place}.training.frozen_until"
            if first_trained == next(iter(check_stages(settings.network.sized(side), [first_trained], where=where))):
                raise ConfigError(f"{where}: no stage lies before {first_trained!r}; name a later one, or take it out")


def _check_sources(params: Path, project: ProjectSettings, values: dict[str, Any]) -> None:
    """Refuses a source of a recipe that is no output of the graph, nor below or above one, nor added to DVC."""
    outs = _graph_outs(values)
    folders = sorted({"/".join(out.parts[:2]) for out in outs if out.parts[0] == "data"})
    for name, recipe in project.recipes.items():
        for source, path in recipe.sources.items():
            if not _is_added(path) and not _is_made(path, outs):
                raise ConfigError(
                    f"{params}, recipes.{name}.sources.{source}: no stage of {GRAPH} makes {path}; name a folder in "
                    f"{', '.join(folders)}, or one that was added by `dvc add`"
                )


def refuse_leftovers(params: Path) -> None:
    """Refuses folders of sets that other settings made, where a stage or a recipe would take them in."""
    if left := find_leftovers(params):
        raise ConfigError(
            f"{params}: {left[0]} is of other settings, and what reads all of {left[0].parent} would take it in; DVC's "
            f"cache keeps it; run: {'; '.join(commands_to_remove(params))}"
        )


def commands_to_remove(params: Path) -> list[str]:
    """Returns the command that removes what other settings have left, where there is some."""
    left = find_leftovers(params)
    return [f"rm -r {shlex.join(map(str, left))}"] if left else []


def find_leftovers(params: Path) -> list[Path]:
    """Returns the folders that no stage makes now, beside those of sets of which a stage or a recipe reads all.

    DVC removes no output of a stage that the settings no longer have.
    """
    if not GRAPH.exists():
        return []
    outs = _graph_outs(values := load_params(params))
    recipes = validate(ProjectSettings, values, where=str(params)).recipes
    with refuse_damage(GRAPH, "is no graph of stages", RESTORE):
        read = {Path(dep) for stage in _graph_stages().values() for dep in stage.get("do", stage).get("deps") or ()}
    read |= {path for recipe in recipes.values() for path in recipe.sources.values()}
    return sorted(
        path
        for folder in read
        if folder.parts[:1] == ("data",) and folder not in outs and _is_made(folder, outs) and folder.is_dir()
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".") and not _is_made(path, outs) and not _is_added(path)
    )


def _graph_stages() -> dict[str, Any]:
    with refuse_damage(GRAPH, "is no graph of stages", RESTORE):
        return {name: dict(stage) for name, stage in (load_params(GRAPH).get("stages") or {}).items()}


def _graph_outs(values: dict[str, Any]) -> list[Path]:
    stages = _graph_stages()
    with refuse_damage(GRAPH, "is no graph of stages", RESTORE):
        return [Path(out) for stage in stages.values() for out in _outs(stage, values) if out]


def _is_added(path: Path) -> bool:
    return any(Path(f"{folder}.dvc").is_file() for folder in (path, *path.parents))


def _is_made(path: Path, outs: Sequence[Path]) -> bool:
    return any(path.is_relative_to(out) or out.is_relative_to(path) for out in outs)


def _outs(stage: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """Returns the outputs of a stage, for every entry of the settings that it loops over."""
    outs = [
        out if isinstance(out, str) else next(iter(out.keys()), "") for out in stage.get("do", stage).get("outs") or ()
    ]
    # A list gives its items, a mapping its keys: no output is named by the value of one.
    entries = _entries(stage["foreach"], values) if "foreach" in stage else [""]
    return [out.replace("${item}", "${key}").replace("${key}", str(key)) for key in entries for out in outs]
