"""Where an artifact comes from: what its path says, the files it was made from, the command that makes it again."""

import json
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import yaml

from mkdt.artifacts import Artifact, Header, digest
from mkdt.config.loading import load
from mkdt.config.plan import EXPERT_STAGES
from mkdt.config.registry import differences, registered
from mkdt.config.result_folders import REGISTRY
from mkdt.config.sections import Config
from mkdt.config.stages import STAGES, maker, place
from mkdt.errors import UserError
from mkdt.jobs.code_digest import SCRIPTS, stage_code


@dataclass(frozen=True)
class Place:
    """Where an artifact lies in the results of a project.

    Attributes:
        results: the results folder, absolute.
        path: of the file below it.
        names: what the path says: dataset; or source, teacher, expert_student, expert; or experiment, method, and so on.
    """

    results: Path
    path: Path
    names: dict[str, str]

    @property
    def shared(self) -> str:
        """The folder that experiments share it by, as ``registry.names`` has it; empty for an experiment's own files."""
        parts = ("dataset", "source", "teacher", "targets", "expert_student")
        return "/".join(self.names[key] for key in parts if key in self.names)

    def experiments(self) -> list[str]:
        """Return the experiments that it belongs to."""
        if "experiment" in self.names:
            return [self.names["experiment"]]
        files = sorted((self.results / REGISTRY).glob("*.json"))
        return [file.stem for file in files if self.shared in registered(file)]

    def configs(self) -> Iterator[tuple[Path, Config | UserError]]:
        """Yield the file and the config of each of its experiments as it ran last, or why that is none any more."""
        for experiment in self.experiments():
            file = self.results / REGISTRY / f"{experiment}.yaml"
            if not file.is_file():
                continue
            loaded: Config | UserError
            with chdir(self.results.parent):  # paths in a config are relative to the project's folder
                try:
                    loaded = load(yaml.safe_load(file.read_text(encoding="utf-8")))
                except UserError as error:
                    loaded = error
            yield file, loaded


def place_of(path: str | Path) -> Place | None:
    """Return what the path of an artifact says; None outside of a results folder, or where the rules put no file."""
    full = Path(path).resolve()
    for folder in full.parents:
        if (folder / REGISTRY).is_dir():
            below = full.relative_to(folder)
            if known := place(below):
                return Place(folder, below, known[1])
    return None


class Family:
    """The artifacts of a results folder by identity, so that inputs are found whatever they are called.

    Attributes:
        files: path of each identity; for the digest of several experts the first one's.
        counts: of how many experts a digest is.
    """

    def __init__(self, results: Path) -> None:
        """Read the headers of all artifacts below ``results``; damaged ones are nobody's input."""
        self.files: dict[str, Path] = {}
        self.counts: dict[str, int] = {}
        groups: dict[Path, list[str]] = {}
        for path in sorted(results.glob("[!.]*/**/*.safetensors")):
            try:
                file = Artifact(path)
            except UserError:
                continue
            self.files[file.identity] = path
            if (
                file.header["stage"] in EXPERT_STAGES
            ):  # a stage that reads several notes one digest, of the first n of a folder
                group = groups.setdefault(path.parent, [])
                group.append(file.identity)
                self.files[digest(group)] = path.parent / "000.safetensors"
                self.counts[digest(group)] = len(group)

    def ancestors(
        self, header: Header, depth: int = 0, seen: set[str] | None = None
    ) -> Iterator[tuple[int, str, str, Path | None]]:
        """Yield (depth, role, identity, path) of every input, its own inputs after its first mention.

        The path is None where the input is not in these results.
        """
        seen = set() if seen is None else seen
        for role, identity in sorted(header["inputs"].items()):
            path = self.files.get(identity)
            yield depth, role, identity, path
            if path is not None and identity not in seen:
                seen.add(identity)
                yield from self.ancestors(Artifact(path).header, depth + 1, seen)

    def ancestor(self, header: Header, stage: str) -> Artifact | None:
        """Return the nearest input that a stage made."""
        paths = [(depth, path) for depth, _, _, path in self.ancestors(header) if path is not None]
        for _, path in sorted(paths, key=lambda item: item[0]):
            if Artifact(path).header["stage"] == stage:
                return Artifact(path)
        return None


@dataclass(frozen=True)
class Recipe:
    """How to make an artifact again.

    Attributes:
        command: to run in the project's folder.
        difference: in what the recorded config differs from the file's settings; empty where they agree.
    """

    command: str
    difference: str


def recipe(where: Place, header: Header) -> Recipe | None:
    """Return the command that makes an artifact again, by the config that its experiment ran with last.

    Where several experiments share it, one whose settings are the file's is taken. None where no config was recorded.
    """
    chosen: Recipe | None = None
    for file, config in where.configs():
        difference = _difference(where, header, config)
        results = where.results.name
        command = f"snakemake --cores 2 {results}/{where.path} --force --configfile {results}/{REGISTRY}/{file.name}"
        if chosen is None or not difference:
            chosen = Recipe(command, difference)
    return chosen


def _difference(where: Place, header: Header, config: Config | UserError) -> str:
    if isinstance(config, UserError):
        return f"it no longer applies: {config}"
    try:
        with chdir(where.results.parent):
            settings = maker(config, header["stage"], where.names).slice(config, where.names)
    except (UserError, KeyError) as error:
        return f"it no longer applies: {error}"
    recorded = json.loads(json.dumps(settings))
    return differences({key: header["parameters"].get(key) for key in recorded}, recorded)


def same_code(where: Place, header: Header) -> bool | None:
    """Return whether this checkout's code for the stage is what made the file.

    None if no config of its experiments says, or the package is installed without the workflow's scripts.
    """
    if not SCRIPTS.is_dir():
        return None
    compared = False
    makers = [stage for stage in STAGES.values() if stage.artifact == header["stage"] and stage.makes(where.path)]
    for _, config in where.configs():
        if isinstance(config, UserError):
            continue
        for stage in makers:
            try:
                code = stage_code(stage, config, where.names)
            except KeyError:  # the config no longer names it
                continue
            compared = True
            if code == header["code"]:
                return True
    return False if compared else None
