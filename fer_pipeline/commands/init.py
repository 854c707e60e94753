"""Write a checked `params.yaml` for a user's own data sets.

The settings are those of a profile, its comments kept; only what names the data is filled in, and recipes of published
networks that do not know one of the classes are left out.
"""

import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from fer_pipeline.commands import survey
from fer_pipeline.commands.check import CheckedSettings, check, commands_to_remove, networks_in
from fer_pipeline.commands.labels import map_labels, parse_renames
from fer_pipeline.commands.profile import PROFILES, check_replaceable, settings_editor
from fer_pipeline.commands.results import format_table
from fer_pipeline.commands.survey import DatasetSurvey, Source, SurveySettings
from fer_pipeline.commands.tables import split_names
from fer_pipeline.core.documents import load_commented
from fer_pipeline.core.errors import ConfigError, DataError, OptionError
from fer_pipeline.core.expressions import canonical
from fer_pipeline.core.files import replacing
from fer_pipeline.core.settings import PARAMS, Split, validate
from fer_pipeline.datasets import csv

OWN = {"anchor": "anchor", "pools": ["pool"]}  # the data sets of a profile that is to be filled in


def run(
    *,
    anchor: str,
    pool: Sequence[str],
    classes: str,
    target: Sequence[str] = (),
    train: str | None = None,
    profile: str = "photographs",
    image_root: Sequence[str] = (),
    image_column: Sequence[str] = (),
    label_column: Sequence[str] = (),
    subject_column: Sequence[str] = (),
    split_column: Sequence[str] = (),
    split_word: Sequence[str] = (),
    image_prefix: Sequence[str] = (),
    image_ending: Sequence[str] = (),
    columns: Sequence[str] = (),
    delimiter: Sequence[str] = (),
    encoding: Sequence[str] = (),
    follow_links: Sequence[str] = (),
    levels: Sequence[str] = (),
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
        profile: The profile that is filled in: photographs, on published networks, learners_photographs, all learners
            from a published face network, or scratch, without any.
        image_root: Where the pictures of a CSV lie, [SET=]FOLDER.
        image_column: The column of pictures, [SET=]NAME.
        label_column: The column of labels, [SET=]NAME.
        subject_column: The column of persons, [SET=]NAME.
        split_column: The column of splits, [SET=]NAME.
        split_word: A word that means a split, [SET:]WORD=SPLIT.
        image_prefix: A beginning of a CSV's names of pictures that is cut off, [SET=]BEGINNING; several.
        image_ending: What such a name ends in, if not its suffix, [SET=]ENDING, for example _aligned.jpg.
        columns: The columns' names of a CSV without a line of them, [SET=]NAME,NAME.
        delimiter: What is between the cells of a CSV, [SET=]MARK; tab and blank are said so.
        encoding: How a CSV is encoded, [SET=]NAME, for example cp1252.
        follow_links: Follow links out of the folder of pictures, [SET=]true.
        levels: What an image_folder's folders stand for, [SET=]split,class or subject, or flat.
        rename: What a label of the source means, [SET:]LABEL=CLASS.
        drop_outside: Leave out labels that are no class; they are counted.
        reject_missing: Leave out rows without a picture; they are counted.
        params: The file of settings.
        force: Replace the settings that stand there.
    """
    names = _parse_classes(classes)
    check_replaceable(params, force=force)
    choices = {
        "image_root": image_root,
        "image_column": image_column,
        "label_column": label_column,
        "subject_column": subject_column,
        "split_column": split_column,
        "image_prefix": image_prefix,
        "image_ending": image_ending,
        "columns": columns,
        "delimiter": delimiter,
        "encoding": encoding,
        "follow_links": follow_links,
        "levels": levels,
    }
    settings = SurveySettings(choices, split_word, reject_missing, params.parent)
    words = {"anchor": [anchor], "train": [train] if train else [], "target": target, "pool": pool}
    sources = {role: [survey.parse_source(one, option=f"--{role}") for one in words[role]] for role in words}
    sets, roles = survey_project(sources, settings)
    sets = map_sets(sets, names, rename, drop_outside=drop_outside)
    roles["targets"] = check_sets(sets, roles, names)
    values = {
        "classes": list(names),
        **roles,
        "datasets": {name: one.settings.model_dump(mode="json", exclude_defaults=True) for name, one in sets.items()},
        "synthesize": {"sets": {}},
        "align": {"sets": {name: {"prealigned": True} for name, one in sets.items() if one.prealigned}},
        "embed": {"sets": [roles["anchor"], *roles["pools"]]},
    }
    text, notes = fill_profile(values, profile)
    with replacing(params) as temporary:
        temporary.write_text(text, encoding="utf-8")
        try:
            checked = check(temporary)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(temporary), f"{params} (not written)")) from None
    commands = [*_commands_before(checked), *commands_to_remove(params), "dvc repro"]
    last = f"{params} is written and checked; now run: {'; '.join(commands)}"
    return "\n".join([*format_survey(sets, roles, names), *notes, last])


def _commands_before(checked: CheckedSettings) -> list[str]:
    """Returns what installs the weights that the settings name and that are not there."""
    from fer_pipeline.networks import pretrained  # brings torch

    wanted = [member.name for network in networks_in(checked) for member in network.members if member.name]
    return pretrained.commands_to_install(pretrained.not_installed(wanted))


def survey_project(
    sources: Mapping[str, Sequence[Source]], settings: SurveySettings
) -> tuple[dict[str, DatasetSurvey], dict[str, Any]]:
    """Surveys every source of each role once.

    Returns:
        The sets by name, and the roles as the settings write them: `anchor`, `train` (else the anchor), `pools` and
        `targets`.
    """
    splits: dict[str, Split | None] = {"anchor": "train", "train": "train", "target": "test", "pool": None}
    names: dict[tuple[str, str], str] = {}
    plans: dict[str, tuple[Source, Split | None]] = {}

    def add(source: Source, default_split: Split | None) -> str:
        # The same for every way to write it: the table of a CSV source, else the path.
        try:
            place = csv.find_table(source.path, csv.Options()) if source.adapter == "csv" else source.path
        except OptionError as error:
            raise error.reworded(partial(survey.word_option, survey.name_source(source))) from None
        key = (source.adapter, os.path.realpath(place))
        if key not in names:
            name, number = survey.name_source(source), 2
            while name in plans:
                name, number = f"{survey.name_source(source)}_{number}", number + 1
            names[key], plans[name] = name, (source, default_split)
        return names[key]

    named = {role: list(dict.fromkeys(add(one, split) for one in sources[role])) for role, split in splits.items()}
    adapters = {name: source.adapter for name, (source, _) in plans.items()}
    survey.check_choices(settings.choices, adapters)
    sets = {
        name: survey.survey_set(source, name, settings, default_split=split, names=list(plans))
        for name, (source, split) in plans.items()
    }
    survey.check_split_words(settings.split_words, sets)
    anchor = named["anchor"][0]
    train = (named["train"] or [anchor])[0]
    return sets, {"anchor": anchor, "train": train, "pools": named["pool"], "targets": named["target"]}


def map_sets(
    sets: Mapping[str, DatasetSurvey], classes: Sequence[str], rename: Sequence[str], *, drop_outside: bool
) -> dict[str, DatasetSurvey]:
    """Returns the sets with what the labels of each mean; `rename` is what the user wrote."""
    counts = {name: one.label_counts() for name, one in sets.items() if one.labels is not None}
    mapped = map_labels(counts, classes, parse_renames(rename, classes, counts, sets), drop_outside=drop_outside)
    return {name: one.with_labels(mapped[name]) if name in mapped else one for name, one in sets.items()}


def check_sets(sets: Mapping[str, DatasetSurvey], roles: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """Returns the names of the sets to measure on, the labelled sets with test splits of their own first.

    Raises:
        DataError: A class has no train picture, or a target no test picture.
        ConfigError: There is nothing to measure on, or nothing to mine.
    """
    trained = list(dict.fromkeys((roles["anchor"], roles["train"])))
    for name in trained:
        labelled = sets[name].class_counts("train")
        if empty := [label for label in classes if not labelled.get(label)]:
            raise DataError(
                f"{name} has no train picture of {', '.join(empty)}; take it out of --classes, or name the label that "
                f"means it by --rename {name}:LABEL=CLASS"
            )
    own = [name for name in trained if sets[name].class_counts("test")]
    measured = list(dict.fromkeys((*own, *roles["targets"])))
    for name in measured:
        if not sets[name].class_counts("test"):
            present = ", ".join(sorted({split for split, _ in sets[name].counts()})) or "all dropped"
            raise DataError(
                f"{name} has no labelled test picture (its splits: {present}); a target needs test rows, or no splits: "
                f"say where its splits are by --split-column or --levels, or what means test by --split-word "
                f"{name}:WORD=test, or leave it out of --target"
            )
    if not measured:
        raise ConfigError("nothing to measure on: the anchor has no test rows; name a labelled set by --target")
    if not roles["pools"]:
        raise ConfigError("nothing to mine: name an unlabelled set by --pool")
    return measured


def fill_profile(values: Mapping[str, Any], name: str) -> tuple[str, list[str]]:
    """Fills the profile `name`: `values` by section in their places, and its paths of faces renamed.

    Comments and order stay; YAML's anchors and aliases are written out, so that each section can be edited alone.

    Returns:
        The text of the settings, and a line for each recipe that was left out.
    """
    yaml = settings_editor()
    texts = {path.stem: path.read_text("utf-8") for path in sorted(PROFILES.glob("*.yaml"))}
    loaded = {stem: load_commented(text, YAML(typ="safe")) for stem, text in texts.items()}
    fitting = [stem for stem, one in loaded.items() if {key: one.get(key) for key in OWN} == OWN]
    if not fitting:
        raise ConfigError(f"no profile in {PROFILES.resolve()} can be filled in; run in the project's folder")
    if name not in fitting:
        raise ConfigError(f"--profile {name!r} cannot be filled in; choose one of {', '.join(fitting)}")
    # The recipes of the profile read its anchor to train on.
    renamed = {"anchor": values["train"], "pool": values["pools"][0]}
    pattern, profile = r"(?<=data/faces/)(anchor|pool)(?=/train)", texts[name]
    settings = load_commented(re.sub(pattern, lambda match: renamed[match[0]], profile), yaml)
    for section, value in values.items():
        in_one_line = load_commented(json.dumps(value, ensure_ascii=False), yaml)  # JSON is YAML in one line
        if section == "datasets":  # whose options are many: a line for each
            settings[section] = value
        elif isinstance(value, dict):
            settings[section].update(in_one_line)
        else:
            settings[section] = in_one_line
    notes = list(_leave_out_unknowing(settings, values["classes"]))
    text = io.StringIO()
    yaml.dump(settings, text)
    return text.getvalue(), notes


def _leave_out_unknowing(settings: Any, classes: Sequence[str]) -> Iterator[str]:
    """Takes out recipes of published networks that do not know one of the classes, and yields a line for each."""
    for name in [name for name, recipe in settings["recipes"].items() if recipe["strategy"] == "published"]:
        from fer_pipeline.networks import pretrained  # brings torch

        known = pretrained.find(settings["recipes"][name]["overrides"]["network"]["members"][0]["name"]).classes
        if unknown := [label for label in classes if canonical(label) not in known]:
            del settings["recipes"][name]
            settings["evaluate"]["recipes"].remove(name)
            yield f"recipe {name} is left out: the network does not know {', '.join(unknown)}"


def format_survey(sets: Mapping[str, DatasetSurvey], roles: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """Returns a table with a line per set and split and the counts of its classes, then a line per decision."""
    rows: list[tuple[str, ...]] = [("set", "part", "split", "pictures", *classes)]
    notes: list[str] = []
    for name, one in sets.items():
        own_roles = [role for role in ("anchor", "train") if roles[role] == name][:1]  # both: said once
        own_roles += [role for role in ("pool", "target") if name in roles[f"{role}s"]]
        counts = one.counts()
        for split in sorted({split for split, _ in counts}, key=("train", "val", "test").index):
            total = sum(count for (other, _), count in counts.items() if other == split)
            labelled = one.class_counts(split)
            cells = [f"{labelled.get(label, 0):,}" if labelled else "-" for label in classes]
            rows.append((name, "+".join(own_roles), split, f"{total:,}", *cells))
        options = ", ".join(f"{key} {value}" for key, value in one.settings.options.items())
        notes.append(f"{name}: {one.settings.adapter} in {one.settings.path}{f' ({options})' if options else ''}")
        notes += [f"{name}: {note}" for note in one.notes()]
        tested = one.class_counts("test")
        if "target" in own_roles and (absent := [label for label in classes if not tested.get(label)]):
            notes.append(f"{name}: no test picture of {', '.join(absent)}")
    return format_table(rows, num_names=3) + notes


def _parse_classes(text: str) -> tuple[str, ...]:
    names = split_names(text)
    if len(names) < 2:
        raise ConfigError(f"--classes {text!r} names fewer than two; write for example anger,happiness,neutral")
    for name in names:
        validate(survey.Named, {"name": name}, where=f"--classes {text!r}")
    if len({canonical(name) for name in names}) < len(names):
        raise ConfigError(f"--classes {text!r} names one expression twice (as {', '.join(map(canonical, names))})")
    return names
