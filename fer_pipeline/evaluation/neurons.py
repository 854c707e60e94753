"""Say which expressions the neurons of a network respond to, by the faces that they respond to most.

Source: Ding, Zhou & Chellappa, FaceNet2ExpNet (FG 2017), section III-C, table I, and figures 3 to 5. A neuron is a unit
of a layer, of a map each place of each channel. Its entropy is that of the classes of the K faces (K = 100) that it
responds to most, in nats: H = -sum of p_i log p_i. An entropy is low where it lies below the smallest of the layers'
mean entropies; the paper does not say whether of the network before or after the fine-tuning, and here one threshold
serves both, so that their counts can be compared.

What differs: the paper looks at pool4, pool5, FC6 and FC7 of VGG-16; here the last three stages of any network and the
layer before its head stand for them, so that of VGG-16 pool3 is in the place of FC6. Where responses are equal the
earlier face counts; a neuron whose response is the same for all faces ranks nothing, has no entropy (NaN), and is
counted by itself.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

STRONGEST = 100  # faces of a neuron


class Strongest:
    """The `k` strongest responses of every neuron and the numbers of their faces, over batches of any size."""

    def __init__(self, k: int = STRONGEST) -> None:
        self.k, self._seen = k, 0
        self.responses: Float[np.ndarray, "u k"] | None = None  # falling
        self.faces: Int[np.ndarray, "u k"] | None = None
        self._least: Float[np.ndarray, " u"] | None = None

    def add(self, responses: Float[np.ndarray, "n u"]) -> None:
        """Take in the responses to the next faces."""
        values = np.ascontiguousarray(responses.T, dtype=np.float32)
        numbers = np.broadcast_to(np.arange(self._seen, self._seen + values.shape[1], dtype=np.int32), values.shape)
        self._seen += values.shape[1]
        least = values.min(1)
        if self.responses is not None and self.faces is not None and self._least is not None:
            values = np.concatenate([self.responses, values], 1)
            numbers = np.concatenate([self.faces, numbers], 1)
            least = np.minimum(least, self._least)
        order = np.argsort(-values, axis=1, kind="stable")[:, : self.k]
        self.responses, self.faces = np.take_along_axis(values, order, 1), np.take_along_axis(numbers, order, 1)
        self._least = least

    def entropies(self, labels: Int[np.ndarray, " n"], *, num_classes: int) -> Float[np.ndarray, " u"]:
        """Return every neuron's entropy over the classes of its strongest faces; NaN for a constant one."""
        assert self.responses is not None, "nothing was added"
        assert self._least is not None
        found = entropy(self.counts(labels, num_classes=num_classes))
        return np.where(self.responses[:, 0] > self._least, found, np.nan)

    def counts(self, labels: Int[np.ndarray, " n"], *, num_classes: int) -> Int[np.ndarray, "u c"]:
        """Count the classes of every neuron's strongest faces."""
        assert self.faces is not None
        of_faces = labels[self.faces]
        return np.stack([(of_faces == label).sum(1) for label in range(num_classes)], 1)


def entropy(counts: Int[np.ndarray, "*u c"]) -> Float[np.ndarray, "*u"]:
    """Return the entropy of histograms, in nats; an empty bin adds nothing."""
    shares = counts / counts.sum(-1, keepdims=True)
    return (shares * -np.log(np.where(shares > 0, shares, 1.0))).sum(-1) + 0.0  # no negative zero


def low_threshold(entropies: Mapping[str, Float[np.ndarray, " _"]]) -> float:
    """Return the smallest of the layers' mean entropies; NaN where no layer has a neuron that ranks faces."""
    means = [float(values[np.isfinite(values)].mean()) for values in entropies.values() if np.isfinite(values).any()]
    return min(means, default=float("nan"))
