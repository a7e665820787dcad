"""Named random streams: every random number is a function of (seed, purpose, identities).

No two uses share a stream, so a resumed job needs no saved generator, and an expert, a draw of labels or the initial
weights of a student do not depend on the method, batch or job that uses them.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, purpose: str, *identities: int | str) -> int:
    """Return a 63-bit seed that depends only on the arguments."""
    text = json.dumps([seed, purpose, *identities])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *identities: int | str) -> torch.Generator:
    """Return a CPU generator for the named stream; GPU jobs use it too and so draw the same numbers."""
    return torch.Generator().manual_seed(derive(seed, purpose, *identities))


@contextmanager
def global_stream(seed: int, purpose: str, *identities: int | str) -> Iterator[None]:
    """Seed torch's global generators from the named stream, for code that takes no generator; restore them afterwards."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(seed, purpose, *identities))
        yield


def batches(size: int, batch: int, stream: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield one epoch: a random order of ``range(size)`` in index tensors int64 of at most ``batch`` elements."""
    yield from torch.randperm(size, generator=stream).split(batch)
