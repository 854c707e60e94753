"""The shard engine: jobs in, finished shards in the store out, wherever they are made. Imports no torch."""
