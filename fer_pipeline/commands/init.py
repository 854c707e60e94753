"""The user's own sets in (`--anchor csv:PATH --pool recordio:PATH --target csv:PATH --classes …`), a checked
`params.yaml` and a table of what was found out.

The settings are those of the profile for photographs, its comments kept; only what names the data is filled in.
"""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from fer_pipeline.commands import check
from fer_pipeline.commands.guess import Wishes
from fer_pipeline.commands.survey import Found, Named, Source, Survey, name_of, parse, survey_labelled, survey_pool
from fer_pipeline.commands.survey_table import table
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.expressions import canonical
from fer_pipeline.core.files import replacing
from fer_pipeline.core.settings import Split, validate
from fer_pipeline.datasets import csv

PROFILE = Path("profiles") / "photographs.yaml"
NULL_TAG = "tag:yaml.org,2002:null"


def run(
    *,
    anchor: str,
    pools: Sequence[str],
    targets: Sequence[str],
    classes: str,
    train: str | None = None,
    image_root: Sequence[Path] = (),
    image_column: Sequence[str] = (),
    label_column: Sequence[str] = (),
    subject_column: Sequence[str] = (),
    split_column: Sequence[str] = (),
    renamed: Sequence[str] = (),
    drop_outside: bool = False,
    reject_missing: bool = False,
    params: Path = Path("params.yaml"),
    profile: Path = PROFILE,
    force: bool = False,
) -> str:
    """Writes `params` and tells what was found; `renamed` is `LABEL=CLASS`, several."""
    names = _classes(classes)
    refuse_own_settings(params, profile.parent, force=force)
    wishes = Wishes(image_root, image_column, label_column, subject_column, split_column, reject_missing)
    found = survey(
        anchor=parse(anchor, option="--anchor"),
        train=None if train is None else parse(train, option="--train"),
        pools=[parse(pool, option="--pool") for pool in pools],
        targets=[parse(target, option="--target") for target in targets],
        classes=names,
        renamed=_renamed(renamed, names),
        drop_outside=drop_outside,
        wishes=wishes,
        project=params.parent,
    )
    text = filled(profile, build(found, classes=names))
    with replacing(params) as beside:
        beside.write_text(text, encoding="utf-8")
        try:
            check.check(beside)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(beside), f"{params} (not written)")) from None
    return "\n".join([*table(found, names), f"{params} is written and checked; now run: dvc repro"])


def survey(
    *,
    anchor: Source,
    train: Source | None,
    pools: Sequence[Source],
    targets: Sequence[Source],
    classes: Sequence[str],
    renamed: Mapping[str, str],
    drop_outside: bool,
    wishes: Wishes,
    project: Path,
) -> Found:
    """Looks at every source once, whatever parts it plays, and refuses what could not be trained or measured."""
    names: dict[tuple[str, str], str] = {}
    sets: dict[str, Survey] = {}

    def enter(source: Source, split: Split | None) -> str:
        place = csv.find_table(source.path, csv.Options()) if source.adapter == "csv" else source.path
        key = (source.adapter, os.path.realpath(place))
        if key not in names:
            name, number = name_of(source), 2
            while name in sets:
                name, number = f"{name_of(source)}_{number}", number + 1
            names[key] = name
            if split is None:
                sets[name] = survey_pool(source, wishes.of(name), project=project)
            else:
                sets[name] = survey_labelled(
                    source,
                    wishes.of(name),
                    split=split,
                    classes=classes,
                    renamed=renamed,
                    drop_outside=drop_outside,
                    project=project,
                )
        return names[key]

    anchor_name = enter(anchor, "train")
    train_name = anchor_name if train is None else enter(train, "train")
    target_names = [enter(target, "test") for target in targets]
    pool_names = [enter(pool, None) for pool in pools]
    if strangers := sorted(wishes.sets() - set(sets)):
        raise ConfigError(f"{strangers[0]!r} in SET=… is none of the sets: {', '.join(sets)}")
    for name in dict.fromkeys((anchor_name, train_name)):
        empty = [label for label in classes if not sets[name].classes_in("train").get(label)]
        if empty:
            raise DataError(
                f"{name} has no train picture of {', '.join(empty)}; take it out of --classes, or name the label that "
                f"means it by --rename LABEL=CLASS"
            )
    # The labelled sets' own test splits are the measure within the data set.
    own = [name for name in dict.fromkeys((anchor_name, train_name)) if sets[name].classes_in("test")]
    chosen = tuple(dict.fromkeys((*own, *target_names)))
    for name in chosen:
        if not sets[name].classes_in("test"):
            splits = ", ".join(sorted({split for split, _ in sets[name].counts})) or "all dropped"
            raise DataError(
                f"{name} has no labelled test picture (its splits: {splits}); a target needs a split column with test "
                f"rows, or none"
            )
    if not chosen:
        raise ConfigError("nothing to measure on: the anchor has no test rows; name a labelled set by --target")
    if not pool_names:
        raise ConfigError("nothing to mine: name an unlabelled set by --pool")
    return Found(sets, anchor_name, train_name, tuple(dict.fromkeys(pool_names)), chosen)


