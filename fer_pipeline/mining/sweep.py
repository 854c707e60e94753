"""A calibration in, the table margin -> kept, per class, estimated precision out.

The grid runs evenly from 0 to the largest margin of the pool, and holds the margins in use too. Counts are those of the
margin alone, before any cap.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from fer_pipeline.mining.calibration import Calibration


@dataclass(frozen=True)
class Sweep:
    """For every margin: faces kept and their estimated precision, per class and for all classes together."""

    margin: Float64[np.ndarray, " t"]
    kept: Int64[np.ndarray, "t c"]
    heldout: Int64[np.ndarray, "t c"]
    interval: Float64[np.ndarray, "t c 3"]  # precision, low, high
    overall: Float64[np.ndarray, "t 3"]


def sweep_margins(calibration: Calibration, *, points: int, used: Float64[np.ndarray, " u"]) -> Sweep:
    """The sweep over `points` margins and those in use."""
    top = max((float(pool[-1]) for pool in calibration.pool if len(pool)), default=0.0)
    grid = np.unique(np.concatenate([np.linspace(0.0, top, points), used[np.isfinite(used)]]))
    thresholds = np.repeat(grid[:, None], len(calibration.pool), axis=1)
    kept = calibration.kept(thresholds)
    estimate = calibration.estimate(thresholds)
    overall = np.stack(estimate.combined(kept), axis=1)
    interval = np.stack([estimate.precision, estimate.low, estimate.high], axis=2)
    return Sweep(grid, kept, estimate.heldout, interval, overall)
