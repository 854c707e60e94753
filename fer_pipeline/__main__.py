"""`python -m fer_pipeline`."""

from fer_pipeline.cli import main

main()
