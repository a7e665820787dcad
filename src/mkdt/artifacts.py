"""Safe files: tensors with a provenance header, JSON lines and pictures, each whole or not at all."""

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

from mkdt.errors import UserError

# safetensors writes several metadata keys in random order; one key keeps equal runs equal in every byte.
HEADER_KEY = "mkdt"
FORMAT = 1

Header = dict[str, Any]


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 (hex) of a tensor's dtype, shape and bytes in row-major order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    sha = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    sha.update(flat.view(torch.uint8).numpy().data)
    return sha.hexdigest()


def state_digest(state: Any) -> str:
    """SHA-256 (hex) of nested dicts and lists of tensors and plain values, as a resume state is."""
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
    """Let ``write`` fill a temporary file beside ``path``, then fsync and rename it into place.

    Raises:
        UserError: the disk is full or the folder cannot be written; nothing is left under ``path``.
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
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; a results folder is often shared
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
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_table(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with equal keys as CSV with plain numbers, atomically."""
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())


def write_picture(path: str | Path, picture: torch.Tensor) -> None:
    """Write a PNG from ``picture``, uint8 [C,H,W] with C = 1 or 3, atomically."""
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
    """Write ``tensors`` as safetensors with a header that says what made them.

    Args:
        path: file to make, whole or not at all.
        tensors: named tensors; floating ones must be finite.
        stage: the rule that makes the file.
        parameters: the settings that the stage was given (JSON).
        code: digest of the stage's code.
        inputs: identity of every artifact that the stage read, by role.
        rows: names of tensors whose digest is kept for each row, so that a single row can be checked.
        notes: what a reader should know besides (JSON); no entry where it is empty.

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
    metadata = {HEADER_KEY: canonical(header | {"check": digest(header)})}
    write_atomically(path, lambda temporary: save_file(prepared, temporary, metadata))


def by_rule(stage: str | None) -> str:
    """Which rule makes a file, to end a sentence with; rules of several jobs of a stage have its name and their numbers."""
    return f" with the rule '{stage}'" if stage else ""


def _open(path: Path) -> Any:
    """Open a tensor file. safetensors opens it twice, by name: again, until no other file took the name meanwhile."""
    while True:
        before = os.stat(path)
        file = safe_open(path, "pt")
        if os.path.samestat(before, os.stat(path)):
            return file


def _expect_form(header: Header, shapes: Mapping[str, Sequence[int]]) -> None:
    """A header has the entries that ``save`` writes, whoever wrote it: its digest only says that nobody altered it since.

    Raises:
        ValueError: an entry is missing, of another type, or does not fit the tensors' shapes.
    """
    forms: dict[str, type | tuple[type, ...]] = {"stage": str, "code": str, "inputs": dict, "digests": dict}
    wrong = [key for key, form in forms.items() if not isinstance(header.get(key), form)]
    if not isinstance(header.get("notes", {}), dict) or not isinstance(
        header.get("notes", {}).get("skipped", []), list
    ):
        wrong.append("notes")
    if header["format"] != FORMAT or "parameters" not in header or wrong:
        raise ValueError(f"its header has no proper {', '.join(wrong) or 'format'}")
    for name in {*shapes, *header["digests"]}:
        kept, shape = header["digests"].get(name), shapes.get(name)
        by_row = isinstance(kept, list) and shape and len(kept) == shape[0]
        if shape is None or not (isinstance(kept, str) or by_row):
            raise ValueError(f"its digests do not fit the tensor '{name}'")


class Artifact:
    """A tensor file of this project, memory-mapped and checked as it is read.

    Attributes:
        path: the file.
        header: its provenance (stage, parameters, code, inputs, digests).
        identity: digest of the header, which itself holds the digests of all tensors.
    """

    def __init__(self, path: str | Path, stage: str | None = None) -> None:
        """Open ``path``; with ``stage``, refuse a file that another stage made.

        Raises:
            UserError: the file is missing, truncated, not this project's, or of another stage.
        """
        self.path = Path(path)
        self._checked: set[tuple[str, int]] = set()
        # Of a path that a user gave nobody knows whether it is a rule's.
        again = f"delete it, and snakemake makes it again{by_rule(stage)}" if stage else "expected what a rule wrote"
        if not self.path.is_file():
            raise UserError(f"{path} does not exist{f': snakemake makes it{by_rule(stage)}' if stage else ''}.")
        try:
            self._file = _open(self.path)
            self.header: Header = json.loads((self._file.metadata() or {})[HEADER_KEY])
            self.names = sorted(self._file.keys())
            if self.header.pop("check") != digest(self.header):
                raise ValueError("the header does not match its digest")
            _expect_form(self.header, {name: self._file.get_slice(name).get_shape() for name in self.names})
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            reason = str(error).split("\n")[0][:200]
            raise UserError(f"{path} is damaged or not a file of this project ({reason}): {again}.") from error
        made_by = self.header["stage"]
        if stage is not None and made_by != stage:
            raise UserError(f"{path} was made by the rule '{made_by}', not by '{stage}': {again}.")
        self.identity = digest(self.header)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        self._expect(name)
        return tuple(self._file.get_slice(name).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        """A whole tensor, its digest and finiteness checked at the first reading.

        Raises:
            UserError: there is no such tensor, or its bytes are not those that were written.
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
        """One row of a tensor that was saved with row digests; only its bytes are read."""
        self._expect(name)
        row: torch.Tensor = self._file.get_slice(name)[index]
        self._check(name, index, row)
        return row

    def _expect(self, name: str) -> None:
        if name not in self.header["digests"]:
            raise UserError(f"{self.path} has no tensor '{name}' (it has {', '.join(self.names)}).")

    def _check(self, name: str, row: int, tensor: torch.Tensor) -> None:
        if (name, row) in self._checked:
            return
        wanted = self.header["digests"][name]
        if tensor_digest(tensor) != (wanted if row < 0 else wanted[row]):
            raise UserError(
                f"{self.path}: the content of '{name}' does not match its digest, the file was altered: "
                f"delete it, and snakemake makes it again{by_rule(self.header['stage'])}."
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{self.path}: '{name}' has values that are not finite.")
        self._checked.add((name, row))
