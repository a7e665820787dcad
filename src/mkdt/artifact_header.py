"""The provenance header of a tensor file: its canonical JSON, its digests, and how it is checked. No torch here."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

# safetensors writes several metadata keys in random order; with one key, equal runs give equal bytes.
HEADER_KEY = "mkdt"
FORMAT = 1

Header = dict[str, Any]


def canonical(value: Any) -> str:
    """Return JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def begun_digest(dtype: str, shape: Sequence[int]) -> "hashlib._Hash":
    """Begin the SHA-256 of a tensor; its bytes in row-major order follow.

    Args:
        dtype: as torch calls it, without ``torch.``.
        shape: of the tensor.
    """
    return hashlib.sha256(f"torch.{dtype} {tuple(shape)} ".encode())


def sealed(header: Header) -> dict[str, str]:
    """Return the metadata of a tensor file: the header with its digest."""
    return {HEADER_KEY: canonical(header | {"check": digest(header)})}


def read_header(metadata: Mapping[str, str], shapes: Mapping[str, Sequence[int]]) -> Header:
    """Read the header from the metadata of a tensor file, and check it.

    Args:
        metadata: of the file.
        shapes: shape of each tensor in the file.

    Raises:
        ValueError: there is none, it does not match its digest, or it has not the entries that ``mkdt.artifacts.save``
            writes.
    """
    try:
        header: Header = json.loads(metadata[HEADER_KEY])
        if header.pop("check") != digest(header):
            raise ValueError("the header does not match its digest")
        _check_entries(header, shapes)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    return header


def _check_entries(header: Header, shapes: Mapping[str, Sequence[int]]) -> None:
    """Check that a header has the entries that ``save`` writes.

    A matching digest of the header does not show this, because another program may have written the file.

    Args:
        header: the header.
        shapes: shape of each tensor in the file.

    Raises:
        ValueError: an entry is missing, has another type, or does not fit the shapes of the tensors.
    """
    types = {"stage": str, "code": str, "inputs": dict, "digests": dict}
    wrong = [key for key, expected in types.items() if not isinstance(header.get(key), expected)]
    notes = header.get("notes", {})
    if not isinstance(notes, dict) or not isinstance(notes.get("skipped", []), list):
        wrong.append("notes")
    if header["format"] != FORMAT or "parameters" not in header or wrong:
        raise ValueError(f"its header has no proper {', '.join(wrong) or 'format'}")
    for name in {*shapes, *header["digests"]}:
        stored, shape = header["digests"].get(name), shapes.get(name)
        by_row = isinstance(stored, list) and shape and len(stored) == shape[0]
        if shape is None or not (isinstance(stored, str) or by_row):
            raise ValueError(f"its digests do not fit the tensor '{name}'")
