"""Derive independent 63-bit seeds from one seed and a chain of names, the same on every machine."""

import hashlib


def derive(seed: int, *names: str | int) -> int:
    """Returns a seed for the part of the work that `names` identify, independent of all other parts."""
    text = "\x1f".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") >> 1
