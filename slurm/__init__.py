"""Configs become Slurm jobs: chained by dependency, checked before they start, continued after what clusters do."""
