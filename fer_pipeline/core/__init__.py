"""The ground floor: names, errors, settings, files, seeds and progress. Imports nothing heavy and no torch."""
