"""Compute class centroids and compare feature vectors with them by cosine."""
