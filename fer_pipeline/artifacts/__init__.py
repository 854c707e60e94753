"""What lies on disk between two stages: `artifacts/<x>.py` describes `data/<x>`, its columns, its writer and its reader."""
