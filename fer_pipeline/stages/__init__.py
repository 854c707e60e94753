"""One file a stage: `class Config`, its section of `params.yaml`, and `run(config, *, paths…) -> Summary`."""
