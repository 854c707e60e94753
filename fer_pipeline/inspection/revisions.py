"""Find the artefacts of any git revision or DVC experiment, and show them as a folder of links that readers understand.

A revision is what `git rev-parse` takes, the name of a DVC experiment, or `workspace`. What it holds is said by its
`dvc.lock`; its bytes lie in DVC's cache, or in the default remote, from where they are fetched into the cache. Neither
files that are checked out nor the index of git are touched: the links lie in a temporary folder. Of the workspace its
own files are read, and what it lacks as of a revision.

Git and the layout of DVC's cache are read here, which takes milliseconds; DVC itself, which takes a second to start, is
asked for objects of the remote alone.
"""

import fnmatch
import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from fer_pipeline.artifacts.locked_stages import STAGES, read_stages
from fer_pipeline.artifacts.seed_folders import SEEDS, seeds_in
from fer_pipeline.core.documents import MAX_YAML, DocumentError, brief, one_line, parse_yaml, read_json, read_yaml
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import describe_error
from fer_pipeline.core.settings import PARAMS
from fer_pipeline.health.dvc_project import DvcConfig, read_config

WORKSPACE, LOCK = "workspace", "dvc.lock"
EXPERIMENT = re.compile(r"refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/(.+)")
COMMIT = re.compile(r"[0-9a-f]{40,64}")
LARGEST_FETCH = 4_000_000_000  # bytes of an output that is fetched without being asked to
Stages = Mapping[str, dict[str, Any]]


def _inside(path: str) -> str:
    if not path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError("a path leads out of its folder")
    return path


