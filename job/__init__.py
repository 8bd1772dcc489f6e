"""What every long command shares, without torch: config, run directory, manifest, metrics, stop signals."""
