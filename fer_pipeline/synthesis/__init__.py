"""Draw the portraits of the demo world from FACS action units, with the truth about them."""