class _Entry(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    relpath: Annotated[str, AfterValidator(_inside)]


FOLDER_LIST = TypeAdapter(list[_Entry])
OBJECT = re.compile(r"[0-9a-f]{32}(\.dir)?")


class NotThereError(DataError):
    """A revision never had what is asked for, or its bytes are nowhere."""


@dataclass(frozen=True)
class Revision:
    """A revision and what its `dvc.lock` says; `commit` is empty for the workspace, `view` the folder of links.

    `fetched` says that the remote was asked before, and what it lacked. Of folders that hold one for each seed that of
    `seed` is read, of the first seed without it; `nested` tells which there were, by path, once they are read.
    """

    name: str
    commit: str
    stages: Stages
    root: Path
    view: Path
    config: DvcConfig
    fetched: str | None = None
    seed: int | None = None
    nested: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name with the commit, as `v1 (3f2a91c)`."""
        short = self.commit[:7]
        return self.name if not short or self.commit.startswith(self.name) else f"{self.name} ({short})"

    def outputs(self, path: str) -> dict[str, str]:
        """Returns path and hash of the outputs in `dvc.lock` that are `path`, below it or around it."""
        found = {}
        for stage in self.stages.values():
            for out in stage.get("outs") or ():
                name = out["path"]
                if any(f"{one}/".startswith(f"{other}/") for one, other in ((path, name), (name, path))):
                    if ".." in PurePosixPath(name).parts:
                        raise DataError(f"{LOCK} of {self.title} names {one_line(name)}, which leads out of its folder")
                    found[name] = str(out.get("md5"))
        return found

    def has(self, path: str) -> bool:
        """Says whether the revision has an output there."""
        return bool(self.outputs(path)) or (not self.commit and (self.root / path).exists())

    def names(self, folder: str) -> list[str]:
        """Returns the names of the outputs right below a folder: those of the pools in `data/scores`."""
        depth = len(PurePosixPath(folder).parts)
        names = {PurePosixPath(path).parts[depth] for path in self.outputs(folder) if path.startswith(f"{folder}/")}
        if not names and not self.commit and (self.root / folder).is_dir():
            names = {one.name for one in (self.root / folder).iterdir() if one.is_dir() and one.name[0] != "."}
        return sorted(names)

    def settings(self) -> dict[str, Any]:
        """Returns what its `params.yaml` says; nothing where there is none that can be read."""
        found = read_settings(self.root, self.commit) if self.commit else read_yaml(self.root / PARAMS)
        return found if isinstance(found, dict) else {}

    def is_recorded(self, path: str) -> bool:
        """Says whether the files of a folder are those that `dvc.lock` records; a revision's always are."""
        place = self.root / path
        if self.commit or not place.is_dir():
            return True
        files = sorted(file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file())
        entries = [{"md5": _md5((place / name).read_bytes()), "relpath": name} for name in files]
        return self.outputs(path).get(path) == _md5(json.dumps(entries, sort_keys=True).encode()) + ".dir"

    def path(self, path: str, *patterns: str) -> Path:
        """Returns where a file or folder can be read; of a folder those files that a pattern names, all without one.

        A revision without it, or bytes that are nowhere, are a NotThereError.
        """
        if not self.commit and (self.root / path).exists():
            return self._of_seed(self.root / path, path)
        outs = self.outputs(path)
        if not outs:
            found = f"{LOCK} does not name it" if self.stages else f"it has no {LOCK} that names a stage"
            remedy = "run: dvc repro mine" if not self.commit else "see: python -m fer_pipeline mined log"
            raise NotThereError(f"{self.title} has no {path}: {found}; {remedy}")
        for out, md5 in outs.items():
            if not OBJECT.fullmatch(md5):
                raise DataError(f"{out} of {self.title} has no MD5 in {LOCK}; run its stage with DVC 3: dvc repro")
        files = self._list_files(outs, path, patterns)
        self._fetch(files, outs)
        for name, md5 in files.items():
            place = self.view / name
            if not place.is_symlink():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(object_path(self.config.cache, md5))
        (self.view / path).parent.mkdir(parents=True, exist_ok=True)
        return self._of_seed(self.view / path, path)

    def _of_seed(self, folder: Path, path: str) -> Path:
        """Returns the folder of the seed that is read where each has one of its own, else the path itself."""
        if not (folder / SEEDS).is_file():
            return folder
        self.nested[path] = seeds = seeds_in(folder)
        if self.seed is not None and self.seed not in seeds:
            known = ", ".join(map(str, seeds))
            raise DataError(
                f"{self.title}: {path} has the seeds {known}, not {self.seed}; name one of them with --seed"
            )
        return folder / str(seeds[0] if self.seed is None else self.seed)

    def _list_files(self, outs: Mapping[str, str], path: str, patterns: Sequence[str]) -> dict[str, str]:
        folders = {out: md5 for out, md5 in outs.items() if md5.endswith(".dir")}
        self._fetch(folders, {})
        files = {out: md5 for out, md5 in outs.items() if out not in folders}
        for out, md5 in folders.items():
            files |= {f"{out}/{name}": one for name, one in list_folder(self.config, md5).items()}
        inside = {name.removeprefix(f"{path}/"): name for name in files if f"{name}/".startswith(f"{path}/")}
        wanted = [name for name in inside if not patterns or any(fnmatch.fnmatch(name, one) for one in patterns)]
        return {inside[name]: files[inside[name]] for name in {*wanted, *(one for one in inside if _is_seeds(one))}}

    def _fetch(self, files: Mapping[str, str], outs: Mapping[str, str]) -> None:
        missing = {name: md5 for name, md5 in files.items() if not object_path(self.config.cache, md5).exists()}
        if not missing:
            return
        made = [out for stage in self.stages.values() for out in stage.get("outs") or () if out["path"] in outs]
        if (size := sum(out.get("size") or 0 for out in made)) > LARGEST_FETCH:
            remedy = f"dvc fetch --all-commits {' '.join(outs)}"
            what = f"{next(iter(missing))} of {self.title} is not in DVC's cache"
            raise NotThereError(f"{what}, and the whole is {size:,} bytes; fetch it by itself: {remedy}")
        fault = fetch_objects(self.root, missing.values()) if self.fetched is None else self.fetched
        if left := [name for name, md5 in missing.items() if not object_path(self.config.cache, md5).exists()]:
            again = f"git checkout {self.name} && dvc repro mine" if self.commit else "dvc repro mine"
            raise NotThereError(
                f"{left[0]} of {self.title} is neither in DVC's cache nor fetched from a remote ({fault}); where it "
                f"was made run: dvc push --all-commits (dvc exp push for an experiment); or make it again: {again}"
            )

    def reword(self, error: DataError) -> DataError:
        """Returns the error of a reader in words for a revision: its files cannot be removed or made again here."""
        text = str(error)
        if str(self.view) not in text:
            return error
        fault = (text.rpartition("; ")[0] or text).replace(f"{self.view}/", "")
        return DataError(f"{self.title}: {fault}; look for damaged bytes with: python -m fer_pipeline fsck")


@contextmanager
def open_revision(
    root: Path,
    rev: str = WORKSPACE,
    *,
    seed: int | None = None,
    stages: Stages | None = None,
    fetched: str | None = None,
) -> Iterator[Revision]:
    """Opens a revision of the project in `root`, the folder of `dvc.yaml`; what it links is gone afterwards.

    `stages` are those of its lock where it was read before; `seed` and `fetched` are what `Revision` says.
    """
    config = read_config(root)
    commit = "" if rev == WORKSPACE else resolve(root, rev)
    stages = read_lock(root, commit, name=rev) if stages is None else stages
    with tempfile.TemporaryDirectory(prefix="fer_pipeline.") as view:
        revision = Revision(rev, commit, stages, root, Path(view), config, fetched, seed)
        try:
            yield revision
        except DataError as error:
            raise revision.reword(error) from None


def resolve(root: Path, rev: str) -> str:
    """Returns the commit that a revision or the name of an experiment stands for; DataError where it is none."""
    status, out, fault = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", rev)
    if status == 0:  # `^{commit}` behind the words themselves would be a part of `:/text`
        status, out, fault = _git(root, "rev-parse", "--verify", "--quiet", f"{out.strip()}^{{commit}}")
    if status == 0 and COMMIT.fullmatch(out.strip()):
        return out.strip()
    if status > 1 and "not a git repository" in fault:
        raise DataError(f"{root} is in no git repository, so that it has no revision {brief(rev)}; leave --rev out")
    named = [(ref, commit) for ref, name, commit in list_experiments(root) if name == rev]
    if len(named) == 1:
        return named[0][1]
    if named:
        raise DataError(
            f"{len(named)} experiments are called {brief(rev)}; name one in full: {', '.join(ref for ref, _ in named)}"
        )
    reason = f" ({describe_error(fault.partition('fatal: ')[2])})" if status > 1 and "fatal: " in fault else ""
    raise DataError(
        f"no revision {brief(rev)}{reason}; name a commit, tag, branch or experiment: git log, dvc exp list --all"
    )


def list_experiments(root: Path) -> list[tuple[str, str, str]]:
    """Returns reference, name and commit of every DVC experiment."""
    _, out, _ = _git(root, "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps")
    pairs = [line.rpartition(" ")[::2] for line in out.splitlines()]
    return [(ref, match[1], commit) for ref, commit in pairs if (match := EXPERIMENT.fullmatch(ref))]


def list_commits(root: Path, rev: str) -> list[tuple[str, str, str]]:
    """Returns hash, date and subject of the commits up to `rev` in which `dvc.lock` changed, the newest first."""
    _, out, _ = _git(
        root, "log", "--no-show-signature", "--format=%H%x00%cI%x00%s", "--end-of-options", rev, "--", f"./{LOCK}"
    )
    rows = [line.split("\0", 2) for line in out.split("\n") if line]
    return [(commit, date, subject) for commit, date, subject in rows]


def describe_commit(root: Path, commit: str) -> tuple[str, str]:
    """Returns date and subject of a commit."""
    _, out, _ = _git(root, "log", "-1", "--no-show-signature", "--format=%cI%x00%s", "--end-of-options", commit)
    date, _, subject = out.rstrip("\n").partition("\0")
    return date, subject


def read_lock(root: Path, commit: str, *, name: str = "", only: str | None = None) -> Stages:
    """Reads `dvc.lock` of a commit, of the workspace where it is empty; no stages where there is none.

    `only` is a pattern of stages' names: the others are not parsed, which takes a second for each 100 KB.
    """
    if not commit:
        return read_stages(root / LOCK)
    blob = f"{commit}:./{LOCK}"
    status, size, _ = _git(root, "cat-file", "-s", blob)
    if status:
        return {}
    try:
        if int(size) > MAX_YAML:
            raise ValueError(f"it has {int(size):,} bytes, and at most {MAX_YAML:,} are read")
        text = _git(root, "cat-file", "blob", blob)[1]
        content = parse_yaml(_cut(text, only) if only else text) or {}
        stages = content.get("stages") or {}
        STAGES.validate_python(stages)
        return stages
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"{LOCK} of {name or commit[:7]} is broken: {describe_error(error)}; name another revision"
        ) from None


