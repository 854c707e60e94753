"""Metrics, protocols and statistics on plain arrays."""
