"""Comparisons and the tables of the paper."""
