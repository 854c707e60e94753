"""Read raw data sets, one file a format: `samples(path, options)` lists one, `read(sample, options)` reads a picture.

An adapter may set `VERSION` (1 without it), which is raised when `read` gives other bytes of the same file.
One that walks a folder has `left_out(path, options)`, which counts by kind what is there and no sample.
"""
