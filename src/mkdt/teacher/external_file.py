"""Files from outside the project, read without running any code that they may hold."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from mkdt.errors import UserError


def read(path: str | Path) -> tuple[Any, dict[str, str]]:
    """What a ``.safetensors``, ``.npy`` or PyTorch file holds (any other suffix), on the CPU.

    Returns:
        the tensors by name, the one tensor of a ``.npy``, or whatever PyTorch saved; and the metadata of safetensors.

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
    # Whatever a reader of an arbitrary file may raise is the same news to the user.
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"{path} cannot be read ({reason}): it is damaged, or holds more than tensors, which may run code when it "
            "is loaded. Fetch it again, or save its tensors alone (docs/teachers.md)."
        ) from error


def sha256(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
