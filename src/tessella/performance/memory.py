"""Measure peak memory. PyTorch is imported for GPUs only."""

from __future__ import annotations

import gc
from pathlib import Path


class PeakMemory:
    """Measures the rise of memory use since construction: on a GPU, or of the process on Linux."""

    def __init__(self, device: str):
        gc.collect()  # memory that is freed later would hide a rise
        self.device = device if device.startswith("cuda") else None
        self.is_supported = True
        if self.device:
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark to the current use
            self.before = _process_bytes("VmRSS")
        except (OSError, StopIteration):
            self.is_supported = False

    def peak_mb(self) -> float | None:
        """Return the rise so far in MB (10^6 bytes), or None if the system does not provide it."""
        if not self.is_supported:
            return None
        if self.device:
            import torch

            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = _process_bytes("VmHWM")
        return max(peak - self.before, 0) / 1e6


def _process_bytes(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
