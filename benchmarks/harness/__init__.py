"""What measures: sides in processes of their own, rounds in turn, rows, and the dated report."""
