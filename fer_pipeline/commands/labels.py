"""Map the labels of several sets to one list of classes, and refuse what could only be guessed.

A label is a class by its name or another spelling of it, or because the user said so (`--rename`). Nothing else is: a
label that is no class is listed with its count, and dropped only where the user says so. So is an empty one, which may
stand for a class or for nothing; where that is dropped its pictures stay, without a label. A number means nothing by
itself, and sets number their expressions differently; so one number is never taken for the same in two sets unless that
is said of each.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from fer_pipeline.artifacts.census import most_frequent
from fer_pipeline.commands.tables import NUMBER, sets_marked
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.expressions import canonical

CODE = r"[+-]?\d+(\.\d*)?"
VOTES = rf"[\[(]?\s*{NUMBER}([\s,;|/]+{NUMBER})+\s*[\])]?|[01]?\.\d*[1-9]\d*"  # several numbers, or a share
EMPTY = ""  # the label of a picture without one in a labelled set
MOST_SHOWN = 20  # labels in one line or one after the other; a set may have thousands by mistake


class Rename(NamedTuple):
    """What the user wrote, `[SET:]LABEL=CLASS`, and its parts; `name` is the set's, empty where none is named."""

    text: str
    name: str
    label: str
    target: str


class MappedLabel(NamedTuple):
    """A label of a source, its number of pictures, its class (None: dropped), and whether the user said so."""

    label: str
    count: int
    target: str | None
    renamed: bool = False


def parse_renames(
    pairs: Sequence[str], classes: Sequence[str], counts: Mapping[str, Mapping[str, int]], names: Collection[str]
) -> list[Rename]:
    """Parses `[SET:]LABEL=CLASS`, also `SET=LABEL=CLASS`.

    Args:
        pairs: What the user wrote.
        classes: All classes.
        counts: The number of pictures of each label, by labelled set.
        names: Of all sets, pools too.

    Raises:
        ConfigError: The class or the label is none that is there, or one label is given two classes.
    """
    renames: dict[tuple[str, str], Rename] = {}
    for pair in pairs:
        words, _, target = pair.rpartition("=")
        if not words.strip() or target.strip() not in classes:
            raise ConfigError(f"--rename {pair!r} is no [SET:]LABEL=CLASS with a class of {', '.join(classes)}")
        # Labels may hold the marks too: what is before one is a set only if a set is called so.
        choices = [*sets_marked(words, names), ("", words.strip())]
        name, label = next((one for one in choices if _sets_with(*one, counts)), choices[0])
        if not _sets_with(name, label, counts):
            raise _no_label(pair, name, label, counts)
        rename = Rename(pair, name, label, target.strip())
        if (other := renames.setdefault((name, label), rename)).target != rename.target:
            raise ConfigError(f"--rename {other.text!r} and {pair!r} give one label two classes; keep one of them")
    return list(renames.values())


