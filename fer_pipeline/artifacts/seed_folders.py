"""Say which folder a seed reads and writes where each seed has a learner of its own, and run a stage for each of them.

`<out>/seeds.json` says that the stage wrote `<out>/<seed>` for each of these seeds; a folder without it is for all
seeds. A stage follows what it reads; `train_primitive` alone is told by its settings. Names cannot say it: a class or a
pool may be called 10.

Where the folders of several sets lie in one (`data/auxiliary`), those of a seed are written with a star in the place of
the sets' names, `data/auxiliary/*/10`; `find_files` and `name_in` understand it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import RERUN, read_json, refuse_damage, replacing_folder, write_json
from fer_pipeline.core.settings import ProjectSettings, Summary

SEEDS = "seeds.json"
EVERY = "*"  # no name that settings allow
Run = Callable[..., Summary]


class SeedList(BaseModel):
    """What `seeds.json` holds: the seeds that have a folder beside it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    seeds: Annotated[list[int], Field(min_length=1)]


def seeds_in(folder: Path) -> tuple[int, ...]:
    """Returns the seeds that have folders of their own in this folder, or in each of those in it; none for most.

    Sets in one folder that differ in their seeds are a DataError.
    """
    if (folder / SEEDS).exists():
        return _read_seeds(folder)
    marked = sorted(path.parent for path in folder.glob(f"*/{SEEDS}") if not _is_unfinished(path.parent, folder))
    if not marked:
        return ()
    sets = sorted(path for path in folder.iterdir() if path.is_dir() and not _is_unfinished(path, folder))
    seeds = {path: _read_seeds(path) if path in marked else () for path in sets}
    first = seeds[marked[0]]
    if other := next((path for path, found in seeds.items() if found != first), None):
        raise DataError(
            f"{other} holds {_describe(seeds[other])} and {marked[0]} {_describe(first)}; {RERUN}, or remove the "
            "folder of a set that is in use no more"
        )
    return first


def of_seed(folder: Path, seed: int) -> Path:
    """Returns what a seed reads of a folder: its own where the seeds have one each, else the folder itself."""
    seeds = seeds_in(folder)
    if seeds and seed not in seeds:
        raise DataError(f"{folder} holds {_describe(seeds)}, none for the seed {seed}; {RERUN}")
    if not seeds:
        return folder
    return folder / str(seed) if (folder / SEEDS).exists() else folder / EVERY / str(seed)


def in_set(folder: Path, name: str) -> Path:
    """Returns the folder of one set in what a seed reads of a folder of several."""
    return Path(*(name if part == EVERY else part for part in folder.parts)) if EVERY in folder.parts else folder / name


def find_files(folder: Path, pattern: str) -> list[Path]:
    """Returns the files of a pattern in a folder, or in those of a seed in several sets, in order of their names.

    A folder of several seeds is a DataError: they are never read together.
    """
    if seeds := seeds_in(folder):
        raise DataError(
            f"{folder} holds {_describe(seeds)}; name that of one seed, for example {of_seed(folder, seeds[0])}"
        )
    root, star = _divide(folder)
    return sorted(path for path in root.glob(str(star / pattern)) if not _is_unfinished(path, root))


def name_in(path: Path, folder: Path) -> str:
    """Returns a file's name in a folder, which of a seed's folders is that in one for all seeds."""
    root, star = _divide(folder)
    parts = path.relative_to(root).parts
    return str(Path(*parts[:1], *parts[len(star.parts) or 1 :]))


def _is_unfinished(path: Path, folder: Path) -> bool:
    """Tells whether a path in a folder, or what it lies in there, is what a killed run left half written."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _divide(folder: Path) -> tuple[Path, Path]:
    """Returns what stands before the star in a folder's name, and what stands from there on."""
    place = folder.parts.index(EVERY) if EVERY in folder.parts else len(folder.parts)
    return Path(*folder.parts[:place]), Path(*folder.parts[place:])


def _read_seeds(folder: Path) -> tuple[int, ...]:
    content = read_json(folder / SEEDS)
    with refuse_damage(folder / SEEDS, "is no list of seeds", RERUN):
        return tuple(SeedList.model_validate(content).seeds)


def _describe(seeds: Sequence[int]) -> str:
    return f"folders of the seeds {', '.join(map(str, seeds))}" if seeds else "what is for all seeds"


def common_seeds(*folders: Path) -> tuple[int, ...]:
    """Returns the seeds that have folders of their own in what a stage reads; none where all of that is for all."""
    return next(filter(None, map(seeds_in, folders)), ())


def one_seed(project: ProjectSettings, seed: int) -> ProjectSettings:
    """Returns the settings as they are for a project of that seed alone."""
    return project.model_copy(update={"seeds": (seed,)})


@contextmanager
def seed_folders(out: Path, seeds: Sequence[int]) -> Iterator[Path]:
    """Yields the folder in which `<seed>` is written for each seed; it replaces `out` when all are there.

    Without seeds that is `out` itself, as it stands.
    """
    if not seeds:
        yield out
        return
    with replacing_folder(out) as folder:
        yield folder
        write_json(folder / SEEDS, {"seeds": list(seeds)})


def each_seed(*reads: str, writes: Iterable[str] = ("out",)) -> Callable[[Run], Run]:
    """Makes a stage's `run` once for each seed that has folders in what the options `reads` name.

    It then reads and writes those of that seed and sees no other seed in the settings.
    """

    def decorate(run: Run) -> Run:
        @wraps(run)
        def run_each(config: Any, project: ProjectSettings, **options: Any) -> Summary:
            seeds = common_seeds(*(options[name] for name in reads))
            if not seeds:
                return run(config, project, **options)
            summaries: dict[int, Summary] = {}
            with ExitStack() as stack:
                outs = {name: stack.enter_context(seed_folders(options[name], seeds)) for name in writes}
                for seed in seeds:
                    own = {name: of_seed(options[name], seed) for name in reads}
                    own |= {name: folder / str(seed) for name, folder in outs.items()}
                    summaries[seed] = run(config, one_seed(project, seed), **options | own)
            return join_summaries(summaries)

        return run_each

    return decorate


def join_summaries(summaries: Mapping[int, Summary]) -> Summary:
    """Joins what a stage says of each seed; a warning that all seeds give is said once."""
    stage = next(iter(summaries.values())).stage
    given: dict[str, list[int]] = {}
    for seed, one in summaries.items():
        for line in one.warnings:
            given.setdefault(line, []).append(seed)
    warnings = [
        line if len(seeds) == len(summaries) else f"seed {', '.join(map(str, seeds))}: {line}"
        for line, seeds in given.items()
    ]
    counts = {f"{name}@{seed}": value for seed, one in summaries.items() for name, value in one.counts.items()}
    return Summary(
        stage, "; ".join(f"seed {seed}: {one.line}" for seed, one in summaries.items()), counts, tuple(warnings)
    )
