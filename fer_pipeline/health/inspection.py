"""A project's folder in, every fault of its cache, outputs, shard store and (where asked) one remote out."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fer_pipeline.core.errors import DataError
from fer_pipeline.health.cures import Cure
from fer_pipeline.health.digests import Ledger
from fer_pipeline.health.dvc_config import DvcConfig, ask
from fer_pipeline.health.faults import Fault
from fer_pipeline.health.objects import Shelf, shelf
from fer_pipeline.health.outputs import Output, Promised
from fer_pipeline.health.shards import Shards, shard_faults, shards
from fer_pipeline.health.sources import Sources
from fer_pipeline.health.verdicts import Case, named, object_fault
from fer_pipeline.health.workspace import Compared, Laid, compared, laid

Uses = Mapping[str, tuple[Output, str]]  # object -> the first output that needs it, and the name of the file in it


@dataclass
class Inspection:
    """Everything that was looked at, and what was found."""

    ledger: Ledger
    cache: Shelf
    lying: list[Laid]
    shards: Shards
    remote: Shelf | None
    unchecked: int
    faults: list[Fault] = field(default_factory=list)

    @property
    def checked(self) -> dict[str, int]:
        """Objects, bytes, files of the workspace and shards that were hashed."""
        return {
            "objects": len(self.cache.inodes) + (len(self.remote.inodes) if self.remote else 0),
            "bytes": sum(found.size for found in self.ledger.read.values()),
            "files": sum(len(one.inodes) for one in self.lying),
            "shards": len(self.shards.seals),
        }

    @property
    def not_checked(self) -> dict[str, int]:
        """What has no hash that says what its bytes were."""
        old = self.cache.old + (self.remote.old if self.remote else 0)
        return {
            "objects_of_dvc_2": old,
            "outputs_elsewhere": self.unchecked,
            "shards_without_seal": self.shards.unsealed,
        }


def inspect(
    root: Path,
    config: DvcConfig,
    promised: Promised,
    *,
    store: Path,
    remote: str | None,
    removal: Cure,
    hashing: Callable[[Ledger], None],
) -> Inspection:
    """Looks at everything; `hashing` reads what the ledger asks for."""
    ledger = Ledger()
    cache = shelf(config.cache, ledger)
    lying = [laid(root, output, ledger) for output in promised.outputs]
    held = shelf(_folder(config, remote), ledger) if remote else None
    found = Inspection(ledger, cache, lying, shards(store, ledger), held, promised.unchecked)
    hashing(ledger)
    found.faults = _made_once(list(_faults(root, config, found, remote, removal)))
    return found


def _folder(config: DvcConfig, remote: str) -> Path:
    if remote not in config.remotes:
        known = ", ".join(sorted(config.remotes)) or "none"
        raise DataError(f"no remote {remote!r}; DVC knows {known}")
    folder, url = config.remotes[remote].folder, config.remotes[remote].url
    if folder is None:
        raise DataError(
            f"the remote {remote!r} ({url}) is no folder of this machine, so fsck cannot read it; "
            f"let each pull check it: dvc remote modify {remote} verify true"
        )
    if not folder.is_dir():
        raise DataError(f"the folder {folder} of the remote {remote!r} does not exist; mount it, or run: dvc push")
    return folder


def _faults(root: Path, config: DvcConfig, found: Inspection, remote: str | None, removal: Cure) -> Iterator[Fault]:
    cache = found.cache
    sources = Sources(cache, config.remote, removal)
    used: dict[str, tuple[Output, str]] = {}
    differences = _without_ignored(root, [(one, compared(one, cache)) for one in found.lying])
    for lying, difference in differences:
        yield from Case(root, lying, difference, sources).faults()
        used.setdefault(lying.output.md5, (lying.output, ""))
        for name, md5 in (difference.members or {}).items():
            used.setdefault(md5, (lying.output, name))
    for md5 in cache.inodes:
        if md5 not in used and cache.state(md5) != "whole":
            yield object_fault(cache, md5, "", "", removal, sources.of_stray(md5))
    told = frozenset(inode for md5, inode in cache.inodes.items() if cache.state(md5) in ("rotten", "unreadable"))
    yield from shard_faults(found.shards, found.ledger, told=told, removal=removal)
    if found.remote is not None and remote is not None:
        yield from _remote_faults(found.remote, remote, used, sources)


def _made_once(faults: list[Fault]) -> list[Fault]:
    """A stage that runs again makes all of its outputs, and `dvc commit` refuses one of them while another is gone."""
    again = {fault.stage for fault in faults if any(cure.command == "dvc repro" for cure in fault.cures)}

    def remade(fault: Fault) -> Fault:
        repro = Cure("dvc repro", (fault.stage,))
        return replace(fault, cures=tuple(repro if one.command == "dvc commit" else one for one in fault.cures))

    return [remade(fault) if fault.stage in again else fault for fault in faults]


def _remote_faults(held: Shelf, remote: str, used: Uses, sources: Sources) -> Iterator[Fault]:
    lists = [md5 for md5 in used if md5.endswith(".dir") and held.state(md5) == "whole"]
    promised = {member for md5 in lists for member in (held.members(md5) or {}).values()}
    for md5 in sorted(held.inodes.keys() | promised):
        if held.state(md5) == "whole":
            continue
        output, name = used.get(md5, (None, ""))
        cures = sources.of_remote(remote, md5, output)
        if held.state(md5) == "missing":
            cures = (sources.removal, *cures)  # while the list lies there, DVC takes its files to lie there too
        place, stage = (named(output, name), output.stage) if output else ("", "")
        yield object_fault(held, md5, place, stage, sources.removal, cures, remote=True)


def _without_ignored(root: Path, cases: list[tuple[Laid, Compared]]) -> list[tuple[Laid, Compared]]:
    """Files in outputs that no list names may be ones that DVC is told to ignore."""
    strange = [one.file(name).relative_to(root).as_posix() for one, found in cases for name in found.strange]
    if not strange:
        return cases
    told = ask(root, "check-ignore", "--stdin", accepted=(0, 1), stdin="\n".join(strange) + "\n")
    ignored = set(told.splitlines())
    kept: list[tuple[Laid, Compared]] = []
    for one, found in cases:
        left = [name for name in found.strange if one.file(name).relative_to(root).as_posix() not in ignored]
        kept.append((one, Compared(found.members, found.missing, found.changed, found.shared, tuple(left))))
    return kept
