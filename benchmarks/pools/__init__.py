"""Pools of any size, made from a seed: embeddings with a structure of classes, and aligned faces."""
