"""Provenance: open the inputs of a job as what they must be, and write its outputs with what made them."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mkdt import artifacts
from mkdt.config.methods import SET_STAGES
from mkdt.config.registry import differences
from mkdt.config.result_folders import RESULTS
from mkdt.config.sections import Config, Settings
from mkdt.config.stages import STAGES, maker, place, targets_path
from mkdt.errors import UserError
from mkdt.jobs.tracking import Run
from mkdt.networks.precision import current

IDENTITIES = 250  # in one tag, each cut to 16 digits: MLflow takes 8000 characters


class Provenance:
    """The inputs and outputs of one job.

    Attributes:
        identities: by role the identity of each input that was opened.
        opened: paths of the inputs that were opened.
    """

    def __init__(self, stage: str, config: Config, settings: Settings, code: str, run: Run) -> None:
        """Note what made the outputs: the stage, the slice of the config it was given, and the digest of its code."""
        self._stage, self._config, self._settings, self._code, self._run = stage, config, settings, code, run
        self.identities: dict[str, str] = {}
        self.opened: set[str] = set()

    def open(self, role: str, path: str | Path, artifact: str | None = None) -> artifacts.Artifact:
        """Open an input and remember its identity, for the outputs' headers and for the resume state.

        Args:
            role: of the input.
            path: its file.
            artifact: what it must be; None for a file that the user brings.

        Raises:
            UserError: it is damaged, of another stage or of another run, or it lacks images where ``data.on_error`` wants
                all of them.
        """
        file = self._checked(path, artifact)
        self._check_complete(file)
        self.note(role, file.identity, path)
        if file.header["stage"] in {"data", *SET_STAGES}:  # images to train on or to score with
            name = Path(path).with_suffix("").as_posix().removeprefix(f"{RESULTS}/").removesuffix("/data")
            context = "evaluation" if self._stage in {"select", "probe", "report"} else "training"
            shapes = {key: file.shape(key) for key in file.names}
            self._run.dataset(name, file.identity[:32], str(path), context, shapes)
        return file

    def open_all(self, role: str, paths: Sequence[str], artifact: str) -> list[artifacts.Artifact]:
        """Open several inputs under one role, as ``open`` does."""
        files = [self._checked(path, artifact) for path in paths]
        self.opened |= set(map(str, paths))
        self.identities[role] = artifacts.digest([file.identity for file in files])
        for first in range(0, len(files), IDENTITIES):
            part = [file.identity[:16] for file in files[first : first + IDENTITIES]]
            self._run.tag(f"input.{role}{f'.{first}' if first else ''}", ",".join(part))
        return files

    def note(self, role: str, identity: str, path: str | Path | None = None) -> None:
        """Remember the identity of an input; files from outside the project, which nobody opens here, need it said."""
        self.opened |= {str(path)} if path else set()
        self.identities[role] = identity
        self._run.tag(f"input.{role}", identity)

    def save(
        self,
        path: str | Path,
        tensors: Mapping[str, torch.Tensor],
        rows: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Write an output with this job's provenance.

        Args:
            path: file to make.
            tensors: by name.
            rows: names of tensors whose digest is kept for each row.
            parameters: join those that the stage was given.
            notes: what a reader should know besides.
        """
        stage = STAGES[self._stage]
        precision = {"precision": current()} if stage.gpu else {}  # of the others the device decides no digit
        artifacts.save(
            path,
            tensors,
            stage=stage.artifact,
            parameters=self._settings | dict(parameters or {}),
            code=self._code,
            inputs=self.identities,
            rows=rows,
            notes={"place": _below_results(path)} | precision | dict(notes or {}),
        )
        self._run.tag(f"output.{Path(path).name}", artifacts.Artifact(path).identity)

    def _check_complete(self, file: artifacts.Artifact) -> None:
        skipped = file.header.get("notes", {}).get("skipped", [])
        # No setting of the stage `data`: with it, every set would be decoded and used anew for one that has a bad file.
        if skipped and self._config["data"]["on_error"] == "fail":
            raise UserError(
                f"{file.path} was decoded without {len(skipped)} images that could not be read (the first is {skipped[0]}), "
                "and data.on_error is fail: set it to skip, or repair them and run with --forcerun data."
            )

    def _checked(self, path: str | Path, artifact: str | None) -> artifacts.Artifact:
        """Open an artifact and refuse one that this run did not make: it was swapped, or copied there from elsewhere.

        Snakemake makes again whatever a change of the config or of a file touches, before it is read; so no file of this
        run differs.

        Raises:
            UserError: it is damaged, of another stage, or of another run: made under another name of the results, by
                other settings, or from other data, teacher or targets than those that are there.
        """
        file = artifacts.Artifact(path, artifact)
        made, here = file.header.get("notes", {}).get("place"), _below_results(path)
        again = f"delete it, and snakemake makes it again{artifacts.by_rule(file.header['stage'])}"
        if None not in (made, here) and made != here:
            raise UserError(f"{path} is a whole file, but was made as {RESULTS / made}: put it back, or {again}.")
        if artifact is None or here is None or made is None:  # brought from outside
            return file
        _, names = place(here) or ("", {})
        now = json.loads(artifacts.canonical(maker(self._config, artifact, names).slice(self._config, names)))
        then = {key: file.header["parameters"].get(key) for key in now}
        if then != now:
            raise UserError(
                f"{path} is a whole file, but of another run, with other settings ({differences(then, now)}): {again}."
            )
        for role, shared in self._shared.items():
            if file.header["inputs"].get(role, shared.identity) != shared.identity:
                raise UserError(
                    f"{path} is a whole file, but was made from another file of the rule '{role}' than {shared.path}: {again}."
                )
        return file

    @cached_property
    def _shared(self) -> dict[str, artifacts.Artifact]:
        """By role the artifacts that much is made from, those that are there."""
        names = {"dataset": self._config["source"]}
        paths = {role: Path(STAGES[role].path(self._config, role, names)) for role in ("data", "teacher")}
        paths["targets"] = Path(targets_path(self._config))
        return {role: artifacts.Artifact(path, role) for role, path in paths.items() if path.is_file()}


def _below_results(path: str | Path) -> str | None:
    """Return a path below the results; None for one outside."""
    path = Path(path)
    return path.relative_to(RESULTS).as_posix() if path.is_relative_to(RESULTS) else None
