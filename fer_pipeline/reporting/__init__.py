"""Figures, tables and the self-contained report page."""