def build(found: Found, *, classes: Sequence[str]) -> dict[str, Any]:
    """What the settings say of the data, section by section; nothing else of the profile is touched."""
    datasets = {
        name: found_set.settings.model_dump(mode="json", exclude_defaults=True)
        for name, found_set in found.sets.items()
    }
    return {
        "classes": list(classes),
        "anchor": found.anchor,
        "train": found.train,
        "pools": list(found.pools),
        "targets": list(found.targets),
        "datasets": datasets,
        "synthesize": {"sets": {}},
        "align": {"sets": {name: {"prealigned": True} for name, one in found.sets.items() if one.prealigned}},
        "embed": {"sets": [found.anchor, *found.pools]},
    }


def filled(profile: Path, values: Mapping[str, Any]) -> str:
    """The profile's text with `values` in their places and `data/faces/<set>` renamed; comments and order stay."""
    yaml = YAML()
    yaml.width = 120
    yaml.representer.add_representer(type(None), lambda dumper, _: dumper.represent_scalar(NULL_TAG, "null"))
    try:
        settings = yaml.load(profile.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{profile} does not exist; run in the project's folder") from None
    labelled, anchor = (f"data/faces/{settings[role]}/train" for role in ("train", "anchor"))
    for recipe in settings["recipes"].values():
        if recipe["data"] == labelled:
            recipe["data"] = f"data/faces/{values['train']}/train"
    sources = settings["distill"].get("sources", {})
    for name, source in sources.items():
        if source == anchor:
            sources[name] = f"data/faces/{values['anchor']}/train"
    for section, value in values.items():
        if section == "datasets":
            settings[section] = value
        elif isinstance(value, dict):
            settings[section].update({key: _flow(inner) for key, inner in value.items()})
        else:
            settings[section] = _flow(value)
    text = io.StringIO()
    yaml.dump(settings, text)
    return text.getvalue()


def refuse_own_settings(params: Path, profiles: Path, *, force: bool) -> None:
    """Settings that stand there and are no profile's own are replaced only with `force`."""
    known = [path.read_bytes() for path in sorted(profiles.glob("*.yaml"))]
    if params.exists() and params.read_bytes() not in known and not force:
        raise ConfigError(f"{params} holds settings of its own; keep a copy and say --force to replace it")


def _classes(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if len(names) < 2:
        raise ConfigError(f"--classes {text!r} names fewer than two; write for example anger,happiness,neutral")
    for name in names:
        validate(Named, {"name": name}, where=f"--classes {text!r}")
    if len({canonical(name) for name in names}) < len(names):
        raise ConfigError(f"--classes {text!r} names one expression twice (as {', '.join(map(canonical, names))})")
    return names


def _renamed(pairs: Sequence[str], classes: Sequence[str]) -> dict[str, str]:
    renamed = {}
    for pair in pairs:
        label, mark, target = pair.rpartition("=")
        if not mark or target not in classes:
            raise ConfigError(f"--rename {pair!r} is no LABEL=CLASS with a class of {', '.join(classes)}")
        renamed[label] = target
    return renamed


def _flow(value: Any) -> Any:
    """Lists and mappings in one line, as the profiles write them."""
    if isinstance(value, list):
        value = CommentedSeq(value)
    elif isinstance(value, dict):
        value = CommentedMap({key: _flow(inner) for key, inner in value.items()})
    else:
        return value
    value.fa.set_flow_style()
    return value
