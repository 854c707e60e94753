"""The training loop in plain sight, with its batches, augmentation, losses, schedules and states."""