def read_settings(root: Path, commit: str) -> dict[str, Any] | None:
    """Reads `params.yaml` of a commit; None where there is none, or no mapping that can be read."""
    blob = f"{commit}:./{PARAMS}"
    status, size, _ = _git(root, "cat-file", "-s", blob)
    if status or int(size) > MAX_YAML:
        return None
    try:
        values = parse_yaml(_git(root, "cat-file", "blob", blob)[1])
    except DocumentError:
        return None
    return values if isinstance(values, dict) else None


def _cut(text: str, only: str) -> str:
    """Leaves out the stages whose names do not match; DVC writes each name at the start of a line, two blanks in."""
    parts = re.split(r"^(?=  [^\s#-].*:$)", text, flags=re.M)
    return "".join(part for number, part in enumerate(parts) if not number or re.match(rf"  ['\"]?({only})", part))


def list_folder(config: DvcConfig, md5: str) -> dict[str, str]:
    """Reads the list of a folder's files in the cache: name and MD5 of each."""
    place = object_path(config.cache, md5)
    try:
        return {entry.relpath: entry.md5 for entry in FOLDER_LIST.validate_python(read_json(place))}
    except (OSError, ValueError) as error:
        fault = f"{place} is no list of files ({describe_error(error)})"
        raise DataError(f"{fault}; look for damaged bytes with: python -m fer_pipeline fsck") from None


