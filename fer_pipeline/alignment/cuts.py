"""Where one shard ends and the next begins: a sample's id and the shard's length in, yes or no out.

By count, a picture that is lost in front moves every later one into another place and every later shard is made again.
By ids, a shard ends where the content says so: after a sample whose hash falls in a set of one in `rows`. Where samples
come, go or change, the cuts before stay, and those after fall into step again within a few shards.
Source: content-defined chunking (Muthitacharoen et al., A Low-bandwidth Network File System, 2001), with their minimum
and maximum.
"""

import hashlib
from typing import Literal

Cut = Literal["ids", "count"]


def ends_shard(sample_id: str, length: int, *, rows: int, cut: Cut) -> bool:
    """Whether a shard of `length` samples ends with this one; `rows` is the length that is aimed at."""
    if cut == "count":
        return length == rows
    return length >= 2 * rows or (length >= rows // 4 and id_hash(sample_id) < 2**64 // rows)


def id_hash(sample_id: str) -> int:
    """64 bits of a sample's id, the same on every machine."""
    # 8 bytes an id instead of a set of strings: a pool may have millions.
    return int.from_bytes(hashlib.blake2b(sample_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
