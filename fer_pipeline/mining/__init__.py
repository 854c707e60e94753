"""Choose which pool faces get a pseudo-label: the margin rule, its calibration and its summary."""