def object_path(cache: Path, md5: str) -> Path:
    """Returns where DVC 3 stores an object."""
    return cache / "files" / "md5" / md5[:2] / md5[2:]


def fetch_objects(root: Path, md5s: Iterable[str]) -> str:
    """Copies objects from the default remote into the cache, checked by their hash; returns why one is missing."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    wanted: Collection[str] = sorted({*md5s})
    try:
        with Repo(str(root)) as repo:
            odb = repo.cloud.get_remote_odb(command="fetch")
            there = sorted(odb.oids_exist(wanted))
            if there:
                faults: list[str] = []
                paths = [odb.oid_to_path(md5) for md5 in there]
                repo.cache.local.add(
                    paths, odb.fs, there, verify=True, on_error=lambda _, error: faults.append(str(error))
                )
                if faults:
                    return describe_error(faults[0])
        return "the remote does not have it" if len(there) < len(wanted) else "the remote's copy is damaged"
    except DvcException as error:
        return describe_error(str(error).partition(". ")[0].partition("\n")[0] or type(error).__name__)
    except Exception as error:  # a remote's own library raises whatever it likes
        return describe_error(f"{type(error).__name__}: {error}")


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _is_seeds(name: str) -> bool:
    return PurePosixPath(name).name == SEEDS


def _git(root: Path, *words: str) -> tuple[int, str, str]:
    """Runs a command of git that reads; returns its status, output and errors."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, env=environment)
    except ValueError:  # a NUL among the words
        return 1, "", ""
    except FileNotFoundError:
        raise DataError("git is not installed, or not on the PATH; install it, or leave --rev out") from None
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
