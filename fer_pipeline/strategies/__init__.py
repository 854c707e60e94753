"""One file a training strategy; the file's name is its name in `params.yaml`."""
