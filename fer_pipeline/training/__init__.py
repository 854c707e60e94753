"""Train networks: the loop in plain sight, with its sources, batches, augmentation, losses and states."""
