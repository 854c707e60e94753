"""What is measured: ours and the peers, one function each that sets up and returns the round to repeat."""
