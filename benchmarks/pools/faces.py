"""A number of faces in, aligned faces of 112 px out: Parquet shards as `align` writes them, a `.rec` and its `.idx`.

A few thousand portraits of the demo world are drawn; every face is one of them, brought to the template by its true
landmarks with a turn, a shift, a scale, a light and a JPEG quality of its own. Faces of one portrait follow each other,
so that identities lie together as in InsightFace's files. The bytes do not depend on the number of workers.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64, UInt8
from PIL import Image

from benchmarks.pools.folder import begin
from benchmarks.pools.records import write_records
from fer_pipeline.alignment.warp import fit_similarity, scale_template, transform_points
from fer_pipeline.artifacts.faces import encode, encoded_images, face_schema, write_shard
from fer_pipeline.core.expressions import BASIC_7
from fer_pipeline.core.seeds import derive
from fer_pipeline.synthesis.sets import PortraitSet, SampleKey, SetSettings

CROP = 112
DRAWN = 2000  # portraits; more faces than these are variations of them
PORTRAIT = 144  # pixels: the face in it is a little larger than in the crop
SHARD_ROWS = 5000
BYTES = 12_000  # of a face, both files together, on the safe side
STYLES = {"wild": 2.0, "anchor": 1.0}


@dataclass(frozen=True)
class Plan:
    """How many faces, of how many portraits, from which seed, under which name."""

    name: str
    rows: int
    drawn: int
    seed: int

    def portrait(self, number: int) -> int:
        """The portrait that face `number` (from 0) is a variation of."""
        return number * self.drawn // self.rows

    def parts(self) -> list[tuple[str, range]]:
        """The files of the shards, each with the numbers of its faces."""
        starts = range(0, self.rows, SHARD_ROWS)
        return [
            (f"train/part-{part:05d}.parquet", range(start, min(start + SHARD_ROWS, self.rows)))
            for part, start in enumerate(starts)
        ]


def write_faces(folder: Path, plan: Plan, *, workers: int, advance: Callable[[int], None]) -> None:
    """Writes `train/part-*.parquet`, `train.rec` and `train.idx` into a new folder."""
    parts = plan.parts()
    files = [*(file for file, _ in parts), "train.rec", "train.idx"]
    begin(folder, files=files, needed=plan.rows * BYTES, kind="faces", rows=plan.rows, drawn=plan.drawn, seed=plan.seed)
    for written in made(partial(write_part, folder, plan), parts, workers=workers):
        advance(written)
    portraits = [plan.portrait(number) for number in range(plan.rows)]
    firsts = np.flatnonzero(np.diff(portraits, prepend=-1)) + 1
    write_records(folder / "train.rec", stored(folder, plan), first_of_identity=firsts.tolist(), total=plan.rows)


def made(make: Callable[[tuple[str, range]], int], parts: list[tuple[str, range]], *, workers: int) -> Iterator[int]:
    """What `make` gives for every part, here or by worker processes."""
    if workers == 1 or len(parts) == 1:
        yield from map(make, parts)
        return
    with ProcessPoolExecutor(min(workers, len(parts)), mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(make, parts)


def write_part(folder: Path, plan: Plan, part: tuple[str, range]) -> int:
    """One shard of faces; a face's identifier is the one that `align` gives to its record in the `.rec`."""
    file, numbers = part
    settings = SetSettings(splits={"train": plan.drawn}, subjects=plan.drawn, styles=STYLES, balance={})
    portraits = PortraitSet(settings, seed=plan.seed, name=plan.name, size=PORTRAIT)
    rows, last, portrait, row = [], -1, None, None
    for number in numbers:
        which = plan.portrait(number)
        if which != last:
            last, (portrait, row) = which, portraits.draw(SampleKey("train", which))
        assert portrait is not None
        assert row is not None
        rng = np.random.default_rng(derive(plan.seed, plan.name, "face", number))
        image, landmarks = varied(portrait, row.landmarks.astype(np.float64), rng)
        rows.append(
            {
                "face_id": f"{plan.name}/{number + 1}",
                "image": {"bytes": encode(image, quality=int(rng.integers(80, 96))), "path": None},
                "label": None,
                "subject": str(which),
                "split": "train",
                "landmarks": landmarks.ravel().tolist(),
                "score": 1.0,
                "source": "train.rec",
            }
        )
    schema = face_schema(BASIC_7, crop=CROP, border="reflect", format="jpeg")
    write_shard(folder / file, pa.Table.from_pylist(rows, schema=schema))
    return len(rows)


def varied(
    image: UInt8[np.ndarray, "h w 3"], landmarks: Float64[np.ndarray, "5 2"], rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "112 112 3"], Float64[np.ndarray, "5 2"]]:
    """The face near the template, under another light, and its landmarks there."""
    turn, scale = np.deg2rad(rng.normal(0, 4)), np.exp(rng.normal(0, 0.03))
    matrix = fit_similarity(landmarks, scale_template(CROP))
    spin = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    centre = np.full(2, (CROP - 1) / 2)
    matrix = np.column_stack([spin @ matrix[:, :2], spin @ (matrix[:, 2] - centre) + centre + rng.normal(0, 1.5, 2)])
    back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    back[:, 2] += 0.5 - back[:, :2] @ np.full(2, 0.5)  # pillow counts from pixel edges
    picture = Image.fromarray(image).transform(
        (CROP, CROP), Image.Transform.AFFINE, tuple(back.ravel()), Image.Resampling.BILINEAR
    )
    steps = np.arange(256) / 255
    tables = [np.clip(rng.normal(1, 0.05) * steps ** np.exp(rng.normal(0, 0.15)), 0, 1) for _ in range(3)]
    light = np.clip(rng.normal(1, 0.1) * np.concatenate(tables) + rng.normal(0, 0.03), 0, 1)
    return np.asarray(picture.point((255 * light).round().astype(int).tolist())), transform_points(landmarks, matrix)


def stored(folder: Path, plan: Plan) -> Iterator[tuple[int, memoryview]]:
    """The pictures of all shards in order, each with its portrait's number, a row group in memory at a time."""
    for file, numbers in plan.parts():
        place = iter(numbers)
        for batch in pq.ParquetFile(folder / file, memory_map=True).iter_batches(1000, columns=["image"]):
            for picture in encoded_images(batch):
                yield plan.portrait(next(place)), picture
