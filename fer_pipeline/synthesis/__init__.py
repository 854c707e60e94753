"""The demo world: procedural portraits drawn from FACS action units, and the truth about them."""
