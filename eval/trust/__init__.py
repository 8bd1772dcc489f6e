"""Intervals, comparisons, contamination: how far a number is to be believed."""
