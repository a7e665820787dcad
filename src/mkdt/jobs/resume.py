"""Resume points: where a job saves what it needs to continue, and hard links to the outputs that it finished.

A resume folder lies outside of the outputs, since Snakemake removes those of a failed job. It is keyed by a digest of settings,
code, inputs and machine: a state of other settings is never taken.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from mkdt import artifacts
from mkdt.config.registry import differences
from mkdt.config.result_folders import KEPT, RESULTS, RESUME
from mkdt.errors import UserError

log = logging.getLogger("mkdt")


class ResumeFolder:
    """The resume folder of one job, or of several jobs that share finished members (experts, students).

    Attributes:
        folder: where it lies.
    """

    def __init__(self, place: Path, first: Path, key: Mapping[str, Any]) -> None:
        """Make the folder and lock it; wait where another job holds the lock.

        Args:
            place: below ``results/.resume``.
            first: first output of the job; state and lock are named after it.
            key: settings, code, inputs and machine (threads, device, torch), which decide the bits of the outputs. The log
                names what differs from the key of another folder.
        """
        self.folder = RESULTS / RESUME / place / artifacts.digest(key)[:16]
        self._key = key
        self._state = self.folder / f"{first.stem}.state.pt"
        known = self.folder.is_dir()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / f"{first.name}.lock")
        try:
            self._lock.acquire(timeout=0.5)
        except TimeoutError:
            log.info("another job works on %s: waiting for it.", first)
            self._lock.acquire()  # SIGTERM ends the wait: before the first resume point it stops the job at once
        if not known:
            artifacts.write_text(self.folder / "settings.json", artifacts.canonical(key))
            self._name_difference(key)

    def _name_difference(self, key: Mapping[str, Any]) -> None:
        for other in sorted(self.folder.parent.glob("*/settings.json")):
            if other.parent != self.folder and any(other.parent.glob("*state.pt")):
                old = json.loads(other.read_text(encoding="utf-8"))
                log.info("set aside: %s has other settings (%s).", other.parent, differences(old, key))

    @property
    def scratch(self) -> Path:
        """A folder for what is too large for the state; it stays until the job is done."""
        folder = self.folder / "scratch"
        folder.mkdir(exist_ok=True)
        return folder

    def load(self) -> dict[str, Any] | None:
        """Return the state that an earlier job saved; None where there is none. Set a damaged one aside."""
        if not self._state.is_file():
            return None
        try:
            saved: dict[str, Any] = torch.load(self._state, map_location="cpu", weights_only=True)
            if saved.pop("digest") != artifacts.state_digest(saved):
                raise ValueError("its content does not match its digest")
        except Exception as error:
            self._state.rename(self._state.with_suffix(".damaged"))
            log.warning("the resume state %s is damaged (%s): set aside, starting anew.", self._state, error)
            return None
        log.info("resuming from %s.", self._state)
        return saved

    def save(self, state: dict[str, Any]) -> None:
        """Save a state with a digest of itself, whole or not at all."""
        state = state | {"digest": artifacts.state_digest(state)}
        artifacts.write_atomically(self._state, lambda path: save_state(state, path))

    def restore(self, path: Path, stage: str) -> artifacts.Artifact | None:
        """Give a finished tensor file its name back and return it; None where it is not kept, or damaged.

        One with equal settings, code, inputs and precision is as good if it was finished on another machine (threads, device,
        torch): Snakemake keeps it too, as long as nothing else of its job is missing.
        """
        for kept in (self.folder / path.name, *sorted(self.folder.parent.glob(f"*/{path.name}"))):
            artifact = self._same(kept, stage) if kept.is_file() else None
            if artifact is not None:
                _link(kept, path)
                log.info("%s was finished before: taken from the resume folder.", path)
                return artifact
        return None

    def _same(self, kept: Path, stage: str) -> artifacts.Artifact | None:
        """Open a kept file that was made with this folder's settings, code and inputs, and read all of it; remove a damaged one."""
        settings = json.loads(artifacts.canonical(self._key["settings"]))
        try:
            artifact = artifacts.Artifact(kept, stage)
            header = artifact.header
            if any(header["parameters"].get(name) != value for name, value in settings.items()):
                return None
            if any(header[part] != self._key[part] for part in ("code", "inputs")):
                return None
            if header["notes"].get("precision") != self._key["machine"].get("precision"):
                return None
            for name in artifact.names:
                artifact.tensor(name)
        except UserError as error:
            log.warning("not reused: %s", error)
            kept.unlink()
            return None
        return artifact

    def keep(self, path: Path) -> None:
        """Keep a finished output: a second name of the same file, no second copy."""
        _link(path, self.folder / path.name)

    def holds_all(self, outputs: Iterable[Path]) -> bool:
        """Return whether all outputs are kept here, with the digests that were noted when they were finished."""
        files = list(outputs)
        if not all((self.folder / file.name).is_file() for file in files):
            return False
        try:
            noted = json.loads((self.folder / KEPT).read_text(encoding="utf-8"))
            altered = [file.name for file in files if content_digest(self.folder / file.name) != noted[file.name]]
        except (OSError, ValueError, LookupError, TypeError, UserError) as error:
            log.warning("not reused, the record of what was kept is damaged or missing: %s.", error)
            return False
        if altered:
            log.warning("not reused, %s in %s was altered.", altered[0], self.folder)
        return not altered

    def link_back(self, path: Path) -> None:
        """Give a kept output that is no tensor file its name back."""
        _link(self.folder / path.name, path)

    def keep_all(self, outputs: Iterable[Path]) -> None:
        """Keep all outputs of a finished job, and note their digests."""
        files = [path for path in outputs if path.is_file()]
        for path in files:
            self.keep(path)
        noted = {path.name: content_digest(path) for path in files}
        artifacts.write_text(self.folder / KEPT, artifacts.canonical(noted))

    def clear(self) -> None:
        """Remove the state of a finished job."""
        self._state.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "scratch", ignore_errors=True)

    def release(self) -> None:
        """Unlock the folder."""
        self._lock.release()


def bytes_in_use(outputs: Iterable[Path]) -> int:
    """Return the bytes that earlier jobs of these outputs left in a resume folder of theirs, at most."""
    files = list(outputs)
    first = files[0]
    names, sizes = {*(path.name for path in files), f"{first.stem}.state.pt"}, [0]
    for place in (first, first.parent):  # a folder of one job, or of several that share members
        for folder in (RESULTS / RESUME / place.relative_to(RESULTS)).glob("*/"):
            left = [file for file in folder.glob("*") if file.name in names] + [*folder.glob("scratch/*")]
            sizes.append(sum(file.stat().st_size for file in left))
    return max(sizes)


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a state with ``torch.save``.

    Raises:
        OSError: the disk is full.
    """
    try:
        torch.save(state, path)
    except RuntimeError as error:  # torch's word for a full disk
        raise OSError(str(error).split("\n")[0]) from error


def content_digest(path: str | Path) -> str:
    """Return the identity of an artifact, or the SHA-256 (hex) of any other file."""
    if Path(path).suffix == ".safetensors":
        return artifacts.Artifact(path).identity
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _link(source: Path, target: Path) -> None:
    """Make ``target`` a second name of ``source``; a copy where the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        temporary.unlink()
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # a rename onto another name of the same file does nothing
