"""Sides of `inspection`. In: a project with versions of a mined subset. A round runs one command of `mined` there."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness.process import ROOT

Round = Callable[[], dict[str, Any]]


def answer(folder: str, words: list[str]) -> Round:
    """The whole process, from its start to the last line that it prints."""
    command, environment = (
        [sys.executable, "-m", "fer_pipeline", "mined", *words],
        {**os.environ, "PYTHONPATH": str(ROOT)},
    )

    def once() -> dict[str, Any]:
        told = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
        if told.returncode:
            raise RuntimeError(told.stderr.decode(errors="replace"))
        return {"bytes": len(told.stdout)}

    once()
    return once


def gallery(folder: str) -> Round:
    """`mined gallery`, in this process, whose memory is measured."""
    from fer_pipeline.commands.gallery import gallery

    os.chdir(folder)

    def once() -> dict[str, Any]:
        gallery(out=Path("reports/gallery"))
        sizes = [path.stat().st_size for path in Path("reports/gallery").rglob("*") if path.is_file()]
        return {"files": len(sizes), "bytes": sum(sizes)}

    return once
