"""Read tensor files from outside the project without running code that they may contain."""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from mkdt.errors import UserError


def load_untrusted(path: str | Path) -> tuple[Any, dict[str, str]]:
    """Load a ``.safetensors``, ``.npy`` or (any other suffix) PyTorch file on the CPU.

    Returns:
        the tensors by name (``.safetensors``), one tensor (``.npy``), or the object that PyTorch saved; and the metadata
        of safetensors, empty for other files.

    Raises:
        UserError: the file is damaged, truncated, or a pickle of more than tensors and plain values.
    """
    path = Path(path)
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
        found = re.search(r"\bGLOBAL (\S+)", str(error))
        reason = f"it holds the object {found[1]}" if found else str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"{path} cannot be read ({reason}): it is damaged, or holds more than tensors, which may run code when it "
            "is loaded. Fetch it again, or save its tensors alone (docs/teachers.md)."
        ) from error


def sha256(path: str | Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
