"""Predictions in, the most confident mistakes out: the cases of figure 6 in Liu et al., arXiv:2005.08551.

The paper shows failures without saying how they were chosen. Ours are, for each true class, the faces whose mean
probabilities over the seeds put the highest share on a wrong class; equal shares are ordered by face identifier.
"""

from dataclasses import dataclass

from fer_pipeline.evaluation.predictions import Predictions


@dataclass(frozen=True)
class Failure:
    """A face, what it shows, what it was taken for, and with what mean probability."""

    face_id: str
    label: str
    predicted: str
    probability: float
    rank: int  # within the true class, from 1

    @property
    def file(self) -> str:
        """The name of its picture; class names are plain, so it is a plain name."""
        return f"{self.label}-{self.rank:02d}-as-{self.predicted}.png"


def worst_failures(predictions: Predictions, *, per_class: int) -> list[Failure]:
    """At most `per_class` failures of every class, in class order, worst first."""
    shares = predictions.probabilities.mean(0)
    chosen = shares.argmax(-1)
    found = []
    for k, name in enumerate(predictions.classes):
        wrong = ((predictions.labels == k) & (chosen != k)).nonzero()[0]
        ranked = sorted(wrong, key=lambda index: (-shares[index, chosen[index]], str(predictions.face_id[index])))
        for rank, index in enumerate(ranked[:per_class], 1):
            taken_for = predictions.classes[chosen[index]]
            probability = float(shares[index, chosen[index]])
            found.append(Failure(str(predictions.face_id[index]), name, taken_for, probability, rank))
    return found
