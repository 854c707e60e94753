"""A staged, versioned pipeline from a small labelled face set and a large pool to a better expression model."""

__version__ = "0.1.0"
