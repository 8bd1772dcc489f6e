"""Tests mirror the packages; `ranks/` runs several processes; data nobody here wrote is read, never copied."""
