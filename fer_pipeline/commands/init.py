"""Write a checked `params.yaml` for a user's own data sets.

The settings are those of the profile for photographs, its comments kept; only what names the data is filled in.
"""

import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from fer_pipeline.commands import survey
from fer_pipeline.commands.check import check
from fer_pipeline.commands.profile import PROFILES, check_replaceable
from fer_pipeline.commands.results import format_table
from fer_pipeline.commands.survey import DatasetSurvey, Source, SurveySettings
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.expressions import canonical
from fer_pipeline.core.files import replacing
from fer_pipeline.core.settings import PARAMS, Split, validate
from fer_pipeline.datasets import csv

PROFILE = PROFILES / "photographs.yaml"
NULL_TAG = "tag:yaml.org,2002:null"


def run(
    *,
    anchor: str,
    pool: Sequence[str],
    classes: str,
    target: Sequence[str] = (),
    train: str | None = None,
    image_root: Sequence[str] = (),
    image_column: Sequence[str] = (),
    label_column: Sequence[str] = (),
    subject_column: Sequence[str] = (),
    split_column: Sequence[str] = (),
    rename: Sequence[str] = (),
    drop_outside: bool = False,
    reject_missing: bool = False,
    params: Path = PARAMS,
    force: bool = False,
) -> str:
    """Write a checked params.yaml for your own data.

    Args:
        anchor: The labelled set, FORMAT:PATH, for example csv:faces/labels.csv.
        pool: An unlabelled set, FORMAT:PATH; may be said several times.
        classes: The expressions, with commas between.
        target: A test set, FORMAT:PATH; several.
        train: The set that the final models train on, if not the anchor.
        image_root: Where the pictures of a CSV lie, [SET=]FOLDER.
        image_column: The column of pictures, [SET=]NAME.
        label_column: The column of labels, [SET=]NAME.
        subject_column: The column of persons, [SET=]NAME.
        split_column: The column of splits, [SET=]NAME.
        rename: What a label of the source means, LABEL=CLASS.
        drop_outside: Leave out labels that are no class; they are counted.
        reject_missing: Leave out rows without a picture; they are counted.
        params: The file of settings.
        force: Replace the settings that stand there.
    """
    names = _parse_classes(classes)
    check_replaceable(params, force=force)
    columns = {"image": image_column, "label": label_column, "subject": subject_column, "split": split_column}
    choices = {"image_root": image_root, **{f"{kind}_column": values for kind, values in columns.items()}}
    renamed = _parse_renamed(rename, names)
    settings = SurveySettings(names, renamed, drop_outside, choices, reject_missing, params.parent)
    words = {"anchor": [anchor], "train": [train] if train else [], "target": target, "pool": pool}
    sources = {role: [survey.parse_source(one, option=f"--{role}") for one in words[role]] for role in words}
    sets, roles = survey_project(sources, settings)
    values = {
        "classes": list(names),
        **roles,
        "datasets": {name: one.settings.model_dump(mode="json", exclude_defaults=True) for name, one in sets.items()},
        "synthesize": {"sets": {}},
        "align": {"sets": {name: {"prealigned": True} for name, one in sets.items() if one.prealigned}},
        "embed": {"sets": [roles["anchor"], *roles["pools"]]},
    }
    text = fill_profile(values)
    with replacing(params) as temporary:
        temporary.write_text(text, encoding="utf-8")
        try:
            check(temporary)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(temporary), f"{params} (not written)")) from None
    return "\n".join([*format_survey(sets, roles, names), f"{params} is written and checked; now run: dvc repro"])


def survey_project(
    sources: Mapping[str, Sequence[Source]], settings: SurveySettings
) -> tuple[dict[str, DatasetSurvey], dict[str, Any]]:
    """Surveys every source of each role once, and refuses what could not be trained or measured.

    Returns:
        The sets by name, and the roles as the settings write them: `anchor`, `train` (else the anchor), `pools` and
        `targets`, the labelled sets' own test splits among these.
    """
    names: dict[tuple[str, str], str] = {}
    sets: dict[str, DatasetSurvey] = {}

    def add(source: Source, default_split: Split | None) -> str:
        # The same for every way to write it: the table of a CSV source, else the path.
        place = csv.find_table(source.path, csv.Options()) if source.adapter == "csv" else source.path
        key = (source.adapter, os.path.realpath(place))
        if key not in names:
            name, number = survey.name_source(source), 2
            while name in sets:
                name, number = f"{survey.name_source(source)}_{number}", number + 1
            names[key], sets[name] = name, survey.survey_set(source, name, settings, default_split=default_split)
        return names[key]

    splits: dict[str, Split | None] = {"anchor": "train", "train": "train", "target": "test", "pool": None}
    named = {role: list(dict.fromkeys(add(one, split) for one in sources[role])) for role, split in splits.items()}
    anchor, train = named["anchor"][0], (named["train"] or named["anchor"])[0]
    if unknown := sorted({name for _, name, _ in survey.split_choices(settings.choices) if name} - set(sets)):
        raise ConfigError(f"{unknown[0]!r} in SET=… is none of the sets: {', '.join(sets)}")
    for name in dict.fromkeys((anchor, train)):
        labelled = sets[name].class_counts("train")
        if empty := [label for label in settings.classes if not labelled.get(label)]:
            raise DataError(
                f"{name} has no train picture of {', '.join(empty)}; take it out of --classes, or name the label that "
                f"means it by --rename LABEL=CLASS"
            )
    own = [name for name in (anchor, train) if sets[name].class_counts("test")]
    measured = list(dict.fromkeys((*own, *named["target"])))
    for name in measured:
        if not sets[name].class_counts("test"):
            present = ", ".join(sorted({split for split, _ in sets[name].counts})) or "all dropped"
            raise DataError(
                f"{name} has no labelled test picture (its splits: {present}); a target needs a split column with test "
                f"rows, or none"
            )
    if not measured:
        raise ConfigError("nothing to measure on: the anchor has no test rows; name a labelled set by --target")
    if not named["pool"]:
        raise ConfigError("nothing to mine: name an unlabelled set by --pool")
    return sets, {"anchor": anchor, "train": train, "pools": named["pool"], "targets": measured}


