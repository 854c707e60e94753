"""The truth of drawn pools, `data/truth/<pool>.parquet`, read for the report alone: what a face really shows.

Truth is the dominant prototype; a mixed face has none (null), and whoever mines it under any label is wrong.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fer_pipeline.core.errors import DataError

SEVERAL = re.compile(r"#\d+$")  # what align appends where a picture gives several faces
MIXED = "mixed"


@dataclass(frozen=True)
class Truth:
    """The dominant expression of every face of the pools whose truth is known; None for a mixed face."""

    pools: dict[str, dict[str, str | None]]

    def known(self, pool: str, face_id: str) -> bool:
        """Whether the truth of a face is on record."""
        return self._key(pool, face_id) is not None

    def right(self, pool: str, face_id: str, label: str) -> bool | None:
        """Whether a face shows `label`; None where nothing is known of it."""
        key = self._key(pool, face_id)
        return None if key is None else self.pools[pool][key] == label

    def label(self, pool: str, face_id: str) -> str:
        """The true expression in words, empty where nothing is known."""
        key = self._key(pool, face_id)
        return "" if key is None else self.pools[pool][key] or MIXED

    def _key(self, pool: str, face_id: str) -> str | None:
        known = self.pools.get(pool, {})
        return next((key for key in (face_id, SEVERAL.sub("", face_id)) if key in known), None)


def read_truth(folder: Path, pools: Sequence[str]) -> Truth:
    """The truth of those pools that have one."""
    return Truth({pool: _read(path) for pool in pools if (path := folder / f"{pool}.parquet").exists()})


def _read(path: Path) -> dict[str, str | None]:
    try:
        table = pq.read_table(path, columns=["face_id", "dominant"])
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError, KeyError) as error:
        raise DataError(f"{path} is no table of face_id and dominant ({error}); run: dvc repro synthesize") from None
    return dict(zip(table["face_id"].to_pylist(), table["dominant"].to_pylist(), strict=True))
