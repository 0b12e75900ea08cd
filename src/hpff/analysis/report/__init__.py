"""One HTML file that says what came out of runs: it needs no network, and opens from disk."""
