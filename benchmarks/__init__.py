"""Measurements; each prints a table, and a ratio to a peer measured in the same run."""
