"""Which face of a picture is taken: the found faces in, one of them out, or a `Rejection` by the stated rule."""

from collections.abc import Sequence
from typing import Literal

from fer_pipeline.alignment.cascade import FoundFace
from fer_pipeline.alignment.pictures import Rejection

NoFace = Literal["reject", "centre_crop"]
SeveralFaces = Literal["largest", "most_central", "highest_score", "reject"]


def choose(faces: Sequence[FoundFace], *, height: int, width: int, several: SeveralFaces) -> FoundFace:
    """The face by the rule; ties go to the more certain face. No face is the rejection `no_face`."""
    if not faces:
        raise Rejection("no_face")
    if len(faces) > 1 and several == "reject":
        raise Rejection("several_faces")
    if several == "largest":
        return max(faces, key=lambda face: (_area(face), face.score))
    if several == "most_central":
        return min(faces, key=lambda face: (_distance(face, height, width), -face.score))
    return max(faces, key=lambda face: face.score)


def _area(face: FoundFace) -> float:
    x1, y1, x2, y2 = face.box.tolist()
    return (x2 - x1) * (y2 - y1)


def _distance(face: FoundFace, height: int, width: int) -> float:
    x1, y1, x2, y2 = face.box.tolist()
    return ((x1 + x2 - width) ** 2 + (y1 + y2 - height) ** 2) / 4
