"""Where an artifact comes from: what its path says, the files it was made from, the command that makes it again."""

import json
import re
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import yaml

from mkdt.artifacts import Artifact, Header, digest
from mkdt.config import loading as cfg
from mkdt.config.extensions import own_modules
from mkdt.config.methods import METHODS
from mkdt.errors import UserError
from mkdt.jobs.code_digest import PACKAGE, code_digest

REGISTRY = ".experiments"  # in the results; `config.register` writes it
SCRIPTS = PACKAGE.parents[1] / "workflow" / "scripts"
# Paths below the results, without suffix (docs/artifacts.md). The second and third name what experiments share.
PLACES = [
    re.compile(r"(?P<dataset>[^/]+)/data"),
    re.compile(r"(?P<source>[^/]+)/(?P<teacher>[^/]+)/(teacher|targets)"),
    re.compile(r"(?P<source>[^/]+)/(?P<teacher>[^/]+)/(?P<student>[^/]+)/experts/(?P<expert>\d+)"),
    re.compile(r"(?P<experiment>[^/]+)/ssl_experts/(?P<expert>\d+)"),
    re.compile(r"(?P<experiment>[^/]+)/sets/(?P<method>[^/]+)/(?P<budget>[^/]+)/(?P<distill_seed>\d+)"),
    re.compile(
        r"(?P<experiment>[^/]+)/pretrain/(?P<student>[^/]+)/(?P<method>[^/]+)/(?P<budget>[^/]+)/(?P<distill_seed>\d+)/(?P<seed>\d+)"
    ),
]


@dataclass(frozen=True)
class Place:
    """Where an artifact lies in the results of a project.

    Attributes:
        results: the results folder, absolute.
        path: of the file below it.
        names: what the path says: dataset; or source, teacher, student, expert; or experiment, method, and so on.
    """

    results: Path
    path: Path
    names: dict[str, str]

    @property
    def shared(self) -> str:
        """The folder that experiments share it by, as ``config.names`` has it; empty for an experiment's own files."""
        return "/".join(self.names[key] for key in ("dataset", "source", "teacher", "student") if key in self.names)

    def experiments(self) -> list[str]:
        """The experiments that it belongs to."""
        if "experiment" in self.names:
            return [self.names["experiment"]]
        files = sorted((self.results / REGISTRY).glob("*.json"))
        return [file.stem for file in files if self.shared in cfg.registered(file)]


def place_of(path: str | Path) -> Place | None:
    """What the path of an artifact says; None outside of a results folder, or where the rules put no file."""
    full = Path(path).resolve()
    for folder in full.parents:
        if (folder / REGISTRY).is_dir():
            below = full.relative_to(folder)
            for pattern in PLACES:
                if found := pattern.fullmatch(below.with_suffix("").as_posix()):
                    return Place(folder, below, found.groupdict())
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
                identity = Artifact(path).identity
            except UserError:
                continue
            self.files[identity] = path
            if path.parent.name in {
                "experts",
                "ssl_experts",
            }:  # a stage that reads several notes one digest, of the first n of a folder
                group = groups.setdefault(path.parent, [])
                group.append(identity)
                self.files[digest(group)] = path.parent / "000.safetensors"
                self.counts[digest(group)] = len(group)

    def ancestors(
        self, header: Header, depth: int = 0, seen: set[str] | None = None
    ) -> Iterator[tuple[int, str, str, Path | None]]:
        """(depth, role, identity, path) of every input, its own inputs after the first mention; path None if not there."""
        seen = set() if seen is None else seen
        for role, identity in sorted(header["inputs"].items()):
            path = self.files.get(identity)
            yield depth, role, identity, path
            if path is not None and identity not in seen:
                seen.add(identity)
                yield from self.ancestors(Artifact(path).header, depth + 1, seen)

    def ancestor(self, header: Header, stage: str) -> Artifact | None:
        """The nearest input that a stage made."""
        found = [(depth, path) for depth, _, _, path in self.ancestors(header) if path is not None]
        for _, path in sorted(found, key=lambda item: item[0]):
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


def recipe(place: Place, header: Header) -> Recipe | None:
    """The command that makes an artifact again, by the config that its experiment ran with last.

    Where several experiments share it, one whose settings are the file's is taken. None where no config was recorded.
    """
    found: Recipe | None = None
    for experiment in place.experiments():
        file = place.results / REGISTRY / f"{experiment}.yaml"
        if not file.is_file():
            continue
        with chdir(place.results.parent):  # paths in a config are relative to the project's folder
            difference = _difference(place, header, file)
        results = place.results.name
        command = f"snakemake --cores 2 {results}/{place.path} --force --configfile {results}/{REGISTRY}/{file.name}"
        if found is None or not difference:
            found = Recipe(command, difference)
    return found


def _difference(place: Place, header: Header, file: Path) -> str:
    try:
        config = cfg.load(yaml.safe_load(file.read_text(encoding="utf-8")))
        given = {key: value for key, value in place.names.items() if key in ("dataset", "student", "method", "budget")}
        now = cfg.settings(config, header["stage"], **given)
    except (UserError, KeyError) as error:
        return f"it no longer applies: {error}"
    recorded = json.loads(json.dumps(now))
    return cfg.differences({key: header["parameters"].get(key) for key in recorded}, recorded)


def same_code(place: Place, header: Header) -> bool:
    """Whether this checkout's code for the stage is what made the file."""
    script, parameters = header["stage"], header["parameters"]
    if (script, True) in {("teacher", "checkpoint" in parameters), ("targets", "published" in parameters)}:
        script += "_import"
    modules = [METHODS[place.names["method"]].module] if script in {"subset", "own"} else []
    modules += own_modules(parameters["kind"]) if script == "data" else []
    modules += own_modules(parameters["student"]["architecture"]) if script in {"pretrain", "krr"} else []
    return code_digest(SCRIPTS / f"{script}.py", *modules) == header["code"]
