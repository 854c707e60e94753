"""Prefect flows that run the DVC graph: parallel, restartable, scheduled. Imports nothing of `fer_pipeline`."""
