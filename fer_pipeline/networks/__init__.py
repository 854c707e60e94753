"""Backbones, heads and checkpoints: what turns prepared crops into features and class scores."""
