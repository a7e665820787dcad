"""Write files atomically (tensors with a provenance header, JSON lines, tables, pictures) and read checked tensors."""

import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

# Callers find the header's parts here too.
from mkdt.artifact_header import FORMAT, HEADER_KEY, Header, begun_digest, canonical, digest, read_header, sealed
from mkdt.errors import UserError

__all__ = [
    "FORMAT", "HEADER_KEY", "Artifact", "Header", "by_rule", "canonical", "digest", "save", "state_digest", "tensor_digest",
    "write_atomically", "write_jsonl", "write_picture", "write_table", "write_text",
]  # fmt: skip


def tensor_digest(tensor: torch.Tensor) -> str:
    """Return the SHA-256 (hex) of a tensor's dtype, shape and bytes in row-major order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    sha = begun_digest(str(tensor.dtype).removeprefix("torch."), tensor.shape)
    sha.update(flat.view(torch.uint8).numpy().data)
    return sha.hexdigest()


def state_digest(state: Any) -> str:
    """Return the SHA-256 (hex) of a resume state: nested dicts and lists of tensors and plain values."""
    if isinstance(state, torch.Tensor):
        return tensor_digest(state)
    sha = hashlib.sha256(type(state).__name__.encode() if isinstance(state, list | tuple) else b"")
    if isinstance(state, Mapping):
        parts = [part for key, value in state.items() for part in (repr(key), state_digest(value))]
    elif isinstance(state, list | tuple):
        parts = [state_digest(value) for value in state]
    else:
        parts = [repr(state)]
    for part in parts:
        sha.update(f"{len(part)} {part}".encode())
    return sha.hexdigest()


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then fsync it and rename it to ``path``.

    Raises:
        UserError: the disk is full or the folder cannot be written; ``path`` is as before.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files, but a results folder is often shared
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} could not be written ({error}): free space or choose another folder.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 ``text`` atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_table(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with equal keys as CSV with unrounded numbers, atomically."""
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())


def write_picture(path: str | Path, picture: torch.Tensor) -> None:
    """Write ``picture``, uint8 [C,H,W] with C = 1 or 3, as PNG, atomically."""
    from PIL import Image

    pixels = picture.permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    write_atomically(path, lambda temporary: image.save(temporary, "PNG"))


def save(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    stage: str,
    parameters: Any = None,
    code: str = "",
    inputs: Mapping[str, str] | None = None,
    rows: Iterable[str] = (),
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write ``tensors`` atomically as safetensors with a provenance header.

    Args:
        path: the file.
        tensors: named tensors; floating-point tensors must be finite.
        stage: the rule that makes the file.
        parameters: the settings of the stage (JSON).
        code: digest of the stage's code.
        inputs: identity of every artifact that the stage read, by role.
        rows: names of tensors with one digest per row, so that a single row can be checked.
        notes: further information for readers (JSON); an empty one is not written.

    Raises:
        UserError: a tensor is not finite, or the file cannot be written.
    """
    rows = set(rows)
    prepared = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    for name, tensor in prepared.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {name} has values that are not finite; nothing was written.")
    header: Header = {
        "format": FORMAT,
        "stage": stage,
        "parameters": parameters,
        "code": code,
        "inputs": dict(inputs or {}),
        "digests": {
            name: [tensor_digest(row) for row in tensor] if name in rows else tensor_digest(tensor)
            for name, tensor in prepared.items()
        },
    }
    if notes:
        header["notes"] = dict(notes)
    write_atomically(path, lambda temporary: save_file(prepared, temporary, sealed(header)))


def by_rule(stage: str | None) -> str:
    """Return " with the rule 'STAGE'", to end a message with; empty if the stage is unknown."""
    return f" with the rule '{stage}'" if stage else ""


def _open(path: Path) -> Any:
    """Open a tensor file.

    safetensors opens it twice by its path, so open it again if another file was renamed to this path meanwhile.
    """
    while True:
        before = os.stat(path)
        file = safe_open(path, "pt")
        if os.path.samestat(before, os.stat(path)):
            return file


class Artifact:
    """A tensor file of this project, memory-mapped; each tensor is checked when it is read.

    Attributes:
        path: the file.
        header: provenance (stage, parameters, code, inputs, digests).
        names: names of the tensors, sorted.
        identity: digest of the header, which contains the digests of all tensors.
    """

    def __init__(self, path: str | Path, stage: str | None = None) -> None:
        """Open ``path``; if ``stage`` is given, refuse a file of another stage.

        Raises:
            UserError: the file is missing, truncated, not of this project, or of another stage.
        """
        self.path = Path(path)
        self._checked: set[tuple[str, int]] = set()
        # Without a stage, the path is from the user and may be any file.
        advice = f"delete it, and snakemake makes it again{by_rule(stage)}" if stage else "expected what a rule wrote"
        if not self.path.is_file():
            raise UserError(f"{path} does not exist{f': snakemake makes it{by_rule(stage)}' if stage else ''}.")
        try:
            self._file = _open(self.path)
            self.names = sorted(self._file.keys())
            shapes = {name: self._file.get_slice(name).get_shape() for name in self.names}
            self.header = read_header(self._file.metadata() or {}, shapes)
        except (SafetensorError, OSError, ValueError) as error:
            reason = str(error).split("\n")[0][:200]
            raise UserError(f"{path} is damaged or not a file of this project ({reason}): {advice}.") from error
        made_by = self.header["stage"]
        if stage is not None and made_by != stage:
            raise UserError(f"{path} was made by the rule '{made_by}', not by '{stage}': {advice}.")
        self.identity = digest(self.header)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        self._expect(name)
        return tuple(self._file.get_slice(name).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        """Read a whole tensor; check its digest and that it is finite at the first reading.

        Raises:
            UserError: there is no such tensor, its bytes changed, or it is not finite.
        """
        self._expect(name)
        tensor = self._file.get_tensor(name)
        if isinstance(self.header["digests"][name], list):
            for row in range(len(tensor)):
                self._check(name, row, tensor[row])
        else:
            self._check(name, -1, tensor)
        return tensor

    def row(self, name: str, index: int) -> torch.Tensor:
        """Read one row of a tensor that was saved with row digests; only the bytes of this row are read.

        Raises:
            UserError: as ``tensor``.
        """
        self._expect(name)
        row: torch.Tensor = self._file.get_slice(name)[index]
        self._check(name, index, row)
        return row

    def _expect(self, name: str) -> None:
        if name not in self.header["digests"]:
            raise UserError(f"{self.path} has no tensor '{name}' (it has {', '.join(self.names)}).")

    def _check(self, name: str, row: int, tensor: torch.Tensor) -> None:
        """Check digest and finiteness of a row, or of the whole tensor if ``row`` is -1."""
        if (name, row) in self._checked:
            return
        stored = self.header["digests"][name]
        if tensor_digest(tensor) != (stored if row < 0 else stored[row]):
            raise UserError(
                f"{self.path}: the content of '{name}' does not match its digest, the file was altered: "
                f"delete it, and snakemake makes it again{by_rule(self.header['stage'])}."
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{self.path}: '{name}' has values that are not finite.")
        self._checked.add((name, row))
