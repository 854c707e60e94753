"""What was read of the cache and the workspace in, their faults with what heals each out."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fer_pipeline.health.cures import Cure
from fer_pipeline.health.digests import Digest
from fer_pipeline.health.faults import Fault
from fer_pipeline.health.objects import Shelf
from fer_pipeline.health.outputs import Output
from fer_pipeline.health.sources import Sources
from fer_pipeline.health.workspace import Compared, Laid

ANEW = ("dvc repro", "dvc update", "dvc add")
MANY = 8  # changed files of one output: it is put in place as a whole


@dataclass(frozen=True)
class Case:
    """One output: what lies in the workspace, how it differs, and where whole bytes may come from."""

    root: Path
    lying: Laid
    compared: Compared
    sources: Sources

    def faults(self) -> Iterator[Fault]:
        """Faults of the objects in the cache, then of the files in the workspace; the same bytes are told once."""
        output, cache = self.lying.output, self.sources.cache
        needed = {"": output.md5} if output.is_folder else {}
        needed = {**needed, **(self.compared.members or {})} if output.cached else {}
        faulty = {name: md5 for name, md5 in needed.items() if cache.state(md5) != "whole"}
        missing = bool(faulty) and all(cache.state(md5) == "missing" for md5 in faulty.values())
        cures = self.sources.of_output(output, self.compared, list(faulty.values())) if faulty else ()
        if missing and not self.lying.inodes:
            yield self._missing("", f"md5 {output.md5}", cures)
            return
        for name, md5 in faulty.items():
            yield object_fault(cache, md5, named(output, name), output.stage, self.sources.removal, cures)
        # Nothing can be checked out while objects are missing: what makes these makes the whole output.
        anew = cures if cures and cures[0].command in ANEW else ()
        yield from self._missing_files(frozenset(faulty), anew)
        yield from self._changed_files(anew)

    def _missing_files(self, faulty: frozenset[str], anew: tuple[Cure, ...]) -> Iterator[Fault]:
        output, members = self.lying.output, self.compared.members or {}
        checkout = "dvc checkout --force" if self.compared.is_edited else "dvc checkout"
        put = Cure(checkout, (output.path,)) if output.cached else Cure("dvc repro", (output.stage,))
        cures = anew or (put,)
        if self.compared.missing and not self.lying.inodes and not faulty:
            yield self._missing("", f"md5 {output.md5}", cures)
            return
        for name in self.compared.missing:
            if name not in faulty:
                yield self._missing(name, f"md5 {members[name]}", cures)

    def _changed_files(self, anew: tuple[Cure, ...]) -> Iterator[Fault]:
        output, members, changed = self.lying.output, self.compared.members or {}, self.compared.changed
        back = Cure("dvc checkout --force", (output.path,)) if output.cached else Cure("dvc repro", (output.stage,))
        for name in changed:
            path = self.lying.file(name)
            found = self.sources.cache.ledger.read[self.lying.inodes[name]]
            # DVC takes a file of the same time and size for the same, and would let it be.
            notice = Cure("touch", (self._near(path),)) if len(changed) <= MANY else Cure("rm -r", (output.path,))
            cures = (Cure("chmod u+r", (self._near(path),)),) if found.denied else anew or (notice, back)
            yield Fault(
                kind="unreadable" if found.fault else "changed",
                place="workspace",
                path=path,
                out=named(output, name),
                stage=output.stage,
                expected=f"md5 {members[name]}",
                found=found.fault or f"md5 {found.md5}",
                cures=cures,
            )
        for name in self.compared.strange:
            place, path = named(output, name), self.lying.file(name)
            yield Fault("changed", "workspace", path, place, output.stage, "no such file", "a file", anew or (back,))

    def _missing(self, name: str, expected: str, cures: tuple[Cure, ...]) -> Fault:
        output = self.lying.output
        place, path = named(output, name), self.lying.file(name)
        return Fault("missing", "workspace", path, place, output.stage, expected, "nothing", cures)

    def _near(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def object_fault(
    held: Shelf, md5: str, out: str, stage: str, removal: Cure, cures: tuple[Cure, ...], *, remote: bool = False
) -> Fault:
    """The fault of an object that is not whole; one that lies there must go before `cures` can work."""
    kind, path = held.state(md5), held.path(md5)
    assert kind != "whole"
    found = Digest() if kind == "missing" else held.digest(md5)
    if found.denied:
        cures = (Cure("chmod u+r", (path.as_posix(),)),)
    elif kind != "missing":
        cures = (removal, *cures)
    return Fault(
        kind=kind,
        place="remote" if remote else "cache",
        path=path,
        out=out,
        stage=stage,
        expected=f"md5 {md5.removesuffix('.dir')}",
        found=found.fault or (f"md5 {found.md5}" if found.md5 else "nothing"),
        cures=cures,
    )


def named(output: Output, name: str) -> str:
    """An output, or a file in it."""
    return f"{output.path}/{name}" if name else output.path
