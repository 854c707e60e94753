"""Freed memory is kept: the same large block, made again, asks the system for no page."""

import json
import subprocess
import sys

import pytest

ROUNDS = """
import json, resource, sys
import numpy as np
from fer_pipeline.core.heap import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None
faults = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(100_000_000, np.uint8).fill(1)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps([kept, faults]))
"""


def rounds(how: str) -> list:
    ended = subprocess.run([sys.executable, "-c", ROUNDS, how], capture_output=True, text=True, check=True)
    return json.loads(ended.stdout)


def test_a_block_of_the_same_size_comes_from_what_was_freed() -> None:
    kept, faults = rounds("keep")
    if not kept:
        pytest.skip("this C library cannot be told to keep memory")
    _, usual = rounds("usual")
    assert faults[0] > 20  # the first block is new to the process
    assert max(faults[1:]) < min(usual[1:]) / 10
