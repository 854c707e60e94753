"""One work a file; `measure(bench)` yields its rows."""
