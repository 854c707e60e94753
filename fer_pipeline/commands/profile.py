"""List the papers' settings, or put one of them in place of `params.yaml`, on the set of its paper or on another.

A profile is a whole `params.yaml`; `profiles/sets/<set>.yaml` holds what a published set is: its classes, its `dataset`
with the protocol, and under `profiles` what a paper set otherwise on it. On another set, that set stands wherever the
profile's own did, and is the only target.
"""

import io
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter
from yaml import SafeLoader, ScalarNode

from fer_pipeline.commands.check import commands_to_remove
from fer_pipeline.core.documents import load_commented
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.files import refuse_link, write_bytes
from fer_pipeline.core.settings import PARAMS, DatasetSettings, PlainName, Settings, load_params, validate

PROFILES = Path("profiles")
SETS = PROFILES / "sets"
NULL_TAG, TEXT_TAG = "tag:yaml.org,2002:null", "tag:yaml.org,2002:str"


class PublishedSet(Settings):
    """A file of `profiles/sets`."""

    classes: tuple[PlainName, ...]
    dataset: DatasetSettings
    holds: tuple[PlainName, ...] = ()  # adapters of other sets whose pictures are among these
    profiles: dict[PlainName, dict[str, Any]] = Field(default_factory=dict)  # what a paper set otherwise on this set


def run(
    name: str | None = None,
    *,
    on: str | None = None,
    test_on: Sequence[str] = (),
    params: Path = PARAMS,
    force: bool = False,
) -> str:
    """List the papers' settings and sets, or put a paper's settings in place of params.yaml.

    Args:
        name: The profile to put in place; without it, all are listed.
        on: The published set that it is to learn from; the paper's own without it.
        test_on: A published set to measure on besides, whole; may be repeated.
        params: The file of settings.
        force: Replace the settings that stand there.
    """
    profiles = {path.stem: path.read_bytes() for path in sorted(PROFILES.glob("*.yaml"))}
    if not profiles:
        raise DataError(f"no profiles in {PROFILES.resolve()}; run in the project's folder, which has {PROFILES}/")
    if name is None:
        sets = {path.stem: path.read_bytes() for path in sorted(SETS.glob("*.yaml"))}
        lines = [f"{name:20} {_comment(content)}" for name, content in profiles.items()]
        lines += ["", "for --on and --test-on:", *(f"{name:20} {_comment(content)}" for name, content in sets.items())]
        return "\n".join(lines)
    if name not in profiles:
        raise ConfigError(f"unknown profile {name!r}; choose one of {', '.join(profiles)}")
    check_replaceable(params, force=force)
    is_changed = on is not None or test_on
    write_bytes(params, compose(name, on, test_on).encode() if is_changed else profiles[name])
    what = f"the profile {name}{f' on {on}' if on else ''}"
    commands = [*commands_to_remove(params), "dvc repro"]
    return f"{params} now holds {what}; look at its data sets' paths, then run: {'; '.join(commands)}"


def compose(name: str, on: str | None, test_on: Sequence[str] = ()) -> str:
    """Returns a profile's settings on a published set; ConfigError where the two do not go together.

    Args:
        name: The profile.
        on: The set that takes the place of the profile's own; that one without it.
        test_on: Sets to measure on besides, each whole unless it comes with a test split.
    """
    text = (PROFILES / f"{name}.yaml").read_text(encoding="utf-8")
    own = load_params(PROFILES / f"{name}.yaml")
    old, pools = own["anchor"], own["pools"]
    if old not in _known_sets():
        raise ConfigError(f"the profile {name} is of no published set; --on takes those of papers")
    wanted: str = old if on is None else on
    if both := [one for one in (wanted, *test_on) if one in pools]:
        fault = f"{both[0]} is a pool of the profile {name}, so that it cannot be its labelled set or a target"
        raise ConfigError(f"{fault}; choose another")
    yaml = settings_editor()
    published = {one: _read_set(one) for one in dict.fromkeys((wanted, *test_on))}
    _refuse_shared(wanted, published)
    comment = _comment((SETS / f"{wanted}.yaml").read_bytes())
    if wanted != old:  # a set of that name may be a target already
        text = re.sub(rf"(?m)^  {wanted}:.*\n(?:    .*\n)*", "", text)
    own_text = re.sub(rf"\b{old}\b", wanted, text).removeprefix("# ")
    settings = load_commented(f"# On {wanted}: {comment}\n# Of the profile {name}: {own_text}", yaml)
    for key, names in (("classes", published[wanted]["classes"]), ("targets", [*published])):
        settings[key] = load_commented(json.dumps(names), yaml)  # JSON is YAML in one line
    named = {wanted, *pools, *published}
    for other in [other for other in settings["datasets"] if other not in named]:
        del settings["datasets"][other]
    for one, content in published.items():
        settings["datasets"].ca.items.pop(one, None)  # a comment on the profile's own set
        own_classes, dataset = published[wanted]["classes"], content["dataset"]
        settings["datasets"][one] = dataset if one == wanted else _tested_whole(dataset, own_classes)
    _merge(settings, published[wanted].get("profiles", {}).get(name, {}))
    out = io.StringIO()
    yaml.dump(settings, out)
    return out.getvalue()


