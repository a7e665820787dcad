"""Named random streams: every random number is a function of (seed, purpose, identities).

No stream is ever shared or advanced by two users, so nothing has to be saved to resume, and an expert, a
label draw or a student initialisation is the same whichever method, batch or job asks for it.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, purpose: str, *identities: int | str) -> int:
    """A 63-bit seed that depends on all of its arguments and on nothing else."""
    text = json.dumps([seed, purpose, *identities])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *identities: int | str) -> torch.Generator:
    """A CPU generator for the named stream (CPU also for GPU jobs: the same numbers on every device)."""
    return torch.Generator().manual_seed(derive(seed, purpose, *identities))


@contextmanager
def global_stream(seed: int, purpose: str, *identities: int | str) -> Iterator[None]:
    """Point torch's global generators at the named stream, for code that takes none, and restore them after."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(seed, purpose, *identities))
        yield


def batches(size: int, batch: int, stream: torch.Generator) -> Iterator[torch.Tensor]:
    """One epoch: a random order of ``range(size)`` cut into int64 index tensors of at most ``batch``."""
    yield from torch.randperm(size, generator=stream).split(batch)
