"""Whether what DVC keeps is still what was put there (fsck), and whether this machine can carry the walk (doctor)."""
