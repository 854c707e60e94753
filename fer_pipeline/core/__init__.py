"""Names, errors, settings, files, seeds and progress: what every other package builds on, without torch."""
