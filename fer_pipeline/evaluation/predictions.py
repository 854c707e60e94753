"""Hold what the models of several seeds predict for the faces of one test set, and find their most confident mistakes.

Figure 6 of Liu et al., arXiv:2005.08551, shows failures without saying how they were chosen. Ours are, for each true
class, the faces whose mean probabilities over the seeds put the highest share on a wrong class; equal shares are
ordered by face identifier.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from fer_pipeline.core.settings import PlainName
from fer_pipeline.evaluation.metrics import confusion_matrix


@dataclass(frozen=True)
class Predictions:
    """Test faces [n], their class numbers, their subjects ("" for none), and the probabilities of every seed."""

    classes: tuple[str, ...]
    seeds: tuple[int, ...]
    face_id: np.ndarray
    labels: Int[np.ndarray, " n"]
    subjects: np.ndarray
    probabilities: Float[np.ndarray, "s n c"]
    trained: bool = True  # false: a network as it comes in a package, whose one row is of no seed
    seen: str = ""  # which weights of the models were trained on these very faces' data set, where that is known

    @property
    def predicted(self) -> Int[np.ndarray, "s n"]:
        """The most probable class of every seed; the first of equals."""
        return self.probabilities.argmax(-1)

    @property
    def confusions(self) -> Int[np.ndarray, "s c c"]:
        """The confusion matrix of every seed."""
        size = len(self.classes)
        return np.stack([confusion_matrix(self.labels, row, num_classes=size) for row in self.predicted])

    @property
    def clusters(self) -> Sequence[str] | None:
        """The subjects, for a bootstrap over persons; None where no subject is known."""
        return self.subjects.tolist() if any(self.subjects) else None


@dataclass(frozen=True)
class Failure:
    """A face, what it shows, what it was taken for, and with what mean probability."""

    face_id: str
    label: PlainName
    predicted: PlainName
    probability: float
    rank: int  # within the true class, from 1

    @property
    def file(self) -> str:
        """The name of its picture; class names are plain, so it is a plain name."""
        return f"{self.label}-{self.rank:02d}-as-{self.predicted}.png"


def worst_failures(predictions: Predictions, *, per_class: int) -> list[Failure]:
    """Return at most `per_class` failures of every class, in class order, the most confident first."""
    shares = predictions.probabilities.mean(0)
    predicted, face_id = shares.argmax(-1), predictions.face_id.astype(str)
    failures = []
    for k, name in enumerate(predictions.classes):
        wrong = np.flatnonzero((predictions.labels == k) & (predicted != k))
        ranked = sorted(wrong, key=lambda index: (-shares[index, predicted[index]], face_id[index]))
        for rank, index in enumerate(ranked[:per_class], 1):
            wrong_class, share = predictions.classes[predicted[index]], float(shares[index, predicted[index]])
            failures.append(Failure(str(face_id[index]), name, wrong_class, share, rank))
    return failures