def settings_editor() -> YAML:
    """Returns what loads settings with their comments, and writes values as settings are read."""
    yaml = YAML()
    yaml.width = 120
    yaml.Representer = _Representer
    return yaml


def check_replaceable(params: Path, *, force: bool) -> None:
    """Refuses to replace settings that are no profile's own, unless forced, and a link to settings."""
    refuse_link(params)
    known = [path.read_bytes() for path in PROFILES.glob("*.yaml")]
    if params.exists() and params.read_bytes() not in known and not force:
        raise ConfigError(f"{params} holds settings of its own; keep a copy and say --force to replace it")


def _known_sets() -> list[str]:
    return sorted(path.stem for path in SETS.glob("*.yaml"))


def _read_set(name: str) -> dict[str, Any]:
    """Returns what a set's file holds, checked."""
    if name not in _known_sets():
        raise ConfigError(f"unknown set {name!r}; choose one of {', '.join(_known_sets())}")
    content = load_params(SETS / f"{name}.yaml")
    validate(PublishedSet, content, where=str(SETS / f"{name}.yaml"))
    return content


def _refuse_shared(wanted: str, published: Mapping[str, dict[str, Any]]) -> None:
    """Refuses targets with pictures that are trained on: of the same place, or known to be among a set's."""
    trained = published[wanted]
    for one, content in published.items():
        adapters = content["dataset"]["adapter"], trained["dataset"]["adapter"]
        same = content["dataset"]["path"] == trained["dataset"]["path"]
        if one != wanted and (
            same or adapters[0] in trained.get("holds", ()) or adapters[1] in content.get("holds", ())
        ):
            raise ConfigError(
                f"{one} and {wanted} share pictures, which would be trained on and tested; choose another"
            )


def _tested_whole(dataset: dict[str, Any], classes: Collection[str]) -> dict[str, Any]:
    """Returns a set of which all that has one of the classes is tested; one with a test split of its own keeps it."""
    kept = {key: value for key, value in dataset.items() if key != "protocol"}
    if "classes" in kept:  # what each word of the source means: none of the others
        kept["classes"] = {word: one if one in classes else None for word, one in kept["classes"].items()}
    divided = "protocol" in dataset and dataset["protocol"]["name"] != "published"
    return {**kept, **({"split": "test"} if divided else {}), "drop_unknown": True}


def _merge(settings: Any, over: dict[str, Any]) -> None:
    """Puts settings over others, in place, so that comments stay."""
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(settings.get(key), dict):
            _merge(settings[key], value)
        else:
            settings[key] = value


def _comment(content: bytes) -> str:
    return content.decode().splitlines()[0].lstrip("# ")


class _Representer(RoundTripRepresenter):
    """Writes as settings are read; a class of its own, since representers are of the class and not of one file."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: RoundTripRepresenter, text: str) -> Any:
    """Quotes what YAML 1.1, by which settings are read, takes for something else than text: `no`, `1:30`."""
    plain = SafeLoader("").resolve(ScalarNode, text, (True, False)) == TEXT_TAG
    return dumper.represent_scalar(TEXT_TAG, text, style=None if plain else '"')


_Representer.add_representer(type(None), lambda dumper, _: dumper.represent_scalar(NULL_TAG, "null"))
_Representer.add_representer(str, _represent_text)
