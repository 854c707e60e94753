"""Check that git and DVC's remote hold what was made: that nothing can be lost, or is committed by accident."""

import subprocess
from pathlib import Path

from fer_pipeline.health.dvc_project import read_config, read_outputs
from fer_pipeline.health.findings import CheckContext, Finding


def check_remote(context: CheckContext) -> Finding:
    """Checks where copies are pushed to, and whether each pull verifies them."""
    config = read_config(context.root)
    if config.remote is None and config.default:
        advice = f"dvc remote add {config.default} URL, or dvc remote default NAME"
        return Finding("problem", f"the default remote {config.default!r} is not defined", advice)
    if config.remote is None:
        advice = "dvc remote add --default NAME URL && dvc remote modify NAME verify true"
        return Finding("warning", "there is no default remote: this disk has the only copy", advice)
    name, url, folder = config.remote.name, config.remote.url, config.remote.folder
    if folder is not None and not folder.is_dir():
        return Finding("warning", f"{name}: the folder {url} does not exist", "mount it, or run: dvc push")
    if not config.remote.verify:
        advice = f"dvc remote modify {name} verify true"
        return Finding("warning", f"{name} ({url}): pull does not notice a flipped bit", advice)
    return Finding("ok", f"{name} ({url}), each pull checks its bytes")


def check_lock_file(context: CheckContext) -> Finding:
    """Checks that `dvc.lock`, which says which bytes belong to which commit, is committed."""
    root = context.root
    if run_git(root, "rev-parse", "--is-inside-work-tree") is None:
        return Finding("warning", "this is no git repository", "git init, and commit")
    if not (root / "dvc.lock").exists():
        return Finding("ok", "no stage has run yet")
    if run_git(root, "check-ignore", "-q", "dvc.lock") is not None:
        return Finding("problem", "git ignores dvc.lock", "take it out of .gitignore, and commit it")
    state = run_git(root, "status", "--porcelain", "--", "dvc.lock") or ""
    if not state.strip():
        return Finding("ok", "dvc.lock is committed")
    is_new, advice = state.startswith("??"), "git add dvc.lock && git commit -m 'Record what was made'"
    fault = "is in no commit: nobody can pull what it names" if is_new else "differs from the last commit"
    return Finding("warning", f"dvc.lock {fault}", advice)


def check_outputs(context: CheckContext) -> Finding:
    """Checks that git ignores the files in DVC's care: it would commit them."""
    root = context.root
    if run_git(root, "rev-parse", "--is-inside-work-tree") is None:
        return Finding("ok", "this is no git repository")
    paths = [output.path for output in read_outputs(root)[0] if output.is_cached]
    if not paths:
        return Finding("ok", "no stage has run yet")
    tracked = (run_git(root, "ls-files", "-z", "--", *(f":(literal){path}" for path in paths)) or "").split("\0")[:-1]
    if tracked:
        roots = sorted({path for path in paths for one in tracked if one == path or one.startswith(f"{path}/")})
        advice = f"git rm -r --cached --quiet {' '.join(roots[:5])}"
        return Finding("problem", f"git tracks {len(tracked):,} files of outputs", advice)
    ignored = (run_git(root, "check-ignore", "-z", "--stdin", stdin="\0".join(paths)) or "").split("\0")
    if others := sorted(set(paths) - set(ignored)):
        message = f"git does not ignore {', '.join(others[:3])}{' …' if len(others) > 3 else ''}"
        return Finding("warning", message, f"printf '/%s\\n' {' '.join(others)} >> .gitignore")
    return Finding("ok", f"git ignores all {len(paths):,}")


def run_git(root: Path, *arguments: str, stdin: str = "") -> str | None:
    """Returns what git prints; None where it fails or is not installed."""
    try:
        result = subprocess.run(["git", "-C", str(root), *arguments], input=stdin, capture_output=True, text=True)
    except OSError:
        return None
    return result.stdout if result.returncode == 0 else None
