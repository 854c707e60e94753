"""Child seeds: one seed and a chain of names in, a 63-bit seed out, the same on every machine and in every version."""

import hashlib


def derive(seed: int, *names: str | int) -> int:
    """A seed for the part of the work that `names` tells, independent of all other parts."""
    text = "\x1f".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") >> 1
