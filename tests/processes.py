"""Reads what a process says of itself, although it may end between two questions."""

import contextlib

import psutil


def words_of(process: psutil.Process) -> list[str]:
    """Its command line; no words of one that has ended meanwhile."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []
