"""Say in which ways the results may count what was learned by heart: persons or pictures on both sides of a test.

Read from the counts of `align`, from `data/contents` (hashes of crops, no labels) and from the summary of `mine`.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fer_pipeline.artifacts.census import describe_shared
from fer_pipeline.artifacts.contents import TEST, TRAIN, SplitContents, contents_path, count_equal_faces
from fer_pipeline.artifacts.mined import EQUAL_COPIES, NEAR_TEST, TEST_FACES, TRAIN_FACES, counted_alone
from fer_pipeline.core.settings import FACES, ProjectSettings
from fer_pipeline.reporting.formatting import listing, plural
from fer_pipeline.reporting.lineage import DataSet


def describe_leaks(
    contents: Path, project: ProjectSettings, census: Sequence[DataSet], mined: Mapping[str, Any] | None
) -> list[str]:
    """Returns one sentence a leak; `contents` is the folder `data/contents`, `mined` the summary of `mine`."""
    learned = {*uses(project), project.anchor}
    shared = {one.name: {TEST: one.shared[TEST]} for one in census if one.name in learned and TEST in one.shared}
    within = [line for name, counts in shared.items() for line in describe_shared(name, counts)]
    return [f"{line}." for line in (*within, *_between_sets(contents, project), *_mined(mined))]


def uses(project: ProjectSettings) -> dict[str, list[str]]:
    """Returns the recipes that learn from the whole train split of a set, by set; the training set stands first."""
    recipes: defaultdict[str, list[str]] = defaultdict(list, {project.train: []})
    for recipe, settings in project.recipes.items():
        for path in dict.fromkeys(settings.sources.values()):
            if path.is_relative_to(FACES) and path.name == TRAIN:
                recipes[path.parent.name].append(recipe)
    return dict(recipes)


def _between_sets(folder: Path, project: ProjectSettings) -> Iterator[str]:
    for name, recipes in uses(project).items():
        for target in project.targets:
            paths = [contents_path(folder, one) for one in (name, target)]
            if name == target or not all(path.exists() for path in paths):
                continue
            learned, measured = (SplitContents([path], split) for path, split in zip(paths, (TRAIN, TEST), strict=True))
            if number := count_equal_faces(learned, measured):
                which = f"{plural(number, 'test face')} of {target} {'is' if number == 1 else 'are'}"
                effect = f", which {listing(recipes)} learn{'s' * (len(recipes) == 1)} from" if recipes else ""
                yield f"{which} equal to train faces of {name}{effect}; take these pictures out of one of the two"


def _mined(summary: Mapping[str, Any] | None) -> Iterator[str]:
    if summary is None:
        return
    kept = counted_alone(summary.get("rule", {}))
    for pool, counts in summary["pools"].items():
        for reason, verbs, what in (
            (TEST_FACES, ("stands", "stand"), "in a test split as well"),
            (TRAIN_FACES, ("stands", "stand"), "in the train split of the anchor or the training set as well"),
            (NEAR_TEST, ("looks", "look"), "like one of a test split"),
            (EQUAL_COPIES, ("equals", "equal"), "another one of the pools"),
        ):
            if number := counts.get(reason, 0):
                effect = f"may have been mined, since {kept[reason]}" if reason in kept else "were not mined"
                yield f"{plural(number, 'face')} of the pool {pool} {verbs[number > 1]} {what}; they {effect}"
    if unknown := summary.get("test_faces", {}).get("not_checked"):
        yield f"Whether test pictures were mined is not known: mine had no contents of {listing(unknown)}"
