"""Jobs on a real Slurm: several virtual nodes on this machine."""