def map_labels(
    counts: Mapping[str, Mapping[str, int]],
    classes: Sequence[str],
    renames: Sequence[Rename],
    *,
    drop_outside: bool,
) -> dict[str, list[MappedLabel]]:
    """Returns what each label of each labelled set means, in the order of the labels.

    Args:
        counts: The number of pictures of each label, by labelled set.
        classes: All classes.
        renames: What the user said of labels.
        drop_outside: Whether labels that are no class are dropped.

    Raises:
        DataError: A number that is not named for one set is in two, or a label is no class and is not to be dropped.
    """
    targets = {(one.name, one.label): one.target for one in renames}
    by_name = {canonical(name): name for name in classes}
    mapped: dict[str, list[MappedLabel]] = {}
    codes: dict[str, list[str]] = {}  # sets, by a number to which not every one of them gives a meaning of its own
    for name, labels in counts.items():
        mapped[name] = []
        for label, count in sorted(labels.items()):
            target, renamed = targets.get((name, label)), True
            if target is None and (target := targets.get(("", label))) is None:
                target, renamed = by_name.get(canonical(label)), False
            if target is not None and (name, label) not in targets and re.fullmatch(CODE, label):
                codes.setdefault(label, []).append(name)
            mapped[name].append(MappedLabel(label, count, target, renamed))
    if shared := {label: names for label, names in codes.items() if len(names) > 1}:
        label, names = next(iter(shared.items()))
        options = " ".join(f"--rename {name}:{label}=CLASS" for name in names)
        raise DataError(
            f"{' and '.join(names)} all have the {'codes' if len(shared) > 1 else 'code'} "
            f"{_join_some(list(shared))}, and sets number their expressions differently; say of each set what a code "
            f"means there: {options}"
        )
    for name, labels in mapped.items():
        if vote := next((one.label for one in labels if one.target is None and re.fullmatch(VOTES, one.label)), None):
            raise DataError(
                f"the labels of {name} are votes or probabilities (such as {vote!r}), which are not read; give each "
                f"picture one label, for example the expression with most votes"
            )
        outside = {one.label: one.count for one in labels if one.target is None}
        if outside and not drop_outside:
            label, others = "LABEL", " add it to --classes,"
            if all(re.fullmatch(CODE, label) for label in outside):  # a number is no name of a class
                label, others = next(iter(outside)), ""
            elif set(outside) == {EMPTY}:
                label, others = EMPTY, ""
            raise DataError(
                f"{name} has labels outside the classes {', '.join(classes)}: {format_counts(outside)}; say what each "
                f"means by --rename {name}:{label}=CLASS,{others} or leave all that are no such expression out by "
                f"--drop-outside"
            )
    return mapped


def describe_mapping(labels: Sequence[MappedLabel]) -> list[str]:
    """Returns a line for each label that is not just a class's name: how it is read, with its number of pictures."""
    means = [
        f"{_show(one.label)} means {one.target} ({one.count:,}, {'renamed' if one.renamed else 'by its spelling'})"
        for one in labels
        if one.target not in (None, one.label)
    ]
    dropped = sorted((one for one in labels if one.target is None and one.label != EMPTY), key=lambda one: -one.count)
    lines = [f"{one.label} is dropped ({one.count:,}, outside the classes)" for one in dropped[:MOST_SHOWN]]
    if more := dropped[MOST_SHOWN:]:
        total = sum(one.count for one in more)
        lines.append(f"{len(more):,} more labels are dropped ({total:,}, outside the classes)")
    return means + lines


def format_counts(counts: Mapping[str, int]) -> str:
    """Formats `fear 6, disgust 69`, most frequent first; a long list ends in the number of the others."""
    return _join_some([f"{_show(label)} {count:,}" for label, count in most_frequent(counts).items()])


def _show(label: str) -> str:
    return label or "(empty)"


def _join_some(words: Sequence[str]) -> str:
    more = f" and {len(words) - MOST_SHOWN:,} more" if len(words) > MOST_SHOWN else ""
    return ", ".join(words[:MOST_SHOWN]) + more


def _sets_with(name: str, label: str, counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Returns the sets that a rename is for and that have its label."""
    return [one for one, labels in counts.items() if name in (one, "") and label in labels]


def _no_label(pair: str, name: str, label: str, counts: Mapping[str, Mapping[str, int]]) -> ConfigError:
    if name and name not in counts:
        labelled = ", ".join(counts)
        return ConfigError(f"--rename {pair!r}: {name} is a pool, whose labels are not read; name one of {labelled}")
    found: Counter[str] = Counter()
    for one in [name] if name else counts:
        found.update(counts[one])
    closest = sorted(found, key=lambda word: -SequenceMatcher(None, word.lower(), label.lower()).ratio())
    shown = _join_some([f"{_show(word)} {found[word]:,}" for word in closest]) or "none"
    return ConfigError(
        f"--rename {pair!r}: {name or 'no set'} has {'no' if name else 'a'} label {label!r}; the labels found, the "
        f"closest first, are {shown}; write LABEL=CLASS or SET:LABEL=CLASS with one of them and a set of "
        f"{', '.join(counts)}"
    )
