"""Centroids, cosines, the margin rule and its calibration: who of the pool gets a pseudo-label."""
