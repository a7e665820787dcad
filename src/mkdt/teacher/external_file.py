"""Read tensor files from outside the project without running code that they may contain."""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from mkdt.errors import UserError

LONGEST_HEADER = 100_000_000  # bytes of JSON that the library safetensors reads


def load_untrusted(path: str | Path) -> tuple[Any, dict[str, str]]:
    """Load a ``.safetensors``, ``.npy`` or (any other suffix) PyTorch file on the CPU.

    Returns:
        the tensors by name (``.safetensors``), one tensor (``.npy``), or the object that PyTorch saved; and the metadata
        of safetensors, empty for other files.

    Raises:
        UserError: the file is of another format, damaged, truncated, or a pickle of more than tensors and plain values.
    """
    path = Path(path)
    expected = {".safetensors": "safetensors", ".npy": "NumPy"}.get(path.suffix, "PyTorch")
    found = format_of(path) if path.is_file() and path.stat().st_size else expected
    if not found:
        raise UserError(f"{path} cannot be read: it is no PyTorch or safetensors file. Fetch it again.")
    if found != expected:
        suffix = {"safetensors": ".safetensors", "NumPy": ".npy", "PyTorch": ".pt"}[found]
        raise UserError(f"{path} cannot be read: it is a {found} file, so its name must end in {suffix}.")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False)), {}
        return torch.load(path, map_location="cpu", weights_only=True), {}
    # The readers raise many types of errors for damaged files.
    except Exception as error:
        # torch's first line advises to load what may run code; the name of the object says more.
        named = re.search(r"\bGLOBAL (\S+)", str(error))
        reason = f"it holds the object {named[1]}" if named else str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"{path} cannot be read ({reason}): it is damaged, or holds more than tensors, which may run code when it "
            "is loaded. Fetch it again, or save its tensors alone (docs/teachers.md)."
        ) from error


def format_of(path: Path) -> str:
    """Return ``safetensors``, ``PyTorch`` or ``NumPy`` by a file's first bytes, though it may be damaged; empty for others."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    if start.startswith((b"PK", b"\x80")):  # a zip archive, or a pickle
        return "PyTorch"
    if start.startswith(b"\x93NUMPY"):
        return "NumPy"
    # The length of the header, then the header: JSON. Text has a length beyond any.
    of_safetensors = start[8:] == b"{" and int.from_bytes(start[:8], "little") <= LONGEST_HEADER
    return "safetensors" if of_safetensors else ""


def sha256(path: str | Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
