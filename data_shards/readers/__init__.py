"""Readers: each turns one source format into a stream of `Article` records."""
