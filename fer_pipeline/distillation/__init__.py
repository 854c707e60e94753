"""Dataset distillation: many mined faces to a handful of synthetic ones by differentiating through training."""
