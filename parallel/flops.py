"""What a device can do at most, and how much of it a run uses. Imports no torch."""

from __future__ import annotations

# Dense bf16 matrix peak in TFLOP/s by the name that CUDA reports, from NVIDIA's data sheets (without sparsity).
# Longer names come first: the first that is part of the device's name counts.
_PEAKS = (
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.4),
    ("H200", 989.4),
    ("GH200", 989.4),
    ("B200", 2250.0),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("A10G", 70.0),
    ("V100", 125.0),
)


def peak_teraflops(device_name: str) -> float | None:
    """Dense bf16 peak of a device in TFLOP/s, or None where it is not known: an unknown device has no MFU."""
    return next((peak for name, peak in _PEAKS if name in device_name), None)
