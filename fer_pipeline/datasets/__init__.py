"""One file a data set or format: `samples(path, options)` lists it, `read(sample, options)` brings a picture."""
