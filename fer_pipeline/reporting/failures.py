"""What `evaluate` kept of the worst mistakes in, one gallery a target out (figure 6 of Liu et al., arXiv:2005.08551).

The paper groups its failures by eye (pose, light, occlusion); ours come ordered by true class and by how sure the
models were, and the reader judges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json
from fer_pipeline.reporting.pictures import data_uri


@dataclass(frozen=True)
class Failed:
    """One mistaken face, ready for the page."""

    picture: str
    face_id: str
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Gallery:
    """The mistakes of one recipe on one target."""

    recipe: str
    target: str
    faces: tuple[Failed, ...]


def galleries(metrics: Path, *, recipe: str, targets: Sequence[str], per_class: int) -> list[Gallery]:
    """One gallery for every target on which the recipe was measured and was wrong at least once."""
    found = []
    for target in targets:
        folder = metrics / recipe / target / "failures"
        faces = _faces(folder, per_class) if (folder / "failures.json").exists() else ()
        if faces:
            found.append(Gallery(recipe, target, faces))
    return found


def _faces(folder: Path, per_class: int) -> tuple[Failed, ...]:
    try:
        return tuple(
            Failed(
                picture=data_uri((folder / Path(row["file"]).name).read_bytes()),
                face_id=str(row["face_id"]),
                label=str(row["label"]),
                predicted=str(row["predicted"]),
                probability=float(row["probability"]),
            )
            for row in read_json(folder / "failures.json")
            if row["rank"] <= per_class
        )
    except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
        raise DataError(f"{folder} does not hold what its list says ({error!r}); run: dvc repro evaluate") from None
