"""Objects that are missing or rotten in, the nearest place that has them whole out, as the command that brings them."""

from collections.abc import Sequence
from dataclasses import dataclass

from fer_pipeline.health.cures import Cure
from fer_pipeline.health.digests import digest
from fer_pipeline.health.dvc_config import Remote
from fer_pipeline.health.objects import Shelf
from fer_pipeline.health.outputs import Output
from fer_pipeline.health.workspace import Compared


@dataclass(frozen=True)
class Sources:
    """What is known of other copies; `remote` is the default one, None where there is none."""

    cache: Shelf
    remote: Remote | None
    removal: Cure

    def of_output(self, output: Output, compared: Compared, names: Sequence[str]) -> tuple[Cure, ...]:
        """What brings back the objects of an output: the workspace, the remote, else the stage that makes it."""
        if compared.is_whole:
            return (Cure("dvc commit", (output.path,)),)
        if self.remote_has(names):
            # `dvc pull` stops at files that were changed; these have a cure of their own.
            return (Cure("dvc fetch" if compared.is_edited else "dvc pull", (output.path,)),)
        if output.imported:
            return (Cure("dvc update", (output.stage,)),)
        if output.is_added:
            return (Cure("dvc add", (output.path,)),)
        return (Cure("dvc repro", (output.stage,)),)

    def of_stray(self, name: str) -> tuple[Cure, ...]:
        """What brings back an object that only older versions need."""
        return (Cure("dvc fetch --all-commits"),) if self.remote_has([name]) else ()

    def of_remote(self, remote: str, name: str, output: Output | None) -> tuple[Cure, ...]:
        """What brings an object to a remote again."""
        if output is not None:
            return (Cure("dvc push", ("-r", remote, output.path)),)
        return (Cure("dvc push --all-commits", ("-r", remote)),) if self.cache.state(name) == "whole" else ()

    def remote_has(self, names: Sequence[str]) -> bool:
        """Whether the remote has all of them whole; one that is no folder is trusted to."""
        if self.remote is None:
            return False
        if self.remote.folder is None:
            return True
        held = Shelf(self.remote.folder, self.cache.ledger)
        return all(digest(held.path(name), frozenset({"md5"})).md5 == name.removesuffix(".dir") for name in names)
