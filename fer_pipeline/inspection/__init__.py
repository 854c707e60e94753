"""Look into mined subsets of any revision: counts, SQL, differences, history and exports; each as an Arrow table."""
