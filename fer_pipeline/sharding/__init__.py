"""Make the shards of a stage: jobs, local worker processes, Ray, locks."""
