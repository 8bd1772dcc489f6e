"""Runs that are killed, stopped, starved and fed damage, and what is left of them."""
