"""What lies on disk between two stages: `artifacts/<x>.py` describes, writes and reads `data/<x>`."""
