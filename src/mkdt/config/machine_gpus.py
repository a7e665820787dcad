"""The GPUs that programs on this machine may use. No torch here: asking CUDA would fix what a process sees."""

import os
from itertools import takewhile
from pathlib import Path


def machine_gpus() -> list[str]:
    """Return the GPUs that a process started here may use, as CUDA_VISIBLE_DEVICES lists them: numbers or UUIDs.

    Where that is not set they are 0 to n-1 for the n NVIDIA devices of the machine. Empty where there is none.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    return list(takewhile(_names_a_gpu, (entry.strip() for entry in listed.split(","))))


def _names_a_gpu(entry: str) -> bool:
    """Return whether CUDA takes an entry for a GPU; it passes over all entries from the first other one on."""
    return entry.isdecimal() or entry.startswith(("GPU-", "MIG-"))