def fill_profile(values: Mapping[str, Any]) -> str:
    """Returns the profile's text with `values` in their places and its paths of faces renamed.

    Comments and order stay; YAML's anchors and aliases are written out, so that each section can be edited alone.
    """
    yaml = YAML()
    yaml.width = 120
    yaml.representer.add_representer(type(None), lambda dumper, _: dumper.represent_scalar(NULL_TAG, "null"))
    yaml.representer.ignore_aliases = lambda _: True
    if not PROFILE.exists():
        raise ConfigError(f"{PROFILE} does not exist; run in the project's folder")
    # The recipes of the profile read its anchor to train on.
    renamed = {"anchor": values["train"], "pool": values["pools"][0]}
    pattern, profile = r"(?<=data/faces/)(anchor|pool)(?=/train)", PROFILE.read_text("utf-8")
    settings = yaml.load(re.sub(pattern, lambda match: renamed[match[0]], profile))
    for section, value in values.items():
        in_one_line = yaml.load(json.dumps(value, ensure_ascii=False))  # JSON is YAML in one line
        if section == "datasets":
            settings[section] = value
        elif isinstance(value, dict):
            settings[section].update(in_one_line)
        else:
            settings[section] = in_one_line
    text = io.StringIO()
    yaml.dump(settings, text)
    return text.getvalue()


def format_survey(sets: Mapping[str, DatasetSurvey], roles: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """Returns a table with a line per set and split and the counts of its classes, then a line per decision."""
    rows: list[tuple[str, ...]] = [("set", "part", "split", "pictures", *classes)]
    notes: list[str] = []
    for name, one in sets.items():
        plays = [role for role in ("anchor", "train") if roles[role] == name][:1]  # both: said once
        plays += [role for role in ("pool", "target") if name in roles[f"{role}s"]]
        for split in sorted({split for split, _ in one.counts}, key=("train", "val", "test").index):
            total = sum(count for (other, _), count in one.counts.items() if other == split)
            labelled = one.class_counts(split)
            cells = [f"{labelled.get(label, 0):,}" if labelled else "-" for label in classes]
            rows.append((name, "+".join(plays), split, f"{total:,}", *cells))
        options = ", ".join(f"{key} {value}" for key, value in one.settings.options.items())
        notes.append(f"{name}: {one.settings.adapter} in {one.settings.path}{f' ({options})' if options else ''}")
        notes += [f"{name}: {label} means {target}" for label, target in one.settings.classes.items() if target]
        notes += [f"{name}: {note}" for note in one.notes]
        tested = one.class_counts("test")
        if "target" in plays and (absent := [label for label in classes if not tested.get(label)]):
            notes.append(f"{name}: no test picture of {', '.join(absent)}")
    return format_table(rows, num_names=3) + notes


def _parse_classes(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if len(names) < 2:
        raise ConfigError(f"--classes {text!r} names fewer than two; write for example anger,happiness,neutral")
    for name in names:
        validate(survey.Named, {"name": name}, where=f"--classes {text!r}")
    if len({canonical(name) for name in names}) < len(names):
        raise ConfigError(f"--classes {text!r} names one expression twice (as {', '.join(map(canonical, names))})")
    return names


def _parse_renamed(pairs: Sequence[str], classes: Sequence[str]) -> dict[str, str]:
    split = [pair.rpartition("=") for pair in pairs]
    if wrong := ["".join(parts) for parts in split if not parts[1] or parts[2] not in classes]:
        raise ConfigError(f"--rename {wrong[0]!r} is no LABEL=CLASS with a class of {', '.join(classes)}")
    return {label: target for label, _, target in split}
