"""Check stored bytes against their recorded hashes (fsck), and the machine against what a run needs (doctor)."""
