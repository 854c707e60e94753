"""Git and DVC's remote in, whether what was made could be lost, or lands where it does not belong, out."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from fer_pipeline.health.dvc_config import read_config
from fer_pipeline.health.finding import Finding, Place
from fer_pipeline.health.outputs import promised


def remote(place: Place) -> Finding:
    """Where copies are pushed to, and whether each pull checks them."""
    config = read_config(place.root)
    if config.remote is None:
        if config.default:
            cure = f"dvc remote add {config.default} URL, or dvc remote default NAME"
            return Finding("remote", "problem", f"the default remote {config.default!r} is not defined", cure)
        cure = "dvc remote add --default NAME URL && dvc remote modify NAME verify true"
        return Finding("remote", "warning", "there is no default remote: this disk has the only copy", cure)
    name, url = config.remote.name, config.remote.url
    folder = config.remote.folder
    if folder is not None and not folder.is_dir():
        return Finding("remote", "warning", f"{name}: the folder {url} does not exist", "mount it, or run: dvc push")
    if not config.remote.verify:
        cure = f"dvc remote modify {name} verify true"
        return Finding("remote", "warning", f"{name} ({url}): pull takes a flipped bit for whole", cure)
    return Finding("remote", "ok", f"{name} ({url}), each pull checks its bytes")


def lock_file(place: Place) -> Finding:
    """`dvc.lock` says which bytes belong to which commit: only a commit keeps it."""
    if git(place.root, "rev-parse", "--is-inside-work-tree") is None:
        return Finding("lock_file", "warning", "this is no git repository", "git init, and commit")
    if not (place.root / "dvc.lock").exists():
        return Finding("lock_file", "ok", "nothing was made yet")
    if git(place.root, "check-ignore", "-q", "dvc.lock") is not None:
        return Finding("lock_file", "problem", "git ignores dvc.lock", "take it out of .gitignore, and commit it")
    state = git(place.root, "status", "--porcelain", "--", "dvc.lock") or ""
    cure = "git add dvc.lock && git commit -m 'Record what was made'"
    if state.startswith("??"):
        return Finding("lock_file", "warning", "dvc.lock is in no commit: nobody can pull what it names", cure)
    if state.strip():
        return Finding("lock_file", "warning", "dvc.lock differs from the last commit", cure)
    return Finding("lock_file", "ok", "dvc.lock is committed")


def outputs(place: Place) -> Finding:
    """What DVC keeps must be ignored by git, or it lands in commits."""
    if git(place.root, "rev-parse", "--is-inside-work-tree") is None:
        return Finding("outputs", "ok", "this is no git repository")
    paths = [output.path for output in promised(place.root).outputs if output.cached]
    if not paths:
        return Finding("outputs", "ok", "nothing was made yet")
    tracked = (git(place.root, "ls-files", "-z", "--", *_exactly(paths)) or "").split("\0")[:-1]
    if tracked:
        roots = sorted({path for path in paths for one in tracked if one == path or one.startswith(f"{path}/")})
        cure = f"git rm -r --cached --quiet {' '.join(roots[:5])}"
        return Finding("outputs", "problem", f"git tracks {len(tracked):,} files of outputs", cure)
    ignored = (git(place.root, "check-ignore", "-z", "--stdin", stdin="\0".join(paths)) or "").split("\0")
    if left := sorted(set(paths) - set(ignored)):
        found = f"git does not ignore {', '.join(left[:3])}{' …' if len(left) > 3 else ''}"
        return Finding("outputs", "warning", found, f"printf '/%s\\n' {' '.join(left)} >> .gitignore")
    return Finding("outputs", "ok", f"git ignores all {len(paths):,}")


def _exactly(paths: Sequence[str]) -> list[str]:
    return [f":(literal){path}" for path in paths]


def git(root: Path, *words: str, stdin: str = "") -> str | None:
    """What git says; None where it fails or is not there."""
    try:
        told = subprocess.run(["git", "-C", str(root), *words], input=stdin, capture_output=True, text=True)
    except OSError:
        return None
    return told.stdout if told.returncode == 0 else None
